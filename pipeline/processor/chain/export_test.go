package chain

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline/event"
	"millrace/pipeline/worker"
)

// Exported for tests in package chain_test.

const TrimEvery = trimEvery

type (
	Handler = handler
	Lanes   = lanes
	Table   = table
)

// testConfig returns the configuration of handlers of the worker. ids are the schema ids
// of the topic out.
func testConfig(w *worker.Worker, schemas event.Schemas, ids []int, metrics *Metrics, now func() time.Time) config {
	return config{topology: w.Topology, schemas: schemas, ids: map[string][]int{"out": ids}, kafka: w.Kafka, metrics: metrics, now: now, log: slog.New(slog.DiscardHandler)}
}

// NewHandler returns a handler of the first pipeline of the worker.
func NewHandler(w *worker.Worker, schemas event.Schemas, ids []int, metrics *Metrics, now func() time.Time) *Handler {
	return testConfig(w, schemas, ids, metrics, now).newHandler(w.Topology.Pipelines[0])
}

// NewLanes returns n lanes of the first pipeline of the worker.
func NewLanes(w *worker.Worker, schemas event.Schemas, ids []int, n int) *Lanes {
	return newLanes(testConfig(w, schemas, ids, NewMetrics(w.Metrics), time.Now), w.Topology.Pipelines[0], n)
}

// LastLane returns the lane of the last queued record.
func (l *lanes) LastLane() int { return l.queue[len(l.queue)-1].lane }

func (t *table) Name() string { return t.name }

func (t *table) Len() int { return t.shown.Load().rows.Len() }

// Missed returns the counter of the events for which a stage found no row.
func (m *Metrics) Missed(pipeline, stage string) prometheus.Counter {
	return m.stageMissed.WithLabelValues(pipeline, stage)
}

// Unreadable returns the counter of the unreadable records of a stage's state topic.
func (m *Metrics) Unreadable(pipeline, stage string) prometheus.Counter {
	return m.stateBad.WithLabelValues(pipeline, stage)
}

// Count returns a counter of the pipeline p by its outcome. dead counts the tombstones.
func (m *Metrics) Count(outcome string) prometheus.Counter {
	switch outcome {
	case "out":
		return m.out.WithLabelValues("p")
	case "filtered":
		return m.filtered.WithLabelValues("p")
	case "dead":
		return m.dead.WithLabelValues("p", "tombstone")
	}
	return m.tombstones.WithLabelValues("p", outcome)
}
