package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// ReadPartition calls f with every committed record of a partition, from the given
// offset (or the partition's start, if that is higher) up to the last stable offset at
// the time of the call, and returns that offset. The record and its bytes are valid
// only during the call. An error of f ends the reading and is returned.
func ReadPartition(ctx context.Context, cfg Config, topic string, partition int32, from int64, f func(*pipeline.Record) error) (end int64, err error) {
	defer func() { err = trimDial(err) }()
	opts, err := cfg.Options()
	if err != nil {
		return 0, err
	}
	cl, err := kgo.NewClient(append(opts,
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
	)...)
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	var start int64
	if err := patiently(ctx, cfg, func() (err error) {
		start, end, err = bounds(ctx, cl, topic, partition)
		return err
	}); err != nil {
		return 0, err
	}
	from = max(from, start)
	if from >= end {
		return end, nil
	}
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(from)}})
	var in pipeline.Record
	for next := from; next < end; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return 0, fmt.Errorf("reading %s: %w", topicPartition{topic, partition}, err)
		}
		var stop error
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if stop != nil || r.Offset >= end || r.Attrs.IsControl() {
				return
			}
			setRecord(&in, topic, partition, r)
			stop = f(&in)
		})
		if stop != nil {
			return 0, stop
		}
	}
	return end, nil
}

// bounds returns the first offset of a partition and its last stable offset.
func bounds(ctx context.Context, cl *kgo.Client, topic string, partition int32) (start, end int64, err error) {
	adm := kadm.NewClient(cl)
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	ends, err := adm.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return 0, 0, err
	}
	s, ok := starts.Lookup(topic, partition)
	e, ok2 := ends.Lookup(topic, partition)
	if !ok {
		return 0, 0, unlisted(starts, topic, partition)
	}
	if !ok2 {
		return 0, 0, unlisted(ends, topic, partition)
	}
	if err := errors.Join(s.Err, e.Err); err != nil {
		return 0, 0, fmt.Errorf("start and end offset of %s: %w", topicPartition{topic, partition}, err)
	}
	return s.Offset, e.Offset, nil
}
