package rows

// An Arena allocates the values of a batch and releases all of them together. It belongs
// to one goroutine. The zero Arena is empty.
//
// Arena and the slabs of [Map] and [Cache] are two allocators for a reason. An Arena holds
// the values of one batch: callers append bytes whose number they do not know in advance,
// and Reset makes all memory free for the next batch. A slab holds entries that live long.
// They have headers and are addressed by a place instead of a slice, so an index without
// pointers can refer to them, and live entries can move out of a slab to release it alone.
// One allocator for both would add headers and places to the path of each event.
type Arena struct {
	blocks [][]byte
	used   int    // number of blocks in use
	free   []byte // rest of the last block in use
}

const (
	arenaBlock = 256 << 10

	// ArenaKeep is the number of blocks to keep between batches, for [Arena.Reset].
	ArenaKeep = 64
	// ArenaKeepPart is the number of blocks to keep for each part of a batch that is
	// divided into parts with an Arena each.
	ArenaKeepPart = 16
)

// Grow returns an empty slice with room for at least n bytes. Append to it, then call
// Keep. Until then, the next Grow may return the same memory.
func (a *Arena) Grow(n int) []byte {
	if n > len(a.free) {
		a.next(n)
	}
	return a.free[:0]
}

// next starts the next block, with at least n bytes.
func (a *Arena) next(n int) {
	switch {
	case a.used == len(a.blocks):
		a.blocks = append(a.blocks, make([]byte, max(n, arenaBlock)))
	case len(a.blocks[a.used]) < n: // too small, or nil because Reset released a large block
		a.blocks[a.used] = make([]byte, max(n, arenaBlock))
	}
	a.free = a.blocks[a.used]
	a.used++
}

// Keep keeps the bytes that were appended to the result of the last Grow until Reset, and
// returns them. If append moved them to larger memory of its own, the arena is unchanged.
func (a *Arena) Keep(b []byte) []byte {
	if n := len(b); n > 0 && n <= len(a.free) && &b[0] == &a.free[0] {
		a.free = a.free[n:]
	}
	return b[:len(b):len(b)]
}

// Reset releases all values: their memory will be overwritten. It keeps at most keep blocks
// for later values, and none that is larger than the standard size.
func (a *Arena) Reset(keep int) {
	a.used, a.free = 0, nil
	if len(a.blocks) > keep {
		clear(a.blocks[keep:])
		a.blocks = a.blocks[:keep]
	}
	for i, block := range a.blocks {
		if len(block) > arenaBlock {
			a.blocks[i] = nil
		}
	}
}
