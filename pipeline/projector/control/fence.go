package control

import (
	"sync/atomic"
)

// Erasure. What is to be forgotten stands on the control topic, as a fence: no
// event of such an aggregate is folded any more, by any version, however often the
// log is read again. What was folded of it goes from the store, with its events
// in the history; on the snapshots topic a null takes its place.
//
// The fence keeps the id itself: it could not tell the aggregate otherwise.

// Fence is which aggregates a projection must not have.
type Fence struct {
	IDs atomic.Pointer[map[string]ForgottenRecord]
}

func (f *Fence) Has(id []byte) bool {
	if f == nil {
		return false
	}
	m := f.IDs.Load()
	if m == nil || len(*m) == 0 {
		return false
	}
	_, ok := (*m)[string(id)]
	return ok
}
