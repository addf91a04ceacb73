package projection

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/store"
)

// A track decides what an event does to a set of states. Whatever it decides by
// is a function of the log and of what people said about it (skips): never the
// clock on the wall, never when or how often the worker started. A lane has a
// track of its states and, while the past is being indexed, another one.
//
// In this order, an event is
//
//	ignored         its type does nothing here
//	erased          its aggregate was erased (projector forget)
//	queued          its aggregate is blocked
//	blocked         it cannot be decoded, or folded, or stands in the wrong
//	                partition: from now on its aggregate is blocked
//	duplicate       its id was applied before
//	late            its aggregate was deleted; or a window is over
//	conflict        its sequence number was taken by another event: the first in
//	                the log wins
//	held            its sequence number is not the next: it waits
//	applied
//
// All of it goes to the store in the batch with the states and the position.
type track struct {
	*Lane
	states   *states
	families families

	clock   int64 // the latest event time so far, in microseconds since 1970
	ticked  bool  // since the last write
	held    []*held
	heldOf  map[string][]*held
	heldNow map[int64]*held // changed since the last write; nil: gone
	blocked map[string]*blocked
	blocks  map[string]bool // changed since the last write

	missed []int64 // scratch
	starts []int64
	ready  []windowed
}

// families say where a track keeps what.
type families struct {
	held, blocked store.Family
	clock         []byte // under familyMark
}

var (
	ownFamilies    = families{familyHeld, familyBlocked, []byte("clock")}
	shadowFamilies = families{familyShadowHeld, familyShadowBlocked, []byte("shadow clock")}
)

const noTime = math.MinInt64

func newTrack(l *Lane, s *states, f families) *track {
	return &track{Lane: l, states: s, families: f, clock: noTime,
		heldOf: map[string][]*held{}, heldNow: map[int64]*held{}, blocked: map[string]*blocked{}, blocks: map[string]bool{}}
}

// isShadow reports whether the track is of the past that is being indexed: what it
// decides was decided before.
func (t *track) isShadow() bool { return t.states != t.Lane.states }

// held is an event that waits for those before it.
type held struct {
	id     string
	number int64
	typ    int
	body   []byte
	in     pipeline.Record // key, value, headers and time are copies
}

func (h *held) offset() int64 { return h.in.Offset }

// reasonGap is why an aggregate is blocked whose events did not all come.
const reasonGap pipeline.Reason = "gap"

// outcome is what became of an event.
type outcome uint8

const (
	isIgnored outcome = iota
	isQueued
	isBlocked
	isMispartitioned
	isRejected
	isSkipped
	isDuplicate
	isLate
	isConflict
	isHeld
	isApplied
	isErased
	outcomes
)

// outcomeNames are the values of the label result.
var outcomeNames = [outcomes]string{"ignored", "queued", "blocked", "mispartitioned", "rejected", "skipped", "duplicate", "late", "conflict", "held", "applied", "erased"}

// take takes the event at an offset, or what is no event (bad). An error is never
// one of ClassReject.
func (t *track) take(in *pipeline.Record, d event.Decoded, bad error, b *store.Batch) error {
	if err := t.expire(in.Offset, b); err != nil {
		return err
	}
	if bad == nil && !t.Fold.Folds(d.Type) {
		t.count(in, isIgnored)
		return nil
	}
	id, bad := t.read(in, d, bad)
	if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	if len(id) == 0 {
		t.complain(in, bad, "event cannot be folded, and does not say which aggregate it is of")
		t.count(in, isRejected)
		return nil
	}
	if t.Fence.Has(id) {
		t.count(in, isErased)
		return nil
	}
	if q := t.blocked[string(id)]; q != nil {
		t.queue(q, in)
		return nil
	}
	read := bad == nil
	if read {
		bad = t.attempt(id, in, foldEvent{d.Type, d.Body, t.clock, false}, b)
	}
	if bad == nil || pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	if read && !t.isShadow() {
		t.refused.rejected(t.folder.EventID(), &aggregate{id: string(id)}, bad)
	}
	if t.skips[in.Offset] {
		t.count(in, isSkipped)
		return nil
	}
	return t.block(string(id), in, in.Offset+1, bad)
}

