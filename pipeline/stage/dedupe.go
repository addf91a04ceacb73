package stage

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/identity"
)

// maxWithin limits the parameter within, because a span stores times as milliseconds
// in 32 bits.
const maxWithin = 31 * 24 * time.Hour

// Dedupe is the stage that drops duplicate events.
func Dedupe() Kind {
	return Kind{
		Name: "dedupe",
		Doc: "Drops duplicate events. The first event with an identity passes, and events with the same identity within a given time of it are counted as filtered. " +
			"Record timestamps are compared, so a replay gives the same result. Duplicates are found if they are in the same partition, as events with the same key are. " +
			"The known ids survive restarts and are committed in the same transaction as the output.",
		Params: []Param{
			{Name: "by", Form: Expression, Doc: "What identifies an event (a string). The default is the identity that the pipeline's input declares, usually the event's own id. Events of different types with the same identity are duplicates, too."},
			{Name: "within", Form: Duration, Required: true, Doc: "The maximum difference to the time of the first event, at most 31d. " +
				"Records can be out of order: ids are kept for four windows of this length, those that most recently received a new id."},
		},
		Example: `by: id
within: 10m`,
		New: newDedupe,
	}
}

// dedupe stores the digests of ids. [memory] describes for how long.
type dedupe struct {
	ids    []*expr.Program    // by type; nil if the stage does not handle the type
	parts  []*identity.Reader // by type, instead of ids: identities that are not a single expression
	within int64              // milliseconds

	// Owned by the clone. Only memories is shared with the goroutine that assigns and
	// revokes partitions: that goroutine replaces the map and never changes it. The
	// goroutine that processes events owns the memories in it.
	memories atomic.Pointer[map[int32]*memory] // by partition
	scope    expr.Scope
	touched  []*memory // changed in the current batch
	changes  []byte    // of the current batch, encoded
}

func newDedupe(in Input) (Built, []expr.Fault) {
	by, given := in.Args.Find("by")
	if !given {
		by.Value = in.ID
	}
	within, _ := in.Args.Find("within")
	s := &dedupe{ids: make([]*expr.Program, len(in.Types)), within: within.Duration.Milliseconds()}
	var faults []expr.Fault
	if !given && in.NoIdentity != "" {
		return nil, []expr.Fault{fault(in.At, "add by: EXPRESSION, or put it before that stage", "a dedupe needs an id, and %s", in.NoIdentity)}
	}
	if !given && len(in.Identity) == 0 {
		return nil, []expr.Fault{fault(in.At, "add by: EXPRESSION, or set the id of the topic", "a dedupe needs an id, but events without an envelope have no id of their own")}
	}
	if !given && !in.Identity.IsID() {
		s.parts = make([]*identity.Reader, len(in.Types))
	}
	if within.Duration < time.Millisecond || within.Duration > maxWithin {
		faults = append(faults, fault(within.Value, "", "within of a dedupe must be at least 1ms and at most 31d"))
	}
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		var more []expr.Fault
		if s.parts != nil {
			s.parts[i], more = in.Identity.Compile(t.Schema, in.Bare, in.From)
		} else {
			s.ids[i], more = t.Env.CompileAt(by.Value, t.Name, expr.Value(&codec.Node{Kind: codec.String}, "the id", t.Name))
		}
		faults = append(faults, more...)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

func (s *dedupe) Reads(typ int) [][]string {
	if s.parts != nil {
		return s.parts[typ].Paths()
	}
	return appendPaths(nil, s.ids[typ])
}

func (s *dedupe) Writes(int) [][]string { return nil }

// Volatile does not include the effect of the state: a replay of the log from the start
// results in the same state.
func (s *dedupe) Volatile(typ int) (fields [][]string, fate bool) { return nil, clocked(s.ids[typ]) }

func (s *dedupe) Bind(layouts []*codec.Layout) error {
	for typ, r := range s.parts {
		if err := r.Bind(layouts[typ]); err != nil {
			return err
		}
	}
	return bind(s.ids, layouts)
}

func (s *dedupe) Clone() Built {
	c := &dedupe{ids: s.ids, parts: s.parts, within: s.within}
	c.memories.Store(&map[int32]*memory{})
	return c
}

func (s *dedupe) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	p := s.ids[e.Type]
	if p == nil && (s.parts == nil || s.parts[e.Type] == nil) {
		return pipeline.Pass, nil
	}
	m := (*s.memories.Load())[e.Partition]
	if m == nil {
		return pipeline.Drop, fmt.Errorf("partition %d was revoked", e.Partition)
	}
	s.scope.Reset(e.Started, &e.View)
	id, ok, err := s.id(e, p)
	switch {
	case err != nil:
		return pipeline.Drop, err
	case !ok:
		return pipeline.Pass, nil
	}
	h, at := digestOf(id), e.Time.UnixMilli()
	if m.has(h, at) {
		return pipeline.Drop, nil
	}
	if !m.open {
		m.begin()
		s.touched = append(s.touched, m)
	}
	m.add(h, at, e.Offset)
	return pipeline.Pass, nil
}

