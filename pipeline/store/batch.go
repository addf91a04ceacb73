package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Sizes of tables that the store takes in as they are: a family smaller than minTable shares one with its
// neighbours, and none grows far beyond maxTable.
const (
	minTable = 1 << 20
	maxTable = 64 << 20
)

// A Batch collects changes, of one part or of several, that take effect all at
// once. Of changes to one entry the last counts. It is not safe for concurrent
// use.
type Batch struct {
	store  *Store
	runs   []*run // one for each family of each part
	blocks [][]byte
	n      int
	bytes  int
	swap   []ref // scratch of sort

	touched byte // so that touch is not for nothing
}

// run is the changes of one family of one part.
type run struct {
	part    *Part
	family  Family
	entries []entry
	bytes   int
	mixed   bool // keys did not come in order, each greater than the one before
	order   []ref
}

// entry is a change: where key, as it stands on disk, and value are. It has no
// pointers, so that the garbage collector does not look at a million of them.
type entry struct {
	at, key, value uint32 // offset in the block, lengths
	block          uint16
	del            bool
}

// ref stands for an entry while it is sorted. Most keys of a family are told
// apart by the first bytes in which they differ at all.
type ref struct {
	head  uint64
	index uint32
}

// Entries stand in blocks of this size; one that is larger has a block of its own.
const (
	arenaBlock = 1 << 20
	maxBlocks  = 1 << 16
)

// NewBatch returns an empty batch.
func (s *Store) NewBatch() *Batch { return &Batch{store: s} }

// Put sets an entry.
func (b *Batch) Put(p *Part, f Family, key, value []byte) { b.add(p, f, key, value, false) }

// Delete deletes an entry, if there is one.
func (b *Batch) Delete(p *Part, f Family, key []byte) { b.add(p, f, key, nil, true) }

// SetPosition sets the part's position.
func (b *Batch) SetPosition(p *Part, next int64) {
	var value [8]byte
	binary.BigEndian.PutUint64(value[:], uint64(next))
	b.add(p, 0, nil, value[:], false)
}

func (b *Batch) add(p *Part, f Family, key, value []byte, del bool) {
	n := 5 + len(key) + len(value)
	last := len(b.blocks) - 1
	if last < 0 || cap(b.blocks[last])-len(b.blocks[last]) < n {
		if last++; last == maxBlocks {
			panic("store: a batch of more than 64 GiB")
		}
		b.blocks = append(b.blocks, make([]byte, 0, max(n, arenaBlock)))
	}
	block := b.blocks[last]
	e := entry{at: uint32(len(block)), key: uint32(5 + len(key)), value: uint32(len(value)), block: uint16(last), del: del}
	b.blocks[last] = append(p.key(block, f, key), value...)
	r := b.run(p, f)
	if k := len(r.entries); k > 0 && !r.mixed {
		r.mixed = bytes.Compare(b.key(&r.entries[k-1]), b.key(&e)) >= 0
	}
	r.entries = append(r.entries, e)
	r.bytes += n
	b.bytes += n
	b.n++
}

// run returns the run of a family. There are few.
func (b *Batch) run(p *Part, f Family) *run {
	for _, r := range b.runs {
		if r.family == f && r.part == p {
			return r
		}
	}
	r := &run{part: p, family: f}
	b.runs = append(b.runs, r)
	return r
}

func (b *Batch) key(e *entry) []byte { return b.blocks[e.block][e.at : e.at+e.key] }

func (b *Batch) value(e *entry) []byte {
	return b.blocks[e.block][e.at+e.key : e.at+e.key+e.value]
}

// Len returns the number of changes in the batch, and Bytes their size.
func (b *Batch) Len() int { return b.n }

// Bytes returns the size of keys and values in the batch.
func (b *Batch) Bytes() int { return b.bytes }

// Reset empties the batch and keeps its memory, or what it is likely to need of
// it.
func (b *Batch) Reset() {
	for _, r := range b.runs {
		r.entries, r.bytes, r.mixed = r.entries[:0], 0, false
	}
	if len(b.blocks) > 1 {
		clear(b.blocks[1:])
		b.blocks = b.blocks[:1]
	}
	if len(b.blocks) == 1 {
		if b.blocks[0] = b.blocks[0][:0]; cap(b.blocks[0]) > arenaBlock {
			b.blocks = b.blocks[:0]
		}
	}
	b.n, b.bytes = 0, 0
}

// sort puts the runs in order, and the entries in each, and leaves one for each
// key.
func (b *Batch) sort() {
	slices.SortFunc(b.runs, func(x, y *run) int {
		return cmp.Or(cmp.Compare(x.part.id, y.part.id), cmp.Compare(x.family, y.family))
	})
	for _, r := range b.runs {
		if r.mixed {
			b.sortRun(r)
		}
	}
}

// sortRun sorts by radix on eight bytes of the keys, from where they differ, and
// those with the same eight by comparing. Both keep equal keys in the order in
// which they came.
func (b *Batch) sortRun(r *run) {
	first := b.key(&r.entries[0])
	same := len(first)
	for i := range r.entries {
		key := b.key(&r.entries[i])
		same = min(same, len(key))
		for !bytes.Equal(first[:same], key[:same]) {
			same-- // seldom, but for the first few
		}
	}
	order := slices.Grow(r.order[:0], len(r.entries))[:len(r.entries)]
	for i := range r.entries {
		order[i] = ref{head(b.key(&r.entries[i])[same:]), uint32(i)}
	}
	swap := slices.Grow(b.swap[:0], len(order))[:len(order)]
	order, swap = radix(order, swap)
	b.swap = swap
	for i := 0; i < len(order); {
		k := i + 1
		for k < len(order) && order[k].head == order[i].head {
			k++
		}
		if k-i > 1 {
			slices.SortStableFunc(order[i:k], func(x, y ref) int {
				return bytes.Compare(b.key(&r.entries[x.index]), b.key(&r.entries[y.index]))
			})
		}
		i = k
	}
	r.order = order[:0]
	for i, o := range order {
		if i+1 < len(order) && o.head == order[i+1].head && bytes.Equal(b.key(&r.entries[o.index]), b.key(&r.entries[order[i+1].index])) {
			continue
		}
		r.order = append(r.order, o)
	}
}

