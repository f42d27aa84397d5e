package env

import (
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// What follows trades memory for time. The programs keep a few megabytes alive and make
// much garbage, so that collecting it a quarter as often costs some fifteen more. With
// the server in the process, the ids that it remembers are alive too, and count.
const (
	gcPercent       = 400
	gcPercentServer = 200
)

// TuneMemory sets how the runtime collects garbage, unless GOGC or GOMEMLIMIT say
// otherwise: less often, but never beyond nine tenths of what the container may have.
// server says that a NATS server runs in this process.
func TuneMemory(server bool) {
	if os.Getenv("GOGC") == "" {
		percent := gcPercent
		if server {
			percent = gcPercentServer
		}
		debug.SetGCPercent(percent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		// Outside a limited container there is no limit to set.
		_, _ = memlimit.Set(memlimit.WithProvider(memlimit.FromCgroup), memlimit.WithRatio(.9))
	}
}
