package worker

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	events   *prometheus.CounterVec
	handlers *prometheus.HistogramVec
	messages *prometheus.CounterVec
	retries  *prometheus.CounterVec
	calls    *prometheus.HistogramVec
	latency  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	buckets := []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_events_handled_total",
			Help: "Runs of the built-in handler by app and outcome: answered, silent, failed. Failed ones are tried again or went to the dead letters.",
		}, []string{"app", "result"}),
		handlers: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bridge_handler_duration_seconds", Help: "One run of the built-in handler.", Buckets: buckets,
		}, []string{"app"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_messages_total",
			Help: "Outbox messages by app, api and how they ended: sent, partial, failed, expired, or known for one that a receipt showed to be done. Failed ones went to the dead letters; class says why: that of the errcode, transport, ambiguous, or local for what the sender itself refuses.",
		}, []string{"app", "api", "status", "class"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bridge_message_retries_total",
			Help: "Attempts that are repeated later, by class: of the errcode, transport, ambiguous if the message may have been sent, unknown-app.",
		}, []string{"app", "class"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bridge_send_duration_seconds", Help: "One call of WeCom's API, with a token where one had to be fetched.", Buckets: buckets,
		}, []string{"app"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bridge_message_latency_seconds", Help: "From the outbox to the stored receipt, for messages that were sent.", Buckets: buckets,
		}, []string{"app"}),
	}
	reg.MustRegister(m.events, m.handlers, m.messages, m.retries, m.calls, m.latency)
	return m
}
