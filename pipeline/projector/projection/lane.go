package projection

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/fill"
	"millrace/pipeline/projector/pending"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// lane is one partition of one projection. The lock of its unit guards it, except for
// immutable fields, the part, which synchronizes itself, and the last group.
type lane struct {
	projection *Projection      // immutable
	fold       *fold.Fold       // of the projection; immutable
	source     fold.Source      // immutable
	part       *store.Part      // immutable
	log        *slog.Logger     // immutable
	now        func() time.Time // immutable

	folder *fold.Folder  // holds the event that was read last
	states *states.Table // nil after free
	own    *track        // of states; nil after free
	index  *states.Index // nil without history, and after free
	shadow *track        // of the past that is being indexed; nil if the index is not behind
	fill   *fill.Fill    // how the past is indexed beside the session; nil if the session does it, or nothing is to do

	next     int64 // everything below is folded
	position int64 // next as the store has it
	loaded   int64 // the snapshots that were loaded may contain events up to here
	counted  int64 // the results of events below were counted before

	publication publication
	skips       pending.Skips
	heard       heard
	unread      pending.Unread
	letters     pending.Letters
	outbox      []pipeline.Record // dead letters of the open batch
	marks       pending.Marks
	outOfOrder  pending.OutOfOrder
	windows     pending.Windows
	follow      *followed // nil if the partition is this worker's
	erased      pending.Erased

	// Readers use these without the unit's lock.
	settled atomic.Int64   // next at the last flush before a commit: all committed events are below
	stuck   atomic.Int64   // number of blocked aggregates in the store
	refused query.Refusals // has a lock of its own
	filled  fill.Progress  // of the history in the store
}

// newLane returns an empty lane.
func newLane(p *Projection, source fold.Source, part *store.Part, cfg *Config) *lane {
	l := &lane{
		projection: p, fold: p.Spec.Fold, source: source, part: part, log: cfg.Log, now: cfg.Now,
		folder: p.Spec.Fold.NewFolder(), states: states.NewTable(part, states.FamilyState, source), position: -1,
		publication: newPublication(p.Spec.Publish, cfg.Now()), letters: pending.NewLetters(familyLetter), marks: pending.NewMarks(familyDue), outOfOrder: pending.NewOutOfOrder(familyOutOfOrder),
		windows: pending.NewWindows(familyWindow),
	}
	if !cfg.NoHistory {
		l.index = states.NewIndex(part)
	}
	l.unread.Keep(familyMark, markUnread)
	l.own = l.newTrack(l.states, ownFamilies)
	l.own.lane = l
	if cfg.Follows {
		l.follow = newFollowed()
	}
	return l
}

// newShadow returns the track of the past that is being indexed.
func (l *lane) newShadow() *track {
	return l.newTrack(states.NewTable(l.part, states.FamilyShadow, l.source), shadowFamilies)
}

// tracks returns the lane's own track and, if there is one, its shadow.
func (l *lane) tracks() []*track {
	if l.shadow != nil {
		return []*track{l.own, l.shadow}
	}
	return []*track{l.own}
}

// from returns the offset to read from: where folding, publishing or the index
// continues, whichever is behind.
func (l *lane) from() int64 {
	return min(l.letters.First(min(l.next, l.publication.published)), l.indexFrom())
}

// indexFrom returns the offset from which the session reads for the index; next if it does
// not.
func (l *lane) indexFrom() int64 {
	if l.shadow == nil || l.fill != nil {
		return l.next
	}
	next, _ := l.index.Backfill()
	return next
}

// wants reports whether the lane needs the record at an offset.
func (l *lane) wants(offset int64) bool {
	return offset >= min(l.next, l.publication.published) || l.letters.Len() > 0 || l.indexes(offset)
}

// indexes reports whether the session adds the event at an offset to the index of the past.
func (l *lane) indexes(offset int64) bool {
	return l.shadow != nil && l.fill == nil && l.index.Lacks(offset)
}

