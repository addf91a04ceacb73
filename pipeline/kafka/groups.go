package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// GroupProgress returns how many offsets of a topic a group has behind it, of how
// many there are between where the partitions start and where committed records
// end.
func GroupProgress(ctx context.Context, cfg Config, group, topic string) (done, total int64, err error) {
	adm, err := admin(cfg)
	if err != nil {
		return 0, 0, err
	}
	defer adm.Close()
	// The committed offsets first: ends that are read later can only be higher.
	committed, err := adm.FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // it has not begun
		return 0, 0, fmt.Errorf("asking for the offsets of group %s: %w", group, err)
	}
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("asking where %s starts: %w", topic, err)
	}
	ends, err := adm.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("asking where %s ends: %w", topic, err)
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

// DeleteGroup deletes a group. Static members that have gone without a word are
// removed first; others must have left. A group that does not exist is deleted
// already.
func DeleteGroup(ctx context.Context, cfg Config, group string) error {
	adm, err := admin(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	described, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("asking for group %s: %w", group, err)
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
			return fmt.Errorf("removing the members of group %s that have gone: %w", group, errors.Join(err, left.Error()))
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

// DeleteTopic deletes a topic; one that does not exist is deleted already.
func DeleteTopic(ctx context.Context, cfg Config, topic string) error {
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
