package states

import (
	"encoding/binary"
	"errors"
	"fmt"

	"millrace/pipeline/codec"
	"millrace/pipeline/store"
)

// filter recognizes most new event ids without reading the store, which would cost more
// than folding the event. It is a Bloom filter in layers of a million ids each. It never
// forgets an id; each layer takes about one new id in a hundred for a known one.
//
// The store has full layers as they are, and the hashes of the last layer in one chunk
// per flush. Those are 12 bits for each event so far, so opening reads only their numbers,
// from the head. The rest is read in pieces, with each event that is folded next; until
// then, an unread layer may have every id.
type filter struct {
	part   *store.Part
	layers []filterLayer
	recent []uint64 // hashes in the last layers that the store does not have yet
	chunks uint32   // chunks of hashes in the store, for the last layer there
	stored int      // full layers in the store
	head   filterHead

	unread bool   // the store has more for the layers from read on
	read   int    // layers that are complete in memory, if unread
	at, to []byte // unread keys of familyFilter
	lacks  int64  // unread ids of the last layer
}

// filterHead is the head of the filter in the store. It is valid if the store is where it
// was when the head was written: a release without heads may have continued since.
type filterHead struct {
	next, backfill int64 // position of the partition, and of an index that catches up; -1 if it does not
	stored, chunks int64
	count          int64 // ids in the last layer, if that is not full
}

// filterLayer consists of blocks of eight words, one cache line each.
type filterLayer struct {
	words []uint64 // nil if nothing was read or added yet
	count int      // number of ids
}

const (
	filterIDs    = 1 << 20 // of a layer
	filterBlocks = filterIDs * 12 / 512
	filterProbes = 7

	filterPiece = 256 << 10 // bytes that are read with an event, approximately
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

// load reads the head of the filter, or all of it if there is no valid head. next and
// backfill are the position of the store, as in the head.
func (f *filter) load(next, backfill int64) error {
	value, ok, err := f.part.Get(nil, familyFilterHead, nil)
	if err != nil {
		return err
	}
	h, err := readFilterHead(value)
	if ok && err == nil && h.next == next && h.backfill == backfill {
		f.head = h
		f.stored, f.chunks = int(h.stored), uint32(h.chunks)
		f.layers = make([]filterLayer, f.stored)
		for i := range f.layers {
			f.layers[i].count = filterIDs
		}
		if h.count > 0 {
			f.layers = append(f.layers, filterLayer{count: int(h.count)})
		}
		f.unread, f.to, f.lacks = len(f.layers) > 0, filterKey(f.stored, f.chunks), h.count
		return nil
	}
	var bad error
	v := f.part.View()
	err = v.Scan(familyFilter, nil, nil, false, func(key, value []byte) bool {
		switch {
		case len(key) == 4 && len(value) == 64*filterBlocks:
			f.layers = append(f.layers, filterLayer{filterWords(value), filterIDs})
			f.stored++
		case len(key) == 8 && len(value)%8 == 0:
			for ; len(value) > 0; value = value[8:] {
				f.insert(binary.BigEndian.Uint64(value))
			}
			f.chunks++
		default:
			bad = damagedFilter(key, value)
		}
		return bad == nil
	})
	return errors.Join(bad, err, v.Close())
}

func damagedFilter(key, value []byte) error {
	return Damaged(key, fmt.Errorf("a part of the filter has %d bytes", len(value)))
}

// filterWords reads the words of a full layer.
func filterWords(value []byte) []uint64 {
	words := make([]uint64, 8*filterBlocks)
	for i := range words {
		words[i] = binary.BigEndian.Uint64(value[8*i:])
	}
	return words
}

func readFilterHead(value []byte) (h filterHead, err error) {
	r := Fields{Rest: value}
	h = filterHead{next: r.Long(), backfill: r.Long(), stored: r.Long(), chunks: r.Long(), count: r.Long()}
	if r.Err == nil && (min(h.stored, h.chunks, h.count) < 0 || h.count >= filterIDs) {
		r.Err = errors.New("the head of the filter is damaged")
	}
	return h, r.Err
}

// readMore reads about as many bytes of what is unread; everything if bytes is 0.
func (f *filter) readMore(bytes int) error {
	v := f.part.View()
	n := 0
	var bad error
	done := true
	err := v.Scan(familyFilter, f.at, f.to, false, func(key, value []byte) bool {
		if done = bytes == 0 || n < bytes; !done {
			f.at = append(f.at[:0], key...)
			return false
		}
		n += len(key) + len(value)
		layer := int(binary.BigEndian.Uint32(key))
		switch {
		case len(key) == 4 && len(value) == 64*filterBlocks && layer < f.stored:
			f.layers[layer].words = filterWords(value)
			f.read = layer + 1
		case len(key) == 8 && len(value)%8 == 0 && layer < len(f.layers):
			for ; len(value) > 0; value = value[8:] {
				f.layers[layer].set(binary.BigEndian.Uint64(value))
				f.lacks--
			}
		default:
			bad = damagedFilter(key, value)
		}
		return bad == nil
	})
	if err := errors.Join(bad, err, v.Close()); err != nil {
		return err
	}
	if !done {
		return nil
	}
	if f.read < f.stored || f.lacks != 0 {
		return Damaged(f.to, fmt.Errorf("the filter lacks %d layers and %d ids", f.stored-f.read, f.lacks))
	}
	f.unread, f.at, f.to = false, nil, nil
	return nil
}

// layerMayHave reports false only if the id was never added to a layer.
func (f *filter) layerMayHave(layer int, hash uint64) bool {
	return f.unread && layer >= f.read || f.layers[layer].has(hash)
}

// mayHave reports false only if the id was never added.
func (f *filter) mayHave(hash uint64) bool {
	if f.unread {
		return true
	}
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
		f.layers = append(f.layers, filterLayer{})
	}
	l := &f.layers[len(f.layers)-1]
	l.set(hash)
	l.count++
}

