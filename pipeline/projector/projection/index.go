package projection

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
)

// The history of a lane, in the families
//
//	History   offset                     -> indexed: an event that was applied
//	Event     layer, event's id          -> offset
//	Type      type 00 time offset        -> nothing
//	Keyframe  aggregate, version         -> fold.AppendAggregate, at every 64th version
//
// An aggregate in a key is its length in two bytes and its id; versions, offsets
// and times are eight bytes, big-endian, times with the sign bit turned over. All
// of it is a pure function of the log.
//
// An entry of History has the event itself, as it came: a question about the past
// costs no request to Kafka, and is answered when retention has taken the event.
// The entries stand in the order of the log, so that they are written once and
// never moved again, which is what makes the index cheap; and each says where the
// event before it of the same aggregate stands. The events of an aggregate are
// found by going back from its state, or from a keyframe. For what is asked seldom
// that is as good as keys by aggregate, which would be sorted in all over and over.
//
// Ids of events have no order. They are kept in layers, those of the filter: what
// is in a layer that is full is never moved again either.

// keyframeEvery bounds how many events are folded to find a state of the past.
const keyframeEvery = 64

// markBackfill is there while the index is behind the states: next, until.
var markBackfill = []byte("backfill")

// headerSchemaID names the schema of a value that is not framed.
const headerSchemaID = "__value_schema_id"

// index is the history of a lane as it is written.
//
// After a restore from snapshots, the states are ahead of it: the log is read
// again from its start, and folded into states of its own (shadow), until it has
// caught up with whatever the snapshots contain. Nothing is folded into the lane's
// states before that, so that a duplicate is known as one, on every replay alike.
type index struct {
	lane   *Lane
	part   *store.Part
	recent map[eventName]int64 // of events that the store does not have yet: offsets
	filter filter
	asked  eventName // what known was asked for last, and its hash
	hash   uint64

	shadow      *track // nil if the index is not behind
	next, until int64  // what it has, and when it has caught up

	key, value []byte // scratch
}

func newIndex(l *Lane) *index {
	return &index{lane: l, part: l.Part, recent: map[eventName]int64{}, filter: filter{part: l.Part}}
}

// behind makes the index catch up, from next to until.
func (x *index) behind(next, until int64) {
	x.next, x.until = next, until
	if next < until {
		x.shadow = newTrack(x.lane, newStates(x.part, familyShadow, x.lane.Source), shadowFamilies)
	}
}

// resume takes up what is in the store, and a catching up that was cut short.
func (x *index) resume(decode func(*pipeline.Record) (event.Decoded, error)) error {
	if err := x.filter.load(); err != nil {
		return err
	}
	value, ok, err := x.part.Get(nil, familyMark, markBackfill)
	if err != nil || !ok {
		return err
	}
	r := fields{rest: value}
	next, until := r.long(), r.long()
	if x.behind(next, until); r.err != nil || x.shadow == nil {
		return r.err
	}
	return x.shadow.load(decode)
}

// lacks reports whether the event at an offset is still to be indexed from the
// past.
func (x *index) lacks(offset int64) bool {
	return x.shadow != nil && offset >= x.next && offset < x.until
}

// known reports whether the event was applied before, at another offset.
func (x *index) known(id []byte, offset int64) (bool, error) {
	if len(id) == 0 {
		return false, nil
	}
	x.asked = eventNameOf(id)
	x.hash = x.asked.hash()
	if !x.filter.mayHave(x.hash) {
		return false, nil
	}
	if at, ok := x.recent[x.asked]; ok {
		return at != offset, nil
	}
	for i := range x.filter.layers {
		if !x.filter.layers[i].has(x.hash) {
			continue
		}
		var ok bool
		var err error
		x.key = x.asked.key(x.key[:0], i)
		if x.value, ok, err = x.part.Get(x.value[:0], familyEvent, x.key); err != nil {
			return false, err
		}
		if ok {
			at, _, err := codec.ReadLong(x.value)
			if err != nil {
				return false, damaged(id, err)
			}
			return at != offset, nil
		}
	}
	return false, nil
}

