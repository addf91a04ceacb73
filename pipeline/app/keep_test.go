package app

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/fstest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/topology"
)

// bench is a pipeline on a broker and a registry in this process.
type bench struct {
	*testing.T
	broker   *kfake.Cluster
	registry *codec.Registry
	where    string // the registry's URL
	plan     *topology.Topology
	ids      []int // of the schemas, by type of the first pipeline
}

var clicks = fstest.MapFS{
	"Click.avsc": {Data: []byte(`{"type": "record", "name": "Click", "fields": [
		{"name": "id", "type": "string"},
		{"name": "n", "type": "long"}]}`)},
	"Page.avsc": {Data: []byte(`{"type": "record", "name": "Page", "fields": [
		{"name": "id", "type": "string", "default": ""},
		{"name": "title", "type": "string", "default": ""},
		{"name": "views", "type": ["null", "long"], "default": null}]}`)},
}

func newBench(t *testing.T, text string) *bench {
	t.Helper()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	side, err := sandbox.New(sandbox.Config{NoBroker: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = side.Close() })
	b := &bench{T: t, broker: broker, where: side.RegistryURL()}
	if b.registry, err = codec.NewRegistry(codec.RegistryConfig{URLs: []string{side.RegistryURL()}}); err != nil {
		t.Fatal(err)
	}
	b.plan = b.load(text)
	pl := b.plan.Pipelines[0]
	for _, s := range pl.Types {
		id, err := b.registry.Register(t.Context(), codec.Subject(pl.From.Name, s), s)
		if err != nil {
			t.Fatal(err)
		}
		b.ids = append(b.ids, id)
	}
	return b
}

func (b *bench) load(text string) *topology.Topology {
	b.Helper()
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(text)}, topology.Options{Schemas: clicks})
	if err != nil {
		b.Fatal(err)
	}
	return plan
}

func (b *bench) config() kafka.Config { return kafka.Config{Brokers: b.broker.ListenAddrs()} }

// worker returns what a processor is before it runs.
func (b *bench) worker(instance string) *worker {
	env := &Env{Now: time.Now}
	return &worker{
		flags: &WorkerFlags{env: env, instance: instance, sessions: 2, commitInterval: 20 * time.Millisecond,
			txnTimeout: 5 * time.Second, sessionTimeout: 10 * time.Second},
		topology: b.plan, kafka: b.config(), registry: b.registry, metrics: prometheus.NewRegistry(), log: slog.New(slog.DiscardHandler),
	}
}

// start runs the first pipeline as a worker of that name until stop is called.
func (b *bench) start(instance string) (stop func()) {
	b.Helper()
	w := b.worker(instance)
	ctx, cancel := context.WithCancel(b.Context())
	l, err := newPipelineLoop(ctx, w, b.plan.Pipelines[0], loopOptions{chains: newChainMetrics(w.metrics), kept: newKeepMetrics(w.metrics), loops: kafka.NewMetrics(w.metrics), now: w.flags.env.Now})
	if err != nil {
		cancel()
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			b.Errorf("worker %s: %v", instance, err)
		}
	}
	b.Cleanup(stop)
	return stop
}

