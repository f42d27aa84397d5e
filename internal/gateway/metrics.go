package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	callbacks *prometheus.CounterVec
	pairs     *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		callbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_callbacks_total",
			Help: "Callbacks by app and what became of them: stored, duplicate, verified, signature, receive_id, malformed, too_large, unavailable, full, refused.",
		}, []string{"app", "result"}),
		pairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_callback_key_uses_total",
			Help: "Callbacks by the Token and EncodingAESKey pair that opened them, 0 being the newest. An old pair that stays at rest can go.",
		}, []string{"app", "pair"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "bridge_callback_duration_seconds",
			Help:    "From the header of a callback to its answer, for those that were stored.",
			Buckets: []float64{.00025, .0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1},
		}, []string{"app"}),
	}
	reg.MustRegister(m.callbacks, m.pairs, m.seconds)
	return m
}

// appMetrics are the counters of one app, looked up once.
type appMetrics struct {
	verified, tooLarge, new, duplicate prometheus.Counter
	refused, unstored                  *prometheus.CounterVec
	pair                               []prometheus.Counter
	seconds                            prometheus.Observer
}

func (m *metrics) of(app string, pairs int) appMetrics {
	a := appMetrics{
		verified:  m.callbacks.WithLabelValues(app, "verified"),
		tooLarge:  m.callbacks.WithLabelValues(app, "too_large"),
		new:       m.callbacks.WithLabelValues(app, "stored"),
		duplicate: m.callbacks.WithLabelValues(app, "duplicate"),
		refused:   m.callbacks, unstored: m.callbacks,
		seconds: m.seconds.WithLabelValues(app),
	}
	for i := range pairs {
		a.pair = append(a.pair, m.pairs.WithLabelValues(app, strconv.Itoa(i)))
	}
	return a
}

func (a *appMetrics) stored(duplicate bool, took time.Duration) {
	if duplicate {
		a.duplicate.Inc()
	} else {
		a.new.Inc()
	}
	a.seconds.Observe(took.Seconds())
}

// registerDurability shows what a 200 of this process survives.
func registerDurability(reg prometheus.Registerer, mode string) {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "bridge_durability_info",
		Help: "What a stored event survives: fsync a power cut, interval a crash of the process; unknown if the outside NATS was not asked.",
	}, []string{"mode"})
	g.WithLabelValues(mode).Set(1)
	reg.MustRegister(g)
}
