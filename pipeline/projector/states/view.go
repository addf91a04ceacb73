package states

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"unicode/utf8"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/store"
)

// View is a consistent view of a partition's states and history in the store. One
// goroutine may use it at a time.
type View struct {
	view   *store.View
	source fold.Source
}

// NewView returns a view of a part whose aggregates have a source. It must be closed.
func NewView(part *store.Part, source fold.Source) *View {
	return &View{view: part.View(), source: source}
}

// Close releases the view.
func (v *View) Close() error { return v.view.Close() }

// Position returns the offset below which everything is folded.
func (v *View) Position() (next int64, ok bool, err error) { return v.view.Position() }

// Source returns the source of the partition's aggregates.
func (v *View) Source() fold.Source { return v.source }

// State reads an aggregate. ok is false if there is none.
func (v *View) State(id []byte, a *fold.Aggregate) (ok bool, err error) {
	value, ok, err := v.view.Get(nil, FamilyState, id)
	if !ok || err != nil {
		return false, err
	}
	a.Source = v.source
	if err := fold.ReadAggregate(value, a); err != nil {
		return false, Damaged(id, err)
	}
	return true, nil
}

// States calls f with the aggregates whose ids are greater than after, in order, until
// it returns false. id and a are valid during the call.
func (v *View) States(after string, f func(id []byte, a *fold.Aggregate) bool) error {
	from := append([]byte(after), 0) // the least id after it
	if after == "" {
		from = nil
	}
	a := fold.Aggregate{Source: v.source}
	var bad error
	err := v.view.Scan(FamilyState, from, nil, false, func(id, value []byte) bool {
		if !utf8.Valid(id) {
			return true // of an older release, which took any key; no cursor could name it
		}
		if err := fold.ViewAggregate(value, &a); err != nil {
			bad = Damaged(id, err)
			return false
		}
		return f(id, &a)
	})
	return errors.Join(bad, err)
}

// Event is an event in the history.
type Event struct {
	Offset          int64
	Version         int64  // of the aggregate, after the event
	Aggregate       []byte // id
	Recorded        int64  // time of the record, in milliseconds since 1970
	EventTime       int64  // in microseconds since 1970
	LatestRecorded  int64  // the latest Recorded of this event and all before it of the same aggregate
	LatestEventTime int64  // the same of EventTime

	// ID is the identity of the event as a text, if the record alone does not have it; else nil.
	ID []byte

	before   int64 // offset of the previous event of the same aggregate, -1 if there is none
	header   []byte
	metadata *fold.Metadata // nil if the fold reads nothing of the record
	value    []byte
}

// Origin returns the origin of the event in its record. For a window, the id of the
// aggregate is more than the record's key; folds of windows do not use the key here.
func (e *Event) Origin() fold.Origin {
	o := fold.Origin{Key: e.Aggregate[:min(len(e.Aggregate), MaxKey)], Time: e.EventTime}
	if m := e.metadata; m != nil {
		o.RawKey, o.Headers = m.Key, m.Headers
	}
	return o
}

// IsTombstone reports whether the event is a record without a value.
func (e *Event) IsTombstone() bool { return len(e.value) == 0 }

// Record returns the event as a record, for a decoder.
func (v *View) Record(e *Event) *pipeline.Record {
	r := &pipeline.Record{Topic: v.source.Topic, Partition: v.source.Partition, Offset: e.Offset, Value: e.value}
	if len(e.header) > 0 {
		r.Headers = []pipeline.Header{{Key: HeaderSchemaID, Value: e.header}}
	}
	return r
}

// appendEvent appends an event that was just applied to the aggregate. Numbers are
// written as differences from a number that is usually close. A negative version means
// that the event's identity precedes the value. f has read the event; what it reads of the
// record is between a negative number and the identity.
func appendEvent(dst []byte, in *pipeline.Record, before int64, a *Aggregate, f *fold.Folder) []byte {
	withID := f.HasIdentity()
	recorded := in.Time.UnixMilli()
	version := a.Version
	if withID {
		version = -version
	}
	dst = codec.AppendLong(dst, version)
	back := int64(0)
	if before >= 0 {
		back = in.Offset - before
	}
	dst = codec.AppendLong(dst, back)
	dst = codec.AppendLong(dst, recorded)
	dst = codec.AppendLong(dst, a.EventTime-recorded*1000)
	dst = codec.AppendLong(dst, a.clocks.recorded-recorded)
	dst = codec.AppendLong(dst, a.clocks.event-a.EventTime)
	dst = codec.AppendBytes(dst, a.ID)
	header, _ := in.Header(HeaderSchemaID)
	m, reads := f.Metadata()
	if reads {
		dst = codec.AppendLong(dst, -1-int64(len(m.Headers)))
	}
	dst = codec.AppendBytes(dst, header)
	if reads {
		dst = appendMetadata(dst, &m, a.ID)
	}
	if withID {
		dst = codec.AppendBytes(dst, a.EventID)
	}
	return append(dst, in.Value...)
}