// read reads an event and finds its aggregate: by the record's key, if the event
// does not tell. The aggregate's id is valid until the next read.
func (t *track) read(in *pipeline.Record, d event.Decoded, bad error) (id []byte, _ error) {
	if bad == nil {
		if id, bad = t.folder.Read(d.Type, d.Body, fold.OriginOf(in)); bad == nil {
			if w := t.folder.Time(); t.Fold.Window().Size > 0 && w > t.clock {
				t.clock, t.ticked = w, true
			}
			return id, t.misplaced(id, in.Partition)
		}
	}
	key := t.keyOf(in)
	if len(key) > maxKey || len(key) > 0 && key[0] == 0 {
		return nil, bad
	}
	return key, bad
}

// maxKey bounds a key that stands for an aggregate's id.
const maxKey = 1024

// reasonMispartitioned is why an event is not folded that does not stand where
// its aggregate belongs.
const reasonMispartitioned pipeline.Reason = "mispartitioned"

// misplaced rejects an event that stands in another partition than its aggregate's
// id tells. Folded, it would be the beginning of a second state of the aggregate,
// beside that in the right partition.
func (l *Lane) misplaced(id []byte, partition int32) error {
	if l.Fold.AnyPartition() || l.Partitions <= 1 {
		return nil
	}
	home := kafka.PartitionOf(id, l.Partitions)
	if home == partition {
		return nil
	}
	return pipeline.Reject(reasonMispartitioned, "%q belongs in partition %d of %s, and this event stands in %d: it was written under another key or by another partitioner. Let a pipeline rekey the events, or say partitioner: other if all events of an aggregate stand in one partition all the same",
		id, home, l.Source.Topic, partition)
}

// foldEvent is one that is to be folded, and the clock as it was when it was read.
type foldEvent struct {
	typ   int
	body  []byte
	clock int64
	// waited says that its aggregate was blocked: no snapshot has it, whatever it says
	// of others.
	waited bool
}

// attempt folds the event that was read last, or holds it. An error of ClassReject
// says that it cannot be folded; then nothing was changed.
func (t *track) attempt(id []byte, in *pipeline.Record, e foldEvent, b *store.Batch) error {
	known, err := t.duplicate(in.Offset)
	if err != nil {
		return err
	}
	if known {
		t.count(in, isDuplicate)
		return nil
	}
	if t.Fold.Window().Size > 0 {
		return t.attemptWindows(id, in, e, b)
	}
	a, err := t.states.get(id)
	if err != nil {
		return err
	}
	number, numbered := t.folder.Number()
	// Of what was folded before the snapshots were made, only those that waited are
	// missing in them.
	decided := in.Offset < t.counted && !t.isShadow() && !e.waited
	switch {
	case t.sameID(a):
		t.count(in, isDuplicate)
		return nil
	case a.Deleted:
		t.count(in, isLate)
		if !t.isShadow() {
			t.refused.late(t.folder.EventID(), a)
		}
		return nil
	case !numbered && (decided || t.inSnapshot(a, in.Offset)):
		return nil // the snapshots have it
	case numbered && number <= a.Number:
		t.count(in, isConflict)
		return nil
	case numbered && (decided || number > a.Number+1 && (a.Number > 0 || a.Version == 0)):
		t.hold(&held{id: string(id), number: number, typ: e.typ, body: bytes.Clone(e.body), in: copied(in)})
		t.count(in, isHeld)
		return nil
	}
	if err := t.apply(a, in, in.Offset, b); err != nil {
		return err
	}
	return t.drain(a, in.Offset, b)
}

