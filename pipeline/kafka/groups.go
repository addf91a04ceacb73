package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// GroupProgress returns how many offsets of a topic a group has passed (done), out of
// all offsets between the partitions' starts and their last stable offsets (total). The
// difference is the group's lag, the sum of [PartitionProgress.Lag] over its workers: a
// partition without a committed offset counts from its start, and committed offsets pass
// transaction markers, because a loop also commits batches of nothing else.
func GroupProgress(ctx context.Context, cfg Config, group, topic string) (done, total int64, err error) {
	defer func() { err = trimDial(err) }()
	adm, err := admin(cfg)
	if err != nil {
		return 0, 0, err
	}
	defer adm.Close()
	// Read the committed offsets first: ends that are read later are not lower.
	committed, err := adm.FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // the group has committed nothing yet
		return 0, 0, fmt.Errorf("reading the offsets of group %s: %w", group, err)
	}
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("reading the start offsets of %s: %w", topic, err)
	}
	ends, err := adm.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("reading the end offsets of %s: %w", topic, err)
	}
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(end.Topic, end.Partition)
		total += max(0, end.Offset-start.Offset)
		if c, ok := committed.Lookup(end.Topic, end.Partition); ok && c.Err == nil {
			done += max(0, min(c.At, end.Offset)-start.Offset)
		}
	})
	return done, total, nil
}

// DeleteGroup deletes a group. It first removes static members, which do not leave
// the group when they stop; other members must have left. It returns nil if the group
// does not exist.
func DeleteGroup(ctx context.Context, cfg Config, group string) (err error) {
	defer func() { err = trimDial(err) }()
	adm, err := admin(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	described, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("describing group %s: %w", group, err)
	}
	leave := kadm.LeaveGroup(group)
	static := 0
	for _, m := range described[group].Members {
		if m.InstanceID != nil {
			leave.InstanceIDs(*m.InstanceID)
			static++
		}
	}
	if static > 0 {
		if left, err := adm.LeaveGroup(ctx, leave); err != nil || left.Error() != nil {
			return fmt.Errorf("removing the static members of group %s: %w", group, errors.Join(err, left.Error()))
		}
	}
	out, err := adm.DeleteGroup(ctx, group)
	if err == nil {
		err = out.Err
	}
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return fmt.Errorf("deleting group %s: %w", group, err)
	}
	return nil
}

// RemoveMembers removes the static members of an instance from a group, which would wait
// for them. The ids of static members are transactional ids: GROUP-INSTANCE-SESSION.
func RemoveMembers(ctx context.Context, cfg Config, group, instance string) (err error) {
	defer func() { err = trimDial(err) }()
	adm, err := admin(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	described, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("describing group %s: %w", group, err)
	}
	leave := kadm.LeaveGroup(group)
	found := false
	for _, m := range described[group].Members {
		if m.InstanceID == nil {
			continue
		}
		session, ours := strings.CutPrefix(*m.InstanceID, group+"-"+instance+"-")
		if _, err := strconv.Atoi(session); ours && err == nil {
			leave.InstanceIDs(*m.InstanceID)
			found = true
		}
	}
	if !found {
		return nil
	}
	left, err := adm.LeaveGroup(ctx, leave)
	if err == nil {
		err = left.Error()
	}
	if err != nil {
		return fmt.Errorf("removing the static members %s-%s from group %s: %w", group, instance, group, err)
	}
	return nil
}

// DeleteTopic deletes a topic. It returns nil if the topic does not exist.
func DeleteTopic(ctx context.Context, cfg Config, topic string) (err error) {
	defer func() { err = trimDial(err) }()
	adm, err := admin(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	out, err := adm.DeleteTopic(ctx, topic)
	if err == nil {
		err = out.Err
	}
	if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("deleting topic %s: %w", topic, err)
	}
	return nil
}