// add adds the event that was just applied, after known was asked for it. before
// is where the event before it of the same aggregate stands, -1 if there is none.
func (x *index) add(b *store.Batch, a *aggregate, before int64, in *pipeline.Record, f *fold.Folder) error {
	recorded := in.Time.UnixMilli()
	if err := x.follow(a, before, recorded); err != nil {
		return err
	}
	x.key = offsetKey(x.key[:0], in.Offset)
	x.value = appendIndexed(x.value[:0], in, before, a)
	b.Put(x.part, familyHistory, x.key, x.value)
	if a.Version%keyframeEvery == 0 {
		x.key = versionKey(x.key[:0], []byte(a.id), a.Version)
		x.value = fold.AppendAggregate(x.value[:0], &a.Aggregate)
		b.Put(x.part, familyKeyframe, x.key, x.value)
	}
	x.key = typeKey(x.key[:0], f.Type().Name(), a.EventTime, in.Offset)
	b.Put(x.part, familyType, x.key, nil)
	if len(a.EventID) > 0 {
		x.key = x.asked.key(x.key[:0], x.filter.add(x.hash))
		x.value = codec.AppendLong(x.value[:0], in.Offset)
		b.Put(x.part, familyEvent, x.key, x.value)
		x.recent[x.asked] = in.Offset
	}
	return nil
}

// clocks are the latest times of an aggregate's events so far, by both clocks,
// which may go back from one event to the next.
type clocks struct {
	event    int64 // in microseconds since 1970
	recorded int64 // in milliseconds since 1970
	known    bool
}

// follow moves the clocks of an aggregate on to the event that was just applied.
func (x *index) follow(a *aggregate, before, recorded int64) error {
	if before >= 0 && !a.clocks.known {
		if err := x.clocksAt(a, before); err != nil {
			return err
		}
	}
	if !a.clocks.known {
		a.clocks = clocks{a.EventTime, recorded, true}
		return nil
	}
	a.event, a.recorded = max(a.event, a.EventTime), max(a.recorded, recorded)
	return nil
}

// clocksAt finds out what the clocks of an aggregate were after the event before
// the one that was just applied.
func (x *index) clocksAt(a *aggregate, before int64) error {
	if x.shadow != nil {
		// It may not be in the store yet.
		past, err := x.shadow.states.get([]byte(a.id))
		if err != nil {
			return err
		}
		if past != a && past.clocks.known && past.Offset == before {
			a.clocks = past.clocks
			return nil
		}
	}
	var ok bool
	var err error
	x.key = offsetKey(x.key[:0], before)
	if x.value, ok, err = x.part.Get(x.value[:0], familyHistory, x.key); !ok || err != nil {
		return err
	}
	e, err := readIndexed(before, x.value)
	if err != nil {
		return damaged(x.key, err)
	}
	a.clocks = clocks{e.latest, e.latestRecorded, true}
	return nil
}

// passed says that everything below an offset went by.
func (x *index) passed(next int64) {
	if x.shadow != nil && next > x.next {
		x.next = next
	}
}

func (x *index) write(b *store.Batch) error {
	x.filter.write(b)
	if x.shadow == nil {
		return nil
	}
	if x.next >= x.until {
		b.Delete(x.part, familyMark, markBackfill)
		b.Delete(x.part, familyMark, shadowFamilies.clock)
		return nil
	}
	b.Put(x.part, familyMark, markBackfill, codec.AppendLong(codec.AppendLong(nil, x.next), x.until))
	return x.shadow.write(b)
}

func (x *index) written(room int) error {
	x.filter.written()
	clear(x.recent)
	if x.shadow == nil {
		return nil
	}
	if err := x.shadow.written(room); err != nil || x.next < x.until {
		return err
	}
	x.shadow = nil
	return errors.Join(x.part.Clear(familyShadow), x.part.Clear(familyShadowHeld), x.part.Clear(familyShadowBlocked))
}

func appendAggregateKey(dst, id []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(id))), id...)
}

func versionKey(dst, id []byte, version int64) []byte {
	return binary.BigEndian.AppendUint64(appendAggregateKey(dst, id), uint64(version))
}

func offsetKey(dst []byte, offset int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(offset))
}

func offsetOf(key []byte) int64 { return int64(binary.BigEndian.Uint64(key)) }

func typeKey(dst []byte, typ string, micros, offset int64) []byte {
	dst = append(append(dst, typ...), 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(micros)^1<<63)
	return binary.BigEndian.AppendUint64(dst, uint64(offset))
}

