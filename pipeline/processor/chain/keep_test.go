package chain_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
)

// Workers come, go and share the partitions, and batches abort, while every event
// is written three times, some of them long after the first: of each id the first
// passes, and no other.
func TestDedupeHoldsAcrossRestartsRebalancesAndAborts(t *testing.T) {
	for _, guarantee := range []string{"exactly_once", "at_least_once"} {
		t.Run(guarantee, func(t *testing.T) {
			b := processortest.NewBench(t, fmt.Sprintf(processortest.DedupeTopology, guarantee))
			begin := time.UnixMilli(1_800_000_000_000)
			want := map[string]int64{}
			n := int64(100)
			round := func() {
				from := max(0, len(want)-700) // 300 new ones, 700 old ones
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
			stop1 := b.Start("1") // takes over half of it
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
					t.Errorf("of %s the event %d passed, want %d", id, got[id], n)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d ids passed, want %d", len(got), len(want))
			}
		})
	}
}

// An event that a later stage rejects is not remembered: sent back, it is new.
func TestDedupeForgetsDeadLetters(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(processortest.DedupeTopology, "exactly_once"))
	stop := b.Start("0")
	at := time.UnixMilli(1_800_000_000_000)
	b.Write(3, func(i int) *pipeline.Record { return b.Click("a", []int64{13, 14, 15}[i], at) })
	b.CaughtUp()
	stop()
	if got := b.Firsts(); len(got) != 1 || got["a"] != 14 {
		t.Errorf("passed %v, want the second", got)
	}
	letters := 0
	b.Read("dead", func(*pipeline.Record) { letters++ })
	if letters != 1 {
		t.Errorf("%d dead letters", letters)
	}
}

// What is no longer needed of a state topic goes, and nothing else.
func TestStateTopicsAreTrimmed(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(processortest.DedupeTopology, "exactly_once"))
	pl := b.Plan.Pipelines[0]
	w := b.Worker("0")
	if _, err := kafka.EnsureTopics(t.Context(), w.Kafka, chain.StateTopics(b.Plan, pl, 4), true); err != nil {
		t.Fatal(err)
	}
	clock := time.UnixMilli(0)
	k := chain.NewKeepers(b.Plan, pl, pl.Chain(), w.Kafka, chain.NewStateMetrics(w.Metrics), func() time.Time { return clock }, w.Log)
	if _, err := k.Assign(t.Context(), []kafka.Partition{{Topic: "in", Partition: 2}}); err != nil {
		t.Fatal(err)
	}
	var event pipeline.Event
	offset := int64(0)
	batch := func(hour int) {
		body := codec.AppendLong(codec.AppendString(nil, fmt.Sprint(offset)), 1)
		event.Record = &pipeline.Record{Partition: 2, Offset: offset, Time: time.UnixMilli(0).Add(time.Duration(hour) * time.Hour)}
		offset++
		if err := pl.Layouts[0].Walk(body, &event.View); err != nil {
			t.Fatal(err)
		}
		if v, err := k.Kept[0].Keeper.Process(t.Context(), &event); v != pipeline.Pass || err != nil {
			t.Fatal(v, err)
		}
		var emitted collected
		k.FlushState(&emitted)
		b.Write(len(emitted), func(i int) *pipeline.Record { return &emitted[i] })
		clock = clock.Add(chain.TrimEvery)
		k.EndBatchOfState(true)
	}
	left := func() (offsets []int64) {
		b.Read("t-p-dedupe-state", func(r *pipeline.Record) { offsets = append(offsets, r.Offset) })
		return offsets
	}
	for hour := range 4 {
		batch(hour)
	}
	if got := left(); len(got) != 4 {
		t.Fatalf("records %v are left of those that are all needed", got)
	}
	batch(4) // a fifth span: the first is forgotten
	batch(4)
	if got := left(); len(got) != 5 || got[0] != 1 {
		t.Errorf("records %v are left, want 1 to 5", got)
	}
	for hour := range 10 {
		batch(5 + hour)
	}
	if got := left(); len(got) != 4 {
		t.Errorf("records %v are left, want the last 4", got)
	}
}

type collected []pipeline.Record

func (e *collected) Emit(r *pipeline.Record) { *e = append(*e, *r) }
