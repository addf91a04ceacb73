// Package pending has what a partition of a projection keeps of work that is not done:
// events that wait for an earlier one, snapshots and dead letters that are to be published.
//
// Each type tracks which of its entries the store lacks: Write adds them to a batch, and
// Written notes that the batch is in the store. The caller guards the values.
package pending

import (
	"errors"
	"iter"

	"millrace/pipeline/codec"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// Marks are the ids of aggregates whose snapshot is due although no event above the
// published offset shows that: after a restart, nothing else would.
type Marks struct {
	family  store.Family
	ids     map[string]bool // false: not due any more, and still in the store
	unsaved map[string]bool
	since   map[string]bool // set since the open transaction got the due snapshots; nil if none is open
}

// NewMarks returns no marks. The store has them as entries of a family.
func NewMarks(family store.Family) Marks {
	return Marks{family: family, ids: map[string]bool{}, unsaved: map[string]bool{}}
}

// Set sets or removes a mark.
func (m *Marks) Set(id string, due bool) {
	m.ids[id], m.unsaved[id] = due, true
	if due && m.since != nil {
		m.since[id] = true
	}
}

// Has reports whether an aggregate has a mark.
func (m *Marks) Has(id string) bool { return m.ids[id] }

// All returns the marked aggregates, in no order. Marks may be set meanwhile.
func (m *Marks) All() iter.Seq[string] {
	return func(yield func(string) bool) {
		for id, due := range m.ids {
			if due && !yield(id) {
				return
			}
		}
	}
}

// Send notes that a transaction has all due snapshots.
func (m *Marks) Send() { m.since = map[string]bool{} }

// Ended notes the end of that transaction. A snapshot that became due after Send is due in
// the next one.
func (m *Marks) Ended(committed bool) {
	since := m.since
	m.since = nil
	if !committed {
		return
	}
	for id := range m.ids {
		if !since[id] {
			m.Set(id, false)
		}
	}
}

// Write adds to the batch what the store lacks.
func (m *Marks) Write(b *store.Batch, part *store.Part) {
	for id := range m.unsaved {
		if m.ids[id] {
			b.Put(part, m.family, []byte(id), nil)
		} else {
			b.Delete(part, m.family, []byte(id))
		}
	}
}

// Written notes that the store has what Write added.
func (m *Marks) Written() {
	for id := range m.unsaved {
		if !m.ids[id] {
			delete(m.ids, id)
		}
	}
	clear(m.unsaved)
}

// OutOfOrder maps aggregates to the next offset when they changed otherwise than by the
// event that is being read: by an event that had waited, or because they were blocked
// or released. The offset of their last event does not show that change to a feed that
// continues from a later offset, but this one does.
type OutOfOrder struct {
	family  store.Family
	unsent  map[string]int64 // not sent to feeds yet
	unsaved map[string]int64
}

// NewOutOfOrder returns no changes. The store has them as entries of a family.
func NewOutOfOrder(family store.Family) OutOfOrder {
	return OutOfOrder{family: family, unsent: map[string]int64{}, unsaved: map[string]int64{}}
}

// Add notes a change.
func (o *OutOfOrder) Add(id string, next int64) { o.unsent[id], o.unsaved[id] = next, next }

// Unsent returns the changes that were not sent to feeds. The caller removes those that it
// sends.
func (o *OutOfOrder) Unsent() map[string]int64 { return o.unsent }

// Write adds to the batch what the store lacks.
func (o *OutOfOrder) Write(b *store.Batch, part *store.Part) {
	for id, next := range o.unsaved {
		b.Put(part, o.family, []byte(id), codec.AppendLong(nil, next))
	}
}

// Written notes that the store has what Write added.
func (o *OutOfOrder) Written() { clear(o.unsaved) }

// ReadChanges returns the entries of OutOfOrder in a view whose offset is in the range from
// first to last, both included.
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
