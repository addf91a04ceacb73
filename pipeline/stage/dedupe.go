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
)

// maxWithin bounds how long a dedupe remembers: the times in a span are counted
// in milliseconds, in 32 bits.
const maxWithin = 31 * 24 * time.Hour

// Dedupe is the stage that drops events that were there before.
func Dedupe() Kind {
	return Kind{
		Name: "dedupe",
		Doc: "Drops events that were there before: the first with an id passes, those that follow it within a time are counted as filtered. " +
			"The time is that of the records, so that a replay decides alike, and duplicates are found within one partition: those of one key are always. " +
			"What is remembered survives restarts and is committed together with what is written.",
		Params: []Param{
			{Name: "by", Form: Expression, Doc: "The id, a text; the event's own if not given. Events with the same id are the same event, also if they are of different types."},
			{Name: "within", Form: Duration, Required: true, Doc: "How far from the first one, at most 31d. " +
				"For records that are out of order: remembered are the last four spans of this length that first ones fell into."},
		},
		Example: `by: id
within: 10m`,
		New: newDedupe,
	}
}

// dedupe remembers the digests of ids. See [memory] for how long.
type dedupe struct {
	ids    []*expr.Program // by type; nil where the stage is not for it
	within int64           // milliseconds

	// What follows belongs to a clone.
	scope expr.Scope
	// By partition. The map is replaced as a whole, by the goroutine that assigns.
	parts   atomic.Pointer[map[int32]*memory]
	touched []*memory // in the batch at hand
	changes []byte    // of it, encoded
}

