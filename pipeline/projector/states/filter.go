package states

import (
	"encoding/binary"
	"errors"
	"fmt"

	"millrace/pipeline/store"
)

// filter recognizes most new event ids without reading the store, which would cost more
// than folding the event. It is a Bloom filter in layers of a million ids each. It never
// forgets an id; each layer takes about one new id in a hundred for a known one.
//
// The store has full layers as they are, and the hashes of the last layer in one chunk
// per flush. So opening reads 12 bits for each event so far.
type filter struct {
	part   *store.Part
	layers []filterLayer
	recent []uint64 // hashes in the last layers that the store does not have yet
	chunks uint32   // chunks of hashes in the store, for the last layer there
	stored int      // full layers in the store
}

// filterLayer consists of blocks of eight words, one cache line each.
type filterLayer struct {
	words []uint64
	count int // number of ids
}

const (
	filterIDs    = 1 << 20 // of a layer
	filterBlocks = filterIDs * 12 / 512
	filterProbes = 7
)

// filterKey returns a key of familyFilter: the number of a full layer, or the number of a
// layer and the number of a chunk of hashes.
func filterKey(layer int, chunk ...uint32) []byte {
	key := binary.BigEndian.AppendUint32(nil, uint32(layer))
	for _, c := range chunk {
		key = binary.BigEndian.AppendUint32(key, c)
	}
	return key
}

// load reads the filter from the store.
func (f *filter) load() error {
	v := f.part.View()
	var bad error
	err := v.Scan(familyFilter, nil, nil, false, func(key, value []byte) bool {
		switch {
		case len(key) == 4 && len(value) == 64*filterBlocks:
			words := make([]uint64, 8*filterBlocks)
			for i := range words {
				words[i] = binary.BigEndian.Uint64(value[8*i:])
			}
			f.layers = append(f.layers, filterLayer{words, filterIDs})
			f.stored++
		case len(key) == 8 && len(value)%8 == 0:
			for ; len(value) > 0; value = value[8:] {
				f.insert(binary.BigEndian.Uint64(value))
			}
			f.chunks++
		default:
			bad = Damaged(key, fmt.Errorf("a part of the filter has %d bytes", len(value)))
		}
		return bad == nil
	})
	return errors.Join(bad, err, v.Close())
}

// mayHave reports false only if the id was never added.
func (f *filter) mayHave(hash uint64) bool {
	for i := range f.layers {
		if f.layers[i].has(hash) {
			return true
		}
	}
	return false
}

func (l *filterLayer) block(hash uint64) *[8]uint64 {
	at := (hash >> 32) * filterBlocks >> 32 * 8
	return (*[8]uint64)(l.words[at:])
}

func (l *filterLayer) has(hash uint64) bool {
	b := l.block(hash)
	for range filterProbes {
		hash = hash*0x9e3779b97f4a7c15 + 1
		if b[hash>>61]&(1<<(hash>>55&63)) == 0 {
			return false
		}
	}
	return true
}

// add adds an id to the filter and to recent. It returns the number of its layer.
func (f *filter) add(hash uint64) (layer int) {
	f.insert(hash)
	f.recent = append(f.recent, hash)
	return len(f.layers) - 1
}

func (f *filter) insert(hash uint64) {
	if n := len(f.layers); n == 0 || f.layers[n-1].count >= filterIDs {
		f.layers = append(f.layers, filterLayer{words: make([]uint64, 8*filterBlocks)})
	}
	l := &f.layers[len(f.layers)-1]
	b := l.block(hash)
	for range filterProbes {
		hash = hash*0x9e3779b97f4a7c15 + 1
		b[hash>>61] |= 1 << (hash >> 55 & 63)
	}
	l.count++
}

// write adds to the batch what the store does not have: layers that have become full,
// which replace their hashes, and the new hashes of the last layer.
func (f *filter) write(b *store.Batch) {
	full := len(f.layers)
	if full > 0 && f.layers[full-1].count < filterIDs {
		full--
	}
	chunks := f.chunks
	for i := f.stored; i < full; i++ {
		value := make([]byte, 0, 64*filterBlocks)
		for _, w := range f.layers[i].words {
			value = binary.BigEndian.AppendUint64(value, w)
		}
		b.Put(f.part, familyFilter, filterKey(i), value)
		for c := range chunks {
			b.Delete(f.part, familyFilter, filterKey(i, c))
		}
		chunks = 0
	}
	rest := f.recent
	if full > f.stored { // earlier hashes are in the full layers
		n := 0
		if full < len(f.layers) {
			n = f.layers[full].count
		}
		rest = rest[len(rest)-n:]
	}
	if len(rest) == 0 {
		return
	}
	value := make([]byte, 0, 8*len(rest))
	for _, h := range rest {
		value = binary.BigEndian.AppendUint64(value, h)
	}
	b.Put(f.part, familyFilter, filterKey(full, chunks), value)
}

// written notes that what write added is in the store.
func (f *filter) written() {
	full := len(f.layers)
	if full > 0 && f.layers[full-1].count < filterIDs {
		full--
	}
	if full > f.stored {
		f.stored, f.chunks = full, 0
		if full < len(f.layers) && f.layers[full].count > 0 {
			f.chunks = 1
		}
	} else if len(f.recent) > 0 {
		f.chunks++
	}
	f.recent = f.recent[:0]
}
