// Package pending keeps what a partition of a projection has to do beside its states: records
// that are due. Each type tracks which of its entries the store lacks: Write adds them to a
// batch, and Written notes that the batch is in the store. There are no locks: package
// projection calls all of it under the lock of the partition.
package pending

import (
	"encoding/binary"
	"errors"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// Marks are the ids of aggregates whose snapshot is due although no event above the
// published offset shows that: after a restart, nothing else would.
type Marks struct {
	IDs     map[string]bool // false: not due any more, and still in the store
	unsaved map[string]bool
	since   map[string]bool // set since the open transaction got the due snapshots; nil if none is open
}

// NewMarks returns no marks.
func NewMarks() Marks { return Marks{IDs: map[string]bool{}, unsaved: map[string]bool{}} }

// Set marks an aggregate, or ends its mark.
func (m *Marks) Set(id string, due bool) {
	m.IDs[id], m.unsaved[id] = due, true
	if due && m.since != nil {
		m.since[id] = true
	}
}

// Send notes that a transaction has all due snapshots.
func (m *Marks) Send() { m.since = map[string]bool{} }

// Ended notes the end of that transaction. A snapshot that became due after Send is
// due in the next one.
func (m *Marks) Ended(committed bool) {
	since := m.since
	m.since = nil
	if !committed {
		return
	}
	for id := range m.IDs {
		if !since[id] {
			m.Set(id, false)
		}
	}
}

// Write adds to the batch what the store does not have, in a family.
func (m *Marks) Write(b *store.Batch, part *store.Part, family store.Family) {
	for id := range m.unsaved {
		if m.IDs[id] {
			b.Put(part, family, []byte(id), nil)
		} else {
			b.Delete(part, family, []byte(id))
		}
	}
}

// Written notes that the batch is in the store.
func (m *Marks) Written() {
	for id := range m.unsaved {
		if !m.IDs[id] {
			delete(m.IDs, id)
		}
	}
	clear(m.unsaved)
}

// Changes maps aggregates to the next offset when they changed otherwise than by the
// event that is being read: by an event that had waited, or because they were blocked
// or released. The offset of their last event does not show that change to a feed that
// continues from a later offset, but this one does.
type Changes struct {
	Unsent  map[string]int64 // not sent to feeds yet
	unsaved map[string]int64
}

// NewChanges returns no changes.
func NewChanges() Changes {
	return Changes{Unsent: map[string]int64{}, unsaved: map[string]int64{}}
}

// Add adds a change. next is the next offset.
func (o *Changes) Add(id string, next int64) { o.Unsent[id], o.unsaved[id] = next, next }

// Write adds to the batch what the store does not have, in a family.
func (o *Changes) Write(b *store.Batch, part *store.Part, family store.Family) {
	for id, next := range o.unsaved {
		b.Put(part, family, []byte(id), codec.AppendLong(nil, next))
	}
}

// Written notes that the batch is in the store.
func (o *Changes) Written() { clear(o.unsaved) }

// ReadChanges returns the changes in a view whose next offset is in the range from first to
// last, both included.
func ReadChanges(v *states.View, family store.Family, first, last int64) (map[string]int64, error) {
	changed := map[string]int64{}
	var bad error
	err := v.Scan(family, func(id, value []byte) bool {
		var next int64
		if next, _, bad = codec.ReadLong(value); bad != nil {
			bad = states.Damaged(id, bad)
			return false
		}
		if next >= first && next <= last {
			changed[string(id)] = next
		}
		return true
	})
	return changed, errors.Join(bad, err)
}

// Letters are the dead letters of events that were too late for a window.
type Letters struct {
	Due       map[int64][]int64 // offset of the event -> starts of the windows it missed
	unsaved   map[int64]bool    // offsets
	SentBelow int64             // dead letters of events below are in committed transactions
	Outbox    []pipeline.Record // of the open batch
}

// NewLetters returns no dead letters.
func NewLetters() Letters {
	return Letters{Due: map[int64][]int64{}, unsaved: map[int64]bool{}}
}

// Add adds the dead letter of the event at an offset, which missed the windows with these
// starts.
func (d *Letters) Add(offset int64, missed []int64) {
	d.Due[offset], d.unsaved[offset] = slices.Clone(missed), true
}

// Drop removes the dead letter of the event at an offset, which cannot be written.
func (d *Letters) Drop(offset int64) {
	delete(d.Due, offset)
	d.unsaved[offset] = true
}

// Sent notes that the dead letters of all events below an offset are in committed
// transactions.
func (d *Letters) Sent(below int64) {
	d.SentBelow = max(d.SentBelow, below)
	for offset := range d.Due {
		if offset < d.SentBelow {
			delete(d.Due, offset)
			d.unsaved[offset] = true
		}
	}
}

// Write adds to the batch what the store does not have, in a family.
func (d *Letters) Write(b *store.Batch, part *store.Part, family store.Family) {
	for offset := range d.unsaved {
		missed, ok := d.Due[offset]
		if !ok {
			b.Delete(part, family, states.OffsetKey(offset))
			continue
		}
		var value []byte
		for _, start := range missed {
			value = codec.AppendLong(value, start)
		}
		b.Put(part, family, states.OffsetKey(offset), value)
	}
}

// Written notes that the batch is in the store.
func (d *Letters) Written() { clear(d.unsaved) }

// Load reads the letters that the store has. SentBelow must be known.
func (d *Letters) Load(v *store.View, family store.Family) error {
	var bad error
	err := v.Scan(family, nil, nil, false, func(key, value []byte) bool {
		offset := int64(binary.BigEndian.Uint64(key))
		if offset < d.SentBelow {
			d.unsaved[offset] = true // its transaction was committed
			return true
		}
		missed := []int64{}
		for r := (states.Fields{Rest: value}); len(r.Rest) > 0 && bad == nil; bad = r.Err {
			missed = append(missed, r.Long())
		}
		d.Due[offset] = missed
		return bad == nil
	})
	return errors.Join(bad, err)
}
