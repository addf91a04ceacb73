package raw

import (
	"encoding/binary"
	"slices"

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

// Lookup returns the value of a key in a map. If the key occurs more than once,
// the last value is returned.
func Lookup(n *codec.Node, enc, key []byte) (value []byte, found bool, err error) {
	if m, ok := textsIn(n, enc); ok {
		if value, found, ok = m.lookup(key); ok {
			return value, found, nil
		}
	}
	value, found = nil, false
	it := ItemsOf(n, enc)
	for it.Next() {
		if string(it.Key) == string(key) {
			value, found = it.Value, true
		}
	}
	return value, found, it.Err
}

// lookup is the function Lookup. ok is false if an entry has a long key or value.
func (m texts) lookup(key []byte) (value []byte, found, ok bool) {
	b, pos := m.entries, 0
	for range m.count {
		mid, end := entryAt(b, pos)
		if end == pos {
			return nil, false, false
		}
		if mid-pos-1 == len(key) && string(b[pos+1:mid]) == string(key) { // the length first: it usually differs
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
		if end == pos {
			return false
		}
		for i := range set {
			if key := set[i].Key; len(key) == mid-pos-1 && string(key) == string(b[pos+1:mid]) {
				return false
			}
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

// A Set holds the entries to set in maps of one type, for use with many maps.
type Set struct {
	Node    *codec.Node // the type of the maps
	Entries []Entry     // with distinct keys
	Encoded []byte      // the entries as they are written, one after the other
}

// Append is AppendMap with the entries of the set.
func (s *Set) Append(dst, enc []byte) ([]byte, error) {
	if m, ok := textsIn(s.Node, enc); ok && m.lacks(s.Entries) {
		return append(append(m.begin(dst, len(s.Entries)), s.Encoded...), 0), nil
	}
	return replaceEntries(dst, s.Node, enc, s.Entries)
}

// replaceEntries is AppendMap without the fast path: for any encoding of a map,
// and for keys that the map may already have.
func replaceEntries(dst []byte, n *codec.Node, enc []byte, set []Entry) ([]byte, error) {
	mark := len(dst)
	dst = append(dst, 0) // space for the count, which is known at the end
	count := int64(0)
	var met uint64 // bit i is set if the map has the key set[i]
	it := ItemsOf(n, enc)
	for it.Next() {
		count++
		if i := entryOf(set, it.Key); i < 0 {
			dst = append(dst, it.Whole...)
		} else {
			dst = appendEntry(dst, set[i])
			met |= 1 << i // has no effect for i >= 64
		}
	}
	if it.Err != nil {
		return dst[:mark], it.Err
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

func hasKey(n *codec.Node, enc, key []byte) bool {
	it := ItemsOf(n, enc)
	for it.Next() {
		if string(it.Key) == string(key) {
			return true
		}
	}
	return false
}

func appendEntry(dst []byte, e Entry) []byte { return append(AppendKey(dst, e.Key), e.Value...) }

// AppendKey appends the key of an entry.
func AppendKey(dst, key []byte) []byte {
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
