// Package states keeps the aggregates of a partition, and the history of their events,
// in the store.
//
// Start at [Table], which holds the current states, and at [Index], which writes the
// history. history.go describes the entries of the history. [View] reads both.
//
// A Table and an Index have no locks: package projection calls them under the lock of
// the partition. A View is independent of both, because it reads only what is in the
// store; one goroutine may use it at a time.
package states

import (
	"bytes"
	"errors"
	"fmt"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/rows"
	"millrace/pipeline/store"
)

// Table is a family of aggregates. All of them are in the store; recently used ones are
// also in memory, packed as in the store, and are changed there. A flush writes those
// that changed, and then evicts those for which there is no room.
//
// To fold an event, get the aggregates, which unpacks them (they are in use), change
// them, and settle them, which packs them again.
type Table struct {
	part   *store.Part
	family store.Family
	source fold.Source

	cache *rows.Cache
	inUse []*Aggregate // without duplicates
	spare []*Aggregate
	dirty []rows.Ref // aggregates that differ from the store

	due   []rows.Ref // aggregates whose snapshots are due, without duplicates
	later []rows.Ref // like due, after the open transaction

	finder   *store.Finder // of the store as of the last flush; nil until it is needed
	asked    bool          // complete is valid
	complete bool          // everything in the store is in memory

	seen  Aggregate // result of look
	value []byte    // scratch
}

// Aggregate is an aggregate in use. Its exported fields may be changed.
type Aggregate struct {
	fold.Aggregate
	clocks
	ID    []byte // the next Settle takes its memory
	Dirty bool   // differs from the store
	Due   bool   // changed since the last committed snapshot
	Gone  bool   // deleted: its snapshot is to be deleted, too
	Later bool   // like Due, after the open transaction

	cached           bool // it is in memory, where it has these flags:
	ref              rows.Ref
	wasDirty, wasDue bool
}

// LastOffset returns the offset of the aggregate's last event, -1 if there is none.
func (a *Aggregate) LastOffset() int64 {
	if a.Version == 0 {
		return -1
	}
	return a.Offset
}

// Reset makes the aggregate one to which no event was applied.
func (a *Aggregate) Reset(source fold.Source) {
	a.Aggregate, a.clocks = fold.Aggregate{Source: source}, clocks{}
}

// ForgetClocks forgets the latest times of the aggregate's events. The index computes
// them again.
func (a *Aggregate) ForgetClocks() { a.clocks = clocks{} }

// NewTable returns the table of a family of a part. source is the source of its
// aggregates.
func NewTable(part *store.Part, family store.Family, source fold.Source) *Table {
	return &Table{part: part, family: family, source: source, cache: rows.NewCache()}
}

// Get returns an aggregate from memory or from the store, else a new one. It is valid
// until Settle.
func (s *Table) Get(id []byte) (*Aggregate, error) {
	for _, a := range s.inUse {
		if bytes.Equal(a.ID, id) {
			return a, nil
		}
	}
	a := s.newAggregate()
	a.ID = append(a.ID, id...)
	a.ref, a.cached = s.cache.Find(id)
	var err error
	if a.cached {
		err = a.unpack(s.cache.Row(a.ref))
		a.wasDirty, a.wasDue = a.Dirty, a.Due
	} else {
		err = s.fetch(a)
	}
	if err != nil {
		return nil, err
	}
	s.inUse = append(s.inUse, a)
	return a, nil
}

// newAggregate returns an empty aggregate, with reused memory if there is some.
func (s *Table) newAggregate() *Aggregate {
	n := len(s.spare)
	if n == 0 {
		return &Aggregate{Aggregate: fold.Aggregate{Source: s.source}}
	}
	a := s.spare[n-1]
	s.spare = s.spare[:n-1]
	*a = Aggregate{ID: a.ID[:0], Aggregate: fold.Aggregate{Source: s.source, EventID: a.EventID[:0], State: a.State[:0]}}
	return a
}

// maxSpare and maxSpareState bound the memory that is kept for aggregates in use.
const (
	maxSpare      = 64
	maxSpareState = 64 << 10
)

