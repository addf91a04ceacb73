package projection

import (
	"context"
	"errors"
	"slices"

	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/store"
)

// Forget takes over which aggregates must not be there.
func (ps *Set) Forget(state *control.State) {
	for _, t := range ps.Topics {
		for _, p := range t.Projections {
			ids := state.Forgotten[p.Name()]
			p.Fence.IDs.Store(&ids)
		}
	}
}

// Erase erases an aggregate from a lane: states, history, what waits, what is
// blocked. Its snapshot is made a null by the next transaction.
func (r *Reader) Erase(ctx context.Context, u *Unit, l *Lane, id string) (err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return nil // whoever has it now does it
	}
	if err := r.save(u); err != nil {
		return err
	}
	view := l.Part.View()
	defer func() { err = errors.Join(err, view.Close()) }()
	b := r.store.NewBatch()
	ids := []string{id}
	if l.Fold.Window().Size > 0 {
		ids = nil
		if err := view.Scan(familyWindow, nil, nil, false, func(key, _ []byte) bool {
			if in := string(key[8:]); fold.WindowKey(in) == id {
				ids = append(ids, in)
				b.Delete(l.Part, familyWindow, slices.Clone(key))
			}
			return true
		}); err != nil {
			return err
		}
	}
	tracks := []*track{l.own}
	if l.index != nil && l.index.shadow != nil {
		tracks = append(tracks, l.index.shadow)
	}
	for _, t := range tracks {
		t.unhold(slices.Clone(t.heldOf[id])...)
		if t.blocked[id] != nil {
			delete(t.blocked, id)
			t.blocks[id] = true
			if t == l.own {
				l.publishBlocked(id)
			}
		}
	}
	dec := event.NewDecoder(r.Registry, r.EventTypes, nil)
	for _, one := range ids {
		var a fold.Aggregate
		value, ok, err := view.Get(nil, familyState, []byte(one))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := fold.ReadAggregate(value, &a); err != nil {
			return damaged([]byte(one), err)
		}
		p := &past{r: r, lane: l, view: view, id: []byte(one), latest: a, decoder: dec}
		if err := p.deleteHistory(ctx, func(f store.Family, key []byte) { b.Delete(l.Part, f, key) }); err != nil {
			return err
		}
		b.Delete(l.Part, familyState, []byte(one))
		b.Delete(l.Part, familyShadow, []byte(one))
		b.Delete(l.Part, familyBelated, []byte(one))
		for _, t := range tracks {
			in, err := t.states.get([]byte(one))
			if err != nil {
				return err
			}
			in.Aggregate, in.clocks = fold.Aggregate{Source: l.Source}, clocks{}
			if t == l.own {
				in.gone = true
				t.owe(one)
			}
			t.states.settle()
		}
	}
	if err := r.save(u); err != nil {
		return err
	}
	return b.Commit()
}

// deleteHistory calls f with all that the index has of the aggregate.
func (p *past) deleteHistory(ctx context.Context, f func(family store.Family, key []byte)) error {
	if p.lane.index == nil {
		return nil
	}
	folder := p.r.Projection.Fold.NewFolder()
	var failed error
	err := p.events(1, p.latest.Version, true, func(_ int64, e indexed) bool {
		f(familyHistory, offsetKey(nil, e.offset))
		d, err := p.decoder.Decode(ctx, e.record(p.lane.Source), nil)
		if err == nil {
			_, err = folder.Read(d.Type, d.Body, e.origin())
		}
		if failed = err; err != nil {
			return false
		}
		f(familyType, typeKey(nil, folder.Type().Name(), e.eventTime, e.offset))
		if id := folder.EventID(); len(id) > 0 {
			for layer := range p.lane.index.filter.layers {
				f(familyEvent, eventNameOf(id).key(nil, layer))
			}
		}
		return true
	})
	err2 := p.view.Scan(familyKeyframe, versionKey(nil, p.id, 0), versionKey(nil, p.id, -1), false, func(key, _ []byte) bool {
		f(familyKeyframe, slices.Clone(key))
		return true
	})
	return errors.Join(failed, err, err2)
}
