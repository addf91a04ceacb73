package reader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
)

// StateLine is an aggregate at an offset of its partition, as JSON. The last line of an
// answer has only End.
type StateLine struct {
	ID      string          `json:"id,omitempty"`
	Version int64           `json:"version,omitempty"`
	Deleted bool            `json:"deleted,omitempty"`
	State   json.RawMessage `json:"state,omitempty"`
	// Unknown reports that the aggregate has changed since, and that the history does
	// not contain the earlier state.
	Unknown bool `json:"unknown,omitempty"`
	End     bool `json:"end,omitempty"`
}

// ErrNotHere is the error for a partition that this worker does not have.
var ErrNotHere = errors.New("this worker does not have it")

// StatesAt calls f with the aggregates of a partition, in order of their ids, in the
// state in which all events below an offset and no others were folded. It fails with
// ErrNotHere before the first call of f if this worker does not have the partition, and
// if the partition has not reached the offset.
func (r *Reader) StatesAt(ctx context.Context, partition int32, at int64, f func(StateLine) error) (err error) {
	ps := r.fresh()
	i := slices.IndexFunc(ps, func(p *projection.Partition) bool { return p.Number() == partition })
	if i < 0 {
		return ErrNotHere
	}
	if err := ps[i].Complete(); err != nil {
		return err
	}
	view := ps[i].View()
	defer func() { err = errors.Join(err, view.Close()) }()
	next, ok, err := view.Position()
	if err != nil {
		return err
	}
	if !ok || next < at {
		return fmt.Errorf("partition %d is at offset %d, and not yet at %d", partition, next, at)
	}
	p := r.pastIn(ps[i], view, "")
	p.next = next
	var failed error
	err = view.States("", func(id []byte, a *fold.Aggregate) bool {
		if failed = ctx.Err(); failed != nil {
			return false
		}
		p.id, p.latest = slices.Clone(id), *a
		line, existed, err := r.stateAt(ctx, p, at)
		if err == nil && existed {
			err = f(line)
		}
		failed = err
		return failed == nil
	})
	return errors.Join(failed, err)
}

// stateAt returns an aggregate at an offset. existed is false if it did not exist yet.
func (r *Reader) stateAt(ctx context.Context, p *past, at int64) (line StateLine, existed bool, err error) {
	a := p.latest
	line = StateLine{ID: string(p.id), Version: a.Version, Deleted: a.Deleted}
	if a.Offset >= at {
		if !r.set.KeepsHistory() {
			line.Unknown = true
			return line, true, nil
		}
		a, existed, err = p.before(ctx, at)
		switch {
		case errors.Is(err, query.ErrNoVersion):
			line.Unknown = true
			return line, true, nil
		case err != nil || !existed:
			return line, false, err
		}
		line.Version, line.Deleted = a.Version, a.Deleted
	}
	line.State, err = codec.AppendJSON(nil, r.fold.State().Root(), a.State)
	return line, true, err
}