// inSnapshot reports whether the snapshot that an aggregate was loaded from has
// the event at an offset already: a worker that went on from an old store may have
// written a checkpoint behind the snapshots of another.
func (t *track) inSnapshot(a *aggregate, offset int64) bool {
	return !t.isShadow() && offset < t.loaded && a.Version > 0 && offset <= a.Offset
}

// duplicate reports whether the event that was read last was applied before, at
// another offset.
func (t *track) duplicate(offset int64) (bool, error) {
	if t.index == nil {
		return false, nil
	}
	return t.index.known(t.folder.EventID(), offset)
}

// sameID reports whether the event that was read last is the last one of the
// aggregate.
func (t *track) sameID(a *aggregate) bool {
	id := t.folder.EventID()
	return len(id) > 0 && bytes.Equal(id, a.EventID)
}

// apply applies the event that was read last. now is the offset that is being
// read, which is later than the event's own if it was held.
func (t *track) apply(a *aggregate, in *pipeline.Record, now int64, b *store.Batch) error {
	last := a.last()
	result, err := t.folder.Update(&a.Aggregate)
	if err != nil {
		return err
	}
	if result != fold.Applied {
		return nil
	}
	a.Offset = in.Offset
	t.changed(a)
	return t.remember(a, last, in, now, b)
}

// last returns where the last event of the aggregate stands, -1 if there is none.
func (a *aggregate) last() int64 {
	if a.Version == 0 {
		return -1
	}
	return a.Offset
}

// changed says that an event was applied to an aggregate.
func (t *track) changed(a *aggregate) {
	a.gone, a.dirty = false, true
	if !t.isShadow() {
		if a.Offset < t.next {
			t.changedBelatedly(a.id)
		}
		t.publishSoon(a)
	}
}

// remember adds the event that was just applied to the index, if it is to be
// there: the shadow indexes up to where the states came from snapshots.
func (t *track) remember(a *aggregate, last int64, in *pipeline.Record, now int64, b *store.Batch) error {
	t.count(in, isApplied)
	if t.index != nil && (t.isShadow() || now >= t.index.until) {
		return t.index.add(b, a, last, in, t.folder)
	}
	return nil
}

// windowed is an aggregate as it will be.
type windowed struct {
	*aggregate
	next fold.Aggregate
	from int64 // of the window
}

// attemptWindows applies the event that was read last to all of its windows that
// are still open, or to none.
func (t *track) attemptWindows(key []byte, in *pipeline.Record, e foldEvent, b *store.Batch) error {
	w := t.Fold.Window()
	t.missed, t.ready = t.missed[:0], t.ready[:0]
	t.starts = w.Starts(t.starts[:0], t.folder.Time())
	var id []byte
	for _, start := range t.starts {
		if w.Closed(start, e.clock) {
			t.missed = append(t.missed, start)
			continue
		}
		id = fold.AppendWindowID(id[:0], key, start)
		a, err := t.states.get(id)
		if err != nil {
			return err
		}
		if t.sameID(a) || t.inSnapshot(a, in.Offset) {
			continue
		}
		next := a.Aggregate
		next.EventID = bytes.Clone(a.EventID)
		if _, err := t.folder.Apply(&next); err != nil {
			return err
		}
		next.Offset = in.Offset
		t.ready = append(t.ready, windowed{a, next, start})
	}
	for i, r := range t.ready {
		last := r.last()
		r.Aggregate = r.next
		if r.Version == 1 && !t.isShadow() {
			b.Put(t.Part, familyWindow, windowKey(r.from, r.id), nil)
			t.firstWindow, t.newWindow = min(t.firstWindow, r.from), min(t.newWindow, r.from)
		}
		t.changed(r.aggregate)
		// The index has an event once: of windows that overlap, under the latest, and
		// without the events before it.
		if i == len(t.ready)-1 {
			if w.Every < w.Size {
				r.clocks, last = clocks{}, -1
			}
			if err := t.remember(r.aggregate, last, in, in.Offset, b); err != nil {
				return err
			}
		}
	}
	if len(t.missed) > 0 {
		t.count(in, isLate)
		if !t.isShadow() {
			t.letter(in, key, t.missed)
		}
	}
	return nil
}

