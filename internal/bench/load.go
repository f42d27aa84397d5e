package bench

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// patience is how long the last answers are waited for when the time is up.
	patience = 5 * time.Second
	// slowest is the longest latency that the histogram can tell from longer ones.
	slowest = 10 * time.Second
)

// load is what came of sending requests for a while.
type load struct {
	ok      int                     // answers with status 200
	bad     map[string]int          // everything else, by what it was
	took    time.Duration           // from the first request to the last answer
	latency *hdrhistogram.Histogram // of the 200s, in microseconds
}

func newLoad() load {
	return load{bad: make(map[string]int), latency: hdrhistogram.New(1, slowest.Microseconds(), 3)}
}

// errors returns how many requests were not answered 200.
func (l *load) errors() int {
	n := 0
	for _, c := range l.bad {
		n += c
	}
	return n
}

// complaints says what the other answers were.
func (l *load) complaints() string {
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(l.bad)) {
		parts = append(parts, fmt.Sprintf("%d × %s", l.bad[what], what))
	}
	return strings.Join(parts, ", ")
}

func (l *load) add(o load) {
	l.ok += o.ok
	for what, n := range o.bad {
		l.bad[what] += n
	}
	l.took = max(l.took, o.took)
	l.latency.Merge(o.latency)
}
