package pending

import (
	"encoding/json"
	"sync/atomic"

	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// Unread are the ranges of offsets that the log deleted before a partition read them, in
// order. They are in the store and in every checkpoint, so answers show them as long as
// the states exist.
type Unread struct {
	ranges  atomic.Pointer[[]query.Unread] // readers take no lock; nobody changes the slice
	Due     bool                           // no committed checkpoint has the last range
	Unsaved bool                           // the store lacks some
}

// All returns the ranges. It needs no lock.
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

// Set sets the ranges, if there are any.
func (u *Unread) Set(ranges []query.Unread) {
	if len(ranges) > 0 {
		u.ranges.Store(&ranges)
	}
}

// Load reads what the store has under a key.
func (u *Unread) Load(part *store.Part, family store.Family, key []byte) error {
	value, ok, err := part.Get(nil, family, key)
	if !ok || err != nil {
		return err
	}
	var ranges []query.Unread
	if err := json.Unmarshal(value, &ranges); err != nil {
		return states.Damaged(key, err)
	}
	u.Set(ranges)
	return nil
}

// Write adds to the batch what the store does not have, under a key.
func (u *Unread) Write(b *store.Batch, part *store.Part, family store.Family, key []byte) error {
	if !u.Unsaved {
		return nil
	}
	value, err := json.Marshal(u.All())
	if err == nil {
		b.Put(part, family, key, value)
	}
	return err
}