// windowKey orders windows by their start.
func windowKey(start int64, id string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(start)^1<<63), id...)
}

// copied returns a record that stays as it is.
func copied(in *pipeline.Record) pipeline.Record {
	c := *in
	c.Key, c.Value, c.Headers = bytes.Clone(in.Key), bytes.Clone(in.Value), nil
	for _, h := range in.Headers {
		c.Headers = append(c.Headers, pipeline.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
	}
	return c
}

func (t *track) hold(h *held) {
	i, _ := slices.BinarySearchFunc(t.held, h, func(a, b *held) int { return cmp.Compare(a.offset(), b.offset()) })
	t.held = slices.Insert(t.held, i, h)
	t.heldOf[h.id] = append(t.heldOf[h.id], h)
	t.heldNow[h.offset()] = h
}

// unhold takes held events out again.
func (t *track) unhold(gone ...*held) {
	for _, h := range gone {
		t.heldNow[h.offset()] = nil
		t.held = slices.DeleteFunc(t.held, func(x *held) bool { return x == h })
		left := slices.DeleteFunc(t.heldOf[h.id], func(x *held) bool { return x == h })
		if t.heldOf[h.id] = left; len(left) == 0 {
			delete(t.heldOf, h.id)
		}
	}
}

// firstHeld returns the held event of an aggregate with the lowest number; of two,
// the first in the log.
func (t *track) firstHeld(id string) *held {
	return slices.MinFunc(t.heldOf[id], func(a, b *held) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.offset(), b.offset()))
	})
}

// drain applies the held events whose turn it is, now that offset now is read.
func (t *track) drain(a *aggregate, now int64, b *store.Batch) error {
	for len(t.heldOf[a.id]) > 0 {
		h := t.firstHeld(a.id)
		if h.number > a.Number+1 && !a.Deleted {
			return nil
		}
		if err := t.retry(a, h, now, b); err != nil {
			return err
		}
	}
	return nil
}

// retry folds a held event, whatever its number.
func (t *track) retry(a *aggregate, h *held, now int64, b *store.Batch) error {
	t.unhold(h)
	if _, err := t.folder.Read(h.typ, h.body, fold.OriginOf(&h.in)); err != nil {
		return err // it was read before
	}
	known, err := t.duplicate(h.offset())
	switch {
	case err != nil:
		return err
	case known || t.sameID(a):
		t.count(&h.in, isDuplicate)
	case a.Deleted:
		t.count(&h.in, isLate)
	case h.number <= a.Number:
		t.count(&h.in, isConflict)
	default:
		err := t.apply(a, &h.in, now, b)
		if err == nil || pipeline.ClassOf(err) != pipeline.ClassReject {
			return err
		}
		if t.skips[h.offset()] {
			t.count(&h.in, isSkipped)
			return nil
		}
		return t.block(a.id, &h.in, now, err)
	}
	return nil
}

// expire ends the waiting of events that waited long enough when the record at an
// offset is read.
func (t *track) expire(now int64, b *store.Batch) error {
	wait, apply := t.Fold.Wait()
	for len(t.held) > 0 && t.held[0].offset()+wait <= now {
		h := t.held[0]
		if !apply && !t.skips[h.offset()] {
			a, err := t.states.get([]byte(h.id))
			if err != nil {
				return err
			}
			if err := t.block(h.id, &h.in, now, pipeline.Reject(reasonGap, "number %d came, and number %d did not within %d records", h.number, a.Number+1, wait)); err != nil {
				return err
			}
			continue
		}
		a, err := t.states.get([]byte(h.id))
		if err != nil {
			return err
		}
		for t.blocked[h.id] == nil && slices.Contains(t.held, h) {
			if err := t.retry(a, t.firstHeld(h.id), now, b); err != nil {
				return err
			}
		}
		if t.blocked[h.id] == nil {
			if err := t.drain(a, now, b); err != nil {
				return err
			}
		}
		t.owe(h.id)
	}
	return nil
}

