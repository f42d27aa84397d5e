//go:build !linux

package bench

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"time"
)

// Elsewhere Run says so and does nothing: the generator needs epoll, and the processor
// time is read from /proc.
const supported = false

type generator struct{}

func dial(netip.AddrPort, int, int) (*generator, error) { return nil, errors.ErrUnsupported }

func (*generator) run(context.Context, func() []byte, time.Duration) (load, error) {
	return load{}, errors.ErrUnsupported
}

func (*generator) close() {}

func cpuTime(int) (time.Duration, error) { return 0, errors.ErrUnsupported }

func peakMemory(int) (int64, error) { return 0, errors.ErrUnsupported }

func inMemory(string) bool { return false }

func dieWithParent() *syscall.SysProcAttr { return nil }
