package projection

import (
	"context"
	"errors"

	"millrace/pipeline"
	"millrace/pipeline/projector/internalrecord"
)

// Internal records are on a topic of their own (Spec.Internal), so every value on the
// snapshots topic is a snapshot. Versions that an earlier release made have them on the
// snapshots topic, for their life.

// internal returns the topic of the internal records.
func (s *Spec) internal() string {
	if s.Internal == "" {
		return s.Snapshots
	}
	return s.Internal
}

// readLayout reads the snapshots and the internal records of a partition.
func (o *opening) readLayout(ctx context.Context, r *loader) (at internalrecord.Ends, err error) {
	spec := &o.projection.Spec
	if spec.Internal == "" {
		at.Internal, err = o.set.cfg.Restore(ctx, spec.Snapshots, o.at.Partition, r.take)
		return at, err
	}
	read := func(ctx context.Context, topic string, from int64, f func(*pipeline.Record) error) (int64, error) {
		return o.set.cfg.Settled(ctx, topic, o.at.Partition, from, f)
	}
	only := func(internal bool) func(*pipeline.Record) error {
		return func(in *pipeline.Record) error {
			if kind, _ := internalrecord.KindOf(in.Key); (kind != internalrecord.Other) == internal {
				return r.take(in)
			}
			r.lane.skipUnreadable(in, errForeign, effectForeign)
			return nil
		}
	}
	return internalrecord.ReadCut(ctx, read, internalrecord.Topics{Internal: spec.Internal, Snapshots: spec.Snapshots}, only(true), only(false))
}

var errForeign = errors.New("its key belongs on another topic of the projection")

// effectForeign is the effect of a record that belongs on another topic, for the log.
const effectForeign = "it is skipped: another program wrote it"