// write writes records, each as its function makes it.
func (b *bench) write(n int, f func(i int) *pipeline.Record) {
	b.Helper()
	w, err := kafka.NewWriter(b.config())
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for i := range n {
		w.Write(b.Context(), f(i), func(err error) {
			if err != nil {
				b.Errorf("record %d: %v", i, err)
			}
		})
	}
	if err := w.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// caughtUp waits until the pipeline's group has read everything.
func (b *bench) caughtUp() {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	pl := b.plan.Pipelines[0]
	for {
		lag, err := kafka.Lag(ctx, b.config(), b.plan.Name+"-"+pl.Name, pl.From.Name)
		if ctx.Err() != nil {
			b.Fatalf("the pipeline does not catch up: %d behind, %v", lag, err)
		}
		if err == nil && lag == 0 {
			return
		}
	}
}

// read calls f with the committed records of a topic.
func (b *bench) read(topic string, f func(*pipeline.Record)) {
	b.Helper()
	for _, p := range b.broker.PartitionInfos(topic) {
		if _, err := kafka.ReadSettled(b.Context(), b.config(), topic, p.Partition, func(r *pipeline.Record) error { f(r); return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

const dedupeTopology = `
name: t
topics: {in: {partitions: 4, types: [Click], envelope: none}, out: {partitions: 4}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    guarantee: %s
    stages:
      - dedupe: {by: id, within: 1h}
      - assert: {that: "n != 13", message: "'thirteen'"}
`

// click is the event n with an id; events of one id have one key.
func (b *bench) click(id string, n int64, at time.Time) *pipeline.Record {
	value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, b.ids[0]), id), n)
	return &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: []byte(id), Value: value, Time: at}
}

// firsts reads the output: for each id, the number of the event that passed. No
// other may have; at least once, the same may be there again.
func (b *bench) firsts() map[string]int64 {
	b.Helper()
	again := b.plan.Pipelines[0].Guarantee == topology.AtLeastOnce
	got := map[string]int64{}
	b.read("out", func(r *pipeline.Record) {
		body := r.Value[codec.FrameSize:]
		id, rest, err := codec.ReadText(body)
		if err != nil {
			b.Fatal(err)
		}
		n, _, err := codec.ReadLong(rest)
		if err != nil {
			b.Fatal(err)
		}
		if first, twice := got[string(id)]; twice && (first != n || !again) {
			b.Errorf("%s passed twice: %d and %d", id, first, n)
		}
		got[string(id)] = n
	})
	return got
}

// Workers come, go and share the partitions, and batches abort, while every event
// is written three times, some of them long after the first: of each id the first
// passes, and no other.
func TestDedupeHoldsAcrossRestartsRebalancesAndAborts(t *testing.T) {
	for _, guarantee := range []string{"exactly_once", "at_least_once"} {
		t.Run(guarantee, func(t *testing.T) {
			b := newBench(t, fmt.Sprintf(dedupeTopology, guarantee))
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
				b.write(len(ids), func(i int) *pipeline.Record {
					n++
					if _, ok := want[ids[i]]; !ok {
						want[ids[i]] = n
					}
					return b.click(ids[i], n, begin.Add(time.Duration(n)*time.Millisecond))
				})
			}
			fail := func(topic string) {
				b.broker.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.MessageTooLarge, Count: 2})
			}
			stop0 := b.start("0")
			round()
			b.caughtUp()
			fail("out")
			round()
			stop1 := b.start("1") // takes over half of it
			round()
			stop0()
			fail("t-p-dedupe-state")
			round()
			b.caughtUp()
			stop1()
			stop0 = b.start("0")
			round()
			b.caughtUp()
			stop0()

			got := b.firsts()
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
	b := newBench(t, fmt.Sprintf(dedupeTopology, "exactly_once"))
	stop := b.start("0")
	at := time.UnixMilli(1_800_000_000_000)
	b.write(3, func(i int) *pipeline.Record { return b.click("a", []int64{13, 14, 15}[i], at) })
	b.caughtUp()
	stop()
	if got := b.firsts(); len(got) != 1 || got["a"] != 14 {
		t.Errorf("passed %v, want the second", got)
	}
	letters := 0
	b.read("dead", func(*pipeline.Record) { letters++ })
	if letters != 1 {
		t.Errorf("%d dead letters", letters)
	}
}

// What is no longer needed of a state topic goes, and nothing else.
func TestStateTopicsAreTrimmed(t *testing.T) {
	b := newBench(t, fmt.Sprintf(dedupeTopology, "exactly_once"))
	pl := b.plan.Pipelines[0]
	w := b.worker("0")
	if _, err := kafka.EnsureTopics(t.Context(), w.kafka, stateTopics(b.plan, pl, 4), true); err != nil {
		t.Fatal(err)
	}
	clock := time.UnixMilli(0)
	k := newKeepers(b.plan, pl, pl.Chain(), w.kafka, newKeepMetrics(w.metrics), func() time.Time { return clock }, w.log)
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
		if v, err := k.kept[0].keeper.Process(t.Context(), &event); v != pipeline.Pass || err != nil {
			t.Fatal(v, err)
		}
		var emitted collected
		k.flush(&emitted)
		b.write(len(emitted), func(i int) *pipeline.Record { return &emitted[i] })
		clock = clock.Add(trimEvery)
		k.endBatch(true)
	}
	left := func() (offsets []int64) {
		b.read("t-p-dedupe-state", func(r *pipeline.Record) { offsets = append(offsets, r.Offset) })
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