func (l *filterLayer) set(hash uint64) {
	if l.words == nil {
		l.words = make([]uint64, 8*filterBlocks)
	}
	b := l.block(hash)
	for range filterProbes {
		hash = hash*0x9e3779b97f4a7c15 + 1
		b[hash>>61] |= 1 << (hash >> 55 & 63)
	}
}

// write adds to the batch what the store does not have: layers that have become full,
// which replace their hashes, and the new hashes of the last layer. next and backfill are
// the position that the store will have, as in the head.
func (f *filter) write(b *store.Batch, next, backfill int64) error {
	full := f.full()
	if f.unread && full > f.stored {
		if err := f.readMore(0); err != nil {
			return err
		}
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
	if len(rest) > 0 {
		value := make([]byte, 0, 8*len(rest))
		for _, h := range rest {
			value = binary.BigEndian.AppendUint64(value, h)
		}
		b.Put(f.part, familyFilter, filterKey(full, chunks), value)
		chunks++
	}
	h := filterHead{next: next, backfill: backfill, stored: int64(full), chunks: int64(chunks)}
	if full < len(f.layers) {
		h.count = int64(f.layers[full].count)
	}
	if h == f.head {
		return nil
	}
	f.head = h
	var value []byte
	for _, n := range []int64{h.next, h.backfill, h.stored, h.chunks, h.count} {
		value = codec.AppendLong(value, n)
	}
	b.Put(f.part, familyFilterHead, nil, value)
	return nil
}

// full returns the number of layers that are full.
func (f *filter) full() int {
	if n := len(f.layers); n > 0 && f.layers[n-1].count < filterIDs {
		return n - 1
	}
	return len(f.layers)
}

// written notes that what write added is in the store.
func (f *filter) written() {
	f.stored, f.chunks = int(f.head.stored), uint32(f.head.chunks)
	f.recent = f.recent[:0]
}
