package kafka

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// client is what a session needs of the Kafka client: the same steps for both
// guarantees. No two calls overlap, but for close.
type client interface {
	poll(ctx context.Context, max int) kgo.Fetches
	begin() error
	produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error))
	// flush waits until every promise of what was produced was called.
	flush(ctx context.Context) error
	// end commits or rolls back, and says which it was.
	end(ctx context.Context, commit bool) (committed bool, err error)
	allowRebalance()
	close() // may be called again
}

// txnClient ends batches exactly once.
type txnClient struct {
	*kgo.GroupTransactSession
	offsets func(*kmsg.TxnOffsetCommitRequest) error // makes them right
	once    sync.Once
}

func (c *txnClient) poll(ctx context.Context, max int) kgo.Fetches { return c.PollRecords(ctx, max) }
func (c *txnClient) begin() error                                  { return c.Begin() }
func (c *txnClient) produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
	c.Produce(ctx, r, promise)
}
func (c *txnClient) flush(ctx context.Context) error { return c.Client().Flush(ctx) }
func (c *txnClient) end(ctx context.Context, commit bool) (bool, error) {
	return c.End(kgo.PreTxnCommitFnContext(ctx, c.offsets), kgo.TransactionEndTry(commit))
}
func (c *txnClient) allowRebalance() {}
func (c *txnClient) close()          { c.once.Do(func() { closeClient(c.Client()) }) }

// groupClient ends batches at least once: outputs first, then offsets. The
// group waits with a rebalance until the batch has ended.
type groupClient struct {
	*kgo.Client
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
	if err := c.CommitUncommittedOffsets(ctx); err != nil {
		return false, err
	}
	return true, nil
}
func (c *groupClient) allowRebalance() { c.AllowRebalance() }
func (c *groupClient) close()          { c.once.Do(func() { closeClient(c.Client) }) }

// leaveTimeout bounds how long a client that is closed tries to tell the group.
// Whom it does not reach learns of it by the session timeout.
const leaveTimeout = 2 * time.Second

func closeClient(cl *kgo.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	cl.AllowRebalance()
	_ = cl.LeaveGroupContext(ctx)
	cl.CloseAllowingRebalance()
}