// head returns the first eight bytes as a number, zeros if there are fewer.
func head(key []byte) uint64 {
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(key)
	}
	var h [8]byte
	copy(h[:], key)
	return binary.BigEndian.Uint64(h[:])
}

// radix sorts refs by their heads. It returns them, and memory of the same size.
func radix(in, out []ref) (sorted, free []ref) {
	var counts [8][256]uint32
	for i := range in {
		h := in[i].head
		for d := range counts {
			counts[d][byte(h>>(8*d))]++
		}
	}
	for d := range counts {
		c := &counts[d]
		if len(in) == 0 || int(c[byte(in[0].head>>(8*d))]) == len(in) {
			continue // the same in all
		}
		at := uint32(0)
		for i, n := range c {
			c[i] = at
			at += n
		}
		for _, r := range in {
			digit := byte(r.head >> (8 * d))
			out[c[digit]] = r
			c[digit]++
		}
		in, out = out, in
	}
	return in, out
}

// atOnce is how many entries are asked of the memory at once. Sorted, each is
// somewhere else, and waiting for many takes as long as for one.
const atOnce = 16

// touch asks the memory for the entries of a sorted run from i on.
func (b *Batch) touch(r *run, i int) {
	const line = 64 // of the processor's cache
	sum := byte(0)
	for _, o := range r.order[i:min(i+atOnce, len(r.order))] {
		e := &r.entries[o.index]
		block := b.blocks[e.block]
		for at := e.at; at < e.at+min(e.key+e.value, 4*line); at += line {
			sum += block[at]
		}
	}
	b.touched = sum
}

// len returns how many entries of a sorted run are to be written.
func (r *run) len() int {
	if r.mixed {
		return len(r.order)
	}
	return len(r.entries)
}

// at returns an entry of a sorted run.
func (r *run) at(i int) *entry {
	if r.mixed {
		return &r.entries[r.order[i].index]
	}
	return &r.entries[i]
}

// Commit makes the changes, all or none, and empties the batch. After an error
// none took effect, and the batch is as it was.
func (b *Batch) Commit() error {
	if b.n == 0 {
		return nil
	}
	b.sort()
	commit := b.write
	if b.bytes >= b.store.ingestBytes {
		commit = b.ingest
	}
	if err := commit(); err != nil {
		return b.store.check(err)
	}
	b.Reset()
	return nil
}

// write goes through the store's log.
func (b *Batch) write() error {
	batch := b.store.db.NewBatchWithSize(b.bytes + 16*b.n)
	defer batch.Close() //nolint:errcheck // it was committed, or it does not matter
	for _, r := range b.runs {
		for i := range r.len() {
			e := r.at(i)
			var err error
			if e.del {
				err = batch.Delete(b.key(e), nil)
			} else {
				err = batch.Set(b.key(e), b.value(e), nil)
			}
			if err != nil {
				return err
			}
		}
	}
	return batch.Commit(pebble.NoSync)
}

// ingest writes tables and hands them over in one step.
func (b *Batch) ingest() error {
	var paths []string
	defer func() {
		for _, p := range paths {
			_ = b.store.fs.Remove(p) // the store has taken them, or will never; else Open removes them
		}
	}()
	w := tableWriter{batch: b}
	for _, r := range b.runs {
		// Whoever is large has tables of its own. Then those of a family whose keys
		// only ever grow overlap with nothing, and stay as they are for good.
		if w.size >= minTable || r.bytes >= minTable {
			if err := w.close(); err != nil {
				return err
			}
		}
		for i := range r.len() {
			if i%atOnce == 0 && r.mixed {
				b.touch(r, i)
			}
			if w.size >= maxTable {
				if err := w.close(); err != nil {
					return err
				}
			}
			if w.table == nil {
				path, err := w.open(r.family)
				if path != "" {
					paths = append(paths, path)
				}
				if err != nil {
					return err
				}
			}
			if err := w.add(r.at(i)); err != nil {
				return errors.Join(err, w.close())
			}
		}
	}
	if err := w.close(); err != nil {
		return err
	}
	return b.store.db.Ingest(context.Background(), paths)
}

// tableWriter writes one table after the other.
type tableWriter struct {
	batch *Batch
	table *sstable.Writer // nil if none is open
	size  int
}

func (w *tableWriter) open(f Family) (path string, err error) {
	s := w.batch.store
	s.mu.Lock()
	s.tables++
	path = s.path("ingest", fmt.Sprintf("%06d.sst", s.tables))
	s.mu.Unlock()
	file, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return "", fmt.Errorf("writing a table: %w", err)
	}
	w.table = sstable.NewWriter(objstorageprovider.NewFileWritable(file), s.writer)
	return path, nil
}

func (w *tableWriter) add(e *entry) error {
	w.size += int(e.key + e.value)
	if e.del {
		return w.table.Delete(w.batch.key(e))
	}
	return w.table.Set(w.batch.key(e), w.batch.value(e))
}

func (w *tableWriter) close() error {
	if w.table == nil {
		return nil
	}
	err := w.table.Close()
	w.table, w.size = nil, 0
	return err
}
