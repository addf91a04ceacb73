package admin

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"

	"millrace/pipeline/kafka"
)

// LastStableOffsets returns the last stable offsets of a topic, by partition.
func LastStableOffsets(ctx context.Context, cfg kafka.Config, topic string) (_ map[int32]int64, err error) {
	defer func() { err = cfg.Explain(err) }()
	adm, err := kafka.NewAdmin(cfg)
	if err != nil {
		return nil, err
	}
	defer adm.Close()
	listed, err := adm.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	ends := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		if o.Err == nil {
			ends[o.Partition] = o.Offset
		}
	})
	return ends, listed.Error()
}

// DeleteBefore deletes the records of a topic below the given offsets, by partition.
func DeleteBefore(ctx context.Context, cfg kafka.Config, topic string, before map[int32]int64) (err error) {
	defer func() { err = cfg.Explain(err) }()
	adm, err := kafka.NewAdmin(cfg)
	if err != nil {
		return err
	}
	defer adm.Close()
	var offsets kadm.Offsets
	for p, at := range before {
		offsets.AddOffset(topic, p, at, -1)
	}
	deleted, err := adm.DeleteRecords(ctx, offsets)
	if err != nil {
		return err
	}
	var faults []error
	deleted.Each(func(d kadm.DeleteRecordsResponse) {
		if d.Err != nil {
			faults = append(faults, fmt.Errorf("deleting old records of %s: %w", fmt.Sprintf("%s/%d", topic, d.Partition), d.Err))
		}
	})
	return errors.Join(faults...)
}
