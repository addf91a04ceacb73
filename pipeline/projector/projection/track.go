package projection

import (
	"bytes"
	"cmp"
	"math"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/projector/home"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/pending"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// A track decides what an event does to a set of states. Its decisions depend only on
// the log and on the skips of releases: never on the clock, and never on when or how
// often the worker started. A lane has a track of its states and, while the past is
// being indexed, a second one, the shadow. The lock of the unit guards both.
//
// In this order, an event is
//
//	redriven        it is a dead letter that was sent back to a pipeline: the projection
//	                has taken the event before, unless it was in an earlier topic
//	ignored         the projection does not fold its type, or no rule applies to it
//	erased          its aggregate was erased (projector forget)
//	queued          its aggregate is blocked
//	blocked         it cannot be decoded or folded, or is in the wrong partition: from
//	                now on its aggregate is blocked
//	duplicate       its id was applied before, to its aggregate
//	late            its aggregate was deleted, or a window is closed
//	conflict        its sequence number was applied before: the first event in the log
//	                wins
//	held            its sequence number is not the next one: it waits
//	applied
//
// All decisions go to the store in one batch with the states and the position.
type track struct {
	projection *Projection
	fold       *fold.Fold
	source     fold.Source
	part       *store.Part

	// Shared with the lane.
	folder *fold.Folder // holds the event that was read last
	skips  *pending.Skips
	index  *states.Index // nil without history

	// lane gets the effects of decisions: due records, counts and log lines. It is nil in a
	// shadow, whose decisions were made before and have no effects.
	lane *lane

	states   *states.Table
	families families

	clock   int64 // latest event time so far, in microseconds since 1970; noTime if there is none
	ticked  bool  // the store lacks the clock
	held    pending.Held
	blocked map[string]*internalrecord.Blocked
	blocks  map[string]bool // ids of blocked that changed since the last write
	sum     string          // of all blocked aggregates; "" if it is out of date

	missed []int64 // scratch
	key    []byte
	starts []int64
	ready  []windowed

	outcome fold.Outcome // scratch: of the last window that was not changed
}

// families are the places of a track's entries in the store.
type families struct {
	held, blocked store.Family
	clock         []byte // under familyMark
}

var (
	ownFamilies    = families{familyHeld, familyBlocked, []byte("clock")}
	shadowFamilies = families{familyShadowHeld, familyShadowBlocked, []byte("shadow clock")}
)

// noTime is a time before all others.
const noTime = math.MinInt64

// newTrack returns an empty track without effects.
func (l *lane) newTrack(s *states.Table, f families) *track {
	return &track{
		projection: l.projection, fold: l.fold, source: l.source, part: l.part, folder: l.folder, skips: &l.skips, index: l.index,
		states: s, families: f, clock: noTime,
		held: pending.NewHeld(f.held), blocked: map[string]*internalrecord.Blocked{}, blocks: map[string]bool{},
	}
}

// isShadow reports whether the track is of the past that is being indexed.
func (t *track) isShadow() bool { return t.lane == nil }

// count counts an event, once.
func (t *track) count(in *pipeline.Record, r measure.Result) {
	if !t.isShadow() && in.Offset >= t.lane.counted {
		t.projection.metrics.Events[r].Inc()
	}
}

// complain logs an event that cannot be folded, once.
func (t *track) complain(in *pipeline.Record, err error, what string) {
	if t.isShadow() || in.Offset < t.lane.counted {
		return
	}
	t.lane.log.Error(what, "projection", t.projection.Label(), "topic", in.Topic, "partition", in.Partition, "offset", in.Offset,
		"key", string(in.Key), "reason", string(pipeline.ReasonOf(err)), "err", err)
}

// markDue marks the snapshot of an aggregate as due, where no event that will be read
// again does so.
func (t *track) markDue(id string) {
	l := t.lane
	if l == nil {
		return
	}
	l.marks.Set(id, true)
	l.publication.setBlockedDue(id)
	if a, err := t.states.Get([]byte(id)); err == nil { // otherwise the mark is enough
		if a.Version > 0 {
			l.outOfOrder.Add(id, l.next)
		}
		l.publication.setDue(a)
	}
}

// take takes the event at an offset, or a record that is no valid event (bad). It does
// not return an error of ClassReject.
func (t *track) take(in *pipeline.Record, d event.Decoded, bad error, b *store.Batch) error {
	if err := t.expire(in.Offset, b); err != nil {
		return err
	}
	if deadletter.IsTaken(in, t.source.TopicID) {
		t.count(in, measure.Redriven)
		return nil
	}
	if bad == nil && !t.fold.Folds(d.Type) {
		t.count(in, measure.Ignored)
		return nil
	}
	id, bad := t.read(in, d, bad)
	if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	if len(id) == 0 {
		t.complain(in, bad, "event cannot be folded, and its aggregate is unknown")
		t.count(in, measure.Rejected)
		return nil
	}
	if t.projection.Fence.Has(id) {
		t.count(in, measure.Erased)
		return nil
	}
	if q := t.blocked[string(id)]; q != nil {
		t.queue(q, in)
		return nil
	}
	read := bad == nil
	if read {
		bad = t.attempt(id, in, foldEvent{typ: d.Type, body: d.Body, key: d.Key, clock: t.clock}, b)
	}
	if bad == nil || pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	if read && !t.isShadow() {
		t.lane.refused.AddRejected(t.folder.EventID(), string(id), bad)
	}
	if t.skips.Offsets.Has(in.Offset) {
		t.count(in, measure.Skipped)
		return nil
	}
	return t.block(string(id), in, in.Offset+1, bad)
}

// read reads an event and returns the id of its aggregate: the record's key if the
// event does not contain the id. The id is valid until the next read.
func (t *track) read(in *pipeline.Record, d event.Decoded, bad error) (id []byte, _ error) {
	if bad == nil {
		if id, bad = t.folder.Read(d.Type, d.Body, fold.OriginOf(in, d.Key)); bad == nil {
			if w := t.folder.Time(); t.fold.Window().Size > 0 && w > t.clock {
				t.clock, t.ticked = w, true
			}
			return id, t.misplaced(id, d.Key, in.Partition)
		}
	}
	return t.fold.RecordID(in, d.Key), bad
}

// misplaced rejects an event that is not in the partition of its aggregate.
func (t *track) misplaced(id []byte, key *keyformat.Key, partition int32) error {
	return home.Check(t.fold, id, key, t.projection.Spec.Events, partition, &t.key)
}

// foldEvent is an event that is to be folded, and the clock of the track when the event
// was read.
type foldEvent struct {
	typ   int
	body  []byte
	key   *keyformat.Key
	clock int64
	// released marks an event of a blocked aggregate: no snapshot contains it, whatever
	// the snapshots contain of other aggregates.
	released bool
	// waited marks an event that was held before its aggregate was blocked: it is held again,
	// although the aggregate may have events without numbers meanwhile.
	waited bool
}

// attempt folds the event that was read last, or holds it. After an error of
// ClassReject, the event cannot be folded and nothing was changed.
func (t *track) attempt(id []byte, in *pipeline.Record, e foldEvent, b *store.Batch) error {
	known, err := t.duplicate(id, in.Offset)
	if err != nil {
		return err
	}
	if known {
		t.count(in, measure.Duplicate)
		return nil
	}
	if t.fold.Window().Size > 0 {
		return t.attemptWindows(id, in, e, b)
	}
	a, err := t.states.Get(id)
	if err != nil {
		return err
	}
	number, numbered := t.folder.Number()
	// Of the events before the snapshots were made, only released ones are missing in
	// the snapshots.
	decided := !t.isShadow() && in.Offset < t.lane.counted && !e.released
	switch {
	case t.sameID(a):
		t.count(in, measure.Duplicate)
		return nil
	case a.Deleted && !t.fold.CanRevive(&a.Aggregate):
		t.late(in, a)
		return nil
	case !numbered && (decided || t.inSnapshot(a, in.Offset)):
		return nil // the snapshots contain it
	case numbered && number <= a.Number:
		t.conflict(a, in, number, in.Offset, b)
		return nil
	case numbered && (decided || number > a.Number+1 && (a.Number > 0 || a.Version == 0 || e.waited)):
		t.held.Add(&pending.HeldEvent{ID: string(id), Number: number, Type: e.typ, Body: bytes.Clone(e.body), Key: e.key.Clone(), In: in.Clone()})
		t.count(in, measure.Held)
		return nil
	}
	if err := t.apply(a, in, in.Offset, b); err != nil {
		return err
	}
	return t.drain(a, in.Offset, b)
}

// conflict notes that the event that was read last is in conflict with an earlier one. now
// is the offset that is being read, as for apply.
func (t *track) conflict(a *states.Aggregate, in *pipeline.Record, number, now int64, b *store.Batch) {
	t.count(in, measure.Conflict)
	if t.index != nil {
		if t.indexes(now) {
			t.index.AddConflict(b, a.ID, t.folder.EventID(), number)
		}
		return
	}
	// Without history, an earlier number may also be that of a duplicate.
	if number == a.Number {
		t.lane.refused.AddConflict(t.folder.EventID(), string(a.ID), number, string(a.EventID))
	}
}

// inSnapshot reports whether the snapshot from which an aggregate was loaded contains
// the event at an offset: a worker that continued from an old store may have written a
// checkpoint that is behind the snapshots of another worker.
func (t *track) inSnapshot(a *states.Aggregate, offset int64) bool {
	return !t.isShadow() && offset < t.lane.loaded && a.Version > 0 && offset <= a.Offset
}

// duplicate reports whether the event that was read last was applied before, at another
// offset: to its aggregate, or to any if the fold says so. For a window, id is the key.
func (t *track) duplicate(id []byte, offset int64) (bool, error) {
	if t.index == nil {
		return false, nil
	}
	scope := t.fold.Scope(id)
	known, err := t.index.Known(scope, t.folder.EventID(), offset)
	if known || err != nil || t.isShadow() || t.lane.fill == nil {
		return known, err
	}
	return t.lane.fill.Duplicate(scope, t.folder.EventID(), offset, offset < max(t.lane.loaded, t.lane.counted))
}

// indexes reports whether the track adds what happens at the offset now to the index. The
// shadow does up to the offset at which the states came from snapshots, or up to which the
// tail was folded meanwhile.
func (t *track) indexes(now int64) bool {
	if t.isShadow() {
		return true
	}
	_, until := t.index.Backfill()
	return t.lane.fill == nil && now >= until
}

// sameID reports whether the event that was read last has the id of the aggregate's
// last event.
func (t *track) sameID(a *states.Aggregate) bool {
	id := t.folder.EventID()
	return len(id) > 0 && bytes.Equal(id, a.EventID)
}

// apply applies the event that was read last. now is the offset that is being read,
// which is higher than the event's own offset if the event was held.
func (t *track) apply(a *states.Aggregate, in *pipeline.Record, now int64, b *store.Batch) error {
	last := a.LastOffset()
	result, err := t.folder.ApplyInPlace(&a.Aggregate)
	switch {
	case err != nil:
		return err
	case result == fold.Late:
		t.late(in, a)
		return nil
	case result != fold.Applied:
		t.count(in, measure.Ignored)
		return nil
	}
	a.Offset = in.Offset
	t.changed(a)
	return t.remember(a, last, in, now, b)
}

// late counts an event of a deleted aggregate.
func (t *track) late(in *pipeline.Record, a *states.Aggregate) {
	t.count(in, measure.Late)
	if !t.isShadow() {
		t.lane.refused.AddLate(t.folder.EventID(), string(a.ID))
	}
}

// changed notes that an event was applied to an aggregate.
func (t *track) changed(a *states.Aggregate) {
	a.Gone, a.Dirty = false, true
	if l := t.lane; l != nil {
		if a.Offset < l.next {
			l.outOfOrder.Add(string(a.ID), l.next)
		}
		l.publication.setDue(a)
	}
}

// remember adds the event that was just applied to the index.
func (t *track) remember(a *states.Aggregate, last int64, in *pipeline.Record, now int64, b *store.Batch) error {
	t.count(in, measure.Applied)
	if t.index == nil {
		return nil
	}
	if !t.isShadow() && t.lane.fill != nil {
		t.lane.fill.Applied(t.folder.EventID(), in.Offset)
	}
	if !t.indexes(now) {
		return nil
	}
	return t.index.Add(b, a, last, in, t.folder)
}

// windowed is an aggregate and its next state.
type windowed struct {
	a     *states.Aggregate
	next  fold.Aggregate
	start int64 // of the window
}

// attemptWindows applies the event that was read last to all of its windows that are
// open, or to none.
func (t *track) attemptWindows(key []byte, in *pipeline.Record, e foldEvent, b *store.Batch) error {
	w := t.fold.Window()
	if err := t.prepareWindows(key, in, e.clock); err != nil {
		return err
	}
	for i, r := range t.ready {
		a, last := r.a, r.a.LastOffset()
		a.Aggregate = r.next
		if a.Version == 1 && !t.isShadow() {
			t.lane.windows.Open(b, t.part, r.start, string(a.ID))
		}
		t.changed(a)
		if i < len(t.ready)-1 {
			continue
		}
		// The index has an event once: if windows overlap, under the latest window, and
		// without a link to the previous event.
		if w.Every < w.Size {
			a.ForgetClocks()
			last = -1
		}
		if err := t.remember(a, last, in, in.Offset, b); err != nil {
			return err
		}
	}
	switch {
	case len(t.ready) > 0 || len(t.missed) > 0:
	case t.outcome == fold.Late:
		t.count(in, measure.Late)
	case t.outcome == fold.Ignored:
		t.count(in, measure.Ignored)
	}
	if len(t.missed) > 0 {
		t.count(in, measure.Late)
		if !t.isShadow() {
			t.lane.addLetter(in, key, t.missed)
		}
	}
	return nil
}

// prepareWindows sets ready to the open windows of the event that was read last, with
// their next states, and missed to the starts of the closed ones.
func (t *track) prepareWindows(key []byte, in *pipeline.Record, clock int64) error {
	w := t.fold.Window()
	t.missed, t.ready, t.outcome = t.missed[:0], t.ready[:0], fold.Applied
	t.starts = w.Starts(t.starts[:0], t.folder.Time())
	var id []byte
	for _, start := range t.starts {
		if w.Closed(start, clock) {
			t.missed = append(t.missed, start)
			continue
		}
		id = fold.AppendWindowID(id[:0], key, start)
		a, err := t.states.Get(id)
		if err != nil {
			return err
		}
		if t.sameID(a) || t.inSnapshot(a, in.Offset) {
			continue
		}
		next := a.Aggregate
		next.EventID = bytes.Clone(a.EventID)
		t.outcome, err = t.folder.Apply(&next)
		if err != nil {
			return err
		}
		if t.outcome != fold.Applied {
			continue
		}
		next.Offset = in.Offset
		t.ready = append(t.ready, windowed{a, next, start})
	}
	return nil
}

// write adds to the batch what the store does not have yet.
func (t *track) write(b *store.Batch) error {
	if err := t.states.Write(b); err != nil {
		return err
	}
	t.held.Write(b, t.part, t.fold)
	if err := t.writeBlocked(b); err != nil {
		return err
	}
	if t.ticked {
		states.PutLongs(b, t.part, familyMark, t.families.clock, t.clock)
	}
	return nil
}

// written notes that what write added is in the store. memory is the number of bytes
// that the states may take.
func (t *track) written(memory int) error {
	t.held.Written()
	clear(t.blocks)
	t.ticked = false
	return t.states.Written(memory)
}

// load reads what the store has. decode decodes held events.
func (t *track) load(decode decodeFunc) error {
	if _, err := states.ReadLongs(t.part, familyMark, t.families.clock, &t.clock); err != nil {
		return err
	}
	v := t.part.View()
	defer v.Close() //nolint:errcheck // only read
	var bad error
	if err := v.Scan(t.families.blocked, nil, nil, false, func(key, value []byte) bool {
		if fold.CheckID(key) != nil {
			t.blocks[string(key)] = true // of an older release, which took any key; the next write removes it
			return true
		}
		var q *internalrecord.Blocked
		if q, bad = internalrecord.DecodeBlocked(string(key), value); bad != nil {
			bad = states.Damaged(key, bad)
			return false
		}
		t.blocked[string(key)] = q
		return true
	}); err != nil || bad != nil {
		return cmp.Or(bad, err)
	}
	return t.held.Load(v, t.source, t.folder, decode)
}
