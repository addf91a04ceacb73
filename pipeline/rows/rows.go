// Package rows keeps many rows in memory by key: the rows of a table, or states. It adds
// few bytes per row and costs the garbage collector nothing, because the rows are in
// large slices without pointers.
//
// Start at [Map] (rows.go), which is safe for concurrent use, or, for rows that change
// often, at [Cache] (cache.go), which belongs to one goroutine at a time. An [Arena]
// (arena.go) allocates values that only live for a batch; it also belongs to one goroutine.
package rows

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"sync"
)

// A Map is a map from keys to rows. It is safe for concurrent use. Make one with
// [New].
//
// It is divided into shards by the hash of the key, each with a lock, an index
// and slabs. Entries (key and row) are stored in the slabs one after the other and
// never change: a row that is replaced or deleted leaves a dead entry behind. When
// more than a quarter of a shard is dead, the live entries of the slab with the
// largest dead share are copied to the newest slab, and the old slab is released to
// the garbage collector. So a returned row stays valid as long as the caller holds
// it, and a reader needs only a short read lock.
type Map struct {
	seed   maphash.Seed
	shards [shardCount]shard
}

const (
	shardBits  = 6
	shardCount = 1 << shardBits

	firstSlab = 1 << 10
)

// shard is a part of the map.
type shard struct {
	mu sync.RWMutex // guards the fields below

	index index

	slabs []slab
	empty []int // numbers of slabs that are gone
	open  int   // number of the slab that takes new entries, -1 if there is none
	used  int   // bytes of entries in the slabs
	dead  int   // of these, of entries that are dead
}

// slab is a piece of memory that entries are appended to. Its bytes never
// change, but when it grows it moves.
//
// An [Arena] cannot replace it: entries must be addressed by a place, and a slab must be
// released alone while readers still hold rows of it.
type slab struct {
	bytes []byte
	dead  int
}

// New returns an empty map.
func New() *Map {
	m := &Map{seed: maphash.MakeSeed()}
	for i := range m.shards {
		m.shards[i].open = -1
	}
	return m
}

// Get returns the row under a key. The caller must not change it; the map never does.
// Get allocates nothing.
func (m *Map) Get(key []byte) (row []byte, ok bool) {
	h := maphash.Bytes(m.seed, key)
	s := m.shard(h)
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.find(tagOf(h), key)
	if !ok {
		return nil, false
	}
	_, row, _ = s.entry(place(s.index.slots[i]))
	return row, true
}

// Set stores a row under a key. It copies both. If the key has the same row already,
// Set does nothing.
func (m *Map) Set(key, row []byte) {
	h := maphash.Bytes(m.seed, key)
	s := m.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.find(tagOf(h), key)
	if ok {
		_, old, _ := s.entry(place(s.index.slots[i]))
		if bytes.Equal(old, row) {
			return
		}
		s.markDead(place(s.index.slots[i]))
		s.index.slots[i] = slotOf(tagOf(h), s.append(key, row))
		s.compact(m.seed)
		return
	}
	if (s.index.count+1)*8 > len(s.index.slots)*7 {
		s.index.grow()
		i, _ = s.find(tagOf(h), key)
	}
	s.index.slots[i] = slotOf(tagOf(h), s.append(key, row))
	s.index.count++
}

// Delete deletes the row under a key and reports whether there was one.
func (m *Map) Delete(key []byte) bool {
	h := maphash.Bytes(m.seed, key)
	s := m.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.find(tagOf(h), key)
	if !ok {
		return false
	}
	s.markDead(place(s.index.slots[i]))
	s.index.remove(i)
	s.compact(m.seed)
	return true
}

// Len returns the number of rows.
func (m *Map) Len() (n int) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.RLock()
		n += s.index.count
		s.mu.RUnlock()
	}
	return n
}

// Bytes returns the memory of the map in bytes, including dead entries and free room.
func (m *Map) Bytes() (n int) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.RLock()
		n += s.index.bytes()
		for j := range s.slabs {
			n += cap(s.slabs[j].bytes)
		}
		s.mu.RUnlock()
	}
	return n
}

func (m *Map) shard(hash uint64) *shard { return &m.shards[hash&(shardCount-1)] }