// Settle packs the aggregates in use back into the cache.
func (s *Table) Settle() {
	for _, a := range s.inUse {
		s.put(a)
		if len(s.spare) < maxSpare && cap(a.State) <= maxSpareState {
			s.spare = append(s.spare, a)
		}
	}
	clear(s.inUse)
	s.inUse = s.inUse[:0]
}

func (s *Table) put(a *Aggregate) {
	switch {
	case a.cached:
		s.value = a.pack(s.value[:0])
		a.ref = s.cache.Set(a.ref, s.value)
	case a.Version > 0 || a.Gone || a.Dirty || a.Due || a.Later:
		s.value = a.pack(s.value[:0])
		a.ref = s.cache.Add(a.ID, s.value)
	default:
		return
	}
	if a.Dirty && !a.wasDirty {
		s.dirty = append(s.dirty, a.ref)
	}
	if a.Due && !a.wasDue {
		s.due = append(s.due, a.ref)
	}
	if a.Later {
		s.later = append(s.later, a.ref)
	}
}

// fetch reads an aggregate from the store, if it is there.
func (s *Table) fetch(a *Aggregate) (err error) {
	if !s.asked {
		v := s.part.View()
		s.complete = true
		err := v.Scan(s.family, nil, nil, false, func(_, _ []byte) bool {
			s.complete = false
			return false
		})
		if err := errors.Join(err, v.Close()); err != nil {
			return err
		}
		s.asked = true
	}
	if s.complete {
		return nil
	}
	if s.finder == nil {
		if s.finder, err = s.part.Finder(s.family); err != nil {
			return err
		}
	}
	var ok bool
	if s.value, ok, err = s.finder.Get(s.value[:0], a.ID); !ok || err != nil {
		return err
	}
	if err := a.read(s.value); err != nil {
		return Damaged(a.ID, err)
	}
	return nil
}

// Flags at the start of a packed aggregate.
const (
	packedDirty = 1 << iota
	packedDue
	packedGone
	packedKnown // the clocks follow
)

// pack appends the flags, the clocks and what the store has of an aggregate.
func (a *Aggregate) pack(dst []byte) []byte {
	flags := byte(0)
	if a.Dirty {
		flags |= packedDirty
	}
	if a.Due {
		flags |= packedDue
	}
	if a.Gone {
		flags |= packedGone
	}
	if a.known {
		flags |= packedKnown
	}
	dst = append(dst, flags)
	if a.known {
		dst = codec.AppendLong(dst, a.event-a.EventTime)
		dst = codec.AppendLong(dst, a.recorded)
	}
	return fold.AppendAggregate(dst, &a.Aggregate)
}

func (a *Aggregate) unpack(packed []byte) error {
	enc, err := a.unpackHead(packed)
	if err == nil {
		err = a.read(enc)
	}
	if err != nil {
		return pipeline.Fatal("the packed state of %q in memory: %w", a.ID, err)
	}
	a.event += a.EventTime
	return nil
}

// unpackHead reads everything but what the store has, which it returns. The clock of
// event times is relative to the time of the last event.
func (a *Aggregate) unpackHead(packed []byte) (enc []byte, err error) {
	if len(packed) == 0 {
		return nil, errors.New("it is empty")
	}
	flags := packed[0]
	a.Dirty, a.Due, a.Gone = flags&packedDirty != 0, flags&packedDue != 0, flags&packedGone != 0
	a.clocks = clocks{known: flags&packedKnown != 0}
	r := Fields{Rest: packed[1:]}
	if a.known {
		a.event, a.recorded = r.Long(), r.Long()
	}
	return r.Rest, r.Err
}

// read reads what the store has, and copies it.
func (a *Aggregate) read(enc []byte) error {
	id, state := a.EventID, a.State
	err := fold.ViewAggregate(enc, &a.Aggregate)
	a.EventID, a.State = append(id[:0], a.EventID...), append(state[:0], a.State...)
	return err
}

