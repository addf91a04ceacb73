// Package measure has the metrics of projections.
package measure

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the metrics of projections. Several Sets may share them.
type Metrics struct {
	Events    *prometheus.CounterVec
	Snapshots *prometheus.CounterVec
	Blocked   *prometheus.GaugeVec
	Unread    *prometheus.GaugeVec

	Unreadable *prometheus.CounterVec
}

// NewMetrics registers the metrics of projections.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		Events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_projection_events_total",
			Help: "Events by result: applied, ignored (the projection does not fold the type, no rule applies, or a tombstone has nothing to delete), late (the aggregate was deleted before, or the window is closed), duplicate (the event id was applied before), conflict (the sequence number was applied before), held (waits for the previous sequence number), blocked (cannot be folded; its aggregate waits for a release), mispartitioned (blocked because the event is not in the partition of its aggregate), queued (its aggregate is blocked), skipped (by a release), erased (its aggregate was erased), redriven (a dead letter that was sent back to a pipeline) or rejected (invalid; its aggregate is unknown). Held and queued events are counted again when they are folded.",
		}, []string{"projection", "result"}),
		Snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_snapshots_published_total",
			Help: "Snapshots in committed transactions.",
		}, []string{"projection"}),
		Blocked: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_projection_blocked_aggregates",
			Help: "Aggregates in this worker's partitions whose events wait for a release (projector blocked lists them).",
		}, []string{"projection"}),
	}
	m.Unread = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_projection_unread_offsets",
		Help: "Offsets in this worker's partitions that the topic had deleted before the projection read them. The states lack their events.",
	}, []string{"projection"})
	m.Unreadable = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_projection_unreadable_snapshots_total",
		Help: "Records of a snapshots topic that could not be read, and were skipped. Each restore counts them. The aggregate of an unreadable snapshot is blocked.",
	}, []string{"projection"})
	reg.MustRegister(m.Events, m.Snapshots, m.Blocked, m.Unread, m.Unreadable)
	return m
}

// Result is the result of an event.
type Result uint8

// The results of events. Metrics.Events says what they mean.
const (
	Ignored Result = iota
	Queued
	Blocked
	Mispartitioned
	Rejected
	Skipped
	Duplicate
	Late
	Conflict
	Held
	Applied
	Erased
	Redriven
	results
)

// names are the values of the label result.
var names = [results]string{"ignored", "queued", "blocked", "mispartitioned", "rejected", "skipped", "duplicate", "late", "conflict", "held", "applied", "erased", "redriven"}

func (r Result) String() string { return names[r] }

// Projection has the metrics of one projection.
type Projection struct {
	Events     [results]prometheus.Counter // by Result
	Published  prometheus.Counter
	Blocked    prometheus.Gauge
	Unread     prometheus.Gauge
	Unreadable prometheus.Counter
}

// Of returns the metrics of the projection with a label.
func (m *Metrics) Of(label string) Projection {
	p := Projection{
		Published: m.Snapshots.WithLabelValues(label), Blocked: m.Blocked.WithLabelValues(label),
		Unread: m.Unread.WithLabelValues(label), Unreadable: m.Unreadable.WithLabelValues(label),
	}
	for r, name := range names {
		p.Events[r] = m.Events.WithLabelValues(label, name)
	}
	return p
}
