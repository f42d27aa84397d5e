package bench

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	r := report{
		conns: 64,
		cells: []cell{cells[0], cells[1], cells[4]},
		runs: [][]measure{
			{{rate: 50000, p50: 1, p99: 3, cpu: 17, allocs: 20, peak: 12}, {rate: 60000, p50: 1.2, p99: 4, cpu: 16, allocs: 20, peak: 13}, {rate: 40000, p50: 2, p99: 9, cpu: 20, allocs: 21, peak: 12}},
			{{rate: 45000, p50: 1, p99: 3, cpu: 17, allocs: 24}, {rate: 51000, p50: 1, p99: 3, cpu: 20, allocs: 24}, {rate: 38000, p50: 1, p99: 3, cpu: 20, allocs: 24}},
			{{rate: 20000, cpu: 34, brokerCPU: 14, allocs: 56, errors: 2}, {rate: 24000, cpu: 31, brokerCPU: 12, allocs: 56, short: true}, {rate: 16000, cpu: 44, brokerCPU: 15, allocs: 56}},
		},
	}
	var out strings.Builder
	r.print(&out)
	want := `
64 connections                     req/s  spread  p50 ms  p99 ms   CPU  NATS CPU  allocs  peak MB  errors       req/s ÷ chi         CPU ÷ chi
bare chi: body read, 200          50,000    40 %    1.20    4.00  17.0         -      20       13       0  1.00 (1.00–1.00)  1.00 (1.00–1.00)
gateway, no publish               45,000    29 %    1.00    3.00  20.0         -      24        0       0  0.90 (0.85–0.95)  1.00 (1.00–1.25)
gateway, NATS over TCP, interval  20,000    40 %    0.00    0.00  34.0      14.0      56        0       2  0.40 (0.40–0.40)  2.00 (1.94–2.20)
goal: gateway, no publish: req/s ≥ 0.85× reached, CPU ≤ 1.2× reached
goal: gateway, NATS over TCP, interval: req/s ≥ 0.42× NOT reached, CPU ≤ 2.0× reached, allocs ≤ 55 NOT reached
(load generator: CPU 0.0)
(used up their callbacks before the time: tcp)
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	// Without the bare handler there is nothing to compare with.
	r.cells, r.runs = r.cells[1:2], r.runs[1:2]
	out.Reset()
	r.print(&out)
	if got := out.String(); strings.Contains(got, "goal") || !strings.Contains(got, "45,000") {
		t.Errorf("without chi: got\n%s", got)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		list []float64
		want float64
	}{
		{[]float64{7}, 7},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.list); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.list, got, c.want)
		}
	}
}