// write adds to the batch what the store does not have yet.
func (t *track) write(b *store.Batch) error {
	if err := t.states.write(b); err != nil {
		return err
	}
	for offset, h := range t.heldNow {
		if h == nil {
			b.Delete(t.Part, t.families.held, offsetKey(nil, offset))
			continue
		}
		b.Put(t.Part, t.families.held, offsetKey(nil, offset), appendHeld(nil, &h.in))
	}
	for id := range t.blocks {
		q := t.blocked[id]
		if q == nil {
			b.Delete(t.Part, t.families.blocked, []byte(id))
			continue
		}
		value, err := q.encode()
		if err != nil {
			return err
		}
		b.Put(t.Part, t.families.blocked, []byte(id), value)
	}
	if t.ticked {
		b.Put(t.Part, familyMark, t.families.clock, codec.AppendLong(nil, t.clock))
	}
	return nil
}

// written says that it is in the store now.
func (t *track) written(room int) error {
	clear(t.heldNow)
	clear(t.blocks)
	t.ticked = false
	return t.states.written(room)
}

// appendHeld appends what the store keeps of a record that waits.
func appendHeld(dst []byte, in *pipeline.Record) []byte {
	header, _ := in.Header(headerSchemaID)
	dst = codec.AppendLong(dst, in.Time.UnixMilli())
	dst = codec.AppendBytes(dst, in.Key)
	dst = codec.AppendBytes(dst, header)
	return append(dst, in.Value...)
}

// readHeld reads what appendHeld wrote.
func (t *track) readHeld(offset int64, enc []byte) (*pipeline.Record, error) {
	r := fields{rest: bytes.Clone(enc)}
	in := &pipeline.Record{Topic: t.Source.Topic, Partition: t.Source.Partition, Offset: offset, Time: time.UnixMilli(r.long()), Key: r.text()}
	if header := r.text(); len(header) > 0 {
		in.Headers = []pipeline.Header{{Key: headerSchemaID, Value: header}}
	}
	in.Value = r.rest
	return in, r.err
}

// load reads what the store has. decode decodes an event that was held.
func (t *track) load(decode func(*pipeline.Record) (event.Decoded, error)) error {
	value, ok, err := t.Part.Get(nil, familyMark, t.families.clock)
	if err != nil {
		return err
	}
	if ok {
		if t.clock, _, err = codec.ReadLong(value); err != nil {
			return damaged(t.families.clock, err)
		}
	}
	v := t.Part.View()
	defer v.Close() //nolint:errcheck // only read
	var bad error
	err = v.Scan(t.families.blocked, nil, nil, false, func(key, value []byte) bool {
		var q *blocked
		if q, bad = decodeBlocked(value); bad != nil {
			bad = damaged(key, bad)
			return false
		}
		t.blocked[string(key)] = q
		return true
	})
	if err != nil || bad != nil {
		return cmp.Or(bad, err)
	}
	err = v.Scan(t.families.held, nil, nil, false, func(key, value []byte) bool {
		var in *pipeline.Record
		if in, bad = t.readHeld(int64(binary.BigEndian.Uint64(key)), value); bad != nil {
			bad = damaged(key, bad)
			return false
		}
		var d event.Decoded
		if d, bad = decode(in); bad != nil {
			bad = fmt.Errorf("the event at offset %d, which waits for another: %w", in.Offset, bad)
			return false
		}
		body := bytes.Clone(d.Body)
		var id []byte
		if id, bad = t.folder.Read(d.Type, body, fold.OriginOf(in)); bad != nil {
			return false
		}
		number, _ := t.folder.Number()
		t.hold(&held{id: string(id), number: number, typ: d.Type, body: body, in: *in})
		return true
	})
	clear(t.heldNow)
	return cmp.Or(bad, err)
}
