package chain_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
)

// tombstoneTopology has a compacted input; %s is more of the input's declaration.
const tombstoneTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, id: id, config: {cleanup.policy: compact}%s}
  out: {partitions: 2}
  dead: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - filter: {keep: n != 13}
      - dedupe: {within: 1h}
      - enrich: {set: {n: n + 1}}
`

// tombstonesOf returns, by key, what a topic holds: "-" for a tombstone, "+" for an event.
func tombstonesOf(b *processortest.Bench, topic string) map[string]string {
	b.Helper()
	got := map[string]string{}
	b.Read(topic, func(r *pipeline.Record) {
		if r.Value == nil {
			got[string(r.Key)] += "-"
		} else {
			got[string(r.Key)] += "+"
		}
	})
	return got
}

// checkOnceAndInOrder runs 300 records through a topology, without a fault, with one that
// was not applied and with one that was. record changes a record and returns what out must
// have of it: - for a tombstone, + for an event, or nothing. check gets the bench
// of each run.
func checkOnceAndInOrder(t *testing.T, topology string, record func(i int, r *pipeline.Record) (mark string), check func(t *testing.T, b *processortest.Bench, at time.Time)) {
	for _, test := range []struct {
		name  string
		fault *kfake.Fault
	}{
		{"no fault", nil},
		{"Produce refused", &kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.MessageTooLarge, Count: 2}},
		{"EndTxn applied, answered with a timeout", &kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.RequestTimedOut, Count: 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := processortest.NewBench(t, topology)
			stop := b.Start("0")
			if test.fault != nil {
				b.Broker.Fault(*test.fault)
			}
			at := time.UnixMilli(1_800_000_000_000)
			want := map[string]string{}
			b.Write(300, func(i int) *pipeline.Record {
				key := fmt.Sprint("k-", i%7)
				r := b.Click(fmt.Sprint("e-", i), int64(i), at)
				r.Key = []byte(key)
				if mark := record(i, r); mark != "" {
					want[key] += mark
				}
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
			check(t, b, at)
		})
	}
}

// A tombstone passes without stages, once, and in order with the events of its key, also
// when transactions fail.
func TestTombstonesPassOnceAndInOrder(t *testing.T) {
	checkOnceAndInOrder(t, fmt.Sprintf(tombstoneTopology, ""), func(i int, r *pipeline.Record) string {
		switch {
		case i%3 == 0:
			r.Value, r.Headers = nil, []pipeline.Header{{Key: "__value_schema_id", Value: []byte("old")}, {Key: "tenant", Value: []byte("x")}}
			return "-"
		case i != 13:
			return "+"
		}
		return ""
	}, func(t *testing.T, b *processortest.Bench, at time.Time) {
		b.Read("out", func(r *pipeline.Record) {
			if r.Value == nil && (len(r.Headers) != 1 || r.Headers[0].Key != "tenant" || !r.Time.Equal(at)) {
				t.Errorf("a tombstone has headers %v and time %v", r.Headers, r.Time)
			}
		})
	})
}

// A tombstone that is sent back passes the pipeline that rejected it, without the headers
// of the way back. Another pipeline skips it.
func TestATombstoneThatIsSentBackPasses(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(tombstoneTopology, ""))
	w := b.Worker("0")
	for name, want := range map[string]int{"p": 1, "other": 0} {
		gone := b.Click("gone", 1, time.UnixMilli(1))
		gone.Value, gone.Headers = nil, []pipeline.Header{{Key: "tenant", Value: []byte("x")}}
		letter := deadletter.New(gone, "dead", name, deadletter.StageDecode, pipeline.Reject(pipeline.ReasonTombstone, "x"), time.UnixMilli(2))
		back := deadletter.Original(&letter)
		back.Partition = 0
		var out harness.Emitted
		if err := chain.NewHandler(w, b.Registry, b.IDs, chain.NewMetrics(prometheus.NewRegistry()), time.Now).Handle(t.Context(), &back, &out); err != nil {
			t.Fatal(err)
		}
		if len(out) != want {
			t.Fatalf("a letter of %s becomes %v, want %d records", name, out, want)
		}
		for _, r := range out {
			if r.Topic != "out" || string(r.Key) != string(gone.Key) || r.Value != nil || len(r.Headers) != 1 || r.Headers[0].Key != "tenant" {
				t.Errorf("the tombstone is written as %+v", r)
			}
		}
	}
}

// Each value of tombstone has its effect, and its count.
func TestTombstonesDoWhatTheTopicSays(t *testing.T) {
	for value, want := range map[string]string{
		"": "out 2, filtered 0, dead 1, passed 1, ignored 0", "delete": "out 2, filtered 0, dead 1, passed 1, ignored 0",
		"pass": "out 2, filtered 0, dead 1, passed 1, ignored 0", "ignore": "out 1, filtered 2, dead 0, passed 0, ignored 2",
		"dead_letter": "out 1, filtered 0, dead 2, passed 0, ignored 0",
	} {
		declared := ""
		if value != "" {
			declared = ", tombstone: " + value
		}
		b := processortest.NewBench(t, strings.Replace(fmt.Sprintf(tombstoneTopology, declared), "      - dedupe: {within: 1h}\n", "", 1))
		w := b.Worker("0")
		metrics := chain.NewMetrics(w.Metrics)
		h := chain.NewHandler(w, b.Registry, b.IDs, metrics, time.Now)
		gone := b.Click("gone", 1, time.UnixMilli(1))
		gone.Value = nil
		nameless := b.Click("", 1, time.UnixMilli(1))
		nameless.Key, nameless.Value = nil, nil
		var out harness.Emitted
		for _, r := range []*pipeline.Record{b.Click("there", 1, time.UnixMilli(1)), gone, nameless} {
			r.Partition = 0
			if err := h.Handle(t.Context(), r, &out); err != nil {
				t.Fatal(err)
			}
		}
		h.EndBatch(true)
		got := fmt.Sprintf("out %v, filtered %v, dead %v, passed %v, ignored %v",
			testutil.ToFloat64(metrics.Count("out")), testutil.ToFloat64(metrics.Count("filtered")), testutil.ToFloat64(metrics.Count("dead")),
			testutil.ToFloat64(metrics.Count("passed")), testutil.ToFloat64(metrics.Count("ignored")))
		if got != want {
			t.Errorf("tombstone: %s: %s, want %s", value, got, want)
		}
		for i := range out {
			if back := deadletter.Original(&out[i]); out[i].Topic == "dead" && (back.Value != nil || back.Topic != "in") {
				t.Errorf("the dead letter of a tombstone goes back with the value %q to %s", back.Value, back.Topic)
			}
		}
	}
}