// find returns the slot of a key, or the empty slot for it. The caller holds the lock.
func (s *shard) find(tag uint32, key []byte) (slot int, ok bool) {
	slots := s.index.slots
	if len(slots) == 0 {
		return 0, false
	}
	for i := s.index.home(tag); ; i = (i + 1) & (len(slots) - 1) {
		v := slots[i]
		if place(v) == noPlace {
			return i, false
		}
		if uint32(v>>32) != tag {
			continue
		}
		if have, _, _ := s.entry(place(v)); string(have) == string(key) {
			return i, true
		}
	}
}

// entry returns the entry at a place, and its size in bytes.
func (s *shard) entry(p place) (key, row []byte, size int) {
	return entryAt(s.slabs[p.slab()].bytes, p.at())
}

// entryAt reads an entry: the lengths of key and row, key, row, and padding to a whole
// unit.
func entryAt(b []byte, at int) (key, row []byte, size int) {
	keyLen, n := binary.Uvarint(b[at:])
	rowLen, m := binary.Uvarint(b[at+n:])
	k := at + n + m
	r := k + int(keyLen)
	end := r + int(rowLen)
	return b[k:r:r], b[r:end:end], (end - at + unit - 1) &^ (unit - 1)
}

// append writes an entry and returns its place.
func (s *shard) append(key, row []byte) place {
	var head [2 * binary.MaxVarintLen64]byte
	n := binary.PutUvarint(head[:], uint64(len(key)))
	n += binary.PutUvarint(head[n:], uint64(len(row)))
	size := (n + len(key) + len(row) + unit - 1) &^ (unit - 1)
	number := s.room(size)
	b := &s.slabs[number]
	at := len(b.bytes)
	b.bytes = append(b.bytes, head[:n]...)
	b.bytes = append(b.bytes, key...)
	b.bytes = append(b.bytes, row...)
	b.bytes = b.bytes[:at+size]
	s.used += size
	return place(number<<slabBits | at/unit)
}

// room returns the number of a slab that takes size more bytes without moving.
func (s *shard) room(size int) int {
	if size > slabSize {
		return s.newSlab(size) // for this entry alone; the open one stays open
	}
	if s.open >= 0 {
		b := &s.slabs[s.open]
		need := len(b.bytes) + size
		if need <= cap(b.bytes) {
			return s.open
		}
		if need <= slabSize {
			// Small slabs grow as slices do. Rows that somebody holds keep the
			// old memory.
			b.bytes = append(make([]byte, 0, min(slabSize, max(need, 2*cap(b.bytes)))), b.bytes...)
			return s.open
		}
	}
	// What is set aside is at most an eighth of what is there.
	s.open = s.newSlab(min(slabSize, max(size, firstSlab, s.used/8)))
	return s.open
}

func (s *shard) newSlab(size int) int {
	b := slab{bytes: make([]byte, 0, size)}
	if n := len(s.empty); n > 0 {
		number := s.empty[n-1]
		s.empty = s.empty[:n-1]
		s.slabs[number] = b
		return number
	}
	s.slabs = append(s.slabs, b)
	return len(s.slabs) - 1
}

// markDead counts an entry as dead.
func (s *shard) markDead(p place) {
	_, _, size := s.entry(p)
	s.slabs[p.slab()].dead += size
	s.dead += size
}

// compact evacuates slabs while more than a quarter of the shard is dead.
func (s *shard) compact(seed maphash.Seed) {
	for s.dead > firstSlab && 4*s.dead > s.used {
		deadest, share := -1, 0.0
		for i := range s.slabs {
			if b := &s.slabs[i]; b.dead > 0 {
				if part := float64(b.dead) / float64(len(b.bytes)); part > share {
					deadest, share = i, part
				}
			}
		}
		s.evacuate(deadest, seed)
	}
}

// evacuate copies the live entries of a slab to other slabs and releases it.
func (s *shard) evacuate(number int, seed maphash.Seed) {
	if number == s.open {
		s.open = -1
	}
	b := s.slabs[number]
	for at := 0; at < len(b.bytes); {
		key, row, size := entryAt(b.bytes, at)
		p := place(number<<slabBits | at/unit)
		at += size
		tag := tagOf(maphash.Bytes(seed, key))
		if i, ok := s.find(tag, key); ok && place(s.index.slots[i]) == p {
			s.index.slots[i] = slotOf(tag, s.append(key, row))
		}
	}
	s.used -= len(b.bytes)
	s.dead -= b.dead
	s.slabs[number] = slab{}
	s.empty = append(s.empty, number)
}
