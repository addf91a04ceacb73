package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// A Family is a kind of entries, 1 to 255. Within a part, entries are sorted by family,
// then key.
type Family byte

// A Part holds the entries and the position of one partition of one projection. After
// [Store.Part] or [Store.Reset] replaces a part, the old Part is empty, and the caller
// must not write to it any more. A Part is immutable and safe for concurrent use.
type Part struct {
	store    *Store
	id       uint32
	name     partName
	identity string
}

// key appends the on-disk key of an entry to dst.
func (p *Part) key(dst []byte, f Family, key []byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(dst, p.id), byte(f)), key...)
}

// Position returns the part's position, and whether it has one. A part without a position
// may hold entries of an interrupted restore.
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

// View returns a snapshot of the part. The caller must close it.
func (p *Part) View() *View { return &View{p, p.store.db.NewSnapshot()} }

// A View is a snapshot of a part: entries and position from the same commit.
type View struct {
	part *Part
	snap *pebble.Snapshot
}

// Close releases the snapshot.
func (v *View) Close() error { return v.snap.Close() }

// Position does the same as [Part.Position], in the snapshot.
func (v *View) Position() (int64, bool, error) {
	pos, ok, err := position(v.snap, v.part)
	return pos, ok, v.part.store.check(err)
}

// Get does the same as [Part.Get], in the snapshot.
func (v *View) Get(dst []byte, f Family, key []byte) ([]byte, bool, error) {
	var scratch [128]byte
	dst, ok, err := get(v.snap, v.part.key(scratch[:0], f, key), dst)
	return dst, ok, v.part.store.check(err)
}

// Scan calls do with the entries of a family whose keys are at least from and less than
// to, in ascending or reverse order, until do returns false. If to is nil, the range
// extends to the end of the family. Key and value are valid only during the call.
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

// A Finder looks up entries of a family when most of them do not exist. It sees the store
// at the time of its creation. It checks Bloom filters on every level; [Part.Get] does
// not on the lowest level. Creating a Finder costs more than a lookup. While it is open,
// the store retains the tables that it sees. [Store.Close] closes it. It is not safe for
// concurrent use.
type Finder struct {
	part   *Part
	family Family
	it     *pebble.Iterator
	key    []byte
}

// Finder returns a new Finder. The caller should close it.
func (p *Part) Finder(f Family) (*Finder, error) {
	it, err := p.store.db.NewIter(&pebble.IterOptions{LowerBound: p.key(nil, f, nil), UpperBound: p.end(f), UseL6Filters: true})
	if err != nil {
		return nil, p.store.check(err)
	}
	finder := &Finder{part: p, family: f, it: it}
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	p.store.finders[finder] = struct{}{}
	return finder, nil
}

// Get does the same as [Part.Get], at the time of the Finder's creation.
func (f *Finder) Get(dst, key []byte) ([]byte, bool, error) {
	f.key = f.part.key(f.key[:0], f.family, key)
	if !f.it.SeekPrefixGE(f.key) {
		return dst, false, f.part.store.check(f.it.Error())
	}
	value, err := f.it.ValueAndErr()
	return append(dst, value...), err == nil, f.part.store.check(err)
}

// Close releases the tables that the Finder retains. It may be called more than once.
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
