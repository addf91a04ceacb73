package chain_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

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
	for _, test := range []struct {
		name  string
		fault *kfake.Fault
	}{
		{"no fault", nil},
		{"Produce refused", &kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.MessageTooLarge, Count: 2}},
		{"EndTxn applied, answered with a timeout", &kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.RequestTimedOut, Count: 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := processortest.NewBench(t, selectTopology)
			stop := b.Start("0")
			if test.fault != nil {
				b.Broker.Fault(*test.fault)
			}
			at := time.UnixMilli(1_800_000_000_000)
			want := map[string]string{}
			b.Write(300, func(i int) *pipeline.Record {
				key := fmt.Sprint("k-", i%7)
				switch {
				case (i+1)%3 == 0:
					want[key] += "-"
				case i != 1:
					want[key] += "+"
				}
				r := b.Click(fmt.Sprint("e-", i), int64(i), at)
				r.Key = []byte(key)
				return r
			})
			b.CaughtUp()
			stop()
			if got := tombstonesOf(b, "out"); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("out holds\n%v, want\n%v", got, want)
			}
			if got := tombstonesOf(b, "dead"); len(got) > 0 {
				t.Errorf("dead letters: %v", got)
			}
		})
	}
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
