package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// ReadSettled is [ReadPartition] from the partition's start to its high watermark at
// the time of the call. It waits until all transactions that have written below it
// are committed or aborted. It returns the offset after the last one read.
//
// A reader of records that were written in one transaction with a group's offsets
// needs this. The offsets may be committed and visible before the marker of the same
// transaction has reached the partition. Up to the last stable offset, the last batch
// would then be missing.
func ReadSettled(ctx context.Context, cfg Config, topic string, partition int32, f func(*pipeline.Record) error) (end int64, err error) {
	return ReadSettledFrom(ctx, cfg, topic, partition, 0, f)
}

// ReadSettledFrom is [ReadSettled] from an offset.
func ReadSettledFrom(ctx context.Context, cfg Config, topic string, partition int32, from int64, f func(*pipeline.Record) error) (end int64, err error) {
	end = from
	defer func() { err = trimDial(err) }()
	var last kadm.ListedOffset
	if err := Administer(ctx, cfg, func(adm *kadm.Client) (err error) {
		last, err = endOffset(ctx, adm, topic, partition)
		return err
	}); err != nil {
		return 0, err
	}
	for wait := minBackoff / 10; ; wait = sleep(ctx, wait) {
		if end, err = ReadPartition(ctx, cfg, topic, partition, end, f); err != nil || end >= last.Offset {
			return end, err
		}
	}
}

// endOffset returns the high watermark of a partition.
func endOffset(ctx context.Context, adm *kadm.Client, topic string, partition int32) (kadm.ListedOffset, error) {
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err != nil {
		return kadm.ListedOffset{}, err
	}
	last, ok := ends.Lookup(topic, partition)
	if !ok {
		return last, unlisted(ends, topic, partition)
	}
	if last.Err != nil {
		return last, fmt.Errorf("end offset of %s: %w", topicPartition{topic, partition}, last.Err)
	}
	return last, nil
}

// unlisted returns why an answer lacks a partition.
func unlisted(answer kadm.ListedOffsets, topic string, partition int32) error {
	tp := topicPartition{topic, partition}
	if err := answer.Error(); err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("%s: %w", tp, err)
	}
	return fmt.Errorf("%s does not exist", tp)
}

// LastStableOffsets returns the last stable offsets of a topic, by partition.
func LastStableOffsets(ctx context.Context, cfg Config, topic string) (out map[int32]int64, err error) {
	err = Administer(ctx, cfg, func(adm *kadm.Client) error {
		listed, err := adm.ListCommittedOffsets(ctx, topic)
		if err != nil {
			return err
		}
		out = map[int32]int64{}
		listed.Each(func(o kadm.ListedOffset) {
			if o.Err == nil {
				out[o.Partition] = o.Offset
			}
		})
		return listed.Error()
	})
	return out, trimDial(err)
}

// DeleteBefore deletes the records of a topic below the given offsets, by partition.
func DeleteBefore(ctx context.Context, cfg Config, topic string, before map[int32]int64) error {
	var offsets kadm.Offsets
	for p, at := range before {
		offsets.AddOffset(topic, p, at, -1)
	}
	return trimDial(Administer(ctx, cfg, func(adm *kadm.Client) error {
		deleted, err := adm.DeleteRecords(ctx, offsets)
		if err != nil {
			return err
		}
		var faults []error
		deleted.Each(func(d kadm.DeleteRecordsResponse) {
			if d.Err != nil {
				faults = append(faults, fmt.Errorf("deleting old records of %s: %w", topicPartition{topic, d.Partition}, d.Err))
			}
		})
		return errors.Join(faults...)
	}))
}

// Administer opens a client for admin requests, and calls f with it, again while the brokers
// are still starting, at most for [Config.Patience]. f must have the same effect if it is
// called again.
func Administer(ctx context.Context, cfg Config, f func(*kadm.Client) error) error {
	cl, err := openClient(cfg)
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	return patiently(ctx, cfg, func() error { return f(adm) })
}

// openClient returns a client without further options. The caller closes it.
func openClient(cfg Config) (*kgo.Client, error) {
	opts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	return kgo.NewClient(opts...)
}
