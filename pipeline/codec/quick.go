package codec

import (
	"encoding/binary"
	"math/bits"
)

// A quick program walks over a value as [walker.value] does, compiled for its
// type, as long as all is as it nearly always is. Where it is not sure it gives
// up, and the walker has its say: so there is one place that says what is wrong,
// and this one may be short.
type quick struct {
	op    quickOp
	size  int     // of a fixed size; symbols of an enum
	parts []quick // fields of a record, branches of a union, the one item of an array or a map
}

type quickOp uint8

const (
	quickNever quickOp = iota // left to the walker
	quickSize                 // size bytes
	quickBool
	quickInt
	quickLong
	quickText
	quickBytes
	quickEnum
	quickRecord
	quickUnion
	quickArray
	quickMap
	quickTexts // a map of texts
)

// maxQuickDepth is how deep the types are compiled.
const maxQuickDepth = 4

func newQuick(n *Node, depth int) quick {
	if depth > maxQuickDepth {
		return quick{}
	}
	parts := func(types ...*Node) []quick {
		qs := make([]quick, len(types))
		for i, t := range types {
			qs[i] = newQuick(t, depth+1)
		}
		return qs
	}
	switch n.Kind {
	case Null:
		return quick{op: quickSize}
	case Boolean:
		return quick{op: quickBool}
	case Int:
		return quick{op: quickInt}
	case Long:
		return quick{op: quickLong}
	case Float:
		return quick{op: quickSize, size: 4}
	case Double:
		return quick{op: quickSize, size: 8}
	case Fixed:
		return quick{op: quickSize, size: n.Size}
	case String:
		return quick{op: quickText}
	case Bytes:
		return quick{op: quickBytes} // a decimal, too: no short one is too long
	case Enum:
		return quick{op: quickEnum, size: len(n.Symbols)}
	case Record:
		q := quick{op: quickRecord}
		for i := range n.Fields {
			q.parts = append(q.parts, newQuick(n.Fields[i].Type, depth+1))
		}
		return q
	case Union:
		return quick{op: quickUnion, parts: parts(n.Branches...)}
	case Map:
		if n.Elem.Kind == String {
			return quick{op: quickTexts}
		}
		return quick{op: quickMap, parts: parts(n.Elem)}
	case Array:
		q := quick{op: quickArray, parts: parts(n.Elem)}
		if !q.parts[0].takesBytes() {
			return quick{} // the walker counts items without bytes
		}
		return q
	}
	return quick{}
}

// takesBytes reports whether no value is without bytes.
func (q *quick) takesBytes() bool {
	switch q.op {
	case quickSize:
		return q.size > 0
	case quickRecord:
		for i := range q.parts {
			if q.parts[i].takesBytes() {
				return true
			}
		}
		return false
	}
	return q.op != quickNever
}

// walk returns the position after the value at pos, or -1 if it is not sure.
func (q *quick) walk(b []byte, pos int) int {
	switch q.op {
	case quickSize:
		if q.size <= len(b)-pos {
			return pos + q.size
		}
	case quickBool:
		if pos < len(b) && b[pos] <= 1 {
			return pos + 1
		}
	case quickInt, quickLong:
		if pos < len(b) && b[pos] < 0x80 {
			return pos + 1
		}
		if pos+8 > len(b) {
			return -1
		}
		last := ^binary.LittleEndian.Uint64(b[pos:]) & 0x8080808080808080
		n := bits.TrailingZeros64(last)/8 + 1 // 9 if there is none
		if n <= 4 || n <= 8 && q.op == quickLong {
			return pos + n
		}
	case quickText:
		n, at := shortLength(b, pos)
		if n <= len(b)-at && validUTF8(b[at:at+n]) {
			return at + n
		}
	case quickBytes:
		n, at := shortLength(b, pos)
		if n <= len(b)-at {
			return at + n
		}
	case quickEnum:
		if pos < len(b) && b[pos]&0x81 == 0 && int(b[pos]>>1) < q.size {
			return pos + 1
		}
	case quickUnion:
		if pos < len(b) && b[pos]&0x81 == 0 && int(b[pos]>>1) < len(q.parts) {
			return q.parts[b[pos]>>1].walk(b, pos+1)
		}
	case quickRecord:
		for i := range q.parts {
			if pos = q.parts[i].walk(b, pos); pos < 0 {
				return -1
			}
		}
		return pos
	case quickTexts:
		return texts(b, pos)
	case quickArray, quickMap:
		return q.items(b, pos)
	}
	return -1
}

// texts walks over a map of texts that is one block: by far the most common.
func texts(b []byte, pos int) int {
	if pos >= len(b) || b[pos]&0x81 != 0 {
		return -1
	}
	n := 2 * int(b[pos]>>1) // keys and values
	pos++
	if n == 0 {
		return pos
	}
	first := pos
	for range n {
		if uint(pos) >= uint(len(b)) || b[pos]&0x81 != 0 {
			return -1
		}
		pos += 1 + int(b[pos]>>1)
	}
	// All at once: a length of one byte is ASCII, too, and never part of a letter.
	if pos > len(b) || !validUTF8(b[first:pos]) {
		return -1
	}
	if pos < len(b) && b[pos] == 0 {
		return pos + 1
	}
	return -1
}

// items walks over the blocks of an array or a map.
func (q *quick) items(b []byte, pos int) int {
	item := &q.parts[0]
	for pos < len(b) && b[pos]&0x81 == 0 { // few items, and the block's size is not given
		count := b[pos] >> 1
		pos++
		if count == 0 {
			return pos
		}
		for range count {
			if q.op == quickMap {
				n, at := shortLength(b, pos)
				if n > len(b)-at || !validUTF8(b[at:at+n]) {
					return -1
				}
				pos = at + n
			}
			if pos = item.walk(b, pos); pos < 0 {
				return -1
			}
		}
	}
	return -1
}

// shortLength returns the length that stands at pos, if it has one byte, and the
// position after it; else a length that is too large for b.
func shortLength(b []byte, pos int) (n, at int) {
	if pos < len(b) && b[pos]&0x81 == 0 {
		return int(b[pos] >> 1), pos + 1
	}
	return len(b) + 1, 0
}
