package chain_test

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/pipeline"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
)

// selectTopology makes every third event a deletion, and the others events of another type.
const selectTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, id: id}
  out: {partitions: 2, envelope: none}
  dead: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - enrich: {set: {n: n + 1}}
      - select: {delete: n % 3 == 0, keep: [n], rename: {n: count}, type: Counted}
      - filter: {on: [Counted], drop: count == 2}
`

// A deletion is a tombstone under the key of its event, once, and in order with the events
// of its key, also when transactions fail.
func TestDeletionsAreTombstonesOnceAndInOrder(t *testing.T) {
	checkOnceAndInOrder(t, selectTopology, func(i int, _ *pipeline.Record) string {
		switch {
		case (i+1)%3 == 0:
			return "-"
		case i != 1:
			return "+"
		}
		return ""
	}, func(*testing.T, *processortest.Bench, time.Time) {})
}

// A deletion is counted as written and as an event out. One without a key is a dead letter.
func TestDeletionsAreCounted(t *testing.T) {
	b := processortest.NewBench(t, selectTopology)
	w := b.Worker("0")
	metrics := chain.NewMetrics(w.Metrics)
	h := chain.NewHandler(w, b.Registry, b.IDs, metrics, time.Now)
	nameless := b.Click("c", 2, time.UnixMilli(1))
	nameless.Key = nil
	var out collected
	for _, in := range []*pipeline.Record{b.Click("a", 3, time.UnixMilli(1)), b.Click("b", 2, time.UnixMilli(1)), nameless} {
		if err := h.Handle(t.Context(), in, &out); err != nil {
			t.Fatal(err)
		}
	}
	h.EndBatch(true)
	if err := testutil.GatherAndCompare(w.Metrics, strings.NewReader(`
		# HELP millrace_tombstones_total Records without a value in committed batches, by outcome: passed ones are also in events_out, ignored ones in events_filtered. Written ones are the tombstones of events that a select stage made deletions.
		# TYPE millrace_tombstones_total counter
		millrace_tombstones_total{outcome="written",pipeline="p"} 1
		# HELP millrace_dead_letters_total Events of committed batches that became dead letters, by reason.
		# TYPE millrace_dead_letters_total counter
		millrace_dead_letters_total{pipeline="p",reason="tombstone"} 1
		# HELP millrace_events_out_total Events of committed batches that the pipeline wrote.
		# TYPE millrace_events_out_total counter
		millrace_events_out_total{pipeline="p"} 2
	`), "millrace_tombstones_total", "millrace_dead_letters_total", "millrace_events_out_total"); err != nil {
		t.Error(err)
	}
	if len(out) != 3 || string(out[1].Key) != "b" || out[1].Value != nil {
		t.Errorf("emitted %v", out)
	}
}

type collected []pipeline.Record

func (c *collected) Emit(r *pipeline.Record) { *c = append(*c, *r) }
