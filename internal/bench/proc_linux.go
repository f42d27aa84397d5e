package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const supported = true

// tick is the unit of the times in /proc/PID/stat: USER_HZ, which is 100 wherever Go runs.
const tick = 10 * time.Millisecond

var errProc = errors.New("not understood")

// cpuTime returns the processor time that a process has used, in user mode and in the
// kernel, to 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	name := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	// The second field, the command in brackets, may hold anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const utime, stime = 14 - 3, 15 - 3 // the fields are counted from 1, and the first here is the third
	if len(fields) <= stime {
		return 0, fmt.Errorf("%s: %w", name, errProc)
	}
	user, err1 := strconv.ParseInt(fields[utime], 10, 64)
	system, err2 := strconv.ParseInt(fields[stime], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%s: %w", name, errProc)
	}
	return time.Duration(user+system) * tick, nil
}

// peakMemory returns the most memory that a process has held at a time, in bytes.
func peakMemory(pid int) (int64, error) {
	name := fmt.Sprintf("/proc/%d/status", pid)
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", name, errProc)
			}
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("%s: %w", name, errProc)
}

// inMemory reports whether the files of a directory lie in memory, where an fsync costs
// nothing.
func inMemory(dir string) bool {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return false
	}
	return s.Type == unix.TMPFS_MAGIC || s.Type == unix.RAMFS_MAGIC
}

// dieWithParent has the kernel kill a child when this process is gone, should the child
// not notice the end of its input.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
