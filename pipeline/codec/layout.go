package codec

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"millrace/pipeline"
)

// Limits of a walk. A body beyond them is rejected, even if it matches its schema: the
// limits keep the cost of hostile bytes proportional to their length.
//
// All readers and writers apply them to a whole record: the depth of a value is the
// number of values around it, and the outermost record has depth 0. What is written
// must be within the limits (see [Schema.CheckWritten]); otherwise nothing can read it.
const (
	maxWalkDepth = 64      // depth of a value
	maxLeaves    = 1 << 14 // of a record; n types, each used twice by the next, have 2^n leaves
	maxEmpty     = 4096    // items of zero bytes in one body
	maxDecimal   = 1 << 10 // bytes of a decimal
)

// A Layout assigns slots to the leaves of a record that its user reads or writes, and
// has the program that finds them in a body. It is immutable and safe for concurrent use.
//
// A leaf is a field that is not a plain record: paths descend through records,
// and an array, a map or a union is one leaf. So leaves never overlap.
type Layout struct {
	steps   []step
	program program // compiled from the steps
	slots   []leaf
}

type leaf struct {
	path string
	node *Node
}

// A step walks over one leaf of the record, wanted or not. Plain records have no
// step of their own: the steps of their fields follow each other.
type step struct {
	slot  int // -1 if the leaf is not wanted
	node  *Node
	path  string
	depth int // of the leaf in the record

	added  bool   // the body lacks the leaf; a walk splices it in
	preset []byte // value of an added leaf
}

// NewLayout returns the layout of the record with a slot for the leaf at each path. A
// path given twice has one slot. A path that does not lead to a leaf is an error.
func NewLayout(s *Schema, paths [][]string) (*Layout, error) { return newLayout(s, s, paths) }

// newLayout returns a layout of s for bodies of base. The fields of s that base lacks
// are at the end of their record.
func newLayout(base, s *Schema, paths [][]string) (*Layout, error) {
	wanted := map[string]bool{}
	for _, p := range paths {
		n := s.Root()
		for i, name := range p {
			f := n.Field(name)
			if n.Kind != Record || f == nil {
				return nil, fmt.Errorf("%s has no field %s", s.Name(), strings.Join(p[:i+1], "."))
			}
			n = f.Type
		}
		if n.Kind == Record {
			return nil, fmt.Errorf("%s of %s is a record: name one of its fields", strings.Join(p, "."), s.Name())
		}
		wanted[strings.Join(p, ".")] = true
	}
	if s.Root().Kind != Record {
		return nil, fmt.Errorf("%s is not a record", s.Name())
	}
	l := &Layout{}
	if err := l.compile(base.Root(), s.Root(), "", wanted, 1); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name(), err)
	}
	for i := range l.steps {
		l.program.leaf(&l.steps[i], i)
	}
	return l, nil
}

// compile adds the steps of a record, whose fields have the given depth; base is the
// same record in the schema of the bodies.
func (l *Layout) compile(base, record *Node, at string, wanted map[string]bool, depth int) error {
	if depth > maxWalkDepth {
		return errTooDeep
	}
	if len(base.Fields) > len(record.Fields) {
		return fmt.Errorf("%s has fields that the derived schema lacks", base.Name)
	}
	for i := range record.Fields {
		f := &record.Fields[i]
		path := f.Name
		if at != "" {
			path = at + "." + f.Name
		}
		if i >= len(base.Fields) {
			enc, err := AppendDefault(nil, f)
			if err == nil {
				_, err = l.compileAdded(f.Type, path, enc, depth)
			}
			if err != nil {
				return err
			}
			continue
		}
		was := &base.Fields[i]
		if was.Name != f.Name || was.Type.Kind != f.Type.Kind || f.Type.Kind != Record && was != f && !same(was.Type, f.Type, map[[2]*Node]bool{}) {
			return fmt.Errorf("%s is not the same field in both schemas", path)
		}
		if f.Type.Kind == Record {
			if err := l.compile(was.Type, f.Type, path, wanted, depth+1); err != nil {
				return err
			}
			continue
		}
		st := step{slot: -1, node: f.Type, path: path, depth: depth}
		if wanted[path] {
			st.slot = len(l.slots)
			l.slots = append(l.slots, leaf{path, f.Type})
		}
		if err := l.add(st); err != nil {
			return err
		}
	}
	return nil
}