// cursorOf returns time and offset from a key of typeKey.
func cursorOf(key []byte) query.EventCursor {
	tail := key[len(key)-16:]
	return query.EventCursor{Time: int64(binary.BigEndian.Uint64(tail) ^ 1<<63), Offset: int64(binary.BigEndian.Uint64(tail[8:]))}
}

// eventName is an event's id in 16 bytes: those of a UUID that is written as they
// are usually written, else the first of its SHA-256.
type eventName struct {
	high, low uint64
	hashed    bool
}

func eventNameOf(id []byte) eventName {
	if high, low, ok := parseUUID(id); ok {
		return eventName{high, low, false}
	}
	sum := sha256.Sum256(id)
	return eventName{binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:]), true}
}

// hash is by the finish of splitmix64.
func (e eventName) hash() uint64 {
	x := e.high ^ bits.RotateLeft64(e.low, 23)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// key appends the key of familyEvent. That of a hashed id is a byte longer.
func (e eventName) key(dst []byte, layer int) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(layer))
	dst = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, e.high), e.low)
	if e.hashed {
		dst = append(dst, 'h')
	}
	return dst
}

// parseUUID reads a UUID in groups of 8, 4, 4, 4 and 12 digits. Upper case makes
// another id of it, which is none.
func parseUUID(s []byte) (high, low uint64, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return 0, 0, false
	}
	bad := byte(0)
	digits := func(n uint64, s []byte) uint64 {
		for _, c := range s {
			d := hexDigits[c]
			bad |= d
			n = n<<4 | uint64(d&15)
		}
		return n
	}
	high = digits(digits(digits(0, s[:8]), s[9:13]), s[14:18])
	low = digits(digits(0, s[19:23]), s[24:])
	return high, low, bad < 16
}

var hexDigits = func() (t [256]byte) {
	for i := range t {
		t[i] = 16
	}
	for i, c := range "0123456789abcdef" {
		t[c] = byte(i)
	}
	return t
}()

// indexed is an event as the index has it.
type indexed struct {
	offset         int64
	version        int64  // of the aggregate, that it made
	id             []byte // of the aggregate
	before         int64  // offset of the event before of the aggregate, -1 if there is none
	recorded       int64  // record's time, in milliseconds since 1970
	eventTime      int64  // in microseconds since 1970
	latestRecorded int64  // of it and all before of the aggregate, the latest
	latest         int64
	header         []byte
	value          []byte
}

// appendIndexed appends an event that was just applied to the aggregate. Numbers
// are written as what they differ by from one that is likely to be near.
func appendIndexed(dst []byte, in *pipeline.Record, before int64, a *aggregate) []byte {
	recorded := in.Time.UnixMilli()
	dst = codec.AppendLong(dst, a.Version)
	back := int64(0)
	if before >= 0 {
		back = in.Offset - before
	}
	dst = codec.AppendLong(dst, back)
	dst = codec.AppendLong(dst, recorded)
	dst = codec.AppendLong(dst, a.EventTime-recorded*1000)
	dst = codec.AppendLong(dst, a.clocks.recorded-recorded)
	dst = codec.AppendLong(dst, a.clocks.event-a.EventTime)
	dst = codec.AppendString(dst, a.id)
	header, _ := in.Header(headerSchemaID)
	dst = codec.AppendBytes(dst, header)
	return append(dst, in.Value...)
}

// readIndexed reads what appendIndexed wrote. It copies nothing.
func readIndexed(offset int64, enc []byte) (e indexed, err error) {
	r := fields{rest: enc}
	e = indexed{offset: offset, version: r.long(), before: -1}
	if back := r.long(); back != 0 {
		e.before = offset - back
	}
	e.recorded = r.long()
	e.eventTime = e.recorded*1000 + r.long()
	e.latestRecorded = e.recorded + r.long()
	e.latest = e.eventTime + r.long()
	e.id, e.header = r.text(), r.text()
	e.value = r.rest
	return e, r.err
}

// eventAt returns the event at an offset, if it is in the index.
func eventAt(v *store.View, offset int64) (e indexed, ok bool, err error) {
	value, ok, err := v.Get(nil, familyHistory, offsetKey(nil, offset))
	if !ok || err != nil {
		return e, false, err
	}
	if e, err = readIndexed(offset, value); err != nil {
		return e, false, damaged(offsetKey(nil, offset), err)
	}
	return e, true, nil
}

