package chain_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
)

// Workers start, stop and share the partitions, and batches abort. Each id is written
// several times, some of them long after the first time. Only its first event passes.
func TestDedupePassesOnlyFirstEventsAcrossRestartsRebalancesAndAborts(t *testing.T) {
	for _, guarantee := range []string{"exactly_once", "at_least_once"} {
		t.Run(guarantee, func(t *testing.T) { testDedupeAcrossRestarts(t, guarantee) })
	}
}

func testDedupeAcrossRestarts(t *testing.T, guarantee string) {
	b := processortest.NewBench(t, fmt.Sprintf(processortest.DedupeTopology, guarantee))
	begin := time.UnixMilli(1_800_000_000_000)
	want := map[string]int64{}
	n := int64(100)
	round := func() {
		from := max(0, len(want)-700) // 300 new ids, 700 old ones
		ids := make([]string, 0, 2000)
		for i := range 1000 {
			ids = append(ids, fmt.Sprint("id-", from+i), fmt.Sprint("id-", from+i))
		}
		rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		b.Write(len(ids), func(i int) *pipeline.Record {
			n++
			if _, ok := want[ids[i]]; !ok {
				want[ids[i]] = n
			}
			return b.Click(ids[i], n, begin.Add(time.Duration(n)*time.Millisecond))
		})
	}
	fail := func(topic string) {
		b.Broker.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.MessageTooLarge, Count: 2})
	}
	stop0 := b.Start("0")
	round()
	b.CaughtUp()
	fail("out")
	round()
	stop1 := b.Start("1") // takes over half of the partitions
	round()
	stop0()
	fail("t-p-dedupe-state")
	round()
	b.CaughtUp()
	stop1()
	stop0 = b.Start("0")
	round()
	b.CaughtUp()
	stop0()

	got := b.Firsts()
	for id, n := range want {
		if got[id] != n {
			t.Errorf("event %d of id %s passed, want %d", got[id], id, n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d ids passed, want %d", len(got), len(want))
	}
}

// The id of an event that a later stage rejects is not in the state: a replay of its dead
// letter passes.
func TestDedupeForgetsDeadLetters(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(processortest.DedupeTopology, "exactly_once"))
	stop := b.Start("0")
	at := time.UnixMilli(1_800_000_000_000)
	b.Write(3, func(i int) *pipeline.Record { return b.Click("a", []int64{13, 14, 15}[i], at) })
	b.CaughtUp()
	stop()
	if got := b.Firsts(); len(got) != 1 || got["a"] != 14 {
		t.Errorf("%v passed, want event 14", got)
	}
	letters := 0
	b.Read("dead", func(*pipeline.Record) { letters++ })
	if letters != 1 {
		t.Errorf("%d dead letters, want 1", letters)
	}
}

// Records of a state topic are deleted when all their ids left the state, and not before.
func TestStateTopicsAreTrimmed(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(processortest.DedupeTopology, "exactly_once"))
	w := b.Worker("0")
	if _, err := kafka.EnsureTopics(t.Context(), w.Kafka, chain.StateTopics(b.Plan, b.Plan.Pipelines[0], 4), true); err != nil {
		t.Fatal(err)
	}
	const state = "t-p-dedupe-state"
	clock := time.UnixMilli(0)
	h := chain.NewHandler(w, b.Registry, b.IDs, chain.NewMetrics(w.Metrics), func() time.Time { return clock })
	if _, err := h.Assign(t.Context(), []kafka.Partition{{Topic: "in", Partition: 2}}); err != nil {
		t.Fatal(err)
	}
	offset := int64(0)
	batch := func(hour int) { // one event with a new id
		r := b.Click(fmt.Sprint(offset), 1, time.UnixMilli(0).Add(time.Duration(hour)*time.Hour))
		r.Partition, r.Offset = 2, offset
		offset++
		var emitted harness.Emitted
		if err := errors.Join(h.Handle(t.Context(), r, &emitted), h.Flush(t.Context(), &emitted)); err != nil {
			t.Fatal(err)
		}
		changes := slices.DeleteFunc(emitted, func(r pipeline.Record) bool { return r.Topic != state })
		b.Write(len(changes), func(i int) *pipeline.Record { return &changes[i] })
		clock = clock.Add(chain.TrimEvery)
		h.EndBatch(true)
	}
	remaining := func() (offsets []int64) {
		b.Read(state, func(r *pipeline.Record) { offsets = append(offsets, r.Offset) })
		return offsets
	}
	for hour := range 4 {
		batch(hour)
	}
	if got := remaining(); len(got) != 4 {
		t.Fatalf("the records %v remain, want all 4", got)
	}
	batch(4) // evicts the first span
	batch(4)
	if got := remaining(); len(got) != 5 || got[0] != 1 {
		t.Errorf("the records %v remain, want 1 to 5", got)
	}
	for hour := range 10 {
		batch(5 + hour)
	}
	if got := remaining(); len(got) != 4 {
		t.Errorf("the records %v remain, want the last 4", got)
	}
}

// A record of another program on a state topic is skipped and counted, and the ids around
// it are known. One in a newer format stops the worker.
func TestAnUnreadableStateChangeIsSkipped(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(processortest.DedupeTopology, "exactly_once"))
	stop := b.Start("0")
	at := time.UnixMilli(1_800_000_000_000)
	b.Write(1, func(int) *pipeline.Record { return b.Click("a", 100, at) })
	b.CaughtUp()
	stop()
	const state = "t-p-dedupe-state"
	garbage := []string{"{", "", "\x01", "\x02\xff", "\xff\x00"}
	b.Write(4*len(garbage), func(i int) *pipeline.Record {
		return &pipeline.Record{Topic: state, Partition: int32(i % 4), Value: []byte(garbage[i/4]), Time: at}
	})
	stop = b.Start("0")
	b.Write(2, func(i int) *pipeline.Record { return b.Click([]string{"a", "b"}[i], int64(101+i), at) })
	b.CaughtUp()
	stop()
	if got := b.Firsts(); len(got) != 2 || got["a"] != 100 || got["b"] != 102 {
		t.Errorf("%v passed, want the events 100 and 102", got)
	}
	w := b.Worker("1")
	metrics := chain.NewMetrics(w.Metrics)
	h := chain.NewHandler(w, b.Registry, b.IDs, metrics, func() time.Time { return at })
	if _, err := h.Assign(t.Context(), []kafka.Partition{{Topic: "in", Partition: 2}}); err != nil {
		t.Fatal(err)
	}
	if n := testutil.ToFloat64(metrics.Unreadable("p", "dedupe")); n != 4 { // "\x01" is a change without entries
		t.Errorf("%v records are counted, want 4", n)
	}
	b.Write(1, func(int) *pipeline.Record {
		return &pipeline.Record{Topic: state, Partition: 3, Value: []byte("\x03"), Headers: []pipeline.Header{{Key: "millrace.state_format", Value: []byte("2")}}, Time: at}
	})
	_, err := h.Assign(t.Context(), []kafka.Partition{{Topic: "in", Partition: 3}})
	if pipeline.ClassOf(err) != pipeline.ClassFatal || !strings.Contains(err.Error(), "use the newer program") {
		t.Errorf("a newer format: %v", err)
	}
}
