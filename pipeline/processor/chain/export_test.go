package chain

import (
	"millrace/pipeline"

	"github.com/prometheus/client_golang/prometheus"
)

// Exported for tests in package chain_test.

const TrimEvery = trimEvery

var NewKeepers = newKeepers

// FlushState and EndBatchOfState are what a handler calls of its keepers.
func (k *keepers) FlushState(out pipeline.Emitter) { k.flush(out) }

func (k *keepers) EndBatchOfState(committed bool) { k.endBatch(committed) }

// LastLane returns the lane of the record that was queued last.
func (l *Lanes) LastLane() int { return l.queue[len(l.queue)-1].lane }

func (t *Table) Name() string { return t.name }

func (t *Table) Len() int { return t.rows.Len() }

// Missed returns the counter of events for which a stage found no row.
func (m *Metrics) Missed(pipeline, stage string) prometheus.Counter {
	return m.stageMissed.WithLabelValues(pipeline, stage)
}