// id returns the identity of an event, in the Avro encoding of a string: digests are made
// of that. ok is false if the event has none. p is nil if the identity has several parts.
func (s *dedupe) id(e *pipeline.Event, p *expr.Program) (enc []byte, ok bool, err error) {
	if p != nil {
		enc, err = appendIn(&s.scope, e, p)
		return enc, true, err
	}
	n := len(e.Arena)
	if e.Arena, ok, err = s.parts[e.Type].Append(e.Arena, e.Headers, &e.View, &s.scope); err != nil || !ok {
		return nil, false, err
	}
	m := len(e.Arena)
	e.Arena = codec.AppendBytes(e.Arena, e.Arena[n:m])
	return e.Arena[m:len(e.Arena):len(e.Arena)], true, nil
}

// Assign implements [Keeper].
func (s *dedupe) Assign(partition int32, next int64, load func(add func([]byte) error) error) error {
	var added []addition
	if err := load(func(change []byte) (err error) {
		added, err = readChange(added, change, next)
		return err
	}); err != nil {
		return err
	}
	m := &memory{partition: partition, within: s.within, newest: -1}
	for _, a := range added {
		m.put(a.digest, a.time, a.offset)
		m.newest = a.offset
	}
	parts := maps.Clone(*s.memories.Load())
	parts[partition] = m
	s.memories.Store(&parts)
	return nil
}

// Revoke implements [Keeper].
func (s *dedupe) Revoke(partition int32) {
	parts := maps.Clone(*s.memories.Load())
	delete(parts, partition)
	s.memories.Store(&parts)
}

// Undo implements [Keeper].
func (s *dedupe) Undo(partition int32, offset int64) {
	if m := (*s.memories.Load())[partition]; m != nil {
		m.undo(offset)
	}
}

// Changes implements [Keeper].
func (s *dedupe) Changes(emit func(partition int32, change []byte)) {
	s.changes = s.changes[:0]
	for _, m := range s.touched {
		for first, rest := true, m.added; len(rest) > 0; first = false {
			n := len(s.changes)
			// Emitted changes stay valid when the buffer grows: growth copies.
			s.changes, rest = appendChange(s.changes, first, rest)
			emit(m.partition, s.changes[n:len(s.changes):len(s.changes)])
		}
	}
}

// EndBatch implements [Batcher].
func (s *dedupe) EndBatch(committed bool) {
	for _, m := range s.touched {
		m.end(committed)
	}
	clear(s.touched)
	s.touched = s.touched[:0]
}

var _ Keeper = (*dedupe)(nil)

// Range implements [Keeper].
func (s *dedupe) Range(partition int32) (oldest, newest int64) {
	m := (*s.memories.Load())[partition]
	if m == nil {
		return -1, -1
	}
	oldest = m.newest + 1
	for _, span := range m.spans {
		oldest = min(oldest, span.first)
	}
	return oldest, m.newest
}

// Size implements [Keeper].
func (s *dedupe) Size() (entries, bytes int) {
	for _, m := range *s.memories.Load() {
		for _, span := range m.spans {
			entries += span.count
			bytes += span.bytes()
		}
	}
	return entries, bytes
}

// A digest represents an id. It is the first half of its SHA-256, because a collision
// would drop a valid event, so it must be infeasible to construct one. State topics
// contain digests, so the algorithm must never change.
type digest [2]uint64

func digestOf(id []byte) digest {
	sum := sha256.Sum256(id)
	return digest{binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:]) | 1} // never zero
}

// memory is the state of one partition: the digests of ids, each with the time of the
// first event. The digests are grouped by time into spans of length within. An event is
// a duplicate if its digest is in its own span or in one of the two adjacent spans, and
// the two times differ by less than within.
//
// When a fifth span is needed, the span that received no digest for the longest time is
// evicted. For events in order, two spans suffice. The others are for late records, and
// for single records with a wrong time, such as the year 2099: these must not make all
// other records look old. The state depends on the log only, so a replay gives the same
// result.
//
// The goroutine that processes the events owns it.
type memory struct {
	partition int32
	within    int64 // milliseconds

	spans  []*span // at most maxSpans; the one that received a digest last is at the end
	newest int64   // offset of the last committed event in the state; -1 for none

	// State of the current batch, if open is set.
	open   bool
	added  []addition
	before []*span // spans at the start of the batch
	last   struct {
		offset int64   // of the last event that was added; -1 for none
		added  int     // len of memory.added before this event
		before []*span // spans before this event
	}
}

