package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/sandbox"
)

// within returns a context with the timeout of a single step of a test.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func client(t *testing.T, box *sandbox.Sandbox, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(box.Brokers()...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func createTopic(t *testing.T, cl *kgo.Client, name string) {
	t.Helper()
	if _, err := kadm.NewClient(cl).CreateTopic(within(t), 1, 1, nil, name); err != nil {
		t.Fatal(err)
	}
}

// transact produces the values in one transaction.
func transact(t *testing.T, cl *kgo.Client, topic string, how kgo.TransactionEndTry, values ...string) {
	t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if err := cl.ProduceSync(within(t), &kgo.Record{Topic: topic, Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cl.EndTransaction(within(t), how); err != nil {
		t.Fatal(err)
	}
}

// consume returns the next n values.
func consume(t *testing.T, cl *kgo.Client, n int) (values []string) {
	t.Helper()
	ctx := within(t)
	for len(values) < n {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

func TestReadCommittedSkipsAbortedRecords(t *testing.T) {
	box := start(t, sandbox.Config{})
	writer := client(t, box, kgo.TransactionalID("writer"))
	createTopic(t, writer, "t")
	reader := client(t, box, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))

	transact(t, writer, "t", kgo.TryCommit, "a", "b")
	transact(t, writer, "t", kgo.TryAbort, "lost")
	transact(t, writer, "t", kgo.TryCommit, "c")
	if got := consume(t, reader, 3); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("a read_committed reader saw %v", got)
	}
	uncommitted := client(t, box, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if got := consume(t, uncommitted, 4); !slices.Contains(got, "lost") {
		t.Errorf("a read_uncommitted reader does not see the aborted record: %v", got)
	}
}

func TestSecondWriterFencesTheFirst(t *testing.T) {
	box := start(t, sandbox.Config{})
	first := client(t, box, kgo.TransactionalID("w"))
	createTopic(t, first, "t")
	transact(t, first, "t", kgo.TryCommit, "a")
	transact(t, client(t, box, kgo.TransactionalID("w")), "t", kgo.TryCommit, "b")
	if err := first.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	err := first.ProduceSync(within(t), &kgo.Record{Topic: "t", Value: []byte("c")}).FirstErr()
	if !errors.Is(err, kerr.ProducerFenced) && !errors.Is(err, kerr.InvalidProducerEpoch) {
		t.Errorf("the first writer's error is %v", err)
	}
}

func TestTopicsAreNotCreatedAutomatically(t *testing.T) {
	box := start(t, sandbox.Config{})
	cl := client(t, box, kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(0))
	err := cl.ProduceSync(within(t), &kgo.Record{Topic: "mispelt"}).FirstErr()
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("producing to a topic that does not exist: %v", err)
	}
}

func TestRestartKeepsTheDataDirectory(t *testing.T) {
	dir := t.TempDir()
	box, err := sandbox.New(sandbox.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	writer := client(t, box, kgo.TransactionalID("writer"))
	createTopic(t, writer, "t")
	transact(t, writer, "t", kgo.TryCommit, "a", "b")
	transact(t, writer, "t", kgo.TryAbort, "lost")
	group := []kgo.Opt{
		kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.DisableAutoCommit(),
	}
	before := client(t, box, group...)
	if got := consume(t, before, 2); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("read %v", got)
	}
	if err := before.CommitUncommittedOffsets(within(t)); err != nil {
		t.Fatal(err)
	}
	before.Close()
	schema := parse(t, order(id))
	registered, err := newRegistry(t, box).Register(t.Context(), "s", schema)
	if err != nil {
		t.Fatal(err)
	}
	request(t, box, "PUT", "/config/s", `{"compatibility":"FULL"}`)
	clusterID := describe(t, writer)
	writer.Close()
	if err := box.Close(); err != nil {
		t.Fatal(err)
	}

	box = start(t, sandbox.Config{DataDir: dir})
	writer = client(t, box, kgo.TransactionalID("writer"))
	if now := describe(t, writer); now != clusterID {
		t.Errorf("cluster and topic ids changed: they were\n%s\nand are now\n%s", clusterID, now)
	}
	transact(t, writer, "t", kgo.TryCommit, "c")
	if got := consume(t, client(t, box, group...), 1); !slices.Equal(got, []string{"c"}) {
		t.Errorf("the group resumes with %v", got)
	}
	all := client(t, box, kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if got := consume(t, all, 3); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("the topic has %v", got)
	}
	if found, err := newRegistry(t, box).Lookup(t.Context(), "s", schema); found != registered || err != nil {
		t.Errorf("the schema has the id %d, %v; it was %d", found, err, registered)
	}
	if got := request(t, box, "GET", "/config/s", ""); got != `200 {"compatibilityLevel":"FULL"}` {
		t.Error(got)
	}
	next, err := newRegistry(t, box).Register(t.Context(), "s", parse(t, order(id, noteDefault)))
	if err != nil || next == registered {
		t.Errorf("the next schema has the id %d, %v", next, err)
	}
}

// describe returns the cluster and topic ids, by which a projection's store recognizes its
// cluster.
func describe(t *testing.T, cl *kgo.Client) string {
	t.Helper()
	meta, err := kadm.NewClient(cl).Metadata(within(t), "t")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(meta.Cluster, meta.Topics["t"].ID)
}

func TestDataDirectoryIsLocked(t *testing.T) {
	dir := t.TempDir()
	first := start(t, sandbox.Config{NoBroker: true, DataDir: dir})
	second, err := sandbox.New(sandbox.Config{NoBroker: true, DataDir: dir})
	if err == nil {
		t.Fatal("a second sandbox started", second.Close())
	}
	if !strings.Contains(err.Error(), "in use by another sandbox") {
		t.Errorf("the second sandbox failed with: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, sandbox.Config{NoBroker: true, DataDir: dir})
}

func TestOnlyFreeLoopbackAddressesAreAccepted(t *testing.T) {
	for _, cfg := range []sandbox.Config{
		{KafkaAddr: "0.0.0.0:0"}, {RegistryAddr: "0.0.0.0:0"}, {RegistryAddr: ":0"}, {KafkaAddr: "192.0.2.1:0"}, {RegistryAddr: "nonsense"},
	} {
		if box, err := sandbox.New(cfg); err == nil {
			t.Errorf("%+v started: %v", cfg, box.Close())
		}
	}
	taken := start(t, sandbox.Config{})
	box, err := sandbox.New(sandbox.Config{KafkaAddr: taken.Brokers()[0]})
	if err == nil {
		t.Fatal("a sandbox started on an address in use", box.Close())
	}
	if !strings.Contains(err.Error(), "address of the broker") {
		t.Errorf("the error does not name the server: %v", err)
	}
}

func TestRegistryWithoutBroker(t *testing.T) {
	box := registryOnly(t)
	if got := box.Brokers(); got != nil {
		t.Errorf("broker addresses without a broker: %v", got)
	}
}
