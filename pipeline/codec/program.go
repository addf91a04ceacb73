package codec

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"millrace/pipeline"
)

// A program walks over a body as [walker] does, compiled for its layout, as long as
// all is as it nearly always is. What it is not sure of it leaves to the walker: so
// there is one place that says what is wrong, and this one may be short. It is one
// loop, for what an instruction does takes less than a call.
//
// It does not look at each text by itself. What stands between two values that are
// no text, the run, is looked at all at once when it ends: texts, their lengths of
// one byte, and whatever else has one byte below 0x80. Such a byte is ASCII, and never
// part of a letter, so the run is UTF-8 exactly when each text in it is.
type program []instruction

// An instruction walks over a value, or says what is next.
type instruction struct {
	op   opcode
	size int32 // of a fixed size, or how many symbols or branches; or a depth
	to   int32 // the instruction to go on with; of an opAdded, its step
	slot int32 // of a value that is wanted
	node *Node // of the value
}

type opcode uint8

const (
	opText opcode = iota
	opInt         // with opLong behind it
	opLong
	opSize // size bytes
	opBool
	opBytes
	opEnum
	opTexts  // a map of texts
	opWalker // never sure
	opBlock  // the number of items in a block, at a depth; if there are none, goes to
	opItem   // goes to the next item, or to its opBlock, the instruction before
	opUnion  // goes to one of size instructions that follow: the opGoto of the branch
	opGoto   // goes to
	opStart  // here begins a leaf of several instructions that is wanted
	opEnd    // and here it ends
	opAdded  // here would be a leaf

	wanted opcode = 0x80 // with one of those before opBlock: this is a leaf
)

// What a program is compiled for; what is beyond is left to the walker.
const (
	maxLoops = 4 // arrays and maps within each other; a power of two
	maxNest  = 8 // values within each other
	maxCode  = 1 << 12
)

// keyNode is the type of a map's keys.
var keyNode = &Node{Kind: String}

func (p *program) add(in instruction) (at int) {
	*p = append(*p, in)
	return len(*p) - 1
}

// leaf compiles the step of a layout.
func (p *program) leaf(s *step, number int) {
	slot := int32(s.slot)
	if s.added {
		p.add(instruction{op: opAdded, slot: slot, to: int32(number)})
		return
	}
	if slot < 0 {
		p.value(s.node, 0, 0)
		return
	}
	start := p.add(instruction{op: opStart})
	p.value(s.node, 0, 0)
	if value := (*p)[start+1:]; len(value) == 1 { // which then needs no others around it
		value[0].op |= wanted
		value[0].slot = slot
		*p = append((*p)[:start], value[0])
		return
	}
	p.add(instruction{op: opEnd, slot: slot})
}

// value compiles a type within so many others, some of them loops.
func (p *program) value(n *Node, nest, loops int) {
	in := instruction{op: opWalker, node: n}
	switch {
	case nest > maxNest || len(*p) > maxCode:
	case n.Kind == Null:
		return
	case n.Kind == Record:
		for i := range n.Fields {
			p.value(n.Fields[i].Type, nest+1, loops)
		}
		return
	case n.Kind == Union:
		p.union(n, nest, loops)
		return
	case n.Kind == Map && n.Elem.Kind == String:
		in.op = opTexts
	case n.Kind == Map || n.Kind == Array:
		if left := maxCode; loops == maxLoops || n.Kind == Array && !takesBytes(n.Elem, &left) {
			break // the walker counts items without bytes
		}
		p.items(n, nest, loops)
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
	case n.Kind == Fixed:
		in.op, in.size = opSize, int32(n.Size)
	case n.Kind == String:
		in.op = opText
	case n.Kind == Enum:
		in.op, in.size = opEnum, int32(len(n.Symbols))
	case n.Kind == Bytes:
		in.op = opBytes // a decimal, too: no short one is too long
	}
	p.add(in)
}

