// Package handover decides what a worker does because of what another owner of a partition
// has published. It has no I/O.
//
// A release is not in the log of events. The owner that makes it knows it, and so do the
// records that the owner publishes beside the snapshots. A worker may take a partition
// over with a store from before the release, and would block the aggregate again.
//
// So each checkpoint has two sums of what its owner had decided: one of the skipped
// offsets, one of the blocked aggregates. A worker that continues in its store compares
// them with its own: skips when it opens the partition, because they must be known before
// the event is folded; blocked aggregates when it has folded everything below the
// checkpoint. If a sum differs, it reads all records beside the snapshots, and releases
// the aggregates that these records do not block.
//
// Start at [Heard].
package handover

import (
	"slices"

	"millrace/pipeline/projector/internalrecord"
)

// Heard is what is left to do because of what another owner has published: the methods
// Compare, Hear and HearAll add to it, Overruled tells what can be done now. The zero value
// has nothing to do. The caller guards it.
type Heard struct {
	next    int64  // blocked is compared when everything below is folded; 0 if nothing is compared
	blocked string // sum of the blocked aggregates in the checkpoint up to next

	all    int64               // aggregates that are not in owners were not blocked at this offset; 0 if that is unknown
	owners map[string]standing // by id
}

// standing says where an aggregate was blocked when its owner had folded everything below
// next.
type standing struct {
	at   internalrecord.Place
	next int64
}

// overrules reports whether an owner has released an aggregate that is blocked here. If it
// has it blocked by an earlier event, the release was made here.
func (s standing) overrules(q *internalrecord.Blocked) bool {
	mine := q.Place()
	if !q.DecidedBelow(s.next) || s.at.Same(mine) {
		return false
	}
	return s.at == internalrecord.Nowhere || s.at.Lost || mine.Lost || s.at.Rank >= mine.Rank
}

// Waits reports whether something is left to do.
func (h *Heard) Waits() bool { return h.next > 0 || h.all > 0 || len(h.owners) > 0 }

// Compare notes the sum of the blocked aggregates in a checkpoint up to next.
func (h *Heard) Compare(next int64, blocked string) { h.next, h.blocked = next, blocked }

// Hear notes where an owner had an aggregate as blocked when it had folded everything below
// next.
func (h *Heard) Hear(id string, at internalrecord.Place, next int64) {
	if h.owners == nil {
		h.owners = map[string]standing{}
	}
	h.owners[id] = standing{at, next}
}

// HearAll notes all aggregates that an owner had as blocked, and that no other was blocked.
func (h *Heard) HearAll(blocked map[string]internalrecord.Place, next int64) {
	*h = Heard{all: next}
	for id, at := range blocked {
		h.Hear(id, at, next)
	}
}

// Forget drops everything that is left to do.
func (h *Heard) Forget() { *h = Heard{} }

// Done notes that nothing is left to do for an aggregate.
func (h *Heard) Done(id string) { delete(h.owners, id) }

// Overrules reports whether an owner has released an aggregate that is blocked here.
func (h *Heard) Overrules(q *internalrecord.Blocked) bool {
	theirs, ok := h.owners[q.ID]
	if !ok {
		theirs = standing{internalrecord.Nowhere, h.all}
	}
	return theirs.overrules(q)
}

// Todo lists what a worker must do when it has folded everything below an offset.
type Todo struct {
	ReadAll bool     // a sum differs: all records must be read, for HearAll. The rest is empty
	Release []string // aggregates, in order; Done must follow
	Publish []string // aggregates whose record on the topic is out of date
}

// Overruled returns what the worker must do when it has folded everything below next and
// has the given aggregates as blocked.
func (h *Heard) Overruled(next int64, blocked map[string]*internalrecord.Blocked) (todo Todo) {
	if h.next > 0 && next >= h.next {
		if internalrecord.SumBlocked(blocked, h.next) != h.blocked {
			return Todo{ReadAll: true}
		}
		h.next = 0
	}
	if h.all > 0 && next >= h.all {
		for id := range blocked {
			if _, ok := h.owners[id]; !ok {
				h.Hear(id, internalrecord.Nowhere, h.all)
			}
		}
		h.all = 0
	}
	for id, theirs := range h.owners {
		q := blocked[id]
		switch {
		case next < theirs.next:
		case q != nil && theirs.overrules(q):
			todo.Release = append(todo.Release, id)
		default:
			delete(h.owners, id)
			if theirs.at != internalrecord.Nowhere && (q == nil || !theirs.at.Same(q.Place())) {
				todo.Publish = append(todo.Publish, id)
			}
		}
	}
	slices.Sort(todo.Release)
	slices.Sort(todo.Publish)
	return todo
}

// Decided is what a worker has decided itself.
type Decided struct {
	Next    int64 // everything below is folded, but for what waits
	Skipped *internalrecord.Offsets
	Blocked map[string]*internalrecord.Blocked
	Held    []int64 // offsets of events that wait for an earlier one
}

// Conflicts reports whether an event was skipped here and folded by another owner, or the
// other way round. That happens if the release here was never published. The other owner
// has published, so what it did counts.
func Conflicts(here Decided, theirs *internalrecord.Records) bool {
	undecided := map[int64]bool{}
	for _, offset := range here.Held {
		undecided[offset] = true
	}
	for _, q := range here.Blocked {
		undecided[q.Offset] = true
		for _, offset := range slices.Concat(q.Held, q.Queue) {
			undecided[offset] = true
		}
	}
	for offset := range theirs.Skipped.All() {
		if offset < here.Next && !here.Skipped.Has(offset) && !undecided[offset] {
			return true
		}
	}
	blocked := map[int64]bool{}
	for _, at := range theirs.Blocked {
		blocked[at.Offset] = true
	}
	for offset := range here.Skipped.All() {
		if offset < theirs.Checkpoint.Next && !theirs.Skipped.Has(offset) && !blocked[offset] {
			return true
		}
	}
	return false
}
