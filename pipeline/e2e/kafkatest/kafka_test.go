package kafkatest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline/e2e/kafkatest"
)

// TestMain deselects all tests unless a Kafka broker is requested, so `go test` reports
// "no tests to run".
func TestMain(m *testing.M) {
	flag.Parse()
	if !kafkatest.Enabled() {
		fmt.Fprintln(os.Stderr, "kafkatest: NOT run: the tests on Apache Kafka need MILLRACE_TEST_KAFKA=1; `make test-kafka` runs them")
		if err := flag.Set("test.run", "^$"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

func TestKafkaKeepsCommittedRecords(t *testing.T) {
	b, err := kafkatest.Start(t.Context(), kafkatest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Log(b)
	topic := createTopic(t, b, 2)
	produce(t, b, topic, "first", 100, kgo.TryCommit)
	produce(t, b, topic, "second", 50, kgo.TryAbort)
	produce(t, b, topic, "third", 30, kgo.TryCommit)
	settle(t, b, topic)

	want := map[string]int{"first": 100, "third": 30}
	check := func() {
		t.Helper()
		if got := committed(t, b, topic); !maps.Equal(got, want) {
			t.Errorf("read_committed sees %v, want %v", got, want)
		}
	}
	check()

	if b.External() {
		t.Log("NOT checked on the cluster of KAFKA_BROKERS: killing and restarting the broker")
		return
	}
	open := begin(t, b, "open")
	send(t, open, topic, "open", 10)
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := b.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	check()
	if err := open.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatalf("committing a transaction that was open when the broker was killed: %v", err)
	}
	settle(t, b, topic)
	want["open"] = 10
	check()

	if err := b.Restart(t.Context()); err != nil { // gracefully
		t.Fatal(err)
	}
	check()
}

func TestKafkaHasTransactionVersion2(t *testing.T) {
	b, err := kafkatest.Start(t.Context(), kafkatest.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if b.External() {
		t.Log("NOT checked on the cluster of KAFKA_BROKERS: its features")
		return
	}
	api, err := kadm.NewClient(client(t, b)).ApiVersions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range api {
		features := v.Raw().FinalizedFeatures
		if !slices.ContainsFunc(features, func(f kmsg.ApiVersionsResponseFinalizedFeature) bool {
			return f.Name == "transaction.version" && f.MaxVersionLevel >= 2
		}) {
			t.Errorf("transaction.version is below 2, so the tests do not cover the fencing of KIP-890: %+v", features)
		}
	}
}

func TestKafkaStartNamesMissingPrograms(t *testing.T) {
	t.Setenv("PATH", "")
	t.Setenv("KAFKA_BROKERS", "")
	_, err := kafkatest.Start(t.Context(), kafkatest.Config{})
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "Java") {
		t.Errorf("without java: %v", err)
	}
}

func TestKafkaStartReportsABrokerThatDies(t *testing.T) {
	t.Setenv("KAFKA_BROKERS", "")
	_, err := kafkatest.Start(t.Context(), kafkatest.Config{Properties: map[string]string{"num.io.threads": "0"}})
	if err == nil || !strings.Contains(err.Error(), "num.io.threads") {
		t.Errorf("a broker that cannot start: %v", err)
	}
}

func client(t *testing.T, b *kafkatest.Broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(b.Brokers()...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// createTopic creates a topic with a unique name and deletes it after the test.
func createTopic(t *testing.T, b *kafkatest.Broker, partitions int32) string {
	t.Helper()
	admin := kadm.NewClient(client(t, b))
	topic := "millrace-test-" + uuid.NewString()
	if _, err := admin.CreateTopic(t.Context(), partitions, -1, nil, topic); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := admin.DeleteTopic(ctx, topic); err != nil {
			t.Error(err)
		}
	})
	return topic
}

// begin returns a client with an open transaction.
func begin(t *testing.T, b *kafkatest.Broker, id string) *kgo.Client {
	t.Helper()
	cl := client(t, b, kgo.TransactionalID("millrace-test-"+id+"-"+uuid.NewString()))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	return cl
}

// send writes n records with a value and different keys.
func send(t *testing.T, cl *kgo.Client, topic, value string, n int) {
	t.Helper()
	var records []*kgo.Record
	for i := range n {
		records = append(records, &kgo.Record{Topic: topic, Key: []byte(strconv.Itoa(i)), Value: []byte(value)})
	}
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// produce writes n records in a transaction and ends it.
func produce(t *testing.T, b *kafkatest.Broker, topic, value string, n int, end kgo.TransactionEndTry) {
	t.Helper()
	cl := begin(t, b, value)
	send(t, cl, topic, value, n)
	if err := cl.EndTransaction(t.Context(), end); err != nil {
		t.Fatal(err)
	}
}

// settle waits until no transaction is open on a topic. The broker answers the end of a
// transaction before it has written all markers, and read_committed readers see the
// records only after their marker.
func settle(t *testing.T, b *kafkatest.Broker, topic string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	admin := kadm.NewClient(client(t, b))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		stable, err := admin.ListCommittedOffsets(ctx, topic)
		ends, err2 := admin.ListEndOffsets(ctx, topic)
		if err := errors.Join(err, stable.Error(), err2, ends.Error()); err != nil {
			t.Fatal(err)
		}
		if maps.EqualFunc(stable[topic], ends[topic], func(a, b kadm.ListedOffset) bool { return a.Offset == b.Offset }) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("the markers of an ended transaction are missing")
		case <-tick.C:
		}
	}
}

// committed counts the visible records of a read_committed reader, by value.
func committed(t *testing.T, b *kafkatest.Broker, topic string) map[string]int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl := client(t, b, kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, topic)
	if err = errors.Join(err, ends.Error()); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	left := map[int32]int64{} // partition to the last offset to read
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset - 1
		}
	})
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading up to %v: %v", left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				seen[string(r.Value)]++
			}
			if last, ok := left[r.Partition]; ok && r.Offset >= last {
				delete(left, r.Partition)
			}
		})
	}
	return seen
}