// handle takes an event, or a record that is no valid event (bad). An event that is
// folded already only marks its aggregate as due, or is added to the index.
func (l *lane) handle(in *pipeline.Record, d event.Decoded, bad error, b *store.Batch) error {
	l.pack()
	d, bad = asTombstone(l.fold, in, d, bad)
	if l.indexes(in.Offset) {
		// The past is folded beside the states, which are ahead of it. An invalid
		// event was reported when it was folded for the states.
		if err := l.shadow.take(in, d, bad, b); err != nil {
			return err
		}
	}
	var err error
	if in.Offset < l.next {
		err = l.markAgain(in, d, bad)
	} else if err = l.decide(in, d, bad); err == nil {
		err = l.own.take(in, d, bad, b)
	}
	if err != nil {
		return err
	}
	l.next = max(l.next, in.Offset+1)
	if l.shadow != nil && l.fill == nil {
		l.index.Passed(in.Offset + 1)
	}
	return nil
}

// asTombstone replaces the rejection of a record without a value, if a tombstone has a
// meaning for the fold.
func asTombstone(f *fold.Fold, in *pipeline.Record, d event.Decoded, bad error) (event.Decoded, error) {
	if in.Value != nil || f.Tombstones() == fold.RejectTombstones {
		return d, bad
	}
	return event.Decoded{Type: fold.Tombstone, Key: d.Key}, nil
}

// pack packs the aggregates that are in use.
func (l *lane) pack() {
	l.states.Settle()
	if l.shadow != nil {
		l.shadow.states.Settle()
	}
}

// markAgain marks the records that are due because of an event that is folded, but is not
// in committed snapshots, or whose dead letter is not in a committed transaction.
func (l *lane) markAgain(in *pipeline.Record, d event.Decoded, bad error) error {
	if missed, ok := l.letters.Missed(in.Offset); ok {
		var id []byte
		if bad == nil {
			var err error
			if id, err = l.folder.Read(d.Type, d.Body, fold.OriginOf(in, d.Key)); err != nil {
				return err // it was read before without one
			}
		}
		l.postLetter(in, id, missed)
	}
	if in.Offset < l.publication.published || deadletter.IsTaken(in, l.source.TopicID) || bad == nil && !l.fold.Folds(d.Type) {
		return nil
	}
	key := l.fold.RecordID(in, d.Key)
	if bad == nil {
		var err error
		if key, err = l.folder.Read(d.Type, d.Body, fold.OriginOf(in, d.Key)); err != nil {
			key = l.fold.RecordID(in, d.Key)
		}
	}
	if len(key) == 0 {
		return nil
	}
	if l.own.blocked[string(key)] != nil {
		l.publication.setBlockedDue(string(key))
	}
	ids := [][]byte{key}
	if w := l.fold.Window(); w.Size > 0 && bad == nil {
		ids = nil
		for _, start := range w.Starts(nil, l.folder.Time()) {
			ids = append(ids, fold.AppendWindowID(nil, key, start))
		}
	}
	for _, id := range ids {
		a, err := l.states.Get(id)
		if err != nil {
			return err
		}
		if a.Version > 0 {
			l.publication.setDue(a)
		}
	}
	return nil
}

// write adds to the batch everything that the store does not have yet.
func (l *lane) write(b *store.Batch) error {
	if err := l.own.write(b); err != nil {
		return err
	}
	l.outOfOrder.Write(b, l.part)
	if err := l.deleteExpired(b); err != nil {
		return err
	}
	l.publication.write(b, l.part)
	if err := l.skips.Write(b, l.part, familyMark, markSkipped); err != nil {
		return err
	}
	if err := l.unread.Write(b, l.part); err != nil {
		return err
	}
	l.marks.Write(b, l.part)
	l.letters.Write(b, l.part)
	if l.next != l.position {
		b.SetPosition(l.part, l.next)
	}
	l.follow.write(b, l)
	if l.index == nil {
		return nil
	}
	if l.fill != nil {
		l.putBackfill(b)
		return nil
	}
	if err := l.index.Write(b, l.next, l.backfill()); err != nil {
		return err
	}
	return l.writeShadow(b)
}

