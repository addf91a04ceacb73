package codec

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"millrace/pipeline"
)

// A program walks over a body like [walker], compiled for its layout. It handles only
// the common encodings and leaves every other value to the walker. So errors are
// described in one place, and the program stays short. It is one loop, because an
// instruction does less work than a call would cost.
//
// It checks UTF-8 once per run, not once per text. A run is a sequence of texts with
// one-byte lengths and of other values of one byte below 0x80. It ends at a value of
// another form, such as a double. A byte below 0x80 is ASCII and never part of a
// multi-byte character, so the run is UTF-8 exactly if each text in it is.
type program []instruction

// An instruction walks over a value, or selects the next instruction.
type instruction struct {
	op    opcode
	depth uint8 // of the value in the record, at most maxWalkDepth+maxNest+1
	size  int32 // bytes of a fixed size, number of symbols or branches, or depth of a loop
	to    int32 // the instruction to jump to; for opAdded, its step
	slot  int32 // of a wanted value
	node  *Node // type of the value
}

type opcode uint8

const (
	opText opcode = iota
	opInt         // walk relies on opInt and opLong being adjacent
	opLong
	opSize // size bytes
	opBool
	opBytes
	opEnum
	opTexts  // a map of texts
	opWalker // always left to the walker
	opBlock  // reads the item count of a block, at a loop depth; jumps if it is 0
	opItem   // jumps to the start of the items or, after the last one, to the opBlock before it
	opUnion  // jumps to the opGoto of the branch, one of the size instructions that follow
	opGoto   // jumps
	opStart  // start of a wanted leaf of several instructions
	opEnd    // end of that leaf
	opAdded  // position of a leaf that the body lacks

	wanted opcode = 0x80 // flag on an opcode before opBlock: the value is a wanted leaf
)

// Limits of a program. Values beyond them are left to the walker.
const (
	maxLoops = 4       // nesting of arrays and maps; a power of two
	maxNest  = 8       // nesting of values
	maxCode  = 1 << 12 // instructions
)

// keyNode is the type of a map's keys.
var keyNode = &Node{Kind: String}

func (p *program) add(in instruction) (at int) {
	*p = append(*p, in)
	return len(*p) - 1
}

// leaf compiles a step of a layout; number is its index.
func (p *program) leaf(s *step, number int) {
	slot := int32(s.slot)
	if s.added {
		p.add(instruction{op: opAdded, slot: slot, to: int32(number)})
		return
	}
	if slot < 0 {
		p.value(s.node, s.depth, 0, 0)
		return
	}
	start := p.add(instruction{op: opStart})
	p.value(s.node, s.depth, 0, 0)
	if value := (*p)[start+1:]; len(value) == 1 { // a single instruction needs no opStart and opEnd
		value[0].op |= wanted
		value[0].slot = slot
		*p = append((*p)[:start], value[0])
		return
	}
	p.add(instruction{op: opEnd, slot: slot})
}

// value compiles a type; depth is that of its values in the record, nest its depth in
// the leaf, loops the number of arrays and maps around it there.
func (p *program) value(n *Node, depth, nest, loops int) {
	in := instruction{op: opWalker, depth: uint8(depth), node: n}
	switch {
	case depth > maxWalkDepth || nest > maxNest || len(*p) > maxCode:
	case n.Kind == Null:
		return
	case n.Kind == Record:
		for i := range n.Fields {
			p.value(n.Fields[i].Type, depth+1, nest+1, loops)
		}
		return
	case n.Kind == Union:
		p.union(n, depth, nest, loops)
		return
	case n.Kind == Map && n.Elem.Kind == String:
		in.op = opTexts
	case n.Kind == Map || n.Kind == Array:
		if left := maxCode; loops == maxLoops || n.Kind == Array && !neverEmpty(n.Elem, &left) {
			break // the walker counts items without bytes
		}
		p.items(n, depth, nest, loops)
		return
	case n.Kind == Boolean:
		in.op = opBool
	case n.Kind == Int:
		in.op = opInt
	case n.Kind == Long:
		in.op = opLong
	case n.Kind == Float:
		in.op, in.size = opSize, 4
	case n.Kind == Double:
		in.op, in.size = opSize, 8
	case n.Kind == Fixed && (n.Logical != "decimal" || n.Size <= maxDecimal):
		in.op, in.size = opSize, int32(n.Size)
	case n.Kind == String:
		in.op = opText
	case n.Kind == Enum:
		in.op, in.size = opEnum, int32(len(n.Symbols))
	case n.Kind == Bytes:
		in.op = opBytes // a decimal, too: with a one-byte length it is below maxDecimal
	}
	p.add(in)
}

func (p *program) union(n *Node, depth, nest, loops int) {
	union := p.add(instruction{op: opUnion, depth: uint8(depth), size: int32(len(n.Branches)), node: n})
	for range n.Branches {
		p.add(instruction{op: opGoto})
	}
	var ends []int
	for i, branch := range n.Branches {
		(*p)[union+1+i].to = int32(len(*p))
		p.value(branch, depth+1, nest+1, loops)
		ends = append(ends, p.add(instruction{op: opGoto}))
	}
	for _, at := range append(ends, union) {
		(*p)[at].to = int32(len(*p))
	}
}

func (p *program) items(n *Node, depth, nest, loops int) {
	block := p.add(instruction{op: opBlock, depth: uint8(depth), size: int32(loops), node: n})
	if n.Kind == Map {
		p.add(instruction{op: opText, node: keyNode})
	}
	p.value(n.Elem, depth+1, nest+1, loops+1)
	p.add(instruction{op: opItem, size: int32(loops), to: int32(block + 1)})
	(*p)[block].to = int32(len(*p))
}

