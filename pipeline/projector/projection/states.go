package projection

import (
	"errors"
	"fmt"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/rows"
	"millrace/pipeline/store"
)

// states is a family of aggregates: all in the store, those of late also in memory,
// as the store has them, changed where they stand. What changed is written at a
// flush; what there is no room for is forgotten after it.
//
// What folds an event has the aggregates that it got unpacked (inUse), and may
// change them; settle packs them again.
type states struct {
	part   *store.Part
	family store.Family
	source fold.Source

	cache *rows.Cache
	inUse []*aggregate // each once
	spare []*aggregate
	dirty []rows.Ref // those that differ from the store's

	// Those whose snapshots are due, each once; those that came while a transaction
	// was being ended.
	due, later []rows.Ref

	finder   *store.Finder // as of the last flush; nil if nothing was missed since
	asked    bool          // whether there is anything in the store, at the first get
	complete bool          // everything that the store has is in memory

	seen  aggregate // of look
	value []byte    // scratch
}

// aggregate is an aggregate that is in use.
type aggregate struct {
	fold.Aggregate
	clocks
	id    string
	dirty bool // differs from the store's
	due   bool // changed since the last committed snapshot
	gone  bool // deleted, and so is to be its snapshot

	cached           bool // it has an entry, where it is dirty and due as well:
	ref              rows.Ref
	wasDirty, wasDue bool
	later            bool // its snapshot is due, but not in the transaction that is being ended
}

func newStates(part *store.Part, family store.Family, source fold.Source) *states {
	return &states{part: part, family: family, source: source, cache: rows.NewCache()}
}

// get returns an aggregate from memory or the store, else a new one. It is good
// until they are settled.
func (s *states) get(id []byte) (*aggregate, error) {
	for _, a := range s.inUse {
		if a.id == string(id) {
			return a, nil
		}
	}
	a := s.take()
	a.id = string(id)
	a.ref, a.cached = s.cache.Find(id)
	var err error
	if a.cached {
		err = a.unpack(s.cache.Row(a.ref))
		a.wasDirty, a.wasDue = a.dirty, a.due
	} else {
		err = s.fetch(a)
	}
	if err != nil {
		return nil, err
	}
	s.inUse = append(s.inUse, a)
	return a, nil
}

// take returns an aggregate to which nothing has happened.
func (s *states) take() *aggregate {
	n := len(s.spare)
	if n == 0 {
		return &aggregate{Aggregate: fold.Aggregate{Source: s.source}}
	}
	a := s.spare[n-1]
	s.spare = s.spare[:n-1]
	*a = aggregate{Aggregate: fold.Aggregate{Source: s.source, EventID: a.EventID[:0], State: a.State[:0]}}
	return a
}

// maxSpare and maxSpareState bound the memory that is kept for aggregates in use.
const (
	maxSpare      = 64
	maxSpareState = 64 << 10
)

// settle packs the aggregates that are in use, which then are not any more.
func (s *states) settle() {
	for _, a := range s.inUse {
		s.put(a)
		if len(s.spare) < maxSpare && cap(a.State) <= maxSpareState {
			s.spare = append(s.spare, a)
		}
	}
	clear(s.inUse)
	s.inUse = s.inUse[:0]
}

func (s *states) put(a *aggregate) {
	switch {
	case a.cached:
		s.value = a.pack(s.value[:0])
		a.ref = s.cache.Set(a.ref, s.value)
	case a.Version > 0 || a.gone || a.dirty || a.due || a.later:
		s.value = a.pack(s.value[:0])
		a.ref = s.cache.Add([]byte(a.id), s.value)
	default:
		return
	}
	if a.dirty && !a.wasDirty {
		s.dirty = append(s.dirty, a.ref)
	}
	if a.due && !a.wasDue {
		s.due = append(s.due, a.ref)
	}
	if a.later {
		s.later = append(s.later, a.ref)
	}
}

// fetch reads an aggregate from the store, if it is there.
func (s *states) fetch(a *aggregate) (err error) {
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
	if s.value, ok, err = s.finder.Get(s.value[:0], []byte(a.id)); !ok || err != nil {
		return err
	}
	if err := a.read(s.value); err != nil {
		return damaged([]byte(a.id), err)
	}
	return nil
}

// What a packed aggregate begins with.
const (
	packedDirty = 1 << iota
	packedDue
	packedGone
	packedKnown // clocks follow
)