// eventByID returns the event with an id, if it is in the index.
func eventByID(v *store.View, id []byte) (e indexed, ok bool, err error) {
	layers := 0
	if err := v.Scan(familyEvent, nil, nil, true, func(key, _ []byte) bool {
		layers = int(binary.BigEndian.Uint32(key)) + 1
		return false
	}); err != nil {
		return e, false, err
	}
	want := eventNameOf(id)
	for i := layers - 1; i >= 0; i-- {
		value, ok, err := v.Get(nil, familyEvent, want.key(nil, i))
		if err != nil {
			return e, false, err
		}
		if !ok {
			continue
		}
		offset, _, err := codec.ReadLong(value)
		if err != nil {
			return e, false, damaged(id, err)
		}
		if e, ok, err = eventAt(v, offset); err == nil && !ok {
			err = pipeline.Fatal("the store has event %q at offset %d, but not in its history", id, offset)
		}
		return e, err == nil, err
	}
	return e, false, nil
}

// eventsOf calls f with the events that made versions from up to to of an
// aggregate, in order or in reverse, until it returns false. Those that the index
// does not have are left out.
func eventsOf(v *store.View, latest *fold.Aggregate, id []byte, from, to int64, reverse bool, f func(e indexed) bool) error {
	from, to = max(from, 1), min(to, latest.Version)
	if from > to {
		return nil
	}
	if reverse {
		return eventsBack(v, latest, id, from, to, f)
	}
	// By the keyframe, from behind.
	var block []indexed
	for ; from <= to; from += int64(len(block)) {
		end := min(to, (from+keyframeEvery-1)/keyframeEvery*keyframeEvery)
		block = block[:0]
		if err := eventsBack(v, latest, id, from, end, func(e indexed) bool {
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

// eventsBack goes back from the first place that is known at or after to.
func eventsBack(v *store.View, latest *fold.Aggregate, id []byte, from, to int64, f func(e indexed) bool) error {
	at := fold.Aggregate{Version: latest.Version, Offset: latest.Offset}
	var bad error
	err := v.Scan(familyKeyframe, versionKey(nil, id, to), versionKey(nil, id, -1), false, func(_, value []byte) bool {
		bad = fold.ReadAggregate(value, &at)
		return false
	})
	if err := errors.Join(bad, err); err != nil {
		return err
	}
	e, ok, err := eventAt(v, at.Offset)
	if !ok && err == nil {
		// The state is ahead of the index, which is being made anew.
		value, there, err := v.Get(nil, familyShadow, id)
		if err == nil && there {
			err = fold.ReadAggregate(value, &at)
		}
		if !there || err != nil {
			return err
		}
		if e, ok, err = eventAt(v, at.Offset); err != nil {
			return err
		}
	}
	for version := at.Version; ok && err == nil && e.version == version && bytes.Equal(e.id, id) && version >= from; version-- {
		if version <= to && !f(e) {
			return nil
		}
		if e.before < 0 {
			return nil
		}
		e, ok, err = eventAt(v, e.before)
	}
	return err
}

// record returns the event as the record it was.
func (e *indexed) record(source fold.Source) *pipeline.Record {
	r := &pipeline.Record{Topic: source.Topic, Partition: source.Partition, Offset: e.offset, Value: e.value}
	if len(e.header) > 0 {
		r.Headers = []pipeline.Header{{Key: headerSchemaID, Value: e.header}}
	}
	return r
}

// origin returns what the record said of the event. Of a window's state, the id is
// more than the key; nobody asks for that here.
func (e *indexed) origin() fold.Origin {
	return fold.Origin{Key: e.id[:min(len(e.id), maxKey)], Time: e.eventTime}
}

// fields reads values one after the other and keeps the first error.
type fields struct {
	rest []byte
	err  error
}

func (r *fields) long() (n int64) {
	if r.err == nil {
		n, r.rest, r.err = codec.ReadLong(r.rest)
	}
	return n
}

func (r *fields) text() (s []byte) {
	if r.err == nil {
		s, r.rest, r.err = codec.ReadText(r.rest)
	}
	return s
}
