package projection

import (
	"context"
	"errors"
	"slices"

	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
)

// Limits of what is done to find out which event changed what: events folded, and
// events looked at for their types. Together they take a fraction of a second.
const (
	maxWhy       = 1 << 15
	maxWhyLooked = 1 << 16
)

// Why implements [query.Projection]. It goes back from keyframe to keyframe and
// folds what is between two, until the last change of every field was found. Events
// of types that set none of the fields that are left are passed over.
func (r *Reader) Why(ctx context.Context, id string) (query.Why, error) {
	return r.why(ctx, id, maxWhy, maxWhyLooked)
}

func (r *Reader) why(ctx context.Context, id string, folds, looks int64) (_ query.Why, err error) {
	p, err := r.past(id)
	if err != nil {
		return query.Why{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	why := query.Why{Aggregate: r.answer(p.lane, id, &p.latest, p.next), Fields: map[string]query.Event{}}
	differ := r.Projection.Fold.NewDiffer()
	open := r.Projection.Fold.Leaves()
	oldest := max(1, p.latest.Version-looks+1)
	for to := p.latest.Version; to > 0 && len(open) > 0; {
		// Only blocks with an event of a type that sets an open field matter.
		if to, err = p.lastOf(ctx, oldest, to, open); err != nil {
			return why, err
		}
		if to == 0 {
			if oldest > 1 {
				why.Before, why.Unknown = oldest, open
			}
			break
		}
		from := (to - 1) / keyframeEvery * keyframeEvery // the version before the block
		if folds -= to - from; folds < 0 {
			why.Before, why.Unknown = to+1, open
			break
		}
		a := fold.Aggregate{Source: p.lane.Source}
		if from > 0 {
			if err = p.keyframe(from, &a); err != nil {
				return why, err
			}
		}
		last := map[string]indexed{}
		version := map[string]int64{}
		if err = p.forward(ctx, &a, to, func(before, after *fold.Aggregate, e indexed) error {
			changed, err := differ.Changed(before.State, after.State)
			for _, path := range changed {
				if slices.Contains(open, path) {
					e.header, e.value = slices.Clone(e.header), slices.Clone(e.value)
					last[path], version[path] = e, after.Version
				}
			}
			return err
		}); err != nil {
			return why, err
		}
		for path, e := range last {
			if why.Fields[path], err = p.event(ctx, version[path], e); err != nil {
				return why, err
			}
		}
		open = slices.DeleteFunc(open, func(path string) bool { _, found := last[path]; return found })
		to = from
	}
	return why, nil
}

// lastOf returns the last version between two that was made by an event of a type
// that sets any of the fields, 0 if there is none.
func (p *past) lastOf(ctx context.Context, from, to int64, paths []string) (version int64, err error) {
	sets := map[int]bool{} // by type
	var failed error
	err = p.events(from, to, true, func(v int64, e indexed) bool {
		var typ int
		if typ, failed = p.decoder.TypeOf(ctx, e.record(p.lane.Source)); failed != nil {
			return false
		}
		does, known := sets[typ]
		if !known {
			does = slices.ContainsFunc(p.r.Projection.Fold.Sets(typ), func(path string) bool { return slices.Contains(paths, path) })
			sets[typ] = does
		}
		if does {
			version = v
			return false
		}
		if v%1024 == 0 {
			failed = ctx.Err()
		}
		return failed == nil
	})
	return version, errors.Join(failed, err)
}
