package recent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
)

// cluster returns brokers with a topic of three partitions.
func cluster(t *testing.T) (*kfake.Cluster, kafka.Config) {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "in"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, kafka.Config{Brokers: c.ListenAddrs()}
}

// transaction writes records to a partition in one transaction.
func transaction(t *testing.T, c *kfake.Cluster, id string, partition int32, values ...string) (end func(commit bool)) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.TransactionalID(id), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Partition: partition, Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	return func(commit bool) {
		defer cl.Close()
		if err := cl.EndTransaction(context.Background(), kgo.TransactionEndTry(commit)); err != nil {
			t.Error(err)
		}
	}
}

func TestTheNewestRecordsOfSomePartitionsAreRead(t *testing.T) {
	c, cfg := cluster(t)
	for p, n := range []int{9, 2, 5} {
		for i := range n {
			transaction(t, c, "x", int32(p), fmt.Sprint(p, "-", i))(i != 7) // with a marker each
		}
	}
	for _, test := range []struct {
		partitions []int32
		n          int64
		want       []string
	}{
		{[]int32{0}, 6, []string{"0-6", "0-8"}},
		{[]int32{0, 1}, 2, []string{"0-8", "1-1"}},
		{[]int32{1, 2}, 100, []string{"1-0", "1-1", "2-0", "2-1", "2-2", "2-3", "2-4"}},
		{nil, 100, nil},
	} {
		var got []string
		if err := Read(t.Context(), cfg, "in", test.partitions, test.n, func(in *pipeline.Record) error {
			got = append(got, string(in.Value))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if slices.Sort(got); !slices.Equal(got, test.want) {
			t.Errorf("the newest %d of %v: %v, want %v", test.n, test.partitions, got, test.want)
		}
	}
	stop := errors.New("stop")
	if err := Read(t.Context(), cfg, "in", []int32{0}, 9, func(*pipeline.Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the error of the callback is lost: %v", err)
	}
	if err := Read(t.Context(), cfg, "in", []int32{7}, 9, func(*pipeline.Record) error { return nil }); err == nil {
		t.Error("a partition that does not exist was read")
	}
}

// The transaction of an earlier owner may have committed offsets, and its marker may not
// have reached this partition.
func TestOpenTransactionsOfThePartitionsAreWaitedFor(t *testing.T) {
	for _, commit := range []bool{true, false} {
		c, cfg := cluster(t)
		transaction(t, c, "x", 0, "before")(true)
		end := transaction(t, c, "x", 0, "open")
		other := transaction(t, c, "y", 1, "other") // of a partition that is not read
		asked := make(chan bool, 1)
		c.ControlKey(2, func(kmsg.Request) (kmsg.Response, error, bool) { // ListOffsets
			c.KeepControl()
			select {
			case asked <- true:
			default:
			}
			return nil, nil, false
		})
		go func() { <-asked; end(commit) }()
		var got []string
		if err := Read(t.Context(), cfg, "in", []int32{0}, 100, func(in *pipeline.Record) error {
			got = append(got, string(in.Value))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		want := []string{"before"}
		if commit {
			want = append(want, "open")
		}
		if !slices.Equal(got, want) {
			t.Errorf("commit %v: %v, want %v", commit, got, want)
		}
		other(false)
	}
}