// look returns an aggregate that is not in use. It is valid until the next call, must
// not be changed, and has no ID.
func (s *Table) look(ref rows.Ref) (id []byte, a *Aggregate, err error) {
	a = &s.seen
	a.Source = s.source
	id = s.cache.Key(ref)
	enc, err := a.unpackHead(s.cache.Row(ref))
	if err == nil {
		err = fold.ViewAggregate(enc, &a.Aggregate)
	}
	if err != nil {
		return nil, nil, pipeline.Fatal("the packed state of %q in memory: %w", id, err)
	}
	return id, a, nil
}

// touchAtOnce is the number of packed aggregates that are touched together: each is
// elsewhere in memory, and waiting for many takes as long as waiting for one.
const touchAtOnce = 16

// each calls f with all refs.
func (s *Table) each(refs []rows.Ref, f func(rows.Ref) error) error {
	for i := 0; i < len(refs); i += touchAtOnce {
		some := refs[i:min(i+touchAtOnce, len(refs))]
		s.cache.Prefetch(some)
		for _, ref := range some {
			if err := f(ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// Write settles the aggregates in use, and adds those that changed to a batch.
func (s *Table) Write(b *store.Batch) error {
	s.Settle()
	err := s.each(s.dirty, func(ref rows.Ref) error {
		id, row := s.cache.Key(ref), s.cache.Row(ref)
		enc, err := s.seen.unpackHead(row)
		if err != nil {
			return fmt.Errorf("the packed state of %q in memory: %w", id, err)
		}
		row[0] &^= packedDirty
		b.Put(s.part, s.family, id, enc)
		return nil
	})
	return errors.Join(err, s.closeFinder())
}

// closeFinder closes the finder. The next one finds what is in the store then.
func (s *Table) closeFinder() (err error) {
	if s.finder != nil {
		err, s.finder = s.finder.Close(), nil
	}
	return err
}

// Written notes that what Write added is in the store, and evicts aggregates until the
// rest takes at most memory bytes. It does not evict those that are due.
func (s *Table) Written(memory int) error {
	s.Settle()
	s.dirty = s.dirty[:0]
	if err := s.closeFinder(); err != nil {
		return err
	}
	if s.cache.Shrink(memory, s.due, s.later) > 0 {
		s.complete = false
	}
	return nil
}

// Due returns the number of aggregates whose snapshots are due. None may be in use.
func (s *Table) Due() int { return len(s.due) }

// Publishing calls f with all aggregates that are due, whose snapshots are in the open
// transaction. id and a are valid during the call.
func (s *Table) Publishing(f func(id []byte, a *Aggregate) error) error {
	return s.each(s.due, func(ref rows.Ref) error {
		id, a, err := s.look(ref)
		if err != nil {
			return err
		}
		s.cache.Row(ref)[0] &^= packedDue
		return f(id, a)
	})
}

// Published ends the transaction after Publishing. If it was not committed, the
// aggregates stay due. None may be in use.
func (s *Table) Published(committed bool) {
	if committed {
		s.due = s.due[:0]
		return
	}
	for _, ref := range s.due {
		s.cache.Row(ref)[0] |= packedDue
	}
}

// CatchUp marks as due the aggregates that changed while the transaction was open.
func (s *Table) CatchUp() {
	for _, ref := range s.later {
		if row := s.cache.Row(ref); row[0]&packedDue == 0 {
			row[0] |= packedDue
			s.due = append(s.due, ref)
		}
	}
	s.later = s.later[:0]
}

// DropDue forgets which aggregates are due.
func (s *Table) DropDue() {
	s.Settle()
	for _, ref := range s.due {
		s.cache.Row(ref)[0] &^= packedDue
	}
	s.due = s.due[:0]
}

// EachDue calls f with all aggregates that are due. None may be in use. id and a are
// valid during the call.
func (s *Table) EachDue(f func(id []byte, a *Aggregate)) {
	for _, ref := range s.due {
		if id, a, err := s.look(ref); err == nil { // which it always is
			f(id, a)
		}
	}
}
