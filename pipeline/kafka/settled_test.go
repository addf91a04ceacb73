package kafka

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// A record whose transaction is still open when reading begins is read if the
// transaction commits, and skipped if it aborts.
func TestReadSettledWaitsForOpenTransactions(t *testing.T) {
	for _, commit := range []bool{true, false} {
		c := newCluster(t, 1)
		inject(t, c, 0, 2)
		txn, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.TransactionalID("x"), kgo.DefaultProduceTopic("in"))
		if err != nil {
			t.Fatal(err)
		}
		defer txn.Close()
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := txn.ProduceSync(t.Context(), kgo.StringRecord("open")).FirstErr(); err != nil {
			t.Fatal(err)
		}
		cfg := c.config()
		var got []string
		end, err := ReadSettled(t.Context(), cfg, "in", 0, func(r *pipeline.Record) error {
			got = append(got, string(r.Value))
			if len(got) == 2 { // all records visible so far have been read
				return txn.EndTransaction(t.Context(), kgo.TransactionEndTry(commit))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"000000", "000001"}
		if commit {
			want = append(want, "open")
		}
		if !slices.Equal(got, want) || end < 3 {
			t.Errorf("commit %v: read %v up to %d, want %v", commit, got, end, want)
		}
	}
}

func TestDeleteBeforeLeavesTheRest(t *testing.T) {
	c := newCluster(t, 1)
	inject(t, c, 0, 10)
	cfg := c.config()
	if err := DeleteBefore(t.Context(), cfg, "in", map[int32]int64{0: 7}); err != nil {
		t.Fatal(err)
	}
	got := readAll(t.Context(), t, c, "in")
	if want := []string{"000007", "000008", "000009"}; !slices.Equal(got, want) {
		t.Errorf("%v remain, want %v", got, want)
	}
	ends, err := LastStableOffsets(t.Context(), cfg, "in")
	if err != nil || ends[0] != 10 {
		t.Errorf("ends %v, error %v", ends, err)
	}
}

// Run ends with an error when partitions have been added, and the next Run reads them
// from their start.
func TestTailFindsNewPartitions(t *testing.T) {
	c := newCluster(t, 1)
	inject(t, c, 0, 3)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tail := NewTail(c.config(), "in")
	tail.recheck = 10 * time.Millisecond
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var got []string
	take := func(r *pipeline.Record) error {
		switch got = append(got, string(r.Value)); len(got) {
		case 3:
			if _, err := kadm.NewClient(cl).UpdatePartitions(ctx, 2, "in"); err != nil {
				return err
			}
			return cl.ProduceSync(ctx, &kgo.Record{Topic: "in", Partition: 1, Value: []byte("new")}).FirstErr()
		case 4:
			cancel()
		}
		return nil
	}
	for tries := 0; tail.Run(ctx, take) != nil; tries++ {
		if tries == 100 {
			t.Fatal("Run failed 100 times")
		}
	}
	if want := []string{"000000", "000001", "000002", "new"}; !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
}

// Follow continues after an error with the record that failed, and ends without an
// error with the context, or with a fatal error.
func TestTailFollowRetriesUntilTheContextEndsOrAnErrorIsFatal(t *testing.T) {
	c := newCluster(t, 1)
	inject(t, c, 0, 3)
	for _, fatal := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var got []string
		take := func(r *pipeline.Record) error {
			switch got = append(got, string(r.Value)); {
			case len(got) == 2:
				return errors.New("try again")
			case len(got) == 4 && fatal:
				return pipeline.Fatal("stop")
			case len(got) == 4:
				cancel()
			}
			return nil
		}
		retries := 0
		err := NewTail(c.config(), "in").Follow(ctx, take, func(err error, wait time.Duration) {
			if retries++; err.Error() != "try again" || wait != minBackoff {
				t.Errorf("a retry in %v after %v", wait, err)
			}
		})
		if want := []string{"000000", "000001", "000001", "000002"}; !slices.Equal(got, want) || retries != 1 {
			t.Errorf("read %v with %d retries, want %v", got, retries, want)
		}
		if isFatal := pipeline.ClassOf(err) == pipeline.ClassFatal; isFatal != fatal || err != nil && !fatal {
			t.Errorf("fatal %v: Follow returned %v", fatal, err)
		}
	}
}
