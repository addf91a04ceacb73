package projection

import (
	"errors"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/store"
)

// index writes the history of a lane; history.go describes the entries. The lock of the
// unit guards it.
//
// After a restore from snapshots, the states are ahead of the index. The log is read
// again from its start and folded into states of its own (shadow), until the index has
// reached everything that the snapshots may contain. Nothing is folded into the lane's
// states before that, so a duplicate is recognized on every replay.
type index struct {
	part     *store.Part
	recent   map[eventName]int64 // offsets of events that the store does not have yet
	filter   filter
	lastName eventName // the last argument of known, and its hash
	lastHash uint64

	shadow      *track // nil if the index is not behind
	next, until int64  // offset that the index has reached, and must reach

	key, value []byte // scratch
}

func newIndex(part *store.Part) *index {
	return &index{part: part, recent: map[eventName]int64{}, filter: filter{part: part}}
}

// catchUp makes the index catch up from next to until, with a shadow.
func (x *index) catchUp(next, until int64, shadow *track) {
	x.next, x.until = next, until
	if next < until {
		x.shadow = shadow
	}
}

// lacks reports whether the event at an offset is still to be indexed from the past.
func (x *index) lacks(offset int64) bool {
	return x.shadow != nil && offset >= x.next && offset < x.until
}

// known reports whether an event was applied before, at another offset.
func (x *index) known(id []byte, offset int64) (bool, error) {
	if len(id) == 0 {
		return false, nil
	}
	x.lastName = eventNameOf(id)
	x.lastHash = x.lastName.hash()
	if !x.filter.mayHave(x.lastHash) {
		return false, nil
	}
	if at, ok := x.recent[x.lastName]; ok {
		return at != offset, nil
	}
	for i := range x.filter.layers {
		if !x.filter.layers[i].has(x.lastHash) {
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
				return false, damaged(id, err)
			}
			return at != offset, nil
		}
	}
	return false, nil
}

// add adds the event that was just applied, for which known was called last. before is
// the offset of the previous event of the same aggregate, -1 if there is none.
func (x *index) add(b *store.Batch, a *aggregate, before int64, in *pipeline.Record, f *fold.Folder) error {
	recorded := in.Time.UnixMilli()
	if err := x.advance(a, before, recorded); err != nil {
		return err
	}
	x.key = offsetKey(x.key[:0], in.Offset)
	x.value = appendEvent(x.value[:0], in, before, a)
	b.Put(x.part, familyHistory, x.key, x.value)
	if a.Version%KeyframeEvery == 0 {
		x.key = versionKey(x.key[:0], []byte(a.id), a.Version)
		x.value = fold.AppendAggregate(x.value[:0], &a.Aggregate)
		b.Put(x.part, familyKeyframe, x.key, x.value)
	}
	x.key = typeKey(x.key[:0], f.Type().Name(), a.EventTime, in.Offset)
	b.Put(x.part, familyType, x.key, nil)
	if len(a.EventID) > 0 {
		x.key = x.lastName.key(x.key[:0], x.filter.add(x.lastHash))
		x.value = codec.AppendLong(x.value[:0], in.Offset)
		b.Put(x.part, familyEvent, x.key, x.value)
		x.recent[x.lastName] = in.Offset
	}
	return nil
}

// clocks are the latest times of an aggregate's events so far. The times themselves may
// go back from one event to the next.
type clocks struct {
	event    int64 // event time, in microseconds since 1970
	recorded int64 // time of the record, in milliseconds since 1970
	known    bool
}

// advance advances the clocks of an aggregate to the event that was just applied.
func (x *index) advance(a *aggregate, before, recorded int64) error {
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
func (x *index) loadClocks(a *aggregate, before int64) error {
	if x.shadow != nil {
		// The store may not have the event yet.
		past, err := x.shadow.states.get([]byte(a.id))
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
		return damaged(x.key, err)
	}
	a.clocks = clocks{e.LatestEventTime, e.LatestRecorded, true}
	return nil
}

// passed notes that everything below an offset was read.
func (x *index) passed(next int64) {
	if x.shadow != nil && next > x.next {
		x.next = next
	}
}

// write adds to the batch what the store does not have yet, except for the entries of
// add.
func (x *index) write(b *store.Batch) error {
	x.filter.write(b)
	if x.shadow == nil {
		return nil
	}
	if x.next >= x.until {
		b.Delete(x.part, familyMark, markBackfill)
		b.Delete(x.part, familyMark, shadowFamilies.clock)
		return nil
	}
	putMark(b, x.part, markBackfill, x.next, x.until)
	return x.shadow.write(b)
}

// written notes that what write added is in the store. memory is the number of bytes
// that the shadow's states may take.
func (x *index) written(memory int) error {
	x.filter.written()
	clear(x.recent)
	if x.shadow == nil {
		return nil
	}
	if err := x.shadow.written(memory); err != nil || x.next < x.until {
		return err
	}
	x.shadow = nil
	return errors.Join(x.part.Clear(familyShadow), x.part.Clear(familyShadowHeld), x.part.Clear(familyShadowBlocked))
}