func (p *program) union(n *Node, nest, loops int) {
	union := p.add(instruction{op: opUnion, size: int32(len(n.Branches)), node: n})
	for range n.Branches {
		p.add(instruction{op: opGoto})
	}
	var ends []int
	for i, branch := range n.Branches {
		(*p)[union+1+i].to = int32(len(*p))
		p.value(branch, nest+1, loops)
		ends = append(ends, p.add(instruction{op: opGoto}))
	}
	for _, at := range append(ends, union) {
		(*p)[at].to = int32(len(*p))
	}
}

func (p *program) items(n *Node, nest, loops int) {
	block := p.add(instruction{op: opBlock, size: int32(loops), node: n})
	if n.Kind == Map {
		p.add(instruction{op: opText, node: keyNode})
	}
	p.value(n.Elem, nest+1, loops+1)
	p.add(instruction{op: opItem, size: int32(loops), to: int32(block + 1)})
	(*p)[block].to = int32(len(*p))
}

// takesBytes reports whether it is sure, after a look at so many types, that no value of
// the type is without bytes.
func takesBytes(n *Node, left *int) bool {
	*left--
	switch {
	case *left < 0 || n.Kind == Null:
		return false
	case n.Kind == Fixed:
		return n.Size > 0
	case n.Kind == Record:
		return slices.ContainsFunc(n.Fields, func(f Field) bool { return takesBytes(f.Type, left) })
	}
	return true
}

// walk walks over a body and fills the view's slots; steps are those of the layout.
// It returns false if something is wrong with the body.
func (p program) walk(body []byte, v *pipeline.View, steps []step) bool {
	var (
		left  [maxLoops]int // of the blocks at hand, items
		pos   int           // behind the end of the body after a text that is cut off
		run   int           // where it begins
		start int           // of a leaf
		empty int           // items without bytes so far
	)
	for pc := 0; pc < len(p); {
		in := &p[pc]
		pc++
		c := byte(0x81) // nobody is sure of it
		if uint(pos) < uint(len(body)) {
			c = body[pos]
		}
		// The commonest first.
		if in.op == opText && c&0x81 == 0 {
			pos += 1 + int(c>>1)
			continue
		}
		if in.op-opInt <= opLong-opInt && c < 0x80 {
			pos++
			continue
		}
		end, goesOn := -1, true // the run
		switch in.op &^ wanted {
		case opText:
			if c&0x81 == 0 {
				end = pos + 1 + int(c>>1)
			}
		case opInt, opLong:
			if c < 0x80 {
				end = pos + 1
			} else if pos+8 <= len(body) {
				n := bits.TrailingZeros64(^binary.LittleEndian.Uint64(body[pos:])&highBits)/8 + 1 // 9 if they all go on
				if n <= 4 || n <= 8 && in.op&^wanted == opLong {
					end, goesOn = pos+n, false
				}
			}
		case opSize:
			end, goesOn = pos+int(in.size), false
		case opBytes:
			if c&0x81 == 0 {
				end, goesOn = pos+1+int(c>>1), false
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
			goesOn = false
			if end, empty = walkerEnd(in.node, body, pos, empty); end < 0 {
				return false
			}
			if in.to > 0 { // a union or a block, now as a whole
				pc = int(in.to)
			}
		}
		if end > len(body) {
			return false
		}
		if in.op >= wanted {
			v.SetSpan(int(in.slot), pipeline.Span{Start: pos, End: end})
		}
		if !goesOn {
			// A short one is looked at with what follows it, which is shifted out.
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

// highBits are set in bytes that are no ASCII, and in those of a number that more follow.
const highBits = 0x8080808080808080

// textsEnd returns the position after a map of texts that is one block of few and short
// ones, with the first byte c; else -1.
func textsEnd(b []byte, pos int, c byte) int {
	if c&0x81 != 0 {
		return -1
	}
	pos++
	if c == 0 {
		return pos
	}
	for n := c; n > 0; n-- { // twice the number of entries: keys and values
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

// walkerEnd leaves a value to the walker, that has met so many items without bytes
// before. It returns the position after it, -1 if something is wrong.
func walkerEnd(n *Node, body []byte, pos, empty int) (end, met int) {
	if pos > len(body) {
		return -1, 0
	}
	w := walker{buf: body, empty: empty}
	if end = w.value(n, pos, 0); w.msg != "" {
		return -1, 0
	}
	return end, w.empty
}
