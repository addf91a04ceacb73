package rows

import (
	"encoding/binary"
	"hash/maphash"
)

// A Cache is a map from keys to rows that change in place. If the rows exceed their
// room, it evicts rows that were not used for long. It belongs to one goroutine at a
// time. Make one with [NewCache].
//
// Entries are stored in slabs, like those of a [Map]. A row that outgrows its entry
// moves to the newest slab, and the old entry holds the new place. [Cache.Shrink]
// releases slabs, the oldest first; the entries to keep move to the newest slab.
//
// An entry is its size (4 bytes), the length of its row (4; after a move, the new
// place), the length of its key (2), flags (2), key, row, and room to grow.
type Cache struct {
	seed  maphash.Seed
	index index

	slabs  [][]byte // by number; nil: there is none
	vacant []int    // numbers
	order  []int    // numbers of slabs, the oldest first
	open   int      // number of the slab that takes new entries, -1 if there is none
	held   int      // bytes of all slabs
	spare  [][]byte // memory of slabs that were given up

	touched byte // sum of the bytes that Touch read; keeps the compiler from removing the reads
}

// A Ref refers to an entry of a Cache. It is valid until the next [Cache.Shrink] that
// does not receive it.
type Ref uint32

const (
	cacheHead = 12

	entryMoved  = 1 << 0
	entryFound  = 1 << 1 // found since the last Shrink that visited it
	entryPinned = 1 << 2 // only during a Shrink
)

// NewCache returns an empty cache.
func NewCache() *Cache { return &Cache{seed: maphash.MakeSeed(), open: -1} }

// Len returns the number of entries.
func (c *Cache) Len() int { return c.index.count }

// Bytes returns the memory of the cache in bytes, including dead entries and free room.
func (c *Cache) Bytes() int { return c.held + slabSize*len(c.spare) + c.index.bytes() }

// Find returns the entry of a key, if there is one, and marks it as used for Shrink.
func (c *Cache) Find(key []byte) (r Ref, ok bool) {
	i, ok := c.find(tagOf(maphash.Bytes(c.seed, key)), key)
	if !ok {
		return 0, false
	}
	p := place(c.index.slots[i])
	c.slabs[p.slab()][p.at()+10] |= entryFound
	return Ref(p), true
}

// find returns the slot of a key, or the empty slot for it.
func (c *Cache) find(tag uint32, key []byte) (slot int, ok bool) {
	slots := c.index.slots
	if len(slots) == 0 {
		return 0, false
	}
	for i := c.index.home(tag); ; i = (i + 1) & (len(slots) - 1) {
		v := slots[i]
		if place(v) == noPlace {
			return i, false
		}
		if uint32(v>>32) == tag && string(c.key(place(v))) == string(key) {
			return i, true
		}
	}
}

func (c *Cache) key(p place) []byte {
	b := c.slabs[p.slab()][p.at():]
	end := cacheHead + int(binary.LittleEndian.Uint16(b[8:]))
	return b[cacheHead:end:end]
}

// Key returns the key of an entry. The bytes are valid until the next change of the
// cache.
func (c *Cache) Key(r Ref) []byte { return c.key(c.now(r)) }

// Row returns the row of an entry. The bytes are valid until the next change of the
// cache. The caller may change them.
func (c *Cache) Row(r Ref) []byte {
	p := c.now(r)
	b := c.slabs[p.slab()][p.at():]
	at := cacheHead + int(binary.LittleEndian.Uint16(b[8:]))
	end := at + int(binary.LittleEndian.Uint32(b[4:]))
	return b[at:end:end]
}

// now returns the current place of an entry, after all its moves.
func (c *Cache) now(r Ref) place {
	p := place(r)
	for {
		b := c.slabs[p.slab()][p.at():]
		if b[10]&entryMoved == 0 {
			return p
		}
		p = place(binary.LittleEndian.Uint32(b[4:]))
	}
}

// Prefetch loads entries into the processor's cache before their use. The loads overlap, so
// many entries take little longer than one.
func (c *Cache) Prefetch(refs []Ref) {
	const line = 64 // bytes of a cache line
	sum := byte(0)
	for _, r := range refs {
		b := c.slabs[place(r).slab()]
		at := place(r).at()
		sum += b[at] + b[min(at+line, len(b)-1)] + b[min(at+2*line, len(b)-1)]
	}
	c.touched = sum
}

// Add adds an entry. The cache must not have the key, and the key must have at most 65535
// bytes.
func (c *Cache) Add(key, row []byte) Ref {
	if (c.index.count+1)*4 > len(c.index.slots)*3 {
		c.index.grow()
	}
	tag := tagOf(maphash.Bytes(c.seed, key))
	i, _ := c.find(tag, key)
	p := c.append(key, row, 8)
	c.index.slots[i] = slotOf(tag, p)
	c.index.count++
	return Ref(p)
}

// Set replaces the row of an entry and returns its current Ref. Older Refs of the entry
// stay valid.
func (c *Cache) Set(r Ref, row []byte) Ref {
	p := c.now(r)
	b := c.slabs[p.slab()][p.at():]
	at := cacheHead + int(binary.LittleEndian.Uint16(b[8:]))
	if room := b[at:binary.LittleEndian.Uint32(b)]; len(row) <= len(room) {
		binary.LittleEndian.PutUint32(b[4:], uint32(len(row)))
		copy(room, row)
		return Ref(p)
	}
	return Ref(c.move(p, row, len(row)/4)) // with room, because a row that grew may grow again
}

