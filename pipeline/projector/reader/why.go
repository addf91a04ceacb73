package reader

import (
	"context"
	"errors"
	"slices"

	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
)

// Limits of a search for the event that changed a field: events that are folded, and
// events whose type is read. Both together take a fraction of a second.
const (
	maxWhyFolded = 1 << 15
	maxWhyRead   = 1 << 16
)

// Why implements [query.Projection]. It goes back from keyframe to keyframe and folds
// the events between two keyframes, until it has found the last change of every field.
// It skips events of types that set none of the remaining fields.
func (r *Reader) Why(ctx context.Context, id string) (query.Why, error) {
	return r.why(ctx, id, maxWhyFolded, maxWhyRead)
}

func (r *Reader) why(ctx context.Context, id string, folded, read int64) (_ query.Why, err error) {
	p, err := r.past(id)
	if err != nil {
		return query.Why{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	w := &whySearch{reader: r, past: p, differ: r.fold.NewDiffer(), open: r.fold.Leaves(), why: query.Why{Aggregate: p.describe(&p.latest), Fields: map[string]query.Event{}}}
	err = w.run(ctx, folded, read)
	return w.why, err
}

// whySearch is the search for the last change of each field.
type whySearch struct {
	reader *Reader
	past   *past
	differ *fold.Differ
	open   []string // fields whose last change is not found yet
	why    query.Why
}

func (w *whySearch) run(ctx context.Context, folded, read int64) error {
	p := w.past
	oldest := max(1, p.latest.Version-read+1)
	for to := p.latest.Version; to > 0 && len(w.open) > 0; {
		var err error
		if to, err = w.lastCandidate(ctx, oldest, to); err != nil {
			return err
		}
		if to == 0 {
			if oldest > 1 {
				w.why.Before, w.why.Unknown = oldest, w.open
			}
			return nil
		}
		from := states.KeyframeBefore(to)
		if folded -= to - from; folded < 0 {
			w.why.Before, w.why.Unknown = to+1, w.open
			return nil
		}
		if err := w.block(ctx, from, to); err != nil {
			return err
		}
		to = from
	}
	return nil
}

// block finds the last changes by the events after version from, which has a keyframe,
// up to version to.
func (w *whySearch) block(ctx context.Context, from, to int64) error {
	p := w.past
	a := fold.Aggregate{Source: p.view.Source()}
	if from > 0 {
		if err := p.view.Keyframe(p.id, from, &a); err != nil {
			return err
		}
	}
	last := map[string]states.Event{} // by field
	if err := p.forward(ctx, &a, to, func(before, after *fold.Aggregate, e states.Event) error {
		changed, err := w.differ.Changed(before.State, after.State)
		for _, path := range changed {
			if slices.Contains(w.open, path) {
				last[path] = e
			}
		}
		return err
	}); err != nil {
		return err
	}
	for path, e := range last {
		var err error
		if w.why.Fields[path], err = w.reader.describeEvent(ctx, p.decoder, p.view, &e); err != nil {
			return err
		}
	}
	w.open = slices.DeleteFunc(w.open, func(path string) bool { _, found := last[path]; return found })
	return nil
}

// lastCandidate returns the last version between two that was made by an event of a
// type that sets an open field, 0 if there is none.
func (w *whySearch) lastCandidate(ctx context.Context, from, to int64) (version int64, err error) {
	p := w.past
	sets := map[int]bool{} // by type
	var failed error
	err = p.events(from, to, true, func(e states.Event) bool {
		typ := fold.Tombstone
		if !e.IsTombstone() {
			if typ, failed = p.decoder.TypeOf(ctx, p.view.Record(&e)); failed != nil {
				return false
			}
		}
		does, known := sets[typ]
		if w.reader.fold.Resets() && typ != fold.Tombstone {
			does, known = true, true // it may have created the aggregate again, which sets every field
		}
		if !known {
			does = slices.ContainsFunc(w.reader.fold.Sets(typ), func(path string) bool { return slices.Contains(w.open, path) })
			sets[typ] = does
		}
		if does {
			version = e.Version
			return false
		}
		if e.Version%1024 == 0 {
			failed = ctx.Err()
		}
		return failed == nil
	})
	return version, errors.Join(failed, err)
}
