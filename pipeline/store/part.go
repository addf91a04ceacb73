package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// A Family is a kind of entries. Within a part, entries are in order of family,
// then key.
type Family byte

// A Part is what is kept of one partition of one projection. It is one moment's:
// when a part is made anew, the old one stays empty for ever.
type Part struct {
	store    *Store
	id       uint32
	name     partName
	identity string
}

func (p *Part) key(dst []byte, f Family, key []byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(dst, p.id), byte(f)), key...)
}

// Position returns the part's position, and whether it has one: a part without
// may hold the entries of a restore that was cut short.
func (p *Part) Position() (int64, bool, error) {
	pos, ok, err := position(p.store.db, p)
	return pos, ok, p.store.check(err)
}

func position(r pebble.Reader, p *Part) (int64, bool, error) {
	value, ok, err := get(r, p.key(nil, 0, nil), nil)
	if !ok || err != nil {
		return 0, false, err
	}
	if len(value) != 8 {
		return 0, false, fmt.Errorf("a position of %d bytes: %w", len(value), pebble.ErrCorruption)
	}
	return int64(binary.BigEndian.Uint64(value)), true, nil
}

// Get appends the value of an entry to dst, and reports whether there is one.
func (p *Part) Get(dst []byte, f Family, key []byte) ([]byte, bool, error) {
	var scratch [128]byte
	dst, ok, err := get(p.store.db, p.key(scratch[:0], f, key), dst)
	return dst, ok, p.store.check(err)
}

func get(r pebble.Reader, key, dst []byte) ([]byte, bool, error) {
	value, closer, err := r.Get(key)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return dst, false, nil
	case err != nil:
		return dst, false, err
	}
	return append(dst, value...), true, closer.Close()
}

// Clear deletes all entries of a family.
func (p *Part) Clear(f Family) error {
	return p.store.check(p.store.db.DeleteRange(p.key(nil, f, nil), p.end(f), pebble.NoSync))
}

// end returns the first key after a family.
func (p *Part) end(f Family) []byte {
	if f == 255 {
		return binary.BigEndian.AppendUint32(nil, p.id+1)
	}
	return p.key(nil, f+1, nil)
}

// View returns the part as it is now, for reading. It must be closed.
func (p *Part) View() *View { return &View{p, p.store.db.NewSnapshot()} }

// A View is a part at one moment: entries and position that belong together.
type View struct {
	part *Part
	snap *pebble.Snapshot
}

// Close ends the view.
func (v *View) Close() error { return v.snap.Close() }

// Position is [Part.Position].
func (v *View) Position() (int64, bool, error) {
	pos, ok, err := position(v.snap, v.part)
	return pos, ok, v.part.store.check(err)
}

// Get is [Part.Get].
func (v *View) Get(dst []byte, f Family, key []byte) ([]byte, bool, error) {
	var scratch [128]byte
	dst, ok, err := get(v.snap, v.part.key(scratch[:0], f, key), dst)
	return dst, ok, v.part.store.check(err)
}

// Scan calls f with the entries of a family whose keys are at least from and
// below to (nil: to the family's end), in order or in reverse, until f returns
// false. Key and value are valid only during the call.
func (v *View) Scan(f Family, from, to []byte, reverse bool, do func(key, value []byte) bool) error {
	upper := v.part.key(nil, f, to)
	if to == nil {
		upper = v.part.end(f)
	}
	it, err := v.snap.NewIter(&pebble.IterOptions{LowerBound: v.part.key(nil, f, from), UpperBound: upper})
	if err != nil {
		return v.part.store.check(err)
	}
	first, next := it.First, it.Next
	if reverse {
		first, next = it.Last, it.Prev
	}
	for ok := first(); ok; ok = next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return v.part.store.check(errors.Join(err, it.Close()))
		}
		if !do(it.Key()[5:], value) {
			break
		}
	}
	return v.part.store.check(errors.Join(it.Error(), it.Close()))
}

// A Finder gets entries of a family of which most are not there, as they are when
// it is made. It looks into filters first, everywhere, which [Part.Get] does not
// do at the lowest level, and takes longer to make than to use. While it is open, the
// store keeps what it sees; with the store, it is closed. It is not safe for
// concurrent use.
type Finder struct {
	part   *Part
	family Family
	it     *pebble.Iterator
	key    []byte
}

// Finder returns a Finder.
func (p *Part) Finder(f Family) (*Finder, error) {
	it, err := p.store.db.NewIter(&pebble.IterOptions{LowerBound: p.key(nil, f, nil), UpperBound: p.end(f), UseL6Filters: true})
	if err != nil {
		return nil, p.store.check(err)
	}
	find := &Finder{part: p, family: f, it: it}
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.store.finders[find] = struct{}{}
	return find, nil
}

// Get is [Part.Get].
func (f *Finder) Get(dst, key []byte) ([]byte, bool, error) {
	f.key = f.part.key(f.key[:0], f.family, key)
	if !f.it.SeekPrefixGE(f.key) {
		return dst, false, f.part.store.check(f.it.Error())
	}
	value, err := f.it.ValueAndErr()
	return append(dst, value...), err == nil, f.part.store.check(err)
}

// Close ends the Finder.
func (f *Finder) Close() error {
	s := f.part.store
	s.mu.Lock()
	_, open := s.finders[f]
	delete(s.finders, f)
	s.mu.Unlock()
	if !open {
		return nil
	}
	return s.check(f.it.Close())
}