var (
	errTooDeep  = fmt.Errorf("records nested more than %d deep, or within themselves", maxWalkDepth)
	errTooLarge = fmt.Errorf("more than %d fields, including those of its records", maxLeaves)
)

func (l *Layout) add(s step) error {
	if len(l.steps) == maxLeaves {
		return errTooLarge
	}
	l.steps = append(l.steps, s)
	return nil
}

// Len returns the number of slots.
func (l *Layout) Len() int { return len(l.slots) }

// Slot returns the slot of the leaf at the path, or -1 if it has none. Slots are
// numbered in the order of the body.
func (l *Layout) Slot(path ...string) int {
	joined := strings.Join(path, ".")
	return slices.IndexFunc(l.slots, func(f leaf) bool { return f.path == joined })
}

// Node returns the type of the leaf in a slot.
func (l *Layout) Node(slot int) *Node { return l.slots[slot].node }

// Path returns the dotted path of the leaf in a slot.
func (l *Layout) Path(slot int) string { return l.slots[slot].path }

// A WalkError is an error at one place in an Avro body. It is wrapped in a
// pipeline.RejectError.
type WalkError struct {
	Path   string // of the field, dotted; "" for the whole body
	Offset int    // in bytes from the start of the body
	Msg    string
}

func (e *WalkError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("byte %d: %s", e.Offset, e.Msg)
	}
	return fmt.Sprintf("%s, byte %d: %s", e.Path, e.Offset, e.Msg)
}

// Walk checks the whole body and points v at it, with the spans of the layout's
// leaves. It allocates nothing if v was used with a layout of this size before. An
// error is of pipeline.ClassReject.
//
// Walk is stricter than most decoders: strings must be UTF-8, booleans 0 or 1, ints
// must fit 32 bits, and nothing may follow the record. Map keys may repeat: a reader
// uses the last.
func (l *Layout) Walk(body []byte, v *pipeline.View) error {
	v.Reset(body, len(l.slots))
	if l.program.walk(body, v, l.steps) {
		return nil
	}
	return l.walkByValue(body, v)
}

// add adds the step's leaf, which the body lacks, to the view at position pos.
func (s *step) add(v *pipeline.View, pos int) {
	v.SetSpan(s.slot, pipeline.Span{Start: pos, End: pos})
	v.Set(s.slot, s.preset)
}

// walkByValue walks over a body that the program did not accept, value by value, to
// find the fault. If it finds none, it accepts the body; so it fills the view, too.
func (l *Layout) walkByValue(body []byte, v *pipeline.View) error {
	w := walker{buf: body}
	pos := 0
	for i := range l.steps {
		s := &l.steps[i]
		if s.added {
			s.add(v, pos)
			continue
		}
		end := w.value(s.node, pos, s.depth)
		if w.msg != "" {
			return w.err(s.path)
		}
		if s.slot >= 0 {
			v.SetSpan(s.slot, pipeline.Span{Start: pos, End: end})
		}
		pos = end
	}
	return w.ended(pos, "record")
}

// Validate checks, by the rules of [Layout.Walk], that enc is one value of the type
// and nothing else. An error is of pipeline.ClassReject.
func Validate(n *Node, enc []byte) error { return ValidatePart(n, enc, 0) }

// ended returns an error if pos, the end of the value, is not the end of the input.
func (w *walker) ended(pos int, what string) error {
	if pos == len(w.buf) {
		return nil
	}
	return &pipeline.RejectError{Reason: pipeline.ReasonTrailingBytes,
		Err: &WalkError{Offset: pos, Msg: fmt.Sprintf("%d bytes follow the end of the %s", len(w.buf)-pos, what)}}
}

