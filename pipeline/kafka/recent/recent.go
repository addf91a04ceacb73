// Package recent reads the newest records of partitions.
//
// Start at [Read], which any goroutine may call.
package recent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
)

// settleEvery is the interval at which Read asks whether open transactions have ended.
const settleEvery = 10 * time.Millisecond

// Read calls f with the committed records among the last n offsets of each of the given
// partitions, up to their high watermarks at the time of the call; in order within a
// partition. Before, it waits until all transactions that have written below the high
// watermarks are committed or aborted, as [kafka.ReadSettled] does. The record has no time
// and no headers; it and its bytes are valid only during the call. An error of f ends the
// reading and is returned.
func Read(ctx context.Context, cfg kafka.Config, topic string, partitions []int32, n int64, f func(*pipeline.Record) error) (err error) {
	defer func() { err = cfg.Explain(err) }()
	opts, err := cfg.Options()
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(append(opts,
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // they take offsets, so every end is reached
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
	)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	left, from, err := settled(ctx, kadm.NewClient(cl), topic, partitions, n)
	if err != nil {
		return fmt.Errorf("the end of %s: %w", topic, err)
	}
	if len(left) == 0 {
		return nil
	}
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("reading the end of %s: %w", topic, err)
		}
		var stop error
		fetches.EachRecord(func(r *kgo.Record) {
			end, ok := left[r.Partition]
			if !ok || stop != nil {
				return
			}
			if r.Offset < end && !r.Attrs.IsControl() {
				stop = f(&pipeline.Record{Topic: topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value})
			}
			if r.Offset+1 >= end {
				delete(left, r.Partition)
			}
		})
		if stop != nil {
			return stop
		}
	}
	return nil
}

// settled waits until the transactions of partitions have ended. It returns the ends of
// those that have records, and where to begin.
func settled(ctx context.Context, adm *kadm.Client, topic string, partitions []int32, n int64) (ends map[int32]int64, from map[int32]kgo.Offset, err error) {
	list := func(f func(context.Context, ...string) (kadm.ListedOffsets, error)) (map[int32]int64, error) {
		listed, err := f(ctx, topic)
		if err != nil {
			return nil, err
		}
		out := map[int32]int64{}
		for _, p := range partitions {
			o, ok := listed.Lookup(topic, p)
			if !ok {
				return nil, fmt.Errorf("partition %d does not exist", p)
			}
			if o.Err != nil {
				return nil, fmt.Errorf("partition %d: %w", p, o.Err)
			}
			out[p] = o.Offset
		}
		return out, nil
	}
	if ends, err = list(adm.ListEndOffsets); err != nil {
		return nil, nil, err
	}
	for {
		stable, err := list(adm.ListCommittedOffsets)
		if err != nil {
			return nil, nil, err
		}
		if !slices.ContainsFunc(partitions, func(p int32) bool { return stable[p] < ends[p] }) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(settleEvery):
		}
	}
	starts, err := list(adm.ListStartOffsets)
	if err != nil {
		return nil, nil, err
	}
	from = map[int32]kgo.Offset{}
	for p, end := range ends {
		if starts[p] >= end {
			delete(ends, p)
			continue
		}
		from[p] = kgo.NewOffset().At(max(starts[p], end-n))
	}
	return ends, from, nil
}