// backfill returns the offset from which the index catches up; -1 if it is not behind.
func (l *lane) backfill() int64 {
	if l.shadow != nil {
		if next, until := l.index.Backfill(); next < until {
			return next
		}
	}
	return -1
}

// writeShadow adds to the batch what the store does not have yet of the past that is
// being indexed.
func (l *lane) writeShadow(b *store.Batch) error {
	if l.shadow == nil {
		return nil
	}
	next, until := l.index.Backfill()
	if next >= until {
		b.Delete(l.part, familyMark, markBackfill)
		b.Delete(l.part, familyMark, shadowFamilies.clock)
		return nil
	}
	states.PutLongs(b, l.part, familyMark, markBackfill, next, until)
	return l.shadow.write(b)
}

// shadowWritten notes that what writeShadow added is in the store. When the index has
// caught up, the shadow is deleted.
func (l *lane) shadowWritten(memory int) error {
	if l.shadow == nil {
		return nil
	}
	l.filled.Set(l.index.Backfill())
	if err := l.shadow.written(memory); err != nil || !l.index.Ended() {
		return err
	}
	l.shadow = nil
	l.endFill()
	return errors.Join(l.part.Clear(states.FamilyShadow), l.part.Clear(familyShadowHeld), l.part.Clear(familyShadowBlocked))
}

// catchUp makes the index catch up from next to until. It returns false if there is
// nothing to catch up with.
func (l *lane) catchUp(next, until int64) bool {
	shadow := l.newShadow()
	if !l.index.CatchUp(next, until, shadow.states) {
		return false
	}
	l.shadow = shadow
	l.filled.Set(next, until)
	return true
}

// written notes that what write added is in the store. memory is the number of bytes
// that the lane's states may take.
func (l *lane) written(memory int) error {
	l.position = l.next
	l.publication.written()
	l.skips.Unsaved = false
	l.unread.Written()
	l.countBlocked()
	if err := l.own.written(memory); err != nil {
		return err
	}
	l.marks.Written()
	l.letters.Written()
	l.outOfOrder.Written()
	l.windows.Written()
	l.follow.written()
	if l.index == nil || l.fill != nil {
		return nil
	}
	l.index.Written()
	return l.shadowWritten(memory)
}

// countBlocked counts the blocked aggregates.
func (l *lane) countBlocked() {
	n := int64(len(l.own.blocked))
	if before := l.stuck.Swap(n); n != before {
		l.projection.metrics.Blocked.Add(float64(n - before))
	}
}

// free releases the memory that answers do not need.
func (l *lane) free() {
	l.states, l.own, l.index, l.shadow = nil, nil, nil, nil
	l.endFill()
}

// deleteAtOnce bounds the number of windows that one flush deletes.
const deleteAtOnce = 10_000

// deleteExpired deletes windows that are not kept any longer.
func (l *lane) deleteExpired(b *store.Batch) error {
	limit, ok := l.fold.Window().EarliestKept(l.own.clock)
	if !ok || l.own.clock == noTime {
		return nil
	}
	ids, err := l.windows.Expire(b, l.part, limit, deleteAtOnce)
	if err != nil {
		return err
	}
	for _, id := range ids {
		a, err := l.states.Get([]byte(id))
		if err != nil {
			return err
		}
		b.Delete(l.part, states.FamilyState, []byte(id))
		b.Delete(l.part, familyOutOfOrder, []byte(id))
		a.Reset(l.source)
		a.Gone = true
		l.own.markDue(id)
		l.states.Settle()
	}
	return nil
}