// walker walks over encoded values. Its methods take the position of a value and
// return the position after it. After a failure the position has no meaning.
type walker struct {
	buf   []byte
	empty int // items of zero bytes so far

	// The first failure; msg is "" if there is none.
	msg string
	at  int    // its position
	sub string // its path below the field, innermost last
}

func (w *walker) fail(at int, format string, args ...any) int {
	if w.msg == "" {
		w.msg, w.at = fmt.Sprintf(format, args...), at
	}
	return len(w.buf)
}

func (w *walker) err(path string) error {
	if w.sub != "" && path != "" && w.sub[0] != '[' {
		path += "."
	}
	return &pipeline.RejectError{Reason: pipeline.ReasonBadBody, Err: &WalkError{Path: path + w.sub, Offset: w.at, Msg: w.msg}}
}

func (w *walker) boolean(pos int) int {
	switch {
	case pos >= len(w.buf):
		return w.fail(pos, "the body ends before a boolean")
	case w.buf[pos] > 1:
		return w.fail(pos, "a boolean is 0 or 1, not %d", w.buf[pos])
	}
	return pos + 1
}

func (w *walker) long(pos int) (int64, int) {
	// Fast path: one byte.
	if pos < len(w.buf) && w.buf[pos] < 0x80 {
		b := w.buf[pos]
		return int64(b>>1) ^ -int64(b&1), pos + 1
	}
	v, n := binary.Varint(w.buf[pos:])
	switch {
	case n > 0:
		return v, pos + n
	case n == 0:
		return 0, w.fail(pos, "the body ends within a number")
	}
	return 0, w.fail(pos, "a number of more than 64 bits")
}

func (w *walker) int(pos int) int {
	v, next := w.long(pos)
	if v != int64(int32(v)) {
		return w.fail(pos, "%d does not fit an int", v)
	}
	return next
}

// bytes returns the content's length and the position after it.
func (w *walker) bytes(pos int) (int, int) {
	n, next := w.long(pos)
	switch {
	case w.msg != "":
		return 0, next
	case n < 0:
		return 0, w.fail(pos, "a length of %d", n)
	case n > int64(len(w.buf)-next):
		return 0, w.fail(pos, "a length of %d, but only %d bytes are left", n, len(w.buf)-next)
	}
	return int(n), next + int(n)
}

func (w *walker) text(pos int) int {
	n, next := w.bytes(pos)
	if w.msg == "" && !validUTF8(w.buf[next-n:next]) {
		return w.fail(next-n+invalidAt(w.buf[next-n:next]), "a string that is not UTF-8")
	}
	return next
}

// validUTF8 does the same as utf8.Valid, with a fast path for ASCII. If the length is
// no multiple of the chunk size, the last chunk overlaps the one before it.
func validUTF8(b []byte) bool {
	n := len(b)
	var all uint64
	switch {
	case n >= 32:
		for i := 0; i < n-32; i += 32 {
			all |= or32((*[32]byte)(b[i:]))
		}
		all |= or32((*[32]byte)(b[n-32:]))
	case n >= 8:
		all = binary.LittleEndian.Uint64(b) | binary.LittleEndian.Uint64(b[n-8:])
		if n > 16 {
			all |= binary.LittleEndian.Uint64(b[8:]) | binary.LittleEndian.Uint64(b[n-16:])
		}
	case n >= 4:
		all = uint64(binary.LittleEndian.Uint32(b) | binary.LittleEndian.Uint32(b[n-4:]))
	default:
		for _, c := range b {
			all |= uint64(c)
		}
	}
	return all&highBits == 0 || utf8.Valid(b)
}

func or32(p *[32]byte) uint64 {
	return binary.LittleEndian.Uint64(p[:8]) | binary.LittleEndian.Uint64(p[8:16]) |
		binary.LittleEndian.Uint64(p[16:24]) | binary.LittleEndian.Uint64(p[24:])
}

