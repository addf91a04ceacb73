package kafka

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
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
	leave      leaver
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
func (c *txnClient) close()          { c.once.Do(func() { closeClient(c.Client(), c.leave) }) }

// groupClient ends batches at least once: outputs first, then offsets. A rebalance
// waits until the batch has ended.
type groupClient struct {
	*kgo.Client
	leave leaver
	mark  func(topic string) *string // metadata of an offset; nil if there is none
	once  sync.Once
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
func (c *groupClient) close()          { c.once.Do(func() { closeClient(c.Client, c.leave) }) }

// leaveTimeout bounds how long a closing client tries to leave the group. If it
// fails, the group removes the member after the session timeout.
const leaveTimeout = 2 * time.Second

func closeClient(cl *kgo.Client, leave leaver) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	cl.AllowRebalance()
	member, _ := cl.GroupMetadata()
	_ = cl.LeaveGroupContext(ctx)
	if leave != nil {
		leave(ctx, cl, member)
	}
	cl.CloseAllowingRebalance()
}

// leaver tells the group that a static member leaves, which the client does not. It is nil
// for a dynamic member, which the client removes.
type leaver func(ctx context.Context, cl *kgo.Client, member string)

// leaver returns how a session leaves its group: for good only when the loop stops. A
// session that makes a new client comes back as the same member, for which a group of the
// consumer protocol must know that the old one has left.
func (s *session) leaver(stopped context.Context) leaver {
	cfg := &s.loop.cfg
	if !cfg.Static {
		return nil
	}
	return func(ctx context.Context, cl *kgo.Client, member string) {
		var err error
		stops := stopped.Err() != nil
		switch {
		case cfg.Protocol == ConsumerProtocol && stops:
			err = leaveConsumer(ctx, cl, cfg.Group, member, s.txnID, leavesForGood)
		case cfg.Protocol == ConsumerProtocol:
			err = leaveConsumer(ctx, cl, cfg.Group, member, s.txnID, leavesForAWhile)
		case stops:
			err = leaveClassic(ctx, cl, cfg.Group, member, &s.txnID)
		}
		if err != nil && stops {
			s.log.Warn("the session could not leave the group; its partitions wait for the session timeout", "err", err)
		}
	}
}

// leaveClassic removes a member of the classic protocol. instance is nil for a dynamic one.
// With the id of a static member, the group refuses if another process has taken over the
// instance.
func leaveClassic(ctx context.Context, cl *kgo.Client, group, member string, instance *string) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID, m.InstanceID, m.Reason = member, instance, kmsg.StringPtr("the worker stops")
	req.Group, req.Members = group, append(req.Members, m)
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err == nil && len(resp.Members) > 0 {
		err = kerr.ErrorForCode(resp.Members[0].ErrorCode)
	}
	return err
}

// Epochs with which a static member of the consumer protocol (KIP-848) leaves. The client
// sends the second without the instance id, which Kafka refuses.
const (
	leavesForGood   = -1
	leavesForAWhile = -2 // a member with the same instance id gets the same partitions
)

// leaveConsumer lets a static member of the consumer protocol leave.
func leaveConsumer(ctx context.Context, cl *kgo.Client, group, member, instance string, epoch int32) error {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Group, req.MemberID, req.MemberEpoch, req.InstanceID = group, member, epoch, &instance
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}
