package projection

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// This file holds what a lane keeps beside its states. Each type tracks which of its
// entries the store lacks: write adds them to a batch, and written notes that the batch
// is in the store.

// skips are the offsets of events that a release skipped.
type skips struct {
	offsets  map[int64]bool
	unsaved  bool // the store lacks some
	due      bool // the snapshots topic lacks some
	deferred bool // like due, after the open transaction
}

func newSkips() skips { return skips{offsets: map[int64]bool{}} }

func (s *skips) has(offset int64) bool { return s.offsets[offset] }

// add skips an offset. sending reports that a transaction is open.
func (s *skips) add(offset int64, sending bool) {
	s.offsets[offset], s.unsaved = true, true
	if sending {
		s.deferred = true
	} else {
		s.due = true
	}
}

// decode adds the offsets of an encoded list.
func (s *skips) decode(value []byte) error {
	offsets, err := internalrecord.DecodeSkipped(value)
	for _, offset := range offsets {
		s.offsets[offset] = true
	}
	return err
}

func (s *skips) load(part *store.Part) error {
	value, ok, err := part.Get(nil, familyMark, markSkipped)
	if ok && err == nil {
		if err = s.decode(value); err != nil {
			err = states.Damaged(markSkipped, err)
		}
	}
	return err
}

func (s *skips) write(b *store.Batch, part *store.Part) error {
	if !s.unsaved {
		return nil
	}
	value, err := internalrecord.EncodeSkipped(s.offsets)
	if err == nil {
		b.Put(part, familyMark, markSkipped, value)
	}
	return err
}

// dueMarks are the ids of aggregates whose snapshot is due although no event above the
// published offset shows that: after a restart, nothing else would.
type dueMarks struct {
	ids     map[string]bool // false: not due any more, and still in the store
	unsaved map[string]bool
	since   map[string]bool // set since the open transaction got the due snapshots; nil if none is open
}

func newDueMarks() dueMarks { return dueMarks{ids: map[string]bool{}, unsaved: map[string]bool{}} }

func (m *dueMarks) set(id string, due bool) {
	m.ids[id], m.unsaved[id] = due, true
	if due && m.since != nil {
		m.since[id] = true
	}
}

// send notes that a transaction has all due snapshots.
func (m *dueMarks) send() { m.since = map[string]bool{} }

// ended notes the end of that transaction. A snapshot that became due after send is
// due in the next one.
func (m *dueMarks) ended(committed bool) {
	since := m.since
	m.since = nil
	if !committed {
		return
	}
	for id := range m.ids {
		if !since[id] {
			m.set(id, false)
		}
	}
}

func (m *dueMarks) write(b *store.Batch, part *store.Part) {
	for id := range m.unsaved {
		if m.ids[id] {
			b.Put(part, familyDue, []byte(id), nil)
		} else {
			b.Delete(part, familyDue, []byte(id))
		}
	}
}

func (m *dueMarks) written() {
	for id := range m.unsaved {
		if !m.ids[id] {
			delete(m.ids, id)
		}
	}
	clear(m.unsaved)
}

// outOfOrder maps aggregates to the next offset when they changed otherwise than by the
// event that is being read: by an event that had waited, or because they were blocked
// or released. The offset of their last event does not show that change to a feed that
// continues from a later offset, but this one does.
type outOfOrder struct {
	unsent  map[string]int64 // not sent to feeds yet
	unsaved map[string]int64
}

func newOutOfOrder() outOfOrder {
	return outOfOrder{unsent: map[string]int64{}, unsaved: map[string]int64{}}
}

func (o *outOfOrder) add(id string, next int64) { o.unsent[id], o.unsaved[id] = next, next }

func (o *outOfOrder) write(b *store.Batch, part *store.Part) {
	for id, next := range o.unsaved {
		b.Put(part, familyOutOfOrder, []byte(id), codec.AppendLong(nil, next))
	}
}

func (o *outOfOrder) written() { clear(o.unsaved) }