const maxSpans = 4

// An addition is one digest that an event added to the state.
type addition struct {
	digest digest
	time   int64 // of the event, in milliseconds since 1970
	offset int64 // of the event
	span   *span
}

// has reports whether an event with this digest, at a time in milliseconds since 1970,
// is a duplicate.
func (m *memory) has(h digest, at int64) bool {
	n := floorDiv(at, m.within)
	for _, s := range m.spans {
		if s.number < n-1 || s.number > n+1 {
			continue
		}
		if i, ok := s.find(h); ok {
			first := s.number*m.within + int64(s.times[i])
			if d := at - first; d < m.within && -d < m.within {
				return true
			}
		}
	}
	return false
}

// begin starts a batch.
func (m *memory) begin() {
	m.open, m.last.offset = true, -1
	m.before = append(m.before[:0], m.spans...)
}

// add adds a digest as part of the current batch.
func (m *memory) add(h digest, at, offset int64) {
	if last := &m.last; last.offset != offset {
		last.offset, last.added = offset, len(m.added)
		last.before = append(last.before[:0], m.spans...)
	}
	m.added = append(m.added, addition{h, at, offset, m.put(h, at, offset)})
}

// undo removes the digests of the last added event, if it has this offset.
func (m *memory) undo(offset int64) {
	if m.open && m.last.offset == offset {
		m.rollBack(m.last.added, m.last.before)
		m.last.offset = -1
	}
}

// rollBack restores the state after the first n additions of the batch. spans are the
// spans of that state.
func (m *memory) rollBack(n int, spans []*span) {
	for _, a := range m.added[n:] {
		a.span.remove(a.digest)
	}
	m.added = m.added[:n]
	clear(m.spans)
	m.spans = append(m.spans[:0], spans...)
}

// put adds a digest to the span of its time and makes this span the last one. It creates
// the span if necessary, and evicts the first span if there are too many.
func (m *memory) put(h digest, at, offset int64) *span {
	n := floorDiv(at, m.within)
	last := len(m.spans) - 1
	i := last
	for i >= 0 && m.spans[i].number != n {
		i--
	}
	switch {
	case i < 0 && len(m.spans) == maxSpans:
		copy(m.spans, m.spans[1:])
		m.spans[last] = &span{number: n, first: offset}
	case i < 0:
		m.spans = append(m.spans, &span{number: n, first: offset})
		last++
	case i < last:
		s := m.spans[i]
		copy(m.spans[i:], m.spans[i+1:])
		m.spans[last] = s
	}
	m.spans[last].put(h, uint32(at-n*m.within))
	return m.spans[last]
}

// end keeps the additions of the batch, or rolls them back if it was not committed.
func (m *memory) end(committed bool) {
	switch {
	case !committed:
		m.rollBack(0, m.before)
	case len(m.added) > 0:
		m.newest = m.added[len(m.added)-1].offset
	}
	clear(m.before)
	clear(m.last.before)
	clear(m.added)
	m.open, m.before, m.last.before, m.added = false, m.before[:0], m.last.before[:0], m.added[:0]
}

// The format of a change: the first byte tells whether it is the first change of its
// partition in a batch. Entries follow. An entry holds the digest (16 bytes, big endian)
// and the differences of the event's offset and time to those of the previous entry, as
// Avro longs; for the first entry, the differences to 0. Offsets never decrease. The
// parts of a split event have equal offsets.
const (
	changeFirst = 1
	changeMore  = 2
)

// appendChange encodes as many additions as fit into a change, and returns the rest.
func appendChange(dst []byte, first bool, added []addition) (_ []byte, rest []addition) {
	const most = 16 + 2*binary.MaxVarintLen64
	begin := len(dst)
	if first {
		dst = append(dst, changeFirst)
	} else {
		dst = append(dst, changeMore)
	}
	var offset, time int64
	for i, a := range added {
		if len(dst)-begin+most > MaxChange {
			return dst, added[i:]
		}
		dst = binary.BigEndian.AppendUint64(dst, a.digest[0])
		dst = binary.BigEndian.AppendUint64(dst, a.digest[1])
		dst = codec.AppendLong(dst, a.offset-offset)
		dst = codec.AppendLong(dst, a.time-time)
		offset, time = a.offset, a.time
	}
	return dst, nil
}

