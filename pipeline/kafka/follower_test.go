package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// taker is a FollowHandler that keeps the values of its records, by partition.
type taker struct {
	mu     sync.Mutex
	took   map[int32][]string
	ends   int
	refuse func(in *pipeline.Record) error
}

func (h *taker) Handle(_ context.Context, in *pipeline.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse != nil {
		if err := h.refuse(in); err != nil {
			return err
		}
	}
	if h.took == nil {
		h.took = map[int32][]string{}
	}
	h.took[in.Partition] = append(h.took[in.Partition], string(in.Value))
	return nil
}

func (h *taker) EndBatch(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends++
	return nil
}

func (h *taker) all() (all []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, values := range h.took {
		all = append(all, values...)
	}
	return all
}

func (h *taker) of(partition int32) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.took[partition])
}

// follow runs a follower until the test or the returned function ends it.
func follow(t *testing.T, c *cluster, h FollowHandler) (f *Follower, stop func() error) {
	t.Helper()
	f, err := NewFollower(FollowerConfig{Client: c.config(), Group: "g", Handler: h, Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() }) // a test that checks the error has called stop itself
	return f, stop
}

func TestAFollowerReadsOnlyAddedPartitionsAndLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 3)
		inject(t, c, 0, 300)
		h := &taker{}
		f, stop := follow(t, c, h)
		synctest.Wait()
		if h.all() != nil {
			t.Error("it read a partition before one was added")
		}
		for p := range int32(3) {
			f.Add(PartitionProgress{Topic: "in", Partition: p})
		}
		await(t, "all records", func() bool { return len(h.all()) == 300 })
		wantEach(t, h.all(), 300)
		if err := f.Ready(); err != nil {
			t.Error(err)
		}

		// After Remove returns, no record of the removed partition arrives.
		f.Remove("in", 1)
		before := len(h.of(1))
		inject(t, c, 300, 600)
		ends := map[int32]int{}
		for p := range int32(3) {
			if _, err := ReadPartition(t.Context(), c.config(), "in", p, 0, func(*pipeline.Record) error {
				ends[p]++
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		await(t, "the new records of the other partitions", func() bool { return len(h.of(0)) == ends[0] && len(h.of(2)) == ends[2] })
		if n := len(h.of(1)); n != before {
			t.Errorf("%d records of the removed partition after Remove", n-before)
		}
		removed := func(at PartitionProgress) bool { return at.Partition == 1 }
		if progress := f.Progress(); slices.ContainsFunc(progress, removed) {
			t.Errorf("progress of the removed partition: %+v", progress)
		}
		// Progress is updated at the end of the batch, after the handler has the records.
		await(t, "progress to the end of both other partitions", func() bool {
			progress := f.Progress()
			return len(progress) == 2 && !slices.ContainsFunc(progress, func(at PartitionProgress) bool {
				return removed(at) || at.Position != at.End || at.Position < int64(ends[at.Partition])
			})
		})
		// Added again, the partition is read from the given offset.
		f.Add(PartitionProgress{Topic: "in", Partition: 1, Position: int64(before)})
		await(t, "the records of the partition that was added again", func() bool { return len(h.of(1)) == ends[1] })
		wantEach(t, h.all(), 600)
		if err := stop(); err != nil {
			t.Fatal(err)
		}

		groups, err := kadm.NewClient(c.client(t)).ListGroups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(groups) != 0 {
			t.Errorf("the follower left groups behind: %v", groups.Groups())
		}
		if got := committed(t, c, "out", 0); len(got) != 0 {
			t.Errorf("it wrote %v", got)
		}
	})
}

func TestAFollowerDoesNotSeeRecordsOfAbortedTransactions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		cl := c.client(t, kgo.TransactionalID("t"), kgo.DefaultProduceTopic("in"))
		for i, how := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit, kgo.TryAbort, kgo.TryCommit} {
			if err := cl.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := cl.ProduceSync(t.Context(), kgo.StringRecord(fmt.Sprint(i))).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if err := cl.EndTransaction(t.Context(), how); err != nil {
				t.Fatal(err)
			}
		}
		h := &taker{}
		f, _ := follow(t, c, h)
		f.Add(PartitionProgress{Topic: "in"})
		// The position also passes the markers.
		await(t, "the end of the partition", func() bool { p := f.Progress(); return len(p) == 1 && p[0].Position == 8 && p[0].End == 8 })
		if got := h.all(); !slices.Equal(got, []string{"1", "3"}) {
			t.Errorf("it took %v", got)
		}
	})
}

func TestAFollowerRepeatsARecordThatItsHandlerRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 2)
		inject(t, c, 0, 200)
		refused := 0
		h := &taker{refuse: func(in *pipeline.Record) error {
			if string(in.Value) == "000100" && refused < 3 {
				refused++
				return errors.New("not now")
			}
			return nil
		}}
		f, _ := follow(t, c, h)
		f.Add(PartitionProgress{Topic: "in"})
		f.Add(PartitionProgress{Topic: "in", Partition: 1})
		await(t, "all records", func() bool { return len(h.all()) == 200 })
		wantEach(t, h.all(), 200)
		if refused != 3 {
			t.Errorf("refused %d times", refused)
		}
		await(t, "readiness", func() bool { return f.Ready() == nil })
	})
}

func TestAFollowerEndsWithAnErrorThatARetryCannotFix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		inject(t, c, 0, 10)
		f, stop := follow(t, c, &taker{})
		f.Add(PartitionProgress{Topic: "in", Partition: 0, Position: 1000, End: 1000})
		await(t, "the error", func() bool { return f.Ready() != nil })
		if err := stop(); !errors.Is(err, ErrOffsetGone) {
			t.Errorf("%v, want that the offset is gone", err)
		}

		broken := pipeline.Fatal("broken")
		f, stop = follow(t, c, &taker{refuse: func(*pipeline.Record) error { return broken }})
		f.Add(PartitionProgress{Topic: "in"})
		await(t, "the error", func() bool { return f.Ready() != nil })
		if err := stop(); !errors.Is(err, broken) {
			t.Errorf("%v, want what the handler said", err)
		}
	})
}