// neverEmpty reports whether every value of the type has at least one byte. It visits
// at most left types, and returns false if that does not suffice.
func neverEmpty(n *Node, left *int) bool {
	*left--
	switch {
	case *left < 0 || n.Kind == Null:
		return false
	case n.Kind == Fixed:
		return n.Size > 0
	case n.Kind == Record:
		return slices.ContainsFunc(n.Fields, func(f Field) bool { return neverEmpty(f.Type, left) })
	}
	return true
}

// walk walks over a body and fills the slots of the view; steps are those of the layout.
// It returns false if the body is invalid.
func (p program) walk(body []byte, v *pipeline.View, steps []step) bool {
	var (
		left  [maxLoops]int // remaining items of the current block, by loop depth
		pos   int           // past the end of the body after a truncated text
		run   int           // start of the current run
		start int           // start of the current leaf, set by opStart
		empty int           // items of zero bytes so far
	)
	for pc := 0; pc < len(p); {
		in := &p[pc]
		pc++
		c := byte(0x81) // matches no fast path; also marks the end of the body
		if uint(pos) < uint(len(body)) {
			c = body[pos]
		}
		// The most common instructions first.
		if in.op == opText && c&0x81 == 0 {
			pos += 1 + int(c>>1)
			continue
		}
		if in.op-opInt <= opLong-opInt && c < 0x80 {
			pos++
			continue
		}
		end, inRun := -1, true // inRun: the run continues after the value
		switch in.op &^ wanted {
		case opText:
			if c&0x81 == 0 {
				end = pos + 1 + int(c>>1)
			}
		case opInt, opLong:
			if c < 0x80 {
				end = pos + 1
			} else if pos+8 <= len(body) {
				n := bits.TrailingZeros64(^binary.LittleEndian.Uint64(body[pos:])&highBits)/8 + 1 // 9 if the number has more than 8 bytes
				if n <= 4 || n <= 8 && in.op&^wanted == opLong {
					end, inRun = pos+n, false
				}
			}
		case opSize:
			end, inRun = pos+int(in.size), false
		case opBytes:
			if c&0x81 == 0 {
				end, inRun = pos+1+int(c>>1), false
			}
		case opBool:
			if c <= 1 {
				end = pos + 1
			}
		case opEnum:
			if c&0x81 == 0 && int32(c>>1) < in.size {
				end = pos + 1
			}
		case opTexts:
			end = textsEnd(body, pos, c)
		case opBlock:
			if c&0x81 == 0 {
				pos++
				if left[in.size&(maxLoops-1)] = int(c >> 1); c == 0 {
					pc = int(in.to)
				}
				continue
			}
		case opItem:
			pc = int(in.to)
			if left[in.size&(maxLoops-1)]--; left[in.size&(maxLoops-1)] == 0 {
				pc--
			}
			continue
		case opUnion:
			if c&0x81 == 0 && int32(c>>1) < in.size {
				pos++
				pc += int(c >> 1)
				continue
			}
		case opGoto:
			pc = int(in.to)
			continue
		case opStart:
			start = pos
			continue
		case opEnd:
			v.SetSpan(int(in.slot), pipeline.Span{Start: start, End: pos})
			continue
		case opAdded:
			steps[in.to].add(v, pos)
			continue
		}
		if end < 0 {
			inRun = false
			if end, empty = p.walkerEnd(pc-1, body, pos, empty); end < 0 {
				return false
			}
			if in.to > 0 { // a union or a block: the walker took all of it
				pc = int(in.to)
			}
		}
		if end > len(body) {
			return false
		}
		if in.op >= wanted {
			v.SetSpan(int(in.slot), pipeline.Span{Start: pos, End: end})
		}
		if !inRun {
			// A short run is read as one word; the bytes after it are shifted out.
			n := uint(pos - run)
			ascii := n < 8 && run+8 <= len(body) && binary.LittleEndian.Uint64(body[run:])<<(64-8*n)&highBits == 0
			if !ascii && !validUTF8(body[run:pos]) {
				return false
			}
			run = end
		}
		pos = end
	}
	return pos == len(body) && validUTF8(body[run:])
}

// highBits selects the top bit of each byte. It is set in a byte that is not ASCII, and in
// each byte of a varint except the last.
const highBits = 0x8080808080808080

// textsEnd returns the position after a map of texts whose first byte is c. It returns -1
// unless the map has at most one block, and a one-byte count and lengths.
func textsEnd(b []byte, pos int, c byte) int {
	if c&0x81 != 0 {
		return -1
	}
	pos++
	if c == 0 {
		return pos
	}
	for n := c; n > 0; n-- { // c is twice the number of entries: one text per key and value
		if uint(pos) >= uint(len(b)) {
			return -1
		}
		length := b[pos]
		if length&0x81 != 0 {
			return -1
		}
		pos += 1 + int(length>>1)
	}
	if uint(pos) >= uint(len(b)) || b[pos] != 0 {
		return -1
	}
	return pos + 1
}

// walkerEnd has the walker walk over the value of an instruction; empty is the number of
// items of zero bytes so far. It returns the position after the value, -1 if it is
// invalid, and the new number. It gets the number of the instruction because that keeps
// the loop of walk faster than a pointer to it.
func (p program) walkerEnd(at int, body []byte, pos, empty int) (end, met int) {
	if pos > len(body) {
		return -1, 0
	}
	w := walker{buf: body, empty: empty}
	if end = w.value(p[at].node, pos, int(p[at].depth)); w.msg != "" {
		return -1, 0
	}
	return end, w.empty
}