// readChange appends the additions of a change, except those of events at offset next or
// later. If the change belongs to events that were already added, their earlier additions
// and all later ones are removed first: the events were processed again, for example
// because an operator reset the group to an older offset.
//
// A change that is not one of a dedupe is an error and changes nothing.
func readChange(added []addition, change []byte, next int64) ([]addition, error) {
	parsed, err := parseChange(change)
	if err != nil {
		return added, err
	}
	first := change[0] == changeFirst
	for i, a := range parsed {
		if a.digest[1] == 0 || a.offset >= next {
			continue
		}
		if n := len(added); n > 0 && (added[n-1].offset > a.offset || first && i == 0 && added[n-1].offset == a.offset) {
			n, _ = slices.BinarySearchFunc(added, a.offset, func(a addition, offset int64) int { return cmp.Compare(a.offset, offset) })
			added = added[:n]
		}
		added = append(added, a)
	}
	return added, nil
}

// parseChange returns the additions of a change.
func parseChange(change []byte) (parsed []addition, err error) {
	if len(change) == 0 || change[0] != changeFirst && change[0] != changeMore {
		return nil, fmt.Errorf("it is not a state change of a dedupe: %.8x", change)
	}
	var a addition
	for r := (reader{rest: change[1:]}); len(r.rest) > 0; parsed = append(parsed, a) {
		before := a.offset
		a.digest = digest{r.uint64(), r.uint64()}
		a.offset += r.long()
		a.time += r.long()
		if r.err != nil {
			return nil, fmt.Errorf("read a state change of a dedupe: %w", r.err)
		}
		if a.offset < before {
			return nil, fmt.Errorf("the offsets in a state change of a dedupe are not in order: %d after %d", a.offset, before)
		}
	}
	return parsed, nil
}

// reader reads consecutive values and keeps the first error.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) uint64() (v uint64) {
	switch {
	case r.err != nil:
	case len(r.rest) < 8:
		r.err = io.ErrUnexpectedEOF
	default:
		v, r.rest = binary.BigEndian.Uint64(r.rest), r.rest[8:]
	}
	return v
}

func (r *reader) long() (v int64) {
	if r.err == nil {
		v, r.rest, r.err = codec.ReadLong(r.rest)
	}
	return v
}

// floorDiv returns a / b, rounded down. b must be positive.
func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// span holds the digests of one period of time: a hash table with open addressing and
// linear probing, with 20 bytes per slot. The number of slots is a power of 2.
type span struct {
	first   int64 // offset of the first event in the span
	number  int64 // the span starts at number*within, in milliseconds since 1970
	count   int
	digests []digest // zero: the slot is empty
	times   []uint32 // milliseconds since the start of the span
}

const minSlots = 16

func (s *span) bytes() int { return 20 * len(s.digests) }

// find returns the slot of a digest, or the empty slot in which to store it.
func (s *span) find(h digest) (slot int, ok bool) {
	if len(s.digests) == 0 {
		return 0, false
	}
	mask := len(s.digests) - 1
	for i := int(h[0]) & mask; ; i = (i + 1) & mask {
		switch s.digests[i] {
		case h:
			return i, true
		case digest{}:
			return i, false
		}
	}
}

func (s *span) put(h digest, time uint32) {
	if (s.count+1)*4 > len(s.digests)*3 {
		s.grow()
	}
	i, ok := s.find(h)
	if !ok {
		s.count++
	}
	s.digests[i], s.times[i] = h, time
}

func (s *span) grow() {
	digests, times := s.digests, s.times
	n := max(minSlots, 2*len(digests))
	s.digests, s.times = make([]digest, n), make([]uint32, n)
	for i, h := range digests {
		if h != (digest{}) {
			j, _ := s.find(h)
			s.digests[j], s.times[j] = h, times[i]
		}
	}
}

// remove deletes a digest and closes the gap, so the table needs no tombstones.
func (s *span) remove(h digest) {
	gap, ok := s.find(h)
	if !ok {
		return
	}
	mask := len(s.digests) - 1
	for i := (gap + 1) & mask; s.digests[i] != (digest{}); i = (i + 1) & mask {
		// The digest at i can move to the gap unless its home slot is between them.
		if home := int(s.digests[i][0]) & mask; (i-home)&mask >= (i-gap)&mask {
			s.digests[gap], s.times[gap] = s.digests[i], s.times[i]
			gap = i
		}
	}
	s.digests[gap] = digest{}
	s.count--
}