// value walks over a value of any type.
func (w *walker) value(n *Node, pos, depth int) int {
	if depth > maxWalkDepth {
		return w.fail(pos, "values nested more than %d deep", maxWalkDepth)
	}
	switch n.Kind {
	case Null:
		return pos
	case Boolean:
		return w.boolean(pos)
	case Int:
		return w.int(pos)
	case Long:
		_, pos = w.long(pos)
		return pos
	case Float:
		return w.skip(pos, 4)
	case Double:
		return w.skip(pos, 8)
	case Fixed:
		if n.Logical == "decimal" && n.Size > maxDecimal {
			return w.fail(pos, "a decimal of %d bytes: the maximum is %d", n.Size, maxDecimal)
		}
		return w.skip(pos, n.Size)
	case String:
		return w.text(pos)
	case Bytes:
		size, next := w.bytes(pos)
		if n.Logical == "decimal" && size > maxDecimal {
			return w.fail(pos, "a decimal of %d bytes: the maximum is %d", size, maxDecimal)
		}
		return next
	case Enum:
		i, next := w.long(pos)
		if w.msg == "" && (i < 0 || i >= int64(len(n.Symbols))) {
			return w.fail(pos, "symbol %d of enum %s, which has %d", i, n.Name, len(n.Symbols))
		}
		return next
	case Union:
		i, next := w.long(pos)
		if w.msg != "" {
			return next
		}
		if i < 0 || i >= int64(len(n.Branches)) {
			return w.fail(pos, "branch %d of a union of %d", i, len(n.Branches))
		}
		return w.value(n.Branches[i], next, depth+1)
	case Record:
		for i := range n.Fields {
			if pos = w.value(n.Fields[i].Type, pos, depth+1); w.msg != "" {
				w.under(n.Fields[i].Name)
				return pos
			}
		}
		return pos
	default:
		return w.blocks(n, pos, depth)
	}
}

func (w *walker) skip(pos, size int) int {
	if size > len(w.buf)-pos {
		return w.fail(pos, "the body ends within a value of %d bytes", size)
	}
	return pos + size
}

// blocks walks over an array or a map. It is a sequence of blocks of items. A block
// begins with its item count, or with the negated count and the block's size in bytes;
// a count of 0 ends the sequence.
func (w *walker) blocks(n *Node, pos, depth int) int {
	item := 0
	for {
		count, next := w.long(pos)
		switch {
		case w.msg != "":
			return next
		case count == 0:
			return next
		}
		end := -1
		if count < 0 {
			if count = -count; count < 0 {
				return w.fail(pos, "a block of %d items", count)
			}
			size, after := w.long(next)
			if w.msg == "" && (size < 0 || size > int64(len(w.buf)-after)) {
				return w.fail(next, "a block of %d bytes, but only %d are left", size, len(w.buf)-after)
			}
			next, end = after, after+int(size)
		}
		// The length of the body bounds the number of items of one byte or more. Items
		// of zero bytes need a limit of their own.
		start := pos
		pos = next
		for range count {
			before := pos
			if n.Kind == Map {
				pos = w.text(pos)
			}
			if w.msg == "" {
				pos = w.value(n.Elem, pos, depth+1)
			}
			if w.msg != "" {
				w.under(fmt.Sprintf("[%d]", item))
				return pos
			}
			if pos == before {
				if w.empty++; w.empty > maxEmpty {
					return w.fail(start, "more than %d items of zero bytes", maxEmpty)
				}
			}
			item++
		}
		if end >= 0 && pos != end {
			return w.fail(start, "a block's size in bytes is wrong: its items end at %d, not %d", pos, end)
		}
	}
}

// under prepends a step to the path of the failure.
func (w *walker) under(step string) {
	if w.sub != "" && w.sub[0] != '[' {
		step += "."
	}
	w.sub = step + w.sub
}
