package expr

import (
	"encoding/binary"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// texts is a map of strings in its usual encoding: one block of at most 63
// entries, with keys and values of at most 63 bytes, so every length is one byte.
type texts struct {
	count   int
	entries []byte // encoded, without the block count and the final zero
}

// textsIn returns the map in enc if it is one block of at most 63 strings. It
// does not check the lengths; the methods of texts do.
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

// entryAt returns the start and the end of the value of the entry at pos, or pos
// twice if a length is not one byte. It is shortText twice, in a form that the
// compiler inlines.
func entryAt(b []byte, pos int) (value, end int) {
	if uint(pos) >= uint(len(b)) || b[pos]&0x81 != 0 {
		return pos, pos
	}
	value = pos + 1 + int(b[pos]>>1)
	if uint(value) >= uint(len(b)) || b[value]&0x81 != 0 {
		return pos, pos
	}
	if end = value + 1 + int(b[value]>>1); end > len(b) {
		return pos, pos
	}
	return value, end
}

// lookup returns the value of a key in a map. If the key occurs more than once,
// the last value is returned.
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

// lookup is the function lookup. ok is false if an entry has a long key or value.
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

// lacks reports whether the map has none of the keys of set. It returns false if
// an entry has a long key or value.
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

// begin appends the block count for the map plus more new entries, and then the
// entries of the map. The caller appends the new entries and the final zero.
func (m texts) begin(dst []byte, more int) []byte {
	if m.count+more == 0 {
		return dst
	}
	return append(codec.AppendLong(dst, int64(m.count+more)), m.entries...)
}

// An Entry is one entry of an Avro map. Value is encoded as Avro.
type Entry struct {
	Key   []byte
	Value []byte
}

// AppendMap appends the map enc, of type n, with the entries of set replaced or
// added. The result is one block: the entries of enc in their order, then the new
// ones. The keys of set are distinct.
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

// replaceEntries is AppendMap without the fast path: for any encoding of a map,
// and for keys that the map may already have.
func replaceEntries(dst []byte, n *codec.Node, enc []byte, set []Entry) ([]byte, error) {
	mark := len(dst)
	dst = append(dst, 0) // space for the count, which is known at the end
	count := int64(0)
	var met uint64 // bit i is set if the map has the key set[i]
	it := items{node: n, rest: enc}
	for it.next() {
		count++
		if i := entryOf(set, it.key); i < 0 {
			dst = append(dst, it.start...)
		} else {
			dst = appendEntry(dst, set[i])
			met |= 1 << i // has no effect for i >= 64
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
	if count >= 64 { // the count needs more than one byte
		var long [binary.MaxVarintLen64]byte
		dst = slices.Replace(dst, mark, mark+1, codec.AppendLong(long[:0], count)...)
	}
	return append(dst, 0), nil
}

// A MapUpdate sets entries of a map, as [AppendMap] does, to the results of
// programs. One goroutine at a time may use it.
type MapUpdate struct {
	node     *codec.Node
	set      []Entry // the values are slices of written
	programs []*Program

	written []byte          // the encoded entries of set
	spans   []pipeline.Span // of the values in written

	// The next call reuses written if the programs would return the same again.
	steady bool             // no program reads a field
	clock  func() time.Time // for now(); nil if no program has now()
	at     instant          // the time at which written was made
	valid  bool             // written is complete
}

// NewMapUpdate returns an update of maps of type n. The keys are distinct. The
// programs are bound, and each returns a value of the map.
func NewMapUpdate(n *codec.Node, keys [][]byte, programs []*Program) *MapUpdate {
	u := &MapUpdate{node: n, programs: programs, spans: make([]pipeline.Span, len(keys)), steady: true}
	for i, key := range keys {
		u.set = append(u.set, Entry{Key: key})
		u.steady = u.steady && len(programs[i].refs)+len(programs[i].guards) == 0
		if programs[i].clock != nil {
			u.clock = programs[i].clock
		}
	}
	return u
}

// Append evaluates the programs in the scope and appends the map enc with the
// entries set to the results. On an error, which is that of [Program.AppendIn], it
// returns dst unchanged.
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

// write evaluates the programs and encodes the entries.
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
