package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A worker that was killed is still a member of its group, which waits for it. Its
// successor has the same transactional id. It has fenced its predecessor with it, so the
// predecessor can commit nothing more, and the successor removes it before it joins:
//
//   - A static member of the classic protocol needs no removal: the group replaces it when
//     a member with its instance id joins.
//   - A dynamic member of the classic protocol names its transactional id in the user data
//     of its subscription. Without a removal, the rebalance in which the successor joins
//     waits for the dead member, and all partitions of the group pause.
//   - A static member of the consumer protocol leaves for a while: the group keeps its
//     partitions for the instance id. Without that, it refuses the successor until the
//     session timeout.
//   - A dynamic member of the consumer protocol has no name, so it stays until the session
//     timeout.

// removePredecessor removes what is left of an earlier owner of the transactional id from
// the group. An error costs time only.
func (s *session) removePredecessor(ctx context.Context, cl *kgo.Client) {
	cfg := &s.loop.cfg
	var err error
	switch {
	case cfg.Protocol == ConsumerProtocol && cfg.Static:
		err = releaseInstance(ctx, cl, cfg.Group, s.txnID)
	case cfg.Protocol == ClassicProtocol && !cfg.Static:
		err = s.loop.marked.remove(ctx, cl, cfg.Group, s.txnID)
	}
	if err != nil && ctx.Err() == nil {
		s.log.Warn("cannot remove the killed predecessor from the group, which waits for it", "err", err)
	}
}

// releaseInstance lets the static member of a consumer group leave for a while.
func releaseInstance(ctx context.Context, cl *kgo.Client, group, instance string) error {
	req := kmsg.NewPtrConsumerGroupDescribeRequest()
	req.Groups = []string{group}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	for i := range resp.Groups {
		g := &resp.Groups[i]
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return err
		}
		for j := range g.Members {
			m := &g.Members[j]
			if m.InstanceID == nil || *m.InstanceID != instance || m.MemberEpoch == leavesForAWhile {
				continue
			}
			if err := leaveConsumer(ctx, cl, group, m.MemberID, instance, leavesForAWhile); err != nil {
				return err
			}
		}
	}
	return nil
}

// marked holds the dynamic members of a classic group that name their transactional id.
type marked struct {
	mu      sync.Mutex                               // guards members; held during the request
	members []kmsg.DescribeGroupsResponseGroupMember // when the group was stable
}

// remove removes the members that name a transactional id. The group names its members only
// while it is stable. So all sessions of a process use what the first of them gets: its
// removal starts a rebalance.
func (d *marked) remove(ctx context.Context, cl *kgo.Client, group, txnID string) error {
	members, err := d.describe(ctx, cl, group)
	if err != nil {
		return err
	}
	for i := range members {
		var meta kmsg.ConsumerMemberMetadata
		if m := &members[i]; meta.ReadFrom(m.ProtocolMetadata) == nil && bytes.HasSuffix(meta.UserData, memberMark(txnID)) {
			if err := leaveClassic(ctx, cl, group, m.MemberID, nil); err != nil && !errors.Is(err, kerr.UnknownMemberID) {
				return err
			}
		}
	}
	return nil
}

func (d *marked) describe(ctx context.Context, cl *kgo.Client, group string) ([]kmsg.DescribeGroupsResponseGroupMember, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Groups = []string{group}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
	}
	for i := range resp.Groups {
		g := &resp.Groups[i]
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			return nil, err
		}
		if g.State == "Stable" {
			d.members = g.Members
		}
	}
	return d.members, nil
}

// memberMark is the end of the user data of a dynamic member.
func memberMark(txnID string) []byte { return []byte("\x00transactional.id=" + txnID) }

// markedBalancer is a balancer whose member names its transactional id. Other members
// ignore it: they read user data from its start.
type markedBalancer struct {
	balancer kgo.GroupBalancer
	mark     []byte
}

var _ kgo.GroupBalancer = markedBalancer{}

func (b markedBalancer) ProtocolName() string { return b.balancer.ProtocolName() }
func (b markedBalancer) IsCooperative() bool  { return b.balancer.IsCooperative() }

func (b markedBalancer) JoinGroupMetadata(topics []string, owned map[string][]int32, generation int32) []byte {
	text := b.balancer.JoinGroupMetadata(topics, owned, generation)
	var meta kmsg.ConsumerMemberMetadata
	if meta.ReadFrom(text) != nil {
		return text
	}
	meta.UserData = append(meta.UserData, b.mark...)
	return meta.AppendTo(nil)
}

func (b markedBalancer) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	return b.balancer.ParseSyncAssignment(assignment)
}

func (b markedBalancer) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	return b.balancer.MemberBalancer(members)
}

// removed adds the possible causes to the error of a member that its group has removed.
func (s *session) removed(err error) error {
	if !errors.Is(err, kerr.UnknownMemberID) {
		return err
	}
	return fmt.Errorf("the group removed this member: another worker with the same --instance %s has started, or this one was silent for longer than --session-timeout; give each worker its own --instance: %w", s.loop.cfg.Instance, err)
}
