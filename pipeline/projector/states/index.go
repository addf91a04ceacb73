package states

import (
	"errors"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/store"
)

// Index writes the history of a partition; history.go describes the entries. It has no
// lock: see the package comment.
//
// After a restore from snapshots, the states are ahead of the index. The log is read
// again from its start and folded into states of its own (the past), until the index has
// reached everything that the snapshots may contain. The caller must fold nothing into
// the current states before that, so that a duplicate is recognized on every replay.
type Index struct {
	part     *store.Part
	recent   map[eventName]int64 // offsets of events that the store does not have yet
	filter   filter
	lastName eventName // the last argument of Known, and its hash
	lastHash uint64

	past        *Table // nil if the index is not behind
	next, until int64  // offset that the index has reached, and must reach

	key, value []byte // scratch
}

// NewIndex returns the index of a part of the store, which is empty.
func NewIndex(part *store.Part) *Index {
	return &Index{part: part, recent: map[eventName]int64{}, filter: filter{part: part}}
}

// Load reads what the store has. next is the position of the partition, and backfill that
// of the index if it catches up, else -1, as of the last Write.
func (x *Index) Load(next, backfill int64) error { return x.filter.load(next, backfill) }

// CatchUp makes the index catch up from next to until, while the events are folded into
// the past. It returns false if there is nothing to catch up with.
func (x *Index) CatchUp(next, until int64, past *Table) bool {
	x.next, x.until = next, until
	if next >= until {
		return false
	}
	x.past = past
	return true
}

// Extend makes the index catch up to an offset at least.
func (x *Index) Extend(until int64) { x.until = max(x.until, until) }

// Backfill returns the offsets that the index has reached and must reach.
func (x *Index) Backfill() (next, until int64) { return x.next, x.until }

// Lacks reports whether the event at an offset is still to be indexed from the past.
func (x *Index) Lacks(offset int64) bool {
	return x.past != nil && offset >= x.next && offset < x.until
}

// Passed notes that everything below an offset was read.
func (x *Index) Passed(next int64) {
	if x.past != nil && next > x.next {
		x.next = next
	}
}

// Ended reports whether the index has caught up, and ends the catch-up.
func (x *Index) Ended() bool {
	if x.past == nil || x.next < x.until {
		return false
	}
	x.past = nil
	return true
}

// Known reports whether an event was applied before, at another offset: to an aggregate,
// or to any if aggregate is nil. For a window, the aggregate is the key.
func (x *Index) Known(aggregate, id []byte, offset int64) (bool, error) {
	if len(id) == 0 {
		return false, nil
	}
	x.lastName = eventNameOf(id)
	x.lastName.scope = scopeOf(aggregate)
	x.lastHash = x.lastName.hash()
	if x.filter.unread {
		if err := x.filter.readMore(filterPiece); err != nil {
			return false, err
		}
	}
	if !x.filter.mayHave(x.lastHash) {
		return false, nil
	}
	if at, ok := x.recent[x.lastName]; ok {
		return at != offset, nil
	}
	for i := range x.filter.layers {
		if !x.filter.layerMayHave(i, x.lastHash) {
			continue
		}
		var ok bool
		var err error
		x.key = x.lastName.key(x.key[:0], i)
		if x.value, ok, err = x.part.Get(x.value[:0], familyEvent, x.key); err != nil {
			return false, err
		}
		if ok {
			at, _, err := codec.ReadLong(x.value)
			if err != nil {
				return false, Damaged(id, err)
			}
			return at != offset, nil
		}
	}
	return false, nil
}

// Add adds the event that was just applied, for which Known was called last. before is
// the offset of the previous event of the same aggregate, -1 if there is none.
func (x *Index) Add(b *store.Batch, a *Aggregate, before int64, in *pipeline.Record, f *fold.Folder) error {
	recorded := in.Time.UnixMilli()
	if err := x.advance(a, before, recorded); err != nil {
		return err
	}
	x.key = offsetKey(x.key[:0], in.Offset)
	x.value = appendEvent(x.value[:0], in, before, a, f)
	b.Put(x.part, familyHistory, x.key, x.value)
	if a.Version%KeyframeEvery == 0 {
		x.key = versionKey(x.key[:0], a.ID, a.Version)
		x.value = fold.AppendAggregate(x.value[:0], &a.Aggregate)
		b.Put(x.part, familyKeyframe, x.key, x.value)
	}
	if typ := f.Type(); typ != nil { // nil is a tombstone
		x.key = typeKey(x.key[:0], typ.Name(), a.EventTime, in.Offset)
		b.Put(x.part, familyType, x.key, nil)
	}
	if len(a.EventID) > 0 {
		x.key = x.lastName.key(x.key[:0], x.filter.add(x.lastHash))
		x.value = codec.AppendLong(x.value[:0], in.Offset)
		b.Put(x.part, familyEvent, x.key, x.value)
		x.recent[x.lastName] = in.Offset
	}
	return nil
}

