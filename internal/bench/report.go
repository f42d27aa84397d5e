package bench

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// report is what was measured with one number of connections.
type report struct {
	conns int
	cells []cell
	runs  [][]measure // by cell, by round
}

func (r *report) print(w io.Writer) {
	base := slices.IndexFunc(r.cells, func(c cell) bool { return c.role == roleChi })
	rows := [][]string{{
		fmt.Sprintf("%d connections", r.conns), "req/s", "spread", "p50 ms", "p99 ms", "CPU", "NATS CPU",
		"allocs", "peak MB", "errors", "req/s ÷ chi", "CPU ÷ chi",
	}}
	var loadCPU []float64
	var short []string
	var goals [][]string
	for i, c := range r.cells {
		runs := r.runs[i]
		of := func(f func(measure) float64) []float64 {
			list := make([]float64, len(runs))
			for j, m := range runs {
				list[j] = f(m)
			}
			return list
		}
		rate, cpu, allocs := of(func(m measure) float64 { return m.rate }), of(func(m measure) float64 { return m.cpu }), of(func(m measure) float64 { return m.allocs })
		errors := 0
		for _, m := range runs {
			errors += m.errors
			loadCPU = append(loadCPU, m.loadCPU)
			if m.short && !slices.Contains(short, c.name) {
				short = append(short, c.name)
			}
		}
		broker := "-"
		if c.tcp {
			broker = fixed(median(of(func(m measure) float64 { return m.brokerCPU })), 1)
		}
		row := []string{
			c.title, thousands(median(rate)), spread(rate),
			fixed(median(of(func(m measure) float64 { return m.p50 })), 2), fixed(median(of(func(m measure) float64 { return m.p99 })), 2),
			fixed(median(cpu), 1), broker,
			fixed(median(allocs), 0), fixed(slices.Max(of(func(m measure) float64 { return m.peak })), 0), strconv.Itoa(errors),
		}
		if base < 0 {
			rows = append(rows, append(row, "-", "-"))
			continue
		}
		chi := r.runs[base]
		rates, cpus := make([]float64, len(runs)), make([]float64, len(runs))
		for j := range runs {
			rates[j], cpus[j] = runs[j].rate/chi[j].rate, runs[j].cpu/chi[j].cpu
		}
		rows = append(rows, append(row, ratio(rates), ratio(cpus)))
		if verdict := c.goal.judge(median(rates), median(cpus), median(allocs)); verdict != "" {
			goals = append(goals, []string{"goal: " + c.title + ": " + verdict})
		}
	}
	fmt.Fprintln(w)
	printTable(w, rows)
	printTable(w, goals)
	fmt.Fprintf(w, "(load generator: CPU %s)\n", fixed(median(loadCPU), 1))
	if len(short) > 0 {
		fmt.Fprintf(w, "(used up their callbacks before the time: %s)\n", strings.Join(short, ", "))
	}
}

// judge says which of the goals were reached.
func (g goal) judge(rate, cpu, allocs float64) string {
	var parts []string
	add := func(what string, reached bool) {
		if reached {
			what += " reached"
		} else {
			what += " NOT reached"
		}
		parts = append(parts, what)
	}
	if g.rate > 0 {
		add(fmt.Sprintf("req/s ≥ %.2f×", g.rate), rate >= g.rate)
	}
	if g.cpu > 0 {
		add(fmt.Sprintf("CPU ≤ %.1f×", g.cpu), cpu <= g.cpu)
	}
	if g.allocs > 0 {
		add(fmt.Sprintf("allocs ≤ %.0f", g.allocs), allocs <= g.allocs)
	}
	return strings.Join(parts, ", ")
}

// median returns the middle of list, which must not be empty, or the mean of the two in
// the middle.
func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// spread returns how far the lowest and the highest of list are apart, for its median.
func spread(list []float64) string {
	m := median(list)
	if m == 0 {
		return "-"
	}
	return fixed(100*(slices.Max(list)-slices.Min(list))/m, 0) + " %"
}

func ratio(list []float64) string {
	return fmt.Sprintf("%.2f (%.2f–%.2f)", median(list), slices.Min(list), slices.Max(list))
}

func fixed(f float64, digits int) string { return strconv.FormatFloat(f, 'f', digits, 64) }

// thousands writes a number with commas.
func thousands(f float64) string {
	s := fixed(f, 0)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// printTable aligns the first column to the left and the others to the right.
func printTable(w io.Writer, rows [][]string) {
	var width []int
	for _, row := range rows {
		width = append(width, make([]int, max(0, len(row)-len(width)))...)
		for i, s := range row {
			width[i] = max(width[i], utf8.RuneCountInString(s))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, s := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(s))
			if i == 0 {
				line.WriteString(s + pad)
			} else {
				line.WriteString("  " + pad + s)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}
