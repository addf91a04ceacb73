package expr

import (
	"encoding/binary"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// texts are the entries of a map of texts that is one block of few and short ones, as
// nearly all are: at most 63 of them, of at most 63 bytes each.
type texts struct {
	count   int
	entries []byte // as they stand in the block
}

// textsIn returns nothing of any other map.
func textsIn(n *codec.Node, enc []byte) (m texts, ok bool) {
	if n.Elem.Kind != codec.String || len(enc) == 0 || enc[0]&0x81 != 0 {
		return texts{}, false
	}
	last := len(enc) - 1
	if enc[0] == 0 {
		return texts{}, last == 0
	}
	if last == 0 || enc[last] != 0 {
		return texts{}, false
	}
	return texts{int(enc[0] >> 1), enc[1:last]}, true
}

// entryAt returns, for the entry at pos of a block, where its value begins and where
// that ends; pos itself if it is not a short one. It is shortText twice, written so that
// the compiler puts it in line.
func entryAt(b []byte, pos int) (value, end int) {
	if uint(pos) < uint(len(b)) {
		if size := b[pos]; size&0x81 == 0 {
			value = pos + 1 + int(size>>1)
			if uint(value) < uint(len(b)) {
				if size := b[value]; size&0x81 == 0 {
					if end = value + 1 + int(size>>1); end <= len(b) {
						return value, end
					}
				}
			}
		}
	}
	return pos, pos
}

// lookup returns the value under a key of a map. Of several, the last counts.
func lookup(n *codec.Node, enc, key []byte) (value []byte, found bool, err error) {
	if m, ok := textsIn(n, enc); ok {
		if value, found, ok = m.lookup(key); ok {
			return value, found, nil
		}
	}
	value, found = nil, false
	it := items{node: n, rest: enc}
	for it.next() {
		if string(it.key) == string(key) {
			value, found = it.value, true
		}
	}
	return value, found, it.err
}

func (m texts) lookup(key []byte) (value []byte, found, ok bool) {
	b, pos := m.entries, 0
	for range m.count {
		mid, end := entryAt(b, pos)
		if end == pos {
			return nil, false, false
		}
		if string(b[pos+1:mid]) == string(key) {
			value, found = b[mid:end:end], true
		}
		pos = end
	}
	return value, found, pos == len(b)
}

// lacks reports whether it has none of the keys; false if an entry is no short one.
func (m texts) lacks(set []Entry) bool {
	b, pos := m.entries, 0
	for range m.count {
		mid, end := entryAt(b, pos)
		if end == pos || entryOf(set, b[pos+1:mid]) >= 0 {
			return false
		}
		pos = end
	}
	return pos == len(b)
}

// begin appends the map with so many more entries than it has, but for these and the
// zero behind them.
func (m texts) begin(dst []byte, more int) []byte {
	if m.count+more == 0 {
		return dst
	}
	return append(codec.AppendLong(dst, int64(m.count+more)), m.entries...)
}

// An Entry is one entry of an Avro map: its key, and its value as Avro has it.
type Entry struct {
	Key   []byte
	Value []byte
}

// AppendMap appends the map enc, of type n, with entries replaced or added: one
// block, the entries it had in their order, the new ones behind them. The keys
// of set are distinct.
func AppendMap(dst []byte, n *codec.Node, enc []byte, set []Entry) ([]byte, error) {
	if m, ok := textsIn(n, enc); ok && m.lacks(set) {
		dst = m.begin(dst, len(set))
		for i := range set {
			dst = appendEntry(dst, set[i])
		}
		return append(dst, 0), nil
	}
	return replaceEntries(dst, n, enc, set)
}

// replaceEntries is AppendMap for any map, and entries that may be in it.
func replaceEntries(dst []byte, n *codec.Node, enc []byte, set []Entry) ([]byte, error) {
	mark := len(dst)
	dst = append(dst, 0) // for the count, which is known at the end
	count := int64(0)
	var met uint64 // those of set that were there, as bits
	it := items{node: n, rest: enc}
	for it.next() {
		count++
		if i := entryOf(set, it.key); i < 0 {
			dst = append(dst, it.start...)
		} else {
			dst = appendEntry(dst, set[i])
			met |= 1 << i // nothing, of the 65th and those that follow
		}
	}
	if it.err != nil {
		return dst[:mark], it.err
	}
	for i := range set {
		if met&(1<<i) == 0 && (i < 64 || !hasKey(n, enc, set[i].Key)) {
			dst = appendEntry(dst, set[i])
			count++
		}
	}
	if count == 0 {
		return dst, nil
	}
	dst[mark] = byte(count << 1)
	if count >= 64 { // more than a byte
		var long [binary.MaxVarintLen64]byte
		dst = slices.Replace(dst, mark, mark+1, codec.AppendLong(long[:0], count)...)
	}
	return append(dst, 0), nil
}

// A MapUpdate sets entries of a map, as [AppendMap] does, to what programs make for an
// event. It is for one goroutine at a time.
type MapUpdate struct {
	node     *codec.Node
	set      []Entry // the values are parts of written
	programs []*Program

	written []byte          // the entries of set as they stand in a map
	spans   []pipeline.Span // of the values in it

	// What was written stays as long as it would come out the same.
	steady bool             // no program reads a field
	clock  func() time.Time // of those that have now(), else nil
	at     instant          // of the clock, when it was written
	valid  bool
}

// NewMapUpdate returns an update of maps of type n. The keys are distinct; each
// program, of a bound expression, makes a value of n.
func NewMapUpdate(n *codec.Node, keys [][]byte, programs []*Program) *MapUpdate {
	u := &MapUpdate{node: n, programs: programs, spans: make([]pipeline.Span, len(keys)), steady: true}
	for i, key := range keys {
		u.set = append(u.set, Entry{Key: key})
		u.steady = u.steady && len(programs[i].refs) == 0
		if programs[i].clock != nil {
			u.clock = programs[i].clock
		}
	}
	return u
}

// Append appends the map enc with the entries set to what the programs make in a scope.
// The error is that of [Program.AppendIn]; dst is then as it was.
func (u *MapUpdate) Append(dst []byte, s *Scope, enc []byte) ([]byte, error) {
	if !u.steady || !u.valid || u.clock != nil && s.time(u.clock) != u.at {
		if err := u.write(s); err != nil {
			return dst, err
		}
	}
	if m, ok := textsIn(u.node, enc); ok && m.lacks(u.set) {
		return append(append(m.begin(dst, len(u.set)), u.written...), 0), nil
	}
	return replaceEntries(dst, u.node, enc, u.set)
}

// write makes the entries.
func (u *MapUpdate) write(s *Scope) error {
	u.valid = false
	out := u.written[:0]
	for i := range u.set {
		out = appendKey(out, u.set[i].Key)
		u.spans[i].Start = len(out)
		var err error
		if out, err = u.programs[i].AppendIn(s, out); err != nil {
			return err
		}
		u.spans[i].End = len(out)
	}
	for i, at := range u.spans {
		u.set[i].Value = out[at.Start:at.End:at.End]
	}
	u.written, u.valid = out, true
	if u.clock != nil {
		u.at = s.time(u.clock)
	}
	return nil
}

func hasKey(n *codec.Node, enc, key []byte) bool {
	it := items{node: n, rest: enc}
	for it.next() {
		if string(it.key) == string(key) {
			return true
		}
	}
	return false
}

func appendEntry(dst []byte, e Entry) []byte { return append(appendKey(dst, e.Key), e.Value...) }

func appendKey(dst, key []byte) []byte {
	return append(codec.AppendLong(dst, int64(len(key))), key...)
}

func entryOf(set []Entry, key []byte) int {
	for i := range set {
		if string(set[i].Key) == string(key) {
			return i
		}
	}
	return -1
}
