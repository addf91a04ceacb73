package control

import (
	"sync/atomic"
)

// A Fence holds the erased aggregates of a projection. No version folds their events any
// more, however often the log is read again. Workers delete the folded states and the events
// in the history from their stores, and write a null to the snapshots topic.
//
// The control topic keeps the ids of erased aggregates, because without the id a worker
// could not recognize the aggregate.
type Fence struct {
	// IDs is a map that nothing changes: an update stores a new map. nil means empty.
	IDs atomic.Pointer[map[string]ForgottenRecord]
}

// Has reports whether an aggregate was erased. A nil Fence is empty.
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