// AddConflict adds an event that was not applied to an aggregate, because its sequence
// number or a later one was applied before.
func (x *Index) AddConflict(b *store.Batch, aggregate, id []byte, number int64) {
	if len(id) == 0 {
		return
	}
	x.key = eventNameOf(id).conflictKey(x.key[:0], aggregate)
	x.value = codec.AppendLong(x.value[:0], number)
	b.Put(x.part, familyConflict, x.key, x.value)
}

// clocks are the latest times of an aggregate's events so far. The times themselves may
// go back from one event to the next.
type clocks struct {
	event    int64 // event time, in microseconds since 1970
	recorded int64 // time of the record, in milliseconds since 1970
	known    bool
}

// advance advances the clocks of an aggregate to the event that was just applied.
func (x *Index) advance(a *Aggregate, before, recorded int64) error {
	if before >= 0 && !a.clocks.known {
		if err := x.loadClocks(a, before); err != nil {
			return err
		}
	}
	if !a.clocks.known {
		a.clocks = clocks{a.EventTime, recorded, true}
		return nil
	}
	a.event, a.recorded = max(a.event, a.EventTime), max(a.recorded, recorded)
	return nil
}

// loadClocks sets the clocks of an aggregate to those after the event at the offset
// before, which precedes the event that was just applied.
func (x *Index) loadClocks(a *Aggregate, before int64) error {
	if x.past != nil {
		// The store may not have the event yet.
		past, err := x.past.Get(a.ID)
		if err != nil {
			return err
		}
		if past != a && past.clocks.known && past.Offset == before {
			a.clocks = past.clocks
			return nil
		}
	}
	var ok bool
	var err error
	x.key = offsetKey(x.key[:0], before)
	if x.value, ok, err = x.part.Get(x.value[:0], familyHistory, x.key); !ok || err != nil {
		return err
	}
	e, err := readEvent(before, x.value)
	if err != nil {
		return Damaged(x.key, err)
	}
	a.clocks = clocks{e.LatestEventTime, e.LatestRecorded, true}
	return nil
}

// Write adds to the batch what the store does not have yet, except for the entries of
// Add. next and backfill are the positions for the next Load.
func (x *Index) Write(b *store.Batch, next, backfill int64) error {
	return x.filter.write(b, next, backfill)
}

// Written notes that the batch is in the store.
func (x *Index) Written() {
	x.filter.written()
	clear(x.recent)
}

// Erase deletes the history of an aggregate, whose state in the view is latest. read
// returns the id and the type (its full name) of an event; both are empty for a tombstone.
// scope is the aggregate as for Known.
func (x *Index) Erase(b *store.Batch, v *View, id, scope []byte, latest *fold.Aggregate, read func(*Event) (eventID []byte, typ string, err error)) error {
	var failed error
	err := v.Events(id, latest, 1, latest.Version, true, func(e Event) bool {
		var eventID []byte
		var typ string
		if eventID, typ, failed = read(&e); failed != nil {
			return false
		}
		b.Delete(x.part, familyHistory, offsetKey(nil, e.Offset))
		if typ != "" {
			b.Delete(x.part, familyType, typeKey(nil, typ, e.EventTime, e.Offset))
		}
		if len(eventID) > 0 {
			name := eventNameOf(eventID)
			name.scope = scopeOf(scope)
			for layer := range x.filter.layers {
				b.Delete(x.part, familyEvent, name.key(nil, layer))
			}
		}
		return true
	})
	err2 := v.view.Scan(familyKeyframe, versionKey(nil, id, 0), versionKey(nil, id, -1), false, func(key, _ []byte) bool {
		b.Delete(x.part, familyKeyframe, slices.Clone(key))
		return true
	})
	err3 := v.view.Scan(familyConflict, appendAggregateKey(nil, id), after(appendAggregateKey(nil, id)), false, func(key, _ []byte) bool {
		b.Delete(x.part, familyConflict, slices.Clone(key))
		return true
	})
	return errors.Join(failed, err, err2, err3)
}
