package pending

import (
	"maps"
	"slices"
)

// Releases are the aggregates that the owner of a partition has released, and that are to be
// released here later. The zero value has none.
type Releases struct {
	ids   map[string]bool
	heard int64 // what was heard of the owner before the first of them
}

// Add adds aggregates. heard is what was heard of the owner before.
func (r *Releases) Add(ids []string, heard int64) {
	if len(r.ids) == 0 {
		r.ids, r.heard = map[string]bool{}, heard
	}
	for _, id := range ids {
		r.ids[id] = true
	}
}

// Heard returns what was heard of the owner, as the store gets it: a release that is not
// done is heard again after a restart.
func (r *Releases) Heard(now int64) int64 {
	if len(r.ids) > 0 {
		return r.heard
	}
	return now
}

// IDs returns the aggregates in order.
func (r *Releases) IDs() []string { return slices.Sorted(maps.Keys(r.ids)) }

// Done removes all.
func (r *Releases) Done() { r.ids = nil }
