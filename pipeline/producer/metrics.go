package producer

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline/event"
)

// producerMetrics counts events by type and result. It is safe for concurrent use.
type producerMetrics struct {
	events *prometheus.CounterVec
	sent   map[*event.Type]prometheus.Counter // never changed
}

func newProducerMetrics(reg prometheus.Registerer, types []*event.Type) *producerMetrics {
	m := &producerMetrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_producer_events_total",
		Help: "Events by type and result: sent (acknowledged by Kafka), rejected (a bad line), failed (not accepted by Kafka).",
	}, []string{"type", "result"}), map[*event.Type]prometheus.Counter{}}
	reg.MustRegister(m.events)
	for _, t := range types {
		m.sent[t] = m.events.WithLabelValues(t.Name, "sent")
	}
	return m
}

func (m *producerMetrics) countSent(t *event.Type) { m.sent[t].Inc() }

func (m *producerMetrics) countFailed(t *event.Type) {
	m.events.WithLabelValues(t.Name, "failed").Inc()
}

// countRejected counts a bad line. t is nil if its type is unknown.
func (m *producerMetrics) countRejected(t *event.Type) {
	name := "unknown"
	if t != nil {
		name = t.Name
	}
	m.events.WithLabelValues(name, "rejected").Inc()
}
