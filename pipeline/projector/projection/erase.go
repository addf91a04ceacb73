package projection

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// Forget sets the aggregates that must not exist, by name of the projection. Their
// events are not folded any more; Erase removes their states and history.
func (s *Set) Forget(forgotten map[string]map[string]control.ForgottenRecord) {
	for _, t := range s.topics {
		for _, p := range t.projections {
			ids := forgotten[p.Name()]
			p.Fence.IDs.Store(&ids)
		}
	}
}

// Erase removes all forgotten aggregates from the assigned partitions, unless it has
// done so before: states, history, held and blocked events. The next transaction
// deletes their snapshots.
func (s *Set) Erase(ctx context.Context) error {
	for _, u := range s.assignedUnits() {
		for _, l := range u.lanes {
			for _, id := range notErased(l) {
				if err := s.erase(ctx, u, l, id); err != nil {
					return fmt.Errorf("erasing an aggregate of %s, partition %d: %w", l.projection.Label(), u.key.Partition, err)
				}
			}
		}
	}
	return nil
}

// notErased returns the forgotten aggregates that were not erased from a lane yet.
func notErased(l *lane) []string {
	forgotten := l.projection.Fence.IDs.Load()
	if forgotten == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Collect(maps.Keys(*forgotten)), l.erased.Has)
}

// Purge removes data that was deleted from the disk, in the partitions in which an
// aggregate may have been, and returns those partitions. Erase must have run before.
func (s *Set) Purge(p *Projection, id string) (partitions []int32, err error) {
	home, sure := p.Home(id)
	for _, part := range s.Partitions(p) {
		if part.Number() != home && sure {
			continue
		}
		if err := part.lane.part.Purge(); err != nil {
			return partitions, err
		}
		partitions = append(partitions, part.Number())
	}
	return partitions, nil
}

// CountStates returns the number of states of an aggregate in this worker: one, or one for
// each of its windows; also one if it has none and its events wait.
func (s *Set) CountStates(p *Projection, id string) (n int, err error) {
	for _, part := range s.Partitions(p) {
		part.Freshen()
		one, err := part.countStates(id)
		if err != nil {
			return 0, err
		}
		n += one
	}
	return n, nil
}

func (p *Partition) countStates(id string) (n int, err error) {
	if p.lane.isBlocked(id) {
		n = 1
	}
	v := p.View()
	defer func() { err = errors.Join(err, v.Close()) }()
	if p.lane.fold.Window().Size == 0 {
		var a fold.Aggregate
		ok, err := v.State([]byte(id), &a)
		if ok {
			n = 1
		}
		return n, err
	}
	windows := 0
	err = v.Scan(familyWindow, func(key, _ []byte) bool {
		if of, _, ok := fold.ParseWindowID(string(key[8:])); ok && of == id {
			windows++
		}
		return true
	})
	return max(n, windows), err
}

// erasure is the erasing of an aggregate from a lane.
type erasure struct {
	lane    *lane
	view    *states.View
	batch   *store.Batch
	decoder *event.Decoder
	folder  *fold.Folder
}

func (s *Set) erase(ctx context.Context, u *unit, l *lane, id string) (err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked || l.erased.Has(id) {
		return nil // the next owner does it
	}
	if err := errors.Join(u.save(s), u.savePast(s, l)); err != nil {
		return err
	}
	e := &erasure{lane: l, view: states.NewView(l.part, l.source), batch: s.cfg.Store.NewBatch(), decoder: s.NewDecoder(l.projection), folder: l.fold.NewFolder()}
	defer func() { err = errors.Join(err, e.view.Close()) }()
	ids, err := e.windows(id)
	if err != nil {
		return err
	}
	e.dropWaiting(id)
	for _, id := range ids {
		if err := e.eraseState(ctx, id); err != nil {
			return err
		}
	}
	if err := u.save(s); err != nil {
		return err
	}
	if err := e.batch.Commit(); err != nil {
		return err
	}
	l.erased.Add(id)
	return nil
}

// windows returns the ids of an aggregate's states: its own id, or that of its windows,
// whose entries of familyWindow are deleted.
func (e *erasure) windows(id string) (ids []string, err error) {
	if e.lane.fold.Window().Size == 0 {
		return []string{id}, nil
	}
	err = e.view.Scan(familyWindow, func(key, _ []byte) bool {
		in := string(key[8:])
		if of, _, ok := fold.ParseWindowID(in); ok && of == id {
			ids = append(ids, in)
			e.batch.Delete(e.lane.part, familyWindow, slices.Clone(key))
		}
		return true
	})
	return ids, err
}

// dropWaiting removes held and queued events of an aggregate.
func (e *erasure) dropWaiting(id string) {
	for _, t := range e.lane.tracks() {
		t.held.Remove(t.held.Of(id)...)
		if t.blocked[id] == nil {
			continue
		}
		t.unblock(id)
		if t == e.lane.own {
			e.lane.publication.setBlockedDue(id)
		}
	}
}

// eraseState removes one state and its history.
func (e *erasure) eraseState(ctx context.Context, id string) error {
	l := e.lane
	var a fold.Aggregate
	ok, err := e.view.State([]byte(id), &a)
	if !ok || err != nil {
		return err
	}
	if l.index != nil {
		read := func(ev *states.Event) ([]byte, string, error) { return e.readEvent(ctx, ev) }
		if err := l.index.Erase(e.batch, e.view, []byte(id), l.fold.Scope(l.fold.AggregateKey(id)), &a, read); err != nil {
			return err
		}
	}
	for _, f := range []store.Family{states.FamilyState, states.FamilyShadow, familyOutOfOrder} {
		e.batch.Delete(l.part, f, []byte(id))
	}
	for _, t := range l.tracks() {
		in, err := t.states.Get([]byte(id))
		if err != nil {
			return err
		}
		in.Reset(l.source)
		if t == l.own {
			in.Gone = true
			t.markDue(id)
		}
		t.states.Settle()
	}
	return nil
}

// readEvent returns the id and the type of an event.
func (e *erasure) readEvent(ctx context.Context, ev *states.Event) (id []byte, typ string, err error) {
	if ev.IsTombstone() {
		return nil, "", nil
	}
	d, err := e.decoder.Decode(ctx, e.view.Record(ev), nil)
	if err == nil {
		_, err = e.folder.Read(d.Type, d.Body, ev.Origin())
	}
	if err != nil {
		return nil, "", err
	}
	if ev.ID != nil {
		return ev.ID, e.folder.Type().Name(), nil
	}
	return e.folder.EventID(), e.folder.Type().Name(), nil
}
