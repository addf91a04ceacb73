package kafka

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// client is the part of the Kafka client that a session uses. It hides the
// difference between the two guarantees. Calls do not overlap, except close.
type client interface {
	poll(ctx context.Context, max int) kgo.Fetches
	begin() error
	produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error))
	// flush waits until the promises of all produced records were called.
	flush(ctx context.Context) error
	// end commits or rolls back, and reports whether it committed.
	end(ctx context.Context, commit bool) (committed bool, err error)
	allowRebalance()
	close() // may be called more than once
}

// txnClient ends batches exactly once.
type txnClient struct {
	*kgo.GroupTransactSession
	fixOffsets func(*kmsg.TxnOffsetCommitRequest) error // see held
	once       sync.Once
}

func (c *txnClient) poll(ctx context.Context, max int) kgo.Fetches { return c.PollRecords(ctx, max) }
func (c *txnClient) begin() error                                  { return c.Begin() }
func (c *txnClient) produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
	c.Produce(ctx, r, promise)
}
func (c *txnClient) flush(ctx context.Context) error { return c.Client().Flush(ctx) }
func (c *txnClient) end(ctx context.Context, commit bool) (bool, error) {
	return c.End(kgo.PreTxnCommitFnContext(ctx, c.fixOffsets), kgo.TransactionEndTry(commit))
}
func (c *txnClient) allowRebalance() {}
func (c *txnClient) close()          { c.once.Do(func() { closeClient(c.Client()) }) }

// groupClient ends batches at least once: outputs first, then offsets. A rebalance
// waits until the batch has ended.
type groupClient struct {
	*kgo.Client
	mark func(topic string) *string // metadata of an offset; nil if there is none
	once sync.Once
}

func (c *groupClient) poll(ctx context.Context, max int) kgo.Fetches { return c.PollRecords(ctx, max) }
func (c *groupClient) begin() error                                  { return nil }
func (c *groupClient) produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
	c.Produce(ctx, r, promise)
}
func (c *groupClient) flush(ctx context.Context) error { return c.Flush(ctx) }
func (c *groupClient) end(ctx context.Context, commit bool) (bool, error) {
	if !commit {
		if err := c.AbortBufferedRecords(ctx); err != nil {
			return false, err
		}
		c.SetOffsets(c.CommittedOffsets())
		return false, nil
	}
	if err := c.CommitUncommittedOffsets(kgo.PreCommitFnContext(ctx, c.markOffsets)); err != nil {
		return false, err
	}
	return true, nil
}

func (c *groupClient) markOffsets(req *kmsg.OffsetCommitRequest) error {
	for i := range req.Topics {
		if text := c.mark(req.Topics[i].Topic); text != nil {
			for j := range req.Topics[i].Partitions {
				req.Topics[i].Partitions[j].Metadata = text
			}
		}
	}
	return nil
}
func (c *groupClient) allowRebalance() { c.AllowRebalance() }
func (c *groupClient) close()          { c.once.Do(func() { closeClient(c.Client) }) }

// leaveTimeout bounds how long a closing client tries to leave the group. If it
// fails, the group removes the member after the session timeout.
const leaveTimeout = 2 * time.Second

func closeClient(cl *kgo.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	cl.AllowRebalance()
	_ = cl.LeaveGroupContext(ctx)
	cl.CloseAllowingRebalance()
}