// pack appends what is to be known of an aggregate that is not in use: flags,
// clocks, and what the store has.
func (a *aggregate) pack(dst []byte) []byte {
	flags := byte(0)
	if a.dirty {
		flags |= packedDirty
	}
	if a.due {
		flags |= packedDue
	}
	if a.gone {
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

func (a *aggregate) unpack(packed []byte) error {
	enc, err := a.unpackHead(packed)
	if err == nil {
		err = a.read(enc)
	}
	if err != nil {
		return pipeline.Fatal("what is in memory of %q: %w", a.id, err)
	}
	a.event += a.EventTime
	return nil
}

// unpackHead reads all but what the store has, which it returns. The clock of
// events is less the time of the last one.
func (a *aggregate) unpackHead(packed []byte) (enc []byte, err error) {
	if len(packed) == 0 {
		return nil, errors.New("nothing")
	}
	flags := packed[0]
	a.dirty, a.due, a.gone = flags&packedDirty != 0, flags&packedDue != 0, flags&packedGone != 0
	a.clocks = clocks{known: flags&packedKnown != 0}
	r := fields{rest: packed[1:]}
	if a.known {
		a.event, a.recorded = r.long(), r.long()
	}
	return r.rest, r.err
}

// read reads what the store has into memory of its own.
func (a *aggregate) read(enc []byte) error {
	id, state := a.EventID, a.State
	err := fold.ViewAggregate(enc, &a.Aggregate)
	a.EventID, a.State = append(id[:0], a.EventID...), append(state[:0], a.State...)
	return err
}

// look returns an aggregate that is not in use, to be looked at until the next
// call: all of it is where it is packed. Its id is not filled in.
func (s *states) look(ref rows.Ref) (id []byte, a *aggregate, err error) {
	a = &s.seen
	a.Source = s.source
	id = s.cache.Key(ref)
	enc, err := a.unpackHead(s.cache.Row(ref))
	if err == nil {
		err = fold.ViewAggregate(enc, &a.Aggregate)
	}
	if err != nil {
		return nil, nil, pipeline.Fatal("what is in memory of %q: %w", id, err)
	}
	return id, a, nil
}

// atOnce is how many packed aggregates are asked for at once: each is somewhere
// else in memory, and waiting for many takes as long as for one.
const atOnce = 16

// each calls f with all of refs.
func (s *states) each(refs []rows.Ref, f func(rows.Ref) error) error {
	for i := 0; i < len(refs); i += atOnce {
		some := refs[i:min(i+atOnce, len(refs))]
		s.cache.Touch(some)
		for _, ref := range some {
			if err := f(ref); err != nil {
				return err
			}
		}
	}
	return nil
}

// write adds the aggregates that changed to a batch.
func (s *states) write(b *store.Batch) error {
	s.settle()
	err := s.each(s.dirty, func(ref rows.Ref) error {
		id, row := s.cache.Key(ref), s.cache.Row(ref)
		enc, err := s.seen.unpackHead(row)
		if err != nil {
			return fmt.Errorf("what is in memory of %q: %w", id, err)
		}
		row[0] &^= packedDirty
		b.Put(s.part, s.family, id, enc)
		return nil
	})
	return errors.Join(err, s.close())
}

// close lets go of the store. What is missed next is looked for in it as it is
// then.
func (s *states) close() (err error) {
	if s.finder != nil {
		err, s.finder = s.finder.Close(), nil
	}
	return err
}

// written says that they are in the store, and forgets what there is no room for,
// but not what is due.
func (s *states) written(room int) error {
	s.settle()
	s.dirty = s.dirty[:0]
	if err := s.close(); err != nil {
		return err
	}
	if s.cache.Shrink(room, s.due, s.later) > 0 {
		s.complete = false
	}
	return nil
}

// publishing calls f with all that are due: their snapshots are on their way.
func (s *states) publishing(f func(id []byte, a *aggregate) error) error {
	return s.each(s.due, func(ref rows.Ref) error {
		id, a, err := s.look(ref)
		if err != nil {
			return err
		}
		s.cache.Row(ref)[0] &^= packedDue
		return f(id, a)
	})
}

// dropDue forgets what is due.
func (s *states) dropDue() {
	s.settle()
	for _, ref := range s.due {
		s.cache.Row(ref)[0] &^= packedDue
	}
	s.due = s.due[:0]
}

// eachDue calls f with all that are due and not in use.
func (s *states) eachDue(f func(id []byte, a *aggregate)) {
	for _, ref := range s.due {
		if id, a, err := s.look(ref); err == nil { // as it is, always
			f(id, a)
		}
	}
}

// published says whether they arrived, after publishing. If not, they stay due.
// None may be in use.
func (s *states) published(arrived bool) {
	if arrived {
		s.due = s.due[:0]
		return
	}
	for _, ref := range s.due {
		s.cache.Row(ref)[0] |= packedDue
	}
}

// catchUp makes due what came while the transaction was being ended.
func (s *states) catchUp() {
	for _, ref := range s.later {
		if row := s.cache.Row(ref); row[0]&packedDue == 0 {
			row[0] |= packedDue
			s.due = append(s.due, ref)
		}
	}
	s.later = s.later[:0]
}
