package env

import (
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// gcPercent trades memory for time: the programs keep little alive and make much
// garbage, so that collecting half as often costs a few megabytes.
const gcPercent = 200

// TuneMemory sets how the runtime collects garbage, unless GOGC or GOMEMLIMIT say
// otherwise: less often, but never beyond nine tenths of what the container may have.
func TuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		// Outside a limited container there is no limit to set.
		_, _ = memlimit.Set(memlimit.WithProvider(memlimit.FromCgroup), memlimit.WithRatio(.9))
	}
}
