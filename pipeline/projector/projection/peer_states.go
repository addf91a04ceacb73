package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
)

// StatesAt calls f with the aggregates of a partition, in order of their ids, as
// they were when all below an offset was folded, and nothing else. The partition
// must have got that far.
func (r *Reader) StatesAt(ctx context.Context, l *Lane, at int64, f func(StateLine) error) (err error) {
	view := l.Part.View()
	defer func() { err = errors.Join(err, view.Close()) }()
	next, ok, err := view.Position()
	if err != nil {
		return err
	}
	if !ok || next < at {
		return fmt.Errorf("partition %d is at offset %d, and not yet at %d", l.Source.Partition, next, at)
	}
	dec := event.NewDecoder(r.Registry, r.EventTypes, nil)
	var a fold.Aggregate
	var failed error
	err = view.Scan(familyState, nil, nil, false, func(key, value []byte) bool {
		if failed = errors.Join(fold.ReadAggregate(value, &a), ctx.Err()); failed != nil {
			return false
		}
		line := StateLine{ID: string(key), Version: a.Version, Deleted: a.Deleted}
		state := a.State
		if a.Offset >= at {
			p := &past{r: r, lane: l, view: view, id: slices.Clone(key), latest: a, next: next, decoder: dec}
			before, was, err := p.before(ctx, at)
			switch {
			case errors.Is(err, query.ErrNoVersion), errors.Is(err, query.ErrNoHistory):
				line.Unknown = true
			case err != nil:
				failed = err
				return false
			case !was:
				return true // it was not there yet
			}
			line.Version, line.Deleted, state = before.Version, before.Deleted, before.State
		}
		if !line.Unknown {
			if line.State, failed = codec.AppendJSON(nil, r.Projection.Fold.State().Root(), state); failed != nil {
				return false
			}
		}
		failed = f(line)
		return failed == nil
	})
	return errors.Join(failed, err)
}