// deadLetters are the dead letters of events that were too late for a window.
type deadLetters struct {
	due       map[int64][]int64 // offset of the event -> starts of the windows it missed
	unsaved   map[int64]bool    // offsets
	sentBelow int64             // dead letters of events below are in committed transactions
	outbox    []pipeline.Record // of the open batch
}

func newDeadLetters() deadLetters {
	return deadLetters{due: map[int64][]int64{}, unsaved: map[int64]bool{}}
}

// sent notes that the dead letters of all events below an offset are in committed
// transactions.
func (d *deadLetters) sent(below int64) {
	d.sentBelow = max(d.sentBelow, below)
	for offset := range d.due {
		if offset < d.sentBelow {
			delete(d.due, offset)
			d.unsaved[offset] = true
		}
	}
}

func (d *deadLetters) write(b *store.Batch, part *store.Part) {
	for offset := range d.unsaved {
		missed, ok := d.due[offset]
		if !ok {
			b.Delete(part, familyLetter, states.OffsetKey(offset))
			continue
		}
		var value []byte
		for _, start := range missed {
			value = codec.AppendLong(value, start)
		}
		b.Put(part, familyLetter, states.OffsetKey(offset), value)
	}
}

func (d *deadLetters) written() { clear(d.unsaved) }

// load reads the letters that the store has. sentBelow must be known.
func (d *deadLetters) load(v *store.View) error {
	var bad error
	err := v.Scan(familyLetter, nil, nil, false, func(key, value []byte) bool {
		offset := int64(binary.BigEndian.Uint64(key))
		if offset < d.sentBelow {
			d.unsaved[offset] = true // its transaction was committed
			return true
		}
		missed := []int64{}
		for r := (states.Fields{Rest: value}); len(r.Rest) > 0 && bad == nil; bad = r.Err {
			missed = append(missed, r.Long())
		}
		d.due[offset] = missed
		return bad == nil
	})
	if bad != nil {
		return bad
	}
	return err
}

// reasonLate is the reason code of the dead letter of an event that came after the end
// of its window.
const reasonLate pipeline.Reason = "late"

// stageFold names the stage in a dead letter that a projection made.
const stageFold = "fold"

// addLetter notes that an event came too late for some windows.
func (l *lane) addLetter(in *pipeline.Record, key []byte, missed []int64) {
	if l.projection.Spec.Late == "" || in.Offset < l.letters.sentBelow {
		return
	}
	l.letters.due[in.Offset] = slices.Clone(missed)
	l.letters.unsaved[in.Offset] = true
	l.postLetter(in, key, missed)
}

// postLetter adds a dead letter of the event that was read last to the batch.
func (l *lane) postLetter(in *pipeline.Record, key []byte, missed []int64) {
	var windows []string
	for _, start := range missed {
		windows = append(windows, pipeline.UnixMicro(start).String())
	}
	err := pipeline.Reject(reasonLate, "it came after the end of its window from %s", strings.Join(windows, ", "))
	letter := deadletter.New(in, l.projection.Spec.Late, l.projection.Label(), stageFold, err, l.now())
	if l.fold.Bare() {
		deadletter.AddEnvelope(event.Derived{ID: l.folder.EventID(), Key: key, Time: time.UnixMicro(l.folder.Time())}, &letter)
	}
	l.letters.outbox = append(l.letters.outbox, letter)
}

// emitLetters emits the dead letters of the batch, with a size and a time that their topic
// accepts.
func (l *lane) emitLetters(out pipeline.Emitter, read int64, limits kafka.Limits) {
	box := l.letters.outbox
	if len(box) == 0 {
		return
	}
	gate := limits.Gate(l.projection.Spec.Late, l.now)
	for i := range box {
		deadletter.SetTime(&box[i], gate.Time(box[i].Time))
		deadletter.Truncate(&box[i], gate.MaxRecord())
		out.Emit(&box[i])
	}
	out.Emit(l.reserved(internalrecord.SentKey, internalrecord.EncodeSent(max(read, l.letters.sentBelow))))
}
