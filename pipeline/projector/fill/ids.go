package fill

import (
	"context"
	"errors"
	"math"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/states"
)

// IDs reads the ids of a partition's past for a projection. One goroutine uses it; nobody
// uses the ids before [Fill.IDsRead].
type IDs struct {
	from, to int64 // range of offsets
	source   Source
	folder   *fold.Folder
	ids      *states.TailIDs
}

// Source describes the events of a projection.
type Source struct {
	Fold    *fold.Fold
	TopicID string
	// Prepare makes a record without a value an event, if the fold takes it as one.
	Prepare func(f *fold.Fold, in *pipeline.Record, d event.Decoded, bad error) (event.Decoded, error)
}

// NewIDs returns a reader of the ids in a range of offsets, for a Fill that has not read
// them.
func (f *Fill) NewIDs(source Source, from, to int64) *IDs {
	return &IDs{from, to, source, source.Fold.NewFolder(), f.ids}
}

// Range returns the offsets that are read for some projections.
func Range(all []*IDs) (from, to int64) {
	from = math.MaxInt64
	for _, one := range all {
		from, to = min(from, one.from), max(to, one.to)
	}
	return from, to
}

// errEnough ends a read of the log.
var errEnough = errors.New("enough")

// Read reads the log of a partition from an offset to its end.
type Read func(ctx context.Context, from int64, f func(*pipeline.Record) error) error

// ReadIDs reads the ids of some projections of a partition, and notes its progress.
// decode decodes events.
func ReadIDs(ctx context.Context, all []*IDs, at *Progress, read Read, decode func(*pipeline.Record) (event.Decoded, error)) error {
	from, to := Range(all)
	err := read(ctx, from, func(in *pipeline.Record) error {
		if in.Offset >= to {
			return errEnough
		}
		d, bad := decode(in)
		if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
			return bad
		}
		for _, one := range all {
			one.take(in, d, bad)
		}
		at.Reached(in.Offset + 1)
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	at.Reached(to)
	return nil
}

// take takes a record, or one that is no valid event (bad). An event that cannot be read is
// not folded, and its id does not matter.
func (r *IDs) take(in *pipeline.Record, d event.Decoded, bad error) {
	if in.Offset < r.from || in.Offset >= r.to || deadletter.IsTaken(in, r.source.TopicID) {
		return
	}
	f := r.source.Fold
	if d, bad = r.source.Prepare(f, in, d, bad); bad != nil || !f.Folds(d.Type) {
		return
	}
	if id, err := r.folder.Read(d.Type, d.Body, fold.OriginOf(in, d.Key)); err == nil {
		r.ids.AddPast(f.Scope(id), r.folder.EventID())
	}
}
