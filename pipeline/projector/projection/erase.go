package projection

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/store"
)

// Forget sets the aggregates that must not exist, by name of the projection. Their
// events are not folded any more; Erase removes what was folded.
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
			for _, id := range u.notErased(l) {
				if err := s.erase(ctx, u, l, id); err != nil {
					return fmt.Errorf("erasing an aggregate of %s, partition %d: %w", l.projection.Label(), u.key.Partition, err)
				}
			}
		}
	}
	return nil
}

// notErased returns the forgotten aggregates that were not erased from a lane yet.
func (u *unit) notErased(l *lane) []string {
	forgotten := l.projection.Fence.IDs.Load()
	if forgotten == nil {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.DeleteFunc(slices.Collect(maps.Keys(*forgotten)), func(id string) bool { return l.erased[id] })
}

// Purge removes data that was deleted from the disk, in the partitions in which an
// aggregate may have been, and returns those partitions. Erase must have run before.
func (s *Set) Purge(p *Projection, id string) (partitions []int32, err error) {
	home := kafka.PartitionOf([]byte(id), p.Spec.Events.Partitions)
	for _, part := range s.Partitions(p) {
		if part.Number() != home && !p.Spec.Fold.AnyPartition() {
			continue
		}
		if err := part.lane.part.Purge(); err != nil {
			return partitions, err
		}
		partitions = append(partitions, part.Number())
	}
	return partitions, nil
}

// erasure is the erasing of an aggregate from a lane.
type erasure struct {
	lane    *lane
	view    *store.View
	batch   *store.Batch
	decoder *event.Decoder
	folder  *fold.Folder
}

func (s *Set) erase(ctx context.Context, u *unit, l *lane, id string) (err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked || l.erased[id] {
		return nil // the next owner does it
	}
	if err := u.save(s); err != nil {
		return err
	}
	e := &erasure{lane: l, view: l.part.View(), batch: s.cfg.Store.NewBatch(), decoder: s.NewDecoder(l.projection), folder: l.fold.NewFolder()}
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
	l.erased[id] = true
	return nil
}

// windows returns the ids of an aggregate's states: its own id, or that of its windows,
// whose entries of familyWindow are deleted.
func (e *erasure) windows(id string) (ids []string, err error) {
	if e.lane.fold.Window().Size == 0 {
		return []string{id}, nil
	}
	err = e.view.Scan(familyWindow, nil, nil, false, func(key, _ []byte) bool {
		if in := string(key[8:]); fold.WindowKey(in) == id {
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
		t.unhold(slices.Clone(t.heldOf[id])...)
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
	value, ok, err := e.view.Get(nil, familyState, []byte(id))
	if !ok || err != nil {
		return err
	}
	var a fold.Aggregate
	if err := fold.ReadAggregate(value, &a); err != nil {
		return damaged([]byte(id), err)
	}
	if err := e.deleteHistory(ctx, []byte(id), &a); err != nil {
		return err
	}
	for _, f := range []store.Family{familyState, familyShadow, familyOutOfOrder} {
		e.batch.Delete(l.part, f, []byte(id))
	}
	for _, t := range l.tracks() {
		in, err := t.states.get([]byte(id))
		if err != nil {
			return err
		}
		in.Aggregate, in.clocks = fold.Aggregate{Source: l.source}, clocks{}
		if t == l.own {
			in.gone = true
			t.markDue(id)
		}
		t.states.settle()
	}
	return nil
}

// deleteHistory deletes an aggregate's entries of the index.
func (e *erasure) deleteHistory(ctx context.Context, id []byte, latest *fold.Aggregate) error {
	l := e.lane
	if l.index == nil {
		return nil
	}
	v := &View{view: e.view, source: l.source}
	var failed error
	err := v.Events(id, latest, 1, latest.Version, true, func(ev Event) bool {
		failed = e.deleteEvent(ctx, v, &ev)
		return failed == nil
	})
	err2 := e.view.Scan(familyKeyframe, versionKey(nil, id, 0), versionKey(nil, id, -1), false, func(key, _ []byte) bool {
		e.batch.Delete(l.part, familyKeyframe, slices.Clone(key))
		return true
	})
	return errors.Join(failed, err, err2)
}

func (e *erasure) deleteEvent(ctx context.Context, v *View, ev *Event) error {
	l := e.lane
	e.batch.Delete(l.part, familyHistory, offsetKey(nil, ev.Offset))
	d, err := e.decoder.Decode(ctx, v.Record(ev), nil)
	if err == nil {
		_, err = e.folder.Read(d.Type, d.Body, ev.Origin())
	}
	if err != nil {
		return err
	}
	e.batch.Delete(l.part, familyType, typeKey(nil, e.folder.Type().Name(), ev.EventTime, ev.Offset))
	if id := e.folder.EventID(); len(id) > 0 {
		for layer := range l.index.filter.layers {
			e.batch.Delete(l.part, familyEvent, eventNameOf(id).key(nil, layer))
		}
	}
	return nil
}
