package reader

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
)

// BlockedPage returns at most limit blocked aggregates after a cursor, and the positions
// of the partitions that were read.
func (r *Reader) BlockedPage(after *query.EventCursor, limit int) (items []query.BlockedAggregate, at []query.Position) {
	items, at = []query.BlockedAggregate{}, []query.Position{}
	for _, p := range r.visible() {
		blocked, next, ok := p.Blocked()
		if !ok {
			continue
		}
		at = append(at, p.At(next))
		for _, one := range blocked {
			if after == nil || one.Cursor().Compare(*after) > 0 {
				items = append(items, one)
			}
		}
	}
	slices.SortFunc(items, func(a, b query.BlockedAggregate) int { return a.Cursor().Compare(b.Cursor()) })
	return items[:min(limit, len(items))], at
}

// visible returns the assigned partitions that are not hidden.
func (r *Reader) visible() []*projection.Partition {
	return slices.DeleteFunc(r.set.AssignedPartitions(r.projection), (*projection.Partition).Hidden)
}

// Blocked implements [query.Projection], for the partitions of this worker.
func (r *Reader) Blocked(_ context.Context, after *query.EventCursor, limit int) ([]query.BlockedAggregate, error) {
	items, _ := r.BlockedPage(after, limit)
	return items, nil
}

// Release implements [query.Projection], for the partitions of this worker.
func (r *Reader) Release(ctx context.Context, id string, skip bool) (query.ReleaseResult, error) {
	part, err := r.ReleasePart(ctx, id, skip)
	switch {
	case err != nil:
		return query.ReleaseResult{}, err
	case part.Busy != "":
		return query.ReleaseResult{}, fmt.Errorf("%s: %w", part.Busy, query.ErrBusy)
	case part.Released != nil:
		return *part.Released, nil
	case part.Known:
		return query.ReleaseResult{}, query.ErrNotBlocked
	}
	return query.ReleaseResult{}, query.ErrNotFound
}

// ReleasedPart is the result of a release at one worker.
type ReleasedPart struct {
	At       []query.Position     `json:"at"`
	Released *query.ReleaseResult `json:"released,omitempty"` // nil if the aggregate is not blocked here
	Known    bool                 `json:"known,omitempty"`    // the aggregate is here, but not blocked
	Busy     string               `json:"busy,omitempty"`
}

// positions returns the positions of the partitions that can be answered here.
func (r *Reader) positions() []query.Position {
	out := []query.Position{}
	for _, p := range r.visible() {
		if next, ok := p.Folded(); ok {
			out = append(out, p.At(next))
		}
	}
	return out
}

// ReleasePart releases an aggregate if it is blocked in this worker.
func (r *Reader) ReleasePart(ctx context.Context, id string, skip bool) (out ReleasedPart, err error) {
	before := r.positions()
	done, err := r.set.Release(ctx, r.projection, id, skip)
	// The answer is about the partitions that were here all the time.
	out.At = slices.DeleteFunc(r.positions(), func(at query.Position) bool {
		return !slices.ContainsFunc(before, func(b query.Position) bool { return b.Partition == at.Partition })
	})
	switch {
	case errors.Is(err, projection.ErrNotBlocked):
		_, err := r.Get(ctx, id)
		if out.Known = err == nil; errors.Is(err, query.ErrNotFound) || errors.Is(err, query.ErrElsewhere) {
			err = nil
		}
		return out, err
	case errors.Is(err, projection.ErrBusy) || errors.Is(err, projection.ErrBehind) || errors.Is(err, projection.ErrUnpublished) || errors.Is(err, query.ErrFilling):
		out.Busy = err.Error()
		return out, nil
	case err != nil:
		return out, err
	}
	out.Released = &query.ReleaseResult{Events: done.Events, Blocked: done.Blocked}
	return out, nil
}
