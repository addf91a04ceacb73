package rows

// Arena hands out memory for the values of a batch, and takes it back whole.
type Arena struct {
	blocks [][]byte
	used   int    // of the blocks
	free   []byte // of the last one that is used
}

const (
	arenaBlock = 256 << 10
	// Blocks that are kept from one batch to the next, or from one part of one.
	ArenaKeep, ArenaKeepPart = 64, 16
)

// Grow returns an empty slice with room for n bytes or more. Append to it, then
// keep it.
func (a *Arena) Grow(n int) []byte {
	if n > len(a.free) {
		a.next(n)
	}
	return a.free[:0]
}

// next goes on to a block of n bytes or more.
func (a *Arena) next(n int) {
	switch {
	case a.used == len(a.blocks):
		a.blocks = append(a.blocks, make([]byte, max(n, arenaBlock)))
	case len(a.blocks[a.used]) < n: // too small, or was too large to keep
		a.blocks[a.used] = make([]byte, max(n, arenaBlock))
	}
	a.free = a.blocks[a.used]
	a.used++
}

// Keep makes what was appended to the slice of the last grow permanent until
// reset. If it outgrew its room, it is memory of its own anyway.
func (a *Arena) Keep(b []byte) []byte {
	if n := len(b); n > 0 && n <= len(a.free) && &b[0] == &a.free[0] {
		a.free = a.free[n:]
	}
	return b[:len(b):len(b)]
}

// Reset takes everything back. So many blocks at most stay for the next time.
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
