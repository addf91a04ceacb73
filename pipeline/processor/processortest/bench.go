// Package processortest runs a pipeline and the commands of the processor on an in-process
// broker and registry, for tests.
//
// Start at [NewBench]. A [Bench] belongs to the goroutine of its test.
package processortest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// Bench is a topology on an in-process broker and registry. It is a [testing.T] too: its
// methods fail the test.
type Bench struct {
	*testing.T
	Broker      *kfake.Cluster
	Registry    *codec.Registry
	RegistryURL string // URL of the registry
	Plan        *topology.Topology
	IDs         []int // schema ids of the first pipeline, by type
}

// NewBench starts a broker and a registry, and registers the schemas of the first pipeline
// of a topology. It creates no topics.
func NewBench(t *testing.T, text string) *Bench {
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
	b := &Bench{T: t, Broker: broker, RegistryURL: side.RegistryURL()}
	if b.Registry, err = codec.NewRegistry(codec.RegistryConfig{URLs: []string{side.RegistryURL()}}); err != nil {
		t.Fatal(err)
	}
	b.Plan = b.Load(text)
	pl := b.Plan.Pipelines[0]
	for _, s := range pl.Types {
		id, err := b.Registry.Register(t.Context(), pl.From.Subject(s), s)
		if err != nil {
			t.Fatal(err)
		}
		b.IDs = append(b.IDs, id)
	}
	return b
}

// Load returns a topology with the schemas of the bench.
func (b *Bench) Load(text string) *topology.Topology {
	b.Helper()
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(text)}, topology.Options{Schemas: harness.ClickSchemas})
	if err != nil {
		b.Fatal(err)
	}
	return plan
}

// Config returns the configuration of a client of the broker.
func (b *Bench) Config() kafka.Config { return kafka.Config{Brokers: b.Broker.ListenAddrs()} }

// Worker returns the worker of a processor that does not run yet.
func (b *Bench) Worker(instance string) *worker.Worker {
	env := &cli.Env{Now: time.Now}
	return &worker.Worker{
		Flags: &worker.Flags{Env: env, Instance: instance, Sessions: 2, CommitInterval: 20 * time.Millisecond,
			TransactionTimeout: 5 * time.Second, SessionTimeout: 10 * time.Second},
		Topology: b.Plan, Kafka: b.Config(), Registry: b.Registry, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	}
}

