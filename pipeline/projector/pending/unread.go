package pending

import (
	"encoding/json"
	"slices"
	"sync/atomic"

	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// Unread are the ranges of offsets that the log deleted before a partition read them, in
// order. They are in the store and in every checkpoint, so answers show them as long as
// the states exist. All and Total may be called from any goroutine.
type Unread struct {
	family  store.Family
	key     []byte
	ranges  atomic.Pointer[[]query.Unread] // nobody changes the slice
	unsaved bool                           // the store lacks some

	Due bool // no committed checkpoint has the last range
}

// Keep sets where the store has the ranges. It must be called first.
func (u *Unread) Keep(family store.Family, key []byte) { u.family, u.key = family, key }

// All returns the ranges.
func (u *Unread) All() []query.Unread {
	if all := u.ranges.Load(); all != nil {
		return *all
	}
	return nil
}

// Total returns the number of offsets.
func (u *Unread) Total() (n int64) {
	for _, r := range u.All() {
		n += r.To - r.From
	}
	return n
}

// Below returns the end of the last range; 0 if there is none.
func (u *Unread) Below() int64 {
	if all := u.All(); len(all) > 0 {
		return all[len(all)-1].To
	}
	return 0
}

// Add adds a range, which is due.
func (u *Unread) Add(r query.Unread) {
	u.Set(append(slices.Clone(u.All()), r))
	u.Due = true
}

// Set replaces the ranges by those of a checkpoint.
func (u *Unread) Set(ranges []query.Unread) {
	if len(ranges) > 0 {
		u.ranges.Store(&ranges)
		u.unsaved = true
	}
}

// Load reads what the store has.
func (u *Unread) Load(part *store.Part) error {
	value, ok, err := part.Get(nil, u.family, u.key)
	if !ok || err != nil {
		return err
	}
	var ranges []query.Unread
	if err := json.Unmarshal(value, &ranges); err != nil {
		return states.Damaged(u.key, err)
	}
	u.Set(ranges)
	u.unsaved = false
	return nil
}

// Write adds to the batch what the store lacks.
func (u *Unread) Write(b *store.Batch, part *store.Part) error {
	if !u.unsaved {
		return nil
	}
	value, err := json.Marshal(u.All())
	if err == nil {
		b.Put(part, u.family, u.key, value)
	}
	return err
}

// Written notes that the store has what Write added.
func (u *Unread) Written() { u.unsaved = false }
