package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// GroupProgress returns how many offsets of a topic a group has passed (done), out of
// all offsets between the partitions' starts and their last stable offsets (total). The
// difference is the group's lag, the sum of [PartitionProgress.Lag] over its workers: a
// partition without a committed offset counts from its start, and committed offsets pass
// transaction markers, because a loop also commits batches of nothing else.
func GroupProgress(ctx context.Context, cfg Config, group, topic string) (done, total int64, err error) {
	err = Administer(ctx, cfg, func(adm *kadm.Client) error {
		done, total, err = groupProgress(ctx, adm, group, topic)
		return err
	})
	return done, total, trimDial(err)
}

func groupProgress(ctx context.Context, adm *kadm.Client, group, topic string) (done, total int64, err error) {
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