// Start runs the first pipeline as a worker with this instance name, until stop is called
// or the test ends. stop may be called several times.
func (b *Bench) Start(instance string) (stop func()) {
	b.Helper()
	w := b.Worker(instance)
	ctx, cancel := context.WithCancel(b.Context())
	loop, err := chain.NewLoop(ctx, w, b.Plan.Pipelines[0], chain.LoopOptions{Metrics: chain.NewMetrics(w.Metrics), Loops: kafka.NewMetrics(w.Metrics), Now: w.Flags.Env.Now})
	if err != nil {
		cancel()
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
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

// Write writes n records that f returns, and waits until they are acknowledged.
func (b *Bench) Write(n int, f func(i int) *pipeline.Record) {
	b.Helper()
	w, err := kafka.NewWriter(b.Config())
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

// CaughtUp waits until the group of the first pipeline has committed all records.
func (b *Bench) CaughtUp() {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	pl := b.Plan.Pipelines[0]
	for {
		lag, err := kafka.Lag(ctx, b.Config(), b.Plan.Name+"-"+pl.Name, pl.From.Name)
		if ctx.Err() != nil {
			b.Fatalf("the pipeline does not catch up: lag %d, %v", lag, err)
		}
		if err == nil && lag == 0 {
			return
		}
	}
}

// Read calls f with the committed records of a topic, partition by partition.
func (b *Bench) Read(topic string, f func(*pipeline.Record)) {
	b.Helper()
	for _, p := range b.Broker.PartitionInfos(topic) {
		if _, err := kafka.ReadSettled(b.Context(), b.Config(), topic, p.Partition, func(r *pipeline.Record) error { f(r); return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// DedupeTopology is a topology with a dedupe stage and an assert stage after it that
// rejects event 13. Its argument for fmt.Sprintf is the guarantee.
const DedupeTopology = `
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

// Click returns the event n with an id, which is also its key.
func (b *Bench) Click(id string, n int64, at time.Time) *pipeline.Record {
	value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, b.IDs[0]), id), n)
	return &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: []byte(id), Value: value, Time: at}
}

// Firsts returns, for each id on the topic out, the number of its event. It fails the test
// if an id has two events. With the guarantee at_least_once, the same event may be there
// several times.
func (b *Bench) Firsts() map[string]int64 {
	b.Helper()
	again := b.Plan.Pipelines[0].Guarantee == topology.AtLeastOnce
	got := map[string]int64{}
	b.Read("out", func(r *pipeline.Record) {
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

// File writes a topology and the schemas of the bench to a new directory, and returns the
// file of the topology.
func (b *Bench) File(text string) string {
	b.Helper()
	dir := b.TempDir()
	files := map[string]string{"topology.yaml": text}
	for name, f := range harness.ClickSchemas {
		files[filepath.Join("schemas", name)] = string(f.Data)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return filepath.Join(dir, "topology.yaml")
}

// Rows writes the file rows.json beside a topology. The result writes it again.
func (b *Bench) Rows(file, text string) (again func(text string)) {
	b.Helper()
	again = func(text string) {
		b.Helper()
		if err := os.WriteFile(filepath.Join(filepath.Dir(file), "rows.json"), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	again(text)
	return again
}

// Processor runs a command of the processor on the bench. It returns the exit code and the
// output, standard output before standard error.
func (b *Bench) Processor(file string, args ...string) (code int, out string) {
	b.Helper()
	var stdout, stderr bytes.Buffer
	env := &cli.Env{Stdout: &stdout, Stderr: &stderr, Now: time.Now, Build: cli.ReadBuild()}
	args = append(args, "-t", file, "-b", strings.Join(b.Broker.ListenAddrs(), ","), "-r", b.RegistryURL)
	code = env.Main(args, programs.Processor)
	if stderr.Len() > 0 {
		b.Logf("stderr: %s", stderr.String())
	}
	return code, stdout.String() + stderr.String()
}

// ClusterState returns everything that a command can change on the broker: topics with their end
// offsets, groups and transactional ids. Two equal results mean that nothing changed.
func (b *Bench) ClusterState() string {
	b.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Broker.ListenAddrs()...))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ends, err := adm.ListEndOffsets(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	groups, err := adm.ListGroups(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	txns, err := adm.ListTransactions(b.Context(), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	var text strings.Builder
	for _, topic := range slices.Sorted(maps.Keys(ends)) {
		for p := range int32(len(ends[topic])) {
			fmt.Fprintf(&text, "%s/%d %d\n", topic, p, ends[topic][p].Offset)
		}
	}
	fmt.Fprintf(&text, "groups %v\ntransactional ids %v\n", groups.Groups(), txns.TransactionalIDs())
	return text.String()
}

// Topics creates topics.
func (b *Bench) Topics(specs ...kafka.TopicSpec) {
	b.Helper()
	if _, err := kafka.EnsureTopics(b.Context(), b.Config(), specs, true); err != nil {
		b.Fatal(err)
	}
}

// Clicks writes n events of seven ids.
func (b *Bench) Clicks(n int) {
	b.Helper()
	b.Write(n, func(i int) *pipeline.Record {
		return b.Click(fmt.Sprint("user-", i%7), int64(i), time.UnixMilli(1_800_000_000_000+int64(i)))
	})
}

// Remove deletes a topic.
func (b *Bench) Remove(topic string) {
	b.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Broker.ListenAddrs()...))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).DeleteTopic(b.Context(), topic); err != nil {
		b.Fatal(err)
	}
}

// ReceiptsTopology is a topology that writes receipts.
const ReceiptsTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, id: id}
  out: {partitions: 2}
  dead: {partitions: 1}
  receipts: {partitions: 2}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    receipts: receipts
    stages:
      - filter: {name: even, keep: n % 2 == 0}
      - assert: {name: lucky, that: "n != 14", message: "'fourteen'"}
      - dedupe: {by: id, within: 1h}
`
