package chain

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// Counts counts events by outcome: In = Out + Filtered + the sum of Dead. An event that
// was split, or written to several topics, is one event in Out.
type Counts struct {
	In, Out, Filtered int
	Dead              map[pipeline.Reason]int
	Elsewhere         int // not in In: dead letters that were sent back to another pipeline

	Tombstones TombstoneCounts
}

// TombstoneCounts counts tombstones that are not dead letters, by outcome. Passed ones
// are also in Out, and ignored ones in Filtered. Written ones were events that a stage
// made deletions.
type TombstoneCounts struct{ Passed, Ignored, Written int }

// reset sets all counts to 0.
func (n *Counts) reset() {
	clear(n.Dead)
	*n = Counts{Dead: n.Dead}
}

// Metrics counts the events of committed batches and reports the size of the state of
// stages. For each pipeline, in = out + filtered + dead letters. For each stage,
// in + added = out + filtered + rejected. Metrics is safe for concurrent use.
type Metrics struct {
	in, out, filtered            *prometheus.CounterVec
	dead, tombstones, elsewhere  *prometheus.CounterVec
	stageIn, stageOut, stageDrop *prometheus.CounterVec
	stageRejected                *prometheus.CounterVec
	stageAdded, stageSkipped     *prometheus.CounterVec
	stageMissed                  *prometheus.CounterVec
	stateEntries, stateBytes     *prometheus.GaugeVec
	stateBad                     *prometheus.CounterVec
}

// NewMetrics registers the metrics of pipelines.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_" + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "millrace_" + name, Help: help}, labels)
		reg.MustRegister(g)
		return g
	}
	return &Metrics{
		in:            counter("events_in_total", "Events of committed batches that entered the pipeline.", "pipeline"),
		out:           counter("events_out_total", "Events of committed batches that the pipeline wrote.", "pipeline"),
		filtered:      counter("events_filtered_total", "Events of committed batches that a stage filtered.", "pipeline"),
		dead:          counter("dead_letters_total", "Events of committed batches that became dead letters, by reason.", "pipeline", "reason"),
		tombstones:    counter("tombstones_total", "Records without a value in committed batches, by outcome: passed ones are also in events_out, ignored ones in events_filtered. Written ones are the tombstones of events that a select stage made deletions.", "pipeline", "outcome"),
		elsewhere:     counter("redriven_elsewhere_total", "Records of committed batches that the pipeline skipped, because they are dead letters of another pipeline that reads the same topic.", "pipeline"),
		stageIn:       counter("stage_records_in_total", "Events that reached a stage.", "pipeline", "stage"),
		stageOut:      counter("stage_records_out_total", "Events that a stage passed on.", "pipeline", "stage"),
		stageDrop:     counter("stage_records_filtered_total", "Events that a stage filtered.", "pipeline", "stage"),
		stageAdded:    counter("stage_records_added_total", "Events that a stage created in addition to its input.", "pipeline", "stage"),
		stageSkipped:  counter("stage_records_skipped_total", "Events that passed a stage unchanged because the stage failed and its on_error is skip.", "pipeline", "stage"),
		stageMissed:   counter("stage_rows_missing_total", "Events that a lookup or http stage passed unchanged because it found no row or no answer.", "pipeline", "stage"),
		stageRejected: counter("stage_records_rejected_total", "Events that a stage rejected, by reason.", "pipeline", "stage", "reason"),
		stateBad:      counter("state_unreadable_records_total", "Records of a state topic that could not be read, and were skipped. Each restore counts them.", "pipeline", "stage"),
		stateEntries:  gauge("state_entries", "Entries in the state of a stage in this worker; for dedupe, ids.", "pipeline", "stage"),
		stateBytes:    gauge("state_bytes", "Memory of the state of a stage in this worker, in bytes.", "pipeline", "stage"),
	}
}

// add adds the counts of a committed batch.
func (m *Metrics) add(name string, n *Counts) {
	m.in.WithLabelValues(name).Add(float64(n.In))
	m.out.WithLabelValues(name).Add(float64(n.Out))
	m.filtered.WithLabelValues(name).Add(float64(n.Filtered))
	m.elsewhere.WithLabelValues(name).Add(float64(n.Elsewhere))
	if n.Tombstones.Passed > 0 {
		m.tombstones.WithLabelValues(name, "passed").Add(float64(n.Tombstones.Passed))
	}
	if n.Tombstones.Ignored > 0 {
		m.tombstones.WithLabelValues(name, "ignored").Add(float64(n.Tombstones.Ignored))
	}
	if n.Tombstones.Written > 0 {
		m.tombstones.WithLabelValues(name, "written").Add(float64(n.Tombstones.Written))
	}
	for reason, dead := range n.Dead {
		m.dead.WithLabelValues(name, string(reason)).Add(float64(dead))
	}
}

// addStage adds the counts of a stage in a committed batch.
func (m *Metrics) addStage(name, stage string, n pipeline.StageCounts) {
	m.stageIn.WithLabelValues(name, stage).Add(float64(n.In))
	m.stageAdded.WithLabelValues(name, stage).Add(float64(n.Added))
	m.stageSkipped.WithLabelValues(name, stage).Add(float64(n.Skipped))
	m.stageOut.WithLabelValues(name, stage).Add(float64(n.Passed))
	m.stageDrop.WithLabelValues(name, stage).Add(float64(n.Filtered))
	for reason, rejected := range n.Rejected {
		m.stageRejected.WithLabelValues(name, stage, string(reason)).Add(float64(rejected))
	}
}

// misser counts the events for which a stage found nothing. It belongs to a handler.
type misser struct {
	stage stage.MissCounter
	count prometheus.Counter
}

func missersOf(pl *topology.Pipeline, stages *pipeline.Chain, metrics *Metrics) (out []misser) {
	stages.Each(func(name string, s pipeline.Stage) {
		if m, ok := s.(stage.MissCounter); ok {
			out = append(out, misser{m, metrics.stageMissed.WithLabelValues(pl.Name, name)})
		}
	})
	return out
}

func (m misser) endBatch(committed bool) {
	if n := m.stage.Misses(); committed {
		m.count.Add(float64(n))
	}
}