func newDedupe(in Input) (Built, []expr.Fault) {
	by, given := in.Args.Find("by")
	if !given {
		by.Value = in.ID
	}
	within, _ := in.Args.Find("within")
	s := &dedupe{ids: make([]*expr.Program, len(in.Types)), within: within.Duration.Milliseconds()}
	var faults []expr.Fault
	if by.Value.Text == "" && !given {
		return nil, []expr.Fault{fault(in.At, "add by: EXPRESSION, or say with the topic what its id is", "a dedupe needs an id, and events without an envelope have none of themselves")}
	}
	if within.Duration < time.Millisecond || within.Duration > maxWithin {
		faults = append(faults, fault(within.Value, "", "a dedupe looks back at least 1ms and at most 31d"))
	}
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		var err error
		s.ids[i], err = t.Env.Compile(by.Value.Text, expr.Value(&codec.Node{Kind: codec.String}, "the id", t.Name))
		faults = append(faults, expr.Faults(by.Value, t.Name, err)...)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

func (s *dedupe) Reads(typ int) [][]string { return appendPaths(nil, s.ids[typ]) }

func (s *dedupe) Writes(int) [][]string { return nil }

func (s *dedupe) Bind(layouts []*codec.Layout) error { return bind(s.ids, layouts) }

func (s *dedupe) Clone() Built {
	c := &dedupe{ids: s.ids, within: s.within}
	c.parts.Store(&map[int32]*memory{})
	return c
}

func (s *dedupe) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	p := s.ids[e.Type]
	if p == nil {
		return pipeline.Pass, nil
	}
	m := (*s.parts.Load())[e.Partition]
	if m == nil {
		return pipeline.Drop, fmt.Errorf("partition %d was taken away", e.Partition)
	}
	s.scope.Reset(e.Taken, &e.View)
	id, err := appendIn(&s.scope, e, p)
	if err != nil {
		return pipeline.Drop, err
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
	parts := maps.Clone(*s.parts.Load())
	parts[partition] = m
	s.parts.Store(&parts)
	return nil
}

// Revoke implements [Keeper].
func (s *dedupe) Revoke(partition int32) {
	parts := maps.Clone(*s.parts.Load())
	delete(parts, partition)
	s.parts.Store(&parts)
}

// Undo implements [Keeper].
func (s *dedupe) Undo(partition int32, offset int64) {
	if m := (*s.parts.Load())[partition]; m != nil {
		m.undo(offset)
	}
}

// Changes implements [Keeper].
func (s *dedupe) Changes(emit func(partition int32, change []byte)) {
	s.changes = s.changes[:0]
	for _, m := range s.touched {
		for first, rest := true, m.added; len(rest) > 0; first = false {
			n := len(s.changes)
			// What was emitted stays where it is, even when this grows.
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

// Needs implements [Keeper].
func (s *dedupe) Needs(partition int32) (oldest, newest int64) {
	m := (*s.parts.Load())[partition]
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
	for _, m := range *s.parts.Load() {
		for _, span := range m.spans {
			entries += span.count
			bytes += span.bytes()
		}
	}
	return entries, bytes
}

// A digest stands for an id: half of its SHA-256. Two ids with the same one would
// lose an event, so nobody must be able to make them up; and it stands in state
// topics, so it is the same for ever.
type digest [2]uint64

func digestOf(id []byte) digest {
	sum := sha256.Sum256(id)
	return digest{binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:]) | 1} // never zero
}

// memory is what is remembered of a partition: the digests that events had, with
// the time of the first, in spans of time as long as the dedupe looks back. An
// event is a duplicate if its digest is in its own span or one of the two beside
// it, and the times are close enough.
//
// When a fifth span is begun, the one to which nothing was added for longest is
// forgotten. In order, two spans suffice; the others are for records that come
// late, and for a stray one from the year 2099, which must not make all others
// look old. This is a function of the log alone.
type memory struct {
	partition int32
	within    int64

	spans  []*span // that added to last at the end
	newest int64   // offset of the last event that was added and committed

	// Of the batch at hand, if one is open:
	open   bool
	added  []addition
	before []*span // spans, as it was
	last   struct {
		offset int64   // of the last event of which something was added
		added  int     // how much there was before it
		before []*span // spans, as it was then
	}
}

const maxSpans = 4

type addition struct {
	digest digest
	time   int64
	offset int64 // of the event
	span   *span
}

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

// begin begins a batch.
func (m *memory) begin() {
	m.open, m.last.offset = true, -1
	m.before = append(m.before[:0], m.spans...)
}

// add remembers a digest, as part of the batch at hand.
func (m *memory) add(h digest, at, offset int64) {
	if last := &m.last; last.offset != offset {
		last.offset, last.added = offset, len(m.added)
		last.before = append(last.before[:0], m.spans...)
	}
	m.added = append(m.added, addition{h, at, offset, m.put(h, at, offset)})
}

// undo forgets what came of the last event, if it is the one at that offset.
func (m *memory) undo(offset int64) {
	if m.open && m.last.offset == offset {
		m.back(m.last.added, m.last.before)
		m.last.offset = -1
	}
}

// back makes it as if nothing had been added beyond the first n of the batch, at
// which the spans were these.
func (m *memory) back(n int, spans []*span) {
	for _, a := range m.added[n:] {
		a.span.remove(a.digest)
	}
	m.added = m.added[:n]
	clear(m.spans)
	m.spans = append(m.spans[:0], spans...)
}

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

// end keeps what the batch has added, or makes it as if it had not been.
func (m *memory) end(committed bool) {
	switch {
	case !committed:
		m.back(0, m.before)
	case len(m.added) > 0:
		m.newest = m.added[len(m.added)-1].offset
	}
	clear(m.before)
	clear(m.last.before)
	clear(m.added)
	m.open, m.before, m.last.before, m.added = false, m.before[:0], m.last.before[:0], m.added[:0]
}

// The first byte of a change says whether it is the first of its partition in a
// batch. After it come entries: the digest, and how far the event's offset and
// time are from those of the entry before, as Avro longs; the first entry's from
// 0. Offsets never fall; those of what was split from one event are the same.
const (
	changeFirst = 1
	changeMore  = 2
)

// appendChange encodes additions, as many as fit, and returns the others.
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

// readChange appends the additions of a change, but for those that came of events
// at next or behind it. A batch overrules what came earlier of its first event
// and of those behind: they were handled again, as they are after somebody has set
// the group back to an older offset.
func readChange(added []addition, change []byte, next int64) ([]addition, error) {
	if len(change) == 0 || change[0] != changeFirst && change[0] != changeMore {
		return nil, fmt.Errorf("this is no change of a dedupe, or one of a newer version: %.8x", change)
	}
	var a addition
	first := change[0] == changeFirst
	for r := (reader{rest: change[1:]}); len(r.rest) > 0; first = false {
		a.digest = digest{r.uint64(), r.uint64()}
		a.offset += r.long()
		a.time += r.long()
		if r.err != nil {
			return nil, fmt.Errorf("a change of a dedupe: %w", r.err)
		}
		if a.digest[1] == 0 || a.offset >= next {
			continue
		}
		if n := len(added); n > 0 && (added[n-1].offset > a.offset || first && added[n-1].offset == a.offset) {
			n, _ = slices.BinarySearchFunc(added, a.offset, func(a addition, offset int64) int { return cmp.Compare(a.offset, offset) })
			added = added[:n]
		}
		added = append(added, a)
	}
	return added, nil
}

// reader reads values one after the other and keeps the first error.
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

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// span holds the digests of a span of time: a table with open addressing and
// linear probing, in 20 bytes for each slot.
type span struct {
	first   int64 // offset of the first event in it
	number  int64 // it begins at number*within, in milliseconds since 1970
	count   int
	digests []digest // zero where nothing is
	times   []uint32 // since the span's begin
}

const firstSlots = 16

func (s *span) bytes() int { return 20 * len(s.digests) }

// find returns the slot of a digest, or the empty one where it would be.
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
	n := max(firstSlots, 2*len(digests))
	s.digests, s.times = make([]digest, n), make([]uint32, n)
	for i, h := range digests {
		if h != (digest{}) {
			j, _ := s.find(h)
			s.digests[j], s.times[j] = h, times[i]
		}
	}
}

// remove takes a digest out and closes the gap, so that a search never has to go
// over slots that were used once.
func (s *span) remove(h digest) {
	gap, ok := s.find(h)
	if !ok {
		return
	}
	mask := len(s.digests) - 1
	for i := (gap + 1) & mask; s.digests[i] != (digest{}); i = (i + 1) & mask {
		// What stands at i may move to the gap if its home is not between them.
		if home := int(s.digests[i][0]) & mask; (i-home)&mask >= (i-gap)&mask {
			s.digests[gap], s.times[gap] = s.digests[i], s.times[i]
			gap = i
		}
	}
	s.digests[gap] = digest{}
	s.count--
}