// move moves an entry to the newest slab, with a new row and room for it to grow.
func (c *Cache) move(p place, row []byte, room int) place {
	// b and key stay valid during append, which may add a slab but never moves one.
	b := c.slabs[p.slab()][p.at():]
	key := c.key(p)
	tag := tagOf(maphash.Bytes(c.seed, key))
	i, _ := c.find(tag, key)
	to := c.append(key, row, room)
	c.slabs[to.slab()][to.at()+10] = b[10]
	b[10] |= entryMoved
	binary.LittleEndian.PutUint32(b[4:], uint32(to))
	c.index.slots[i] = slotOf(tag, to)
	return to
}

// append writes an entry with room bytes for its row to grow, and returns its place.
func (c *Cache) append(key, row []byte, room int) place {
	size := (cacheHead + len(key) + len(row) + room + unit - 1) &^ (unit - 1)
	number := c.room(size)
	b := c.slabs[number]
	at := len(b)
	b = b[:at+size]
	c.slabs[number] = b
	e := b[at:]
	binary.LittleEndian.PutUint32(e, uint32(size))
	binary.LittleEndian.PutUint32(e[4:], uint32(len(row)))
	binary.LittleEndian.PutUint16(e[8:], uint16(len(key)))
	e[10], e[11] = 0, 0
	copy(e[cacheHead:], key)
	copy(e[cacheHead+len(key):], row)
	return placeOf(number, at)
}

// room returns the number of a slab that has room for size more bytes.
func (c *Cache) room(size int) int {
	if size > slabSize {
		return c.newSlab(make([]byte, 0, size)) // for this entry alone
	}
	if c.open >= 0 && cap(c.slabs[c.open])-len(c.slabs[c.open]) >= size {
		return c.open
	}
	if n := len(c.spare); n > 0 {
		b := c.spare[n-1]
		c.spare = c.spare[:n-1]
		c.open = c.newSlab(b)
		return c.open
	}
	// What is set aside is at most as much as is there.
	c.open = c.newSlab(make([]byte, 0, min(slabSize, max(size, firstSlab, c.held))))
	return c.open
}

func (c *Cache) newSlab(b []byte) (number int) {
	if n := len(c.vacant); n > 0 {
		number = c.vacant[n-1]
		c.vacant = c.vacant[:n-1]
		c.slabs[number] = b
	} else {
		number = len(c.slabs)
		c.slabs = append(c.slabs, b)
	}
	c.order = append(c.order, number)
	c.held += cap(b)
	return number
}

// Shrink evicts entries if the cache takes more than room bytes, until about an eighth of
// room is free, and returns the number of evicted entries. It keeps the entries in refs and
// updates these Refs in place; all other Refs become invalid. It prefers to keep an
// entry that was found since the last Shrink that visited it.
func (c *Cache) Shrink(room int, refs ...[]Ref) (dropped int) {
	if c.Bytes() <= room {
		return 0
	}
	for _, list := range refs {
		for i, r := range list {
			p := c.now(r)
			list[i] = Ref(p)
			c.slabs[p.slab()][p.at()+10] |= entryPinned
		}
	}
	goal := max(room/2, room-room/8-c.index.bytes())
	spared := min(c.held-goal, goal) / 2 // bytes of entries to keep because they were found
	gone := make([]bool, len(c.slabs))
	n := 0
	for last := len(c.order); n < last && c.held > goal; n++ {
		number := c.order[n]
		if number == c.open {
			c.open = -1
		}
		b := c.slabs[number]
		for at := 0; at < len(b); {
			e := b[at:]
			size := int(binary.LittleEndian.Uint32(e))
			switch flags := e[10]; {
			case flags&entryMoved != 0:
			case flags&entryPinned != 0:
				c.keep(placeOf(number, at))
			case flags&entryFound != 0 && spared >= size:
				spared -= size
				e[10] &^= entryFound
				c.keep(placeOf(number, at))
			default:
				dropped++
			}
			at += size
		}
		c.held -= cap(b)
		gone[number] = true
	}
	for _, list := range refs {
		for i, r := range list {
			p := c.now(r)
			list[i] = Ref(p)
			c.slabs[p.slab()][p.at()+10] &^= entryPinned
		}
	}
	for i := range c.index.slots {
		for p := place(c.index.slots[i]); p != noPlace && p.slab() < len(gone) && gone[p.slab()]; p = place(c.index.slots[i]) {
			c.index.remove(i)
		}
	}
	c.index.fit()
	for _, number := range c.order[:n] {
		if b := c.slabs[number]; cap(b) == slabSize && c.Bytes()+slabSize <= room {
			c.spare = append(c.spare, b[:0])
		}
		c.slabs[number] = nil
		c.vacant = append(c.vacant, number)
	}
	c.order = append(c.order[:0], c.order[n:]...)
	return dropped
}

// keep moves an entry unchanged to the newest slab.
func (c *Cache) keep(p place) {
	e := c.slabs[p.slab()][p.at():]
	c.move(p, c.Row(Ref(p)), int(binary.LittleEndian.Uint32(e))-cacheHead-len(c.key(p))-len(c.Row(Ref(p))))
}
