package rows

const (
	// A place is the address of an entry: the number of its slab and the offset in
	// the slab, in units. With 4 bytes it covers 16 GiB.
	unit     = 4
	slabBits = 18
	slabSize = unit << slabBits // 1 MiB; a larger entry has a slab of its own

	firstIndex = 16
)

type place uint32

func placeOf(slab, at int) place { return place(slab<<slabBits | at/unit) }

func (p place) slab() int { return int(p >> slabBits) }
func (p place) at() int   { return int(p&(1<<slabBits-1)) * unit }

// noPlace marks an empty slot. No entry has this place, the last unit of the last
// possible slab.
const noPlace = ^place(0)

const emptySlot = uint64(noPlace)

// index is a hash table with open addressing and linear probing. A slot holds the upper
// half of the key's hash above the place of the entry, so it can be moved without
// reading the entry. The place of an empty slot is noPlace. The index has the owner or
// lock of its [Map] shard or [Cache].
type index struct {
	slots []uint64
	count int
}

// tagOf returns the part of a hash that an index stores. It shares no bits with the
// part that selects the shard.
func tagOf(hash uint64) uint32 { return uint32(hash >> 32) }

func slotOf(tag uint32, p place) uint64 { return uint64(tag)<<32 | uint64(p) }

func (x *index) bytes() int { return 8 * cap(x.slots) }

// home returns the slot where the search for a tag begins.
func (x *index) home(tag uint32) int { return int(tag) & (len(x.slots) - 1) }

// grow doubles the index.
func (x *index) grow() { x.resize(max(firstIndex, 2*len(x.slots))) }

// fit halves the index while less than an eighth of its slots is in use.
func (x *index) fit() {
	size := len(x.slots)
	for size > firstIndex && 8*x.count < size {
		size /= 2
	}
	if size < len(x.slots) {
		x.resize(size)
	}
}

func (x *index) resize(size int) {
	old := x.slots
	x.slots = make([]uint64, size)
	for i := range x.slots {
		x.slots[i] = emptySlot
	}
	for _, v := range old {
		if place(v) == noPlace {
			continue
		}
		i := x.home(uint32(v >> 32))
		for place(x.slots[i]) != noPlace {
			i = (i + 1) & (len(x.slots) - 1)
		}
		x.slots[i] = v
	}
}

// remove empties a slot and moves later slots into the gap (backward-shift deletion), so
// a search meets no deleted slots.
func (x *index) remove(gap int) {
	mask := len(x.slots) - 1
	for i := (gap + 1) & mask; place(x.slots[i]) != noPlace; i = (i + 1) & mask {
		// Slot i may move to the gap unless its home is between the two.
		if home := x.home(uint32(x.slots[i] >> 32)); (i-home)&mask >= (i-gap)&mask {
			x.slots[gap] = x.slots[i]
			gap = i
		}
	}
	x.slots[gap] = emptySlot
	x.count--
}
