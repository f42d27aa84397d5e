package worker

import (
	"fmt"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
)

// failure is why something did not work, and what is to be done about it.
type failure struct {
	err   error
	final bool          // no repetition can mend it
	after time.Duration // otherwise: again after this; 0 leaves it to the bus, whose delay grows
}

func final(format string, args ...any) *failure {
	return &failure{err: fmt.Errorf(format, args...), final: true}
}

func again(format string, args ...any) *failure {
	return &failure{err: fmt.Errorf(format, args...)}
}

// verdict is the failure as the bus understands it.
func (f *failure) verdict() error {
	switch {
	case f.final:
		return bus.Reject(f.err)
	case f.after > 0:
		return bus.RetryAfter(f.after, f.err)
	}
	return f.err
}
