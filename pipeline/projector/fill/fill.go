// Package fill has what a partition of a projection needs while its history is filled: after
// a restore from snapshots, package projection reads the log again for it, with a reader of
// its own, while the session reads the tail.
//
// The history recognizes duplicates. Until it is complete, the tail needs another way to do
// that, which never guesses:
//
//  1. The ids of all events of the past are read into a filter ([IDs]). Until then, the
//     session does not read the partition.
//  2. The past is folded again, and indexed. The session folds the tail meanwhile, and does
//     not index it: the filler does when it gets there.
//  3. An event of the tail whose id may be one of the past is not decided: [ErrUndecided].
//     The partition waits from there until the history is complete.
//
// What is filled has a batch of its own: states and history have positions of their own in
// the store, and each is a function of the log.
//
// The lock of the partition guards a [Fill]. [Progress], [Budget] and [Jobs] have locks of
// their own or none.
package fill

import (
	"fmt"
	"sync/atomic"
	"time"

	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// ErrUndecided is the error of an event whose id cannot be decided yet.
var ErrUndecided = fmt.Errorf("it may be a duplicate, which is known when the history is complete: %w", kafka.ErrPaused)

// Fill is the filling of the history of one partition of a projection.
type Fill struct {
	Batch *store.Batch // of the past; not in the store yet

	saved  int64 // position of the history in the store
	at     time.Time
	events int             // in the batch
	ids    *states.TailIDs // nil if there is no room for the ids
	unread bool            // ids is to be read
	waits  bool            // an event is undecided
	ends   bool            // the reader has reached the end of the log
	budget *Budget
}

// Budget bounds the memory of ids. It needs no lock.
type Budget struct{ used atomic.Int64 }

// New returns the filling of a history whose position in the store is next. From there on, the
// tail has a number of events behind it, whose ids take a part of memory at most. held reports
// that events of them wait, which cannot be told from their duplicates: then the tail waits
// for the history.
func New(b *store.Batch, next, events int64, held bool, budget *Budget, memory int, now time.Time) *Fill {
	f := &Fill{Batch: b, saved: next, at: now, budget: budget}
	if !held {
		f.ids = states.NewTailIDs(events, memory-int(budget.used.Load()))
	}
	if f.ids != nil {
		f.unread = true
		budget.used.Add(int64(f.ids.Bytes()))
	}
	return f
}

// Close ends the filling.
func (f *Fill) Close() {
	if f.ids != nil {
		f.budget.used.Add(-int64(f.ids.Bytes()))
		f.ids = nil
	}
}

// Decide fails with ErrUndecided if it is not known yet whether an event, which the history
// does not have, was applied before. Its scope is the aggregate of [states.Index.Known].
func (f *Fill) Decide(scope, id []byte, offset int64) error {
	if len(id) == 0 || f.ids != nil && !f.unread && !f.ids.Full() && f.ids.Decide(scope, id, offset) != states.Undecided {
		return nil
	}
	f.waits = true
	return ErrUndecided
}

// Duplicate reports whether an event that Decide has decided was applied before. doubt
// reports that a snapshot may contain the event.
func (f *Fill) Duplicate(scope, id []byte, offset int64, doubt bool) (bool, error) {
	if len(id) == 0 {
		return false, nil
	}
	decision := f.ids.Decide(scope, id, offset)
	if decision == states.Undecided {
		return false, ErrUndecided
	}
	if doubt {
		f.ids.Doubt(offset)
	}
	return decision == states.IsDuplicate, nil
}

// Applied notes that the event that Duplicate has decided was applied.
func (f *Fill) Applied(id []byte, offset int64) {
	if len(id) > 0 {
		f.ids.Applied(offset)
	}
}

// Waits reports whether the tail waits for what is filled.
func (f *Fill) Waits() bool { return f.ids == nil || f.unread || f.waits || f.ends }

// Unread reports whether the ids of the past are to be read.
func (f *Fill) Unread() bool { return f.unread }

// IDsRead notes that the ids of the past were read.
func (f *Fill) IDsRead() { f.unread = false }

// AtEnd notes that the reader has reached the end of the log. From now on the session waits
// for the last events: otherwise it might always be ahead.
func (f *Fill) AtEnd() { f.ends = true }

// Took notes that an event of the past was folded.
func (f *Fill) Took() { f.events++ }

// Saved returns the position of the history in the store.
func (f *Fill) Saved() int64 { return f.saved }

// Written notes that the batch is in the store, with the history up to next.
func (f *Fill) Written(next int64, now time.Time) { f.saved, f.events, f.at = next, 0, now }

// writeAfter is the longest time between two writes.
const writeAfter = 5 * time.Second

// Due reports whether the batch is to be written: it has that many events or bytes, or the
// last write was some time ago.
func (f *Fill) Due(events, bytes int, now func() time.Time) bool {
	return f.events >= events || f.Batch.Bytes() >= bytes || f.events&1023 == 0 && now().Sub(f.at) >= writeAfter
}

// Progress is how far something is read. It needs no lock.
type Progress struct{ next, until atomic.Int64 }

// Set sets the offsets that the reader has reached, and must reach.
func (p *Progress) Set(next, until int64) {
	p.until.Store(until)
	p.next.Store(next)
}

// Reached notes that the reader has reached an offset.
func (p *Progress) Reached(next int64) { p.next.Store(next) }

// Left returns the offsets, and whether something is left to read.
func (p *Progress) Left() (next, until int64, left bool) {
	next, until = p.next.Load(), p.until.Load()
	return next, until, next < until
}
