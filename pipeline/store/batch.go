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

// A family that takes less than this part of the smallest ingested batch shares a table with
// its neighbors.
const minTablePart = 8

// maxTable is the size from which an ingested table gets no more entries, in bytes.
const maxTable = 64 << 20

// A Batch collects changes of one or more parts, which [Batch.Commit] applies
// atomically. The last of several changes to an entry wins. A Batch is not safe for
// concurrent use.
type Batch struct {
	store  *Store
	runs   []*run // one per family of each part
	blocks [][]byte
	n      int   // changes
	bytes  int   // size of keys and values
	swap   []ref // scratch of sort

	touched byte // sum of the bytes that touch read; keeps the compiler from removing the reads
}

// run holds the changes of one family of one part.
type run struct {
	part    *Part
	family  Family
	entries []entry
	bytes   int
	mixed   bool  // the keys are not strictly ascending
	order   []ref // if mixed, after sort: the entries to write
}

// entry is the position of a change: of its key, in the form on disk, and of its value.
// It has no pointers, so the garbage collector does not scan a million of them.
type entry struct {
	at, key, value uint32 // offset in the block, length of key and of value
	block          uint16
	del            bool
}

// ref represents an entry while it is sorted. head is the eight bytes of the key after
// the common prefix of the family's keys; they distinguish most keys.
type ref struct {
	head  uint64
	index uint32 // in entries
}

// Entries are stored in blocks of this size; a larger entry has a block of its own.
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

// SetPosition sets the part's position: the offset of the next record to read.
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

// run returns the run of a family. The search is linear, because there are few.
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

// Len returns the number of changes in the batch.
func (b *Batch) Len() int { return b.n }

// Bytes returns the size of the keys and values in the batch, in bytes.
func (b *Batch) Bytes() int { return b.bytes }

// Reset empties the batch. It keeps the memory that the next batch is likely to need.
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

// sort sorts the runs, and the entries of each mixed run; there it keeps only the last
// entry of each key.
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

// sortRun sorts by the eight bytes of the keys after their common prefix, with a radix
// sort, and entries with the same eight bytes by comparing keys. Both sorts are stable,
// so the last of several equal keys is the latest change.
func (b *Batch) sortRun(r *run) {
	first := b.key(&r.entries[0])
	same := len(first)
	for i := range r.entries {
		key := b.key(&r.entries[i])
		same = min(same, len(key))
		for !bytes.Equal(first[:same], key[:same]) {
			same-- // rare after the first few keys
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

// head returns the first eight bytes as a big-endian number, padded with zeros.
func head(key []byte) uint64 {
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(key)
	}
	var h [8]byte
	copy(h[:], key)
	return binary.BigEndian.Uint64(h[:])
}

// radix sorts refs by their heads, with a stable LSD radix sort between in and out. It
// returns the sorted one, and the other one as free memory.
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
			continue // all have the same digit
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

// touchedEntries is the number of entries that touch loads together. Sorted entries are
// scattered over the memory, and overlapping loads take as long as one.
const touchedEntries = 16

// touch loads the next entries of a sorted run, from i on, into the processor's cache.
func (b *Batch) touch(r *run, i int) {
	const line = 64 // bytes of a cache line
	sum := byte(0)
	for _, o := range r.order[i:min(i+touchedEntries, len(r.order))] {
		e := &r.entries[o.index]
		block := b.blocks[e.block]
		for at := e.at; at < e.at+min(e.key+e.value, 4*line); at += line {
			sum += block[at]
		}
	}
	b.touched = sum
}

// len returns the number of entries of a sorted run to write.
func (r *run) len() int {
	if r.mixed {
		return len(r.order)
	}
	return len(r.entries)
}

// at returns entry i of a sorted run.
func (r *run) at(i int) *entry {
	if r.mixed {
		return &r.entries[r.order[i].index]
	}
	return &r.entries[i]
}

// Commit applies all changes atomically and empties the batch. After an error no change
// is applied, the batch is unchanged, and the caller may retry. The error wraps
// [ErrNoSpace] if the disk has no room for the batch.
func (b *Batch) Commit() error {
	if b.n == 0 {
		return nil
	}
	if err := b.store.space.admit(b.bytes); err != nil {
		return err
	}
	b.sort()
	commit := b.write
	if b.bytes >= b.store.ingestBytes {
		commit = b.ingest
	}
	if err := commit(); err != nil {
		return b.store.check(err)
	}
	b.store.wrote(b.bytes)
	b.Reset()
	return nil
}

// write commits through the store's write-ahead log.
func (b *Batch) write() error {
	batch := b.store.db.NewBatchWithSize(b.bytes + 16*b.n)
	defer batch.Close() //nolint:errcheck // the commit has its own error
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

// ingest writes sorted tables and adds them to the store in one atomic step.
func (b *Batch) ingest() error {
	var paths []string
	defer func() {
		for _, p := range paths {
			_ = b.store.fs.Remove(p) // linked into the store, or of no use; the next Open removes leftovers
		}
	}()
	w := tableWriter{batch: b}
	minTable := b.store.ingestBytes / minTablePart
	for _, r := range b.runs {
		// A large family has tables of its own. If its keys only ever grow, its tables
		// overlap with no others and are never compacted.
		if w.size >= minTable || r.bytes >= minTable {
			if err := w.close(); err != nil {
				return err
			}
		}
		for i := range r.len() {
			if i%touchedEntries == 0 && r.mixed {
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

// tableWriter writes tables, one after the other.
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