// readEvent reads what appendEvent wrote. It copies nothing.
func readEvent(offset int64, enc []byte) (e Event, err error) {
	r := Fields{Rest: enc}
	e = Event{Offset: offset, Version: r.Long(), before: -1}
	if back := r.Long(); back != 0 {
		e.before = offset - back
	}
	e.Recorded = r.Long()
	e.EventTime = e.Recorded*1000 + r.Long()
	e.LatestRecorded = e.Recorded + r.Long()
	e.LatestEventTime = e.EventTime + r.Long()
	e.Aggregate = r.Text()
	peek := r
	if n := peek.Long(); peek.Err == nil && n < 0 {
		e.header = peek.Text()
		e.metadata = readMetadata(&peek, int(-1-n), e.Aggregate)
		r = peek
	} else {
		e.header = r.Text()
	}
	if e.Version < 0 {
		e.Version, e.ID = -e.Version, r.Text()
	}
	e.value = r.Rest
	return e, r.Err
}

// The key of a record is, in the history, a number: noKey, or aggregateKey if it is the id of
// the aggregate, or else its length after these.
const (
	noKey = iota
	aggregateKey
	otherKey
)

func appendMetadata(dst []byte, m *fold.Metadata, aggregate []byte) []byte {
	switch {
	case m.Key == nil:
		dst = codec.AppendLong(dst, noKey)
	case bytes.Equal(m.Key, aggregate):
		dst = codec.AppendLong(dst, aggregateKey)
	default:
		dst = append(codec.AppendLong(dst, otherKey+int64(len(m.Key))), m.Key...)
	}
	for _, h := range m.Headers {
		dst = codec.AppendBytes(codec.AppendString(dst, h.Key), h.Value)
	}
	return dst
}

// readMetadata reads what appendMetadata wrote, with a number of headers.
func readMetadata(r *Fields, headers int, aggregate []byte) *fold.Metadata {
	m := &fold.Metadata{}
	switch n := r.Long(); {
	case n == aggregateKey:
		m.Key = aggregate
	case n >= otherKey:
		m.Key = r.bytes(n - otherKey)
	}
	for ; headers > 0 && r.Err == nil; headers-- {
		m.Headers = append(m.Headers, pipeline.Header{Key: string(r.Text()), Value: r.Text()})
	}
	return m
}

// Event returns the event at an offset, if the history has it.
func (v *View) Event(offset int64) (e Event, ok bool, err error) {
	value, ok, err := v.view.Get(nil, familyHistory, offsetKey(nil, offset))
	if !ok || err != nil {
		return e, false, err
	}
	if e, err = readEvent(offset, value); err != nil {
		return e, false, Damaged(offsetKey(nil, offset), err)
	}
	return e, true, nil
}

// EventByID returns the event with an id, if the history has it: of an aggregate, or of any
// if aggregate is nil. An aggregate only matters if ids are compared within aggregates. For
// a window, it is the key.
func (v *View) EventByID(aggregate, id []byte) (e Event, ok bool, err error) {
	layers := 0
	if err := v.view.Scan(familyEvent, nil, nil, true, func(key, _ []byte) bool {
		layers = int(binary.BigEndian.Uint32(key)) + 1
		return false
	}); err != nil {
		return e, false, err
	}
	name := eventNameOf(id)
	offset, found := int64(0), false
	for i := layers - 1; i >= 0 && !found; i-- {
		var bad error
		take := func(value []byte) {
			offset, _, bad = codec.ReadLong(value)
			found = true
		}
		if aggregate == nil {
			from := name.prefix(nil, i)
			err = v.view.Scan(familyEvent, from, after(from), false, func(key, value []byte) bool {
				if name.isKey(key) {
					take(value)
				}
				return !found
			})
		} else {
			err = v.eachName(name, aggregate, i, take)
		}
		if bad != nil {
			return e, false, Damaged(id, bad)
		}
		if err != nil {
			return e, false, err
		}
	}
	if !found {
		return e, false, nil
	}
	if e, ok, err = v.Event(offset); err == nil && !ok {
		err = pipeline.Fatal("the store has event %q at offset %d, but not in its history", id, offset)
	}
	return e, err == nil, err
}

// Conflict returns the sequence number of an event that was not applied to an aggregate,
// because its number or a later one was applied before. ok is false if there is no such
// event with the id.
func (v *View) Conflict(aggregate, id []byte) (number int64, ok bool, err error) {
	value, ok, err := v.view.Get(nil, familyConflict, eventNameOf(id).conflictKey(nil, aggregate))
	if !ok || err != nil {
		return 0, false, err
	}
	if number, _, err = codec.ReadLong(value); err != nil {
		return 0, false, Damaged(id, err)
	}
	return number, true, nil
}

// eachName calls f with the entry of an event's id in a layer, if there is one, whether
// ids are compared within aggregates or not.
func (v *View) eachName(name eventName, aggregate []byte, layer int, f func(value []byte)) error {
	for _, name.scope = range []scope{scopeOf(aggregate), {}} {
		value, ok, err := v.view.Get(nil, familyEvent, name.key(nil, layer))
		if err != nil {
			return err
		}
		if ok {
			f(value)
			return nil
		}
	}
	return nil
}

// after returns the first key after all that have a prefix; nil if there is none.
func after(prefix []byte) []byte {
	next := bytes.Clone(prefix)
	for i := len(next) - 1; i >= 0; i-- {
		if next[i]++; next[i] != 0 {
			return next[:i+1]
		}
	}
	return nil
}

// FirstEvent returns the offset of the first event in the history, -1 if it is empty.
func (v *View) FirstEvent() (offset int64, err error) {
	offset = -1
	err = v.view.Scan(familyHistory, nil, nil, false, func(key, _ []byte) bool {
		offset = offsetOf(key)
		return false
	})
	return offset, err
}

// EventsInOrder calls f with the events with offsets from from up to but not including
// to, in the order of the log, until it returns false. The bytes of e are valid during
// the call.
func (v *View) EventsInOrder(from, to int64, f func(e *Event) bool) error {
	var bad error
	err := v.view.Scan(familyHistory, offsetKey(nil, from), offsetKey(nil, to), false, func(key, enc []byte) bool {
		e, err := readEvent(offsetOf(key), enc)
		if err != nil {
			bad = Damaged(key, err)
			return false
		}
		return f(&e)
	})
	return errors.Join(bad, err)
}

// EventsOfType calls f with the event times, in microseconds since 1970, and the offsets
// of the events of a type (its full name), latest time first, until it returns false. It
// begins with the latest event at a time, latest.
func (v *View) EventsOfType(typ string, latest int64, f func(micros, offset int64) bool) error {
	from, to := typeKey(nil, typ, math.MinInt64, 0), typeKey(nil, typ, latest, -1)
	return v.view.Scan(familyType, from, to, true, func(key, _ []byte) bool {
		tail := key[len(key)-16:]
		return f(int64(binary.BigEndian.Uint64(tail)^1<<63), int64(binary.BigEndian.Uint64(tail[8:])))
	})
}

// Scan calls f with the entries of a family of another package, in order, until it
// returns false. Their bytes are valid during the call.
func (v *View) Scan(family store.Family, f func(key, value []byte) bool) error {
	return v.view.Scan(family, nil, nil, false, f)
}

// Keyframe sets a to the last keyframe of an aggregate up to a version. Without one, a
// is unchanged.
func (v *View) Keyframe(id []byte, version int64, a *fold.Aggregate) error {
	var bad error
	err := v.view.Scan(familyKeyframe, versionKey(nil, id, 0), versionKey(nil, id, version+1), true, func(_, value []byte) bool {
		bad = fold.ReadAggregate(value, a)
		return false
	})
	return errors.Join(bad, err)
}

// KeyframeBefore returns the version of the last keyframe before a version, 0 if there
// is none.
func KeyframeBefore(version int64) int64 { return (version - 1) / KeyframeEvery * KeyframeEvery }

// Events calls f with the events of an aggregate that made the versions from from to
// to, both included, in order or in reverse, until it returns false. latest is the
// aggregate's state in the view. Events that the history does not have are left out.
func (v *View) Events(id []byte, latest *fold.Aggregate, from, to int64, reverse bool, f func(e Event) bool) error {
	from, to = max(from, 1), min(to, latest.Version)
	if from > to {
		return nil
	}
	if reverse {
		return v.eventsBack(id, latest, from, to, f)
	}
	// Each block ends at a keyframe, and is read in reverse.
	var block []Event
	for ; from <= to; from += int64(len(block)) {
		end := min(to, (from+KeyframeEvery-1)/KeyframeEvery*KeyframeEvery)
		block = block[:0]
		if err := v.eventsBack(id, latest, from, end, func(e Event) bool {
			block = append(block, e)
			return true
		}); err != nil {
			return err
		}
		for i := len(block) - 1; i >= 0; i-- {
			if !f(block[i]) {
				return nil
			}
		}
		if len(block) < int(end-from+1) {
			from = end + 1 - int64(len(block))
		}
	}
	return nil
}

// eventsBack goes back from the first known offset of a version that is not below to.
func (v *View) eventsBack(id []byte, latest *fold.Aggregate, from, to int64, f func(e Event) bool) error {
	at := fold.Aggregate{Version: latest.Version, Offset: latest.Offset}
	var bad error
	err := v.view.Scan(familyKeyframe, versionKey(nil, id, to), versionKey(nil, id, -1), false, func(_, value []byte) bool {
		bad = fold.ReadAggregate(value, &at)
		return false
	})
	if err := errors.Join(bad, err); err != nil {
		return err
	}
	e, ok, err := v.Event(at.Offset)
	if !ok && err == nil {
		// The state is ahead of the index, which is catching up.
		value, there, err := v.view.Get(nil, FamilyShadow, id)
		if err == nil && there {
			err = fold.ReadAggregate(value, &at)
		}
		if !there || err != nil {
			return err
		}
		if e, ok, err = v.Event(at.Offset); err != nil {
			return err
		}
	}
	for version := at.Version; ok && err == nil && e.Version == version && bytes.Equal(e.Aggregate, id) && version >= from; version-- {
		if version <= to && !f(e) {
			return nil
		}
		if e.before < 0 {
			return nil
		}
		e, ok, err = v.Event(e.before)
	}
	return err
}
