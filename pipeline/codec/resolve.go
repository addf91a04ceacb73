package codec

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/avro"

	"millrace/pipeline"
)

// A Resolver turns bodies of a writer's schema into bodies of the reader's, by
// Avro's rules of schema resolution: missing fields take their defaults, removed
// fields are dropped, numbers are promoted, aliases are followed. It is compiled
// once, works on bytes, and is safe for concurrent use.
//
// It departs from the rules in one point. The rules ignore logical types, so they read
// a time in another unit (timestamp-millis as timestamp-micros) a thousand times too
// early or too late. A Resolver converts the unit.
type Resolver struct {
	writer *Schema
	reader *Schema
	root   resolveFunc
	states sync.Pool
}

// resolveFunc reads a value of the writer's type at the start of enc, appends it as a
// value of the reader's type, and returns the rest of enc. Validate has accepted the
// value before.
type resolveFunc func(st *resolveState, dst, enc []byte) (out, rest []byte, err error)

// resolveState is the scratch memory of one resolution. fields holds the starts of the
// fields of the records being read, outermost record first.
type resolveState struct{ fields [][]byte }

// NewResolver compiles the resolution of a pair of schemas. It returns nil if the bytes
// stay the same: see [SameBytes]. Schemas that do not resolve are an error, usually an
// *avro.CompatibilityError.
func NewResolver(writer, reader *Schema) (*Resolver, error) {
	if SameBytes(writer, reader) {
		return nil, nil
	}
	if _, err := avro.Resolve(writer.avro, reader.avro); err != nil {
		return nil, err
	}
	c := resolverCompiler{aliases: map[string][]string{}, enumDefaults: map[string]string{}, done: map[[2]*Node]*resolveFunc{}}
	c.collect(reader.avro.Root())
	root, err := c.pair(writer.Root(), reader.Root())
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", writer.Name(), err)
	}
	return &Resolver{writer: writer, reader: reader, root: root}, nil
}

// Append appends the body, converted to the reader's schema. The same body always gives
// the same bytes. An error is of pipeline.ClassReject.
func (r *Resolver) Append(dst, body []byte) ([]byte, error) {
	if err := Validate(r.writer.Root(), body); err != nil {
		return dst, err
	}
	st, ok := r.states.Get().(*resolveState)
	if !ok {
		st = new(resolveState)
	}
	out, _, err := r.root(st, dst, body)
	if err == nil && r.reader.open {
		err = Validate(r.reader.root, out[len(dst):])
	}
	st.fields = st.fields[:0]
	r.states.Put(st)
	if err != nil {
		return dst, pipeline.Reject(pipeline.ReasonBadBody, "reading %s with our schema: %w", r.writer.Name(), err)
	}
	return out, nil
}

// resolverCompiler compiles a Resolver. It keeps the parts of the reader's schema that
// a Node lacks: aliases, by type name or RECORD.FIELD, and enum defaults, by type name.
type resolverCompiler struct {
	aliases      map[string][]string
	enumDefaults map[string]string
	done         map[[2]*Node]*resolveFunc
}

func (c *resolverCompiler) collect(n *avro.SchemaNode) {
	if n == nil {
		return
	}
	name := n.Name
	if n.Namespace != "" && !strings.Contains(name, ".") {
		name = n.Namespace + "." + name
	}
	if len(n.Aliases) > 0 {
		c.aliases[name] = n.Aliases
	}
	if n.HasEnumDefault {
		c.enumDefaults[name] = n.EnumDefault
	}
	for i := range n.Fields {
		f := &n.Fields[i]
		if len(f.Aliases) > 0 {
			c.aliases[name+"."+f.Name] = f.Aliases
		}
		c.collect(&f.Type)
	}
	for i := range n.Branches {
		c.collect(&n.Branches[i])
	}
	c.collect(n.Items)
	c.collect(n.Values)
}

func (c *resolverCompiler) pair(w, r *Node) (resolveFunc, error) {
	if same(w, r, map[[2]*Node]bool{}) {
		return copied(w), nil
	}
	key := [2]*Node{w, r}
	if f := c.done[key]; f != nil { // perhaps still being compiled, if the schemas are recursive
		return func(st *resolveState, dst, enc []byte) ([]byte, []byte, error) { return (*f)(st, dst, enc) }, nil
	}
	f := new(resolveFunc)
	c.done[key] = f
	var err error
	if *f, err = c.compile(w, r); err != nil {
		delete(c.done, key)
	}
	return *f, err
}

func (c *resolverCompiler) compile(w, r *Node) (resolveFunc, error) {
	switch {
	case w.Kind == Union:
		return c.fromUnion(w, r)
	case r.Kind == Union:
		return c.toUnion(w, r)
	case w.Kind == Record && r.Kind == Record:
		return c.record(w, r)
	case w.Kind == r.Kind && (w.Kind == Array || w.Kind == Map):
		return c.blocks(w, r)
	case w.Kind == Enum && r.Kind == Enum:
		return c.enum(w, r)
	case (w.Kind == Int || w.Kind == Long) && (r.Kind == Int || r.Kind == Long) && perSecond(w) > 0 && perSecond(r) > 0:
		return rescaled(perSecond(w), perSecond(r), r.Kind), nil
	case w.Kind == r.Kind && w.Kind != Fixed, w.Kind == Fixed && r.Kind == Fixed && w.Size == r.Size,
		w.Kind == Int && r.Kind == Long, w.Kind == String && r.Kind == Bytes:
		return copied(w), nil
	case w.Kind == Bytes && r.Kind == String:
		return func(_ *resolveState, dst, enc []byte) ([]byte, []byte, error) {
			text, rest, err := ReadText(enc)
			if err == nil && !validUTF8(text) {
				err = errors.New("bytes that are not UTF-8 cannot become a string")
			}
			return AppendBytes(dst, text), rest, err
		}, nil
	case (w.Kind == Int || w.Kind == Long) && (r.Kind == Float || r.Kind == Double):
		return func(_ *resolveState, dst, enc []byte) ([]byte, []byte, error) {
			v, rest, err := ReadLong(enc)
			if r.Kind == Float {
				return AppendFloat(dst, float32(v)), rest, err
			}
			return AppendDouble(dst, float64(v)), rest, err
		}, nil
	case w.Kind == Float && r.Kind == Double:
		return func(_ *resolveState, dst, enc []byte) ([]byte, []byte, error) {
			v, rest, err := ReadFloat(enc)
			return AppendDouble(dst, float64(v)), rest, err
		}, nil
	}
	return nil, fmt.Errorf("%s cannot become %s", w, r)
}

// copied returns a function that copies a value unchanged.
func copied(n *Node) resolveFunc {
	return func(_ *resolveState, dst, enc []byte) ([]byte, []byte, error) {
		end := end(n, enc)
		return append(dst, enc[:end]...), enc[end:], nil
	}
}

// end returns the length of the valid value at the start of enc.
func end(n *Node, enc []byte) int {
	w := walker{buf: enc}
	return w.value(n, 0, 0)
}

// perSecond returns the number of a time's units in a second, or 0 if n is not a time.
func perSecond(n *Node) int64 {
	switch {
	case n.Kind == Int && n.Logical == "time-millis", n.Kind == Long && (n.Logical == "timestamp-millis" || n.Logical == "local-timestamp-millis"):
		return 1e3
	case n.Kind == Long && (n.Logical == "timestamp-micros" || n.Logical == "local-timestamp-micros" || n.Logical == "time-micros"):
		return 1e6
	case n.Kind == Long && (n.Logical == "timestamp-nanos" || n.Logical == "local-timestamp-nanos" || n.Logical == "time-nanos"):
		return 1e9
	}
	return 0
}

// rescaled returns a function that converts a time from one unit to another. A coarser
// unit rounds down, towards the past.
func rescaled(from, to int64, kind Kind) resolveFunc {
	return func(_ *resolveState, dst, enc []byte) ([]byte, []byte, error) {
		v, rest, err := ReadLong(enc)
		switch {
		case err != nil:
		case from < to:
			by := to / from
			if v > math.MaxInt64/by || v < math.MinInt64/by {
				return dst, rest, fmt.Errorf("the time %d is out of range in the finer unit", v)
			}
			v *= by
		case from > to:
			by := from / to
			if v%by < 0 {
				v -= by // makes the division round down
			}
			v /= by
		}
		if err == nil && kind == Int && v != int64(int32(v)) {
			err = fmt.Errorf("%d does not fit an int", v)
		}
		return AppendLong(dst, v), rest, err
	}
}

func (c *resolverCompiler) enum(w, r *Node) (resolveFunc, error) {
	to := make([]int, len(w.Symbols))
	for i, symbol := range w.Symbols {
		to[i] = slices.Index(r.Symbols, symbol)
		if def, ok := c.enumDefaults[r.Name]; to[i] < 0 && ok {
			to[i] = slices.Index(r.Symbols, def)
		}
	}
	return func(_ *resolveState, dst, enc []byte) ([]byte, []byte, error) {
		v, rest, err := ReadLong(enc)
		if err == nil && to[v] < 0 {
			err = fmt.Errorf("%s has no symbol %q, and no default", r.Name, w.Symbols[v])
		}
		if err != nil {
			return dst, rest, err
		}
		return AppendLong(dst, int64(to[v])), rest, nil
	}, nil
}

func (c *resolverCompiler) fromUnion(w, r *Node) (resolveFunc, error) {
	branches := make([]resolveFunc, len(w.Branches))
	for i, b := range w.Branches {
		var err error
		if branches[i], err = c.pair(b, r); err != nil {
			return nil, err
		}
	}
	return func(st *resolveState, dst, enc []byte) ([]byte, []byte, error) {
		branch, rest, err := ReadLong(enc)
		if err != nil {
			return dst, rest, err
		}
		return branches[branch](st, dst, rest)
	}, nil
}

// toUnion selects the first branch of the same type as the writer's or, if there is
// none, the first branch that the value can be converted to.
func (c *resolverCompiler) toUnion(w, r *Node) (resolveFunc, error) {
	for _, exact := range []bool{true, false} {
		for i, b := range r.Branches {
			if exact && (b.Kind != w.Kind || w.Name != "" && !c.named(w, b)) {
				continue
			}
			f, err := c.pair(w, b)
			if err != nil {
				continue
			}
			return func(st *resolveState, dst, enc []byte) ([]byte, []byte, error) {
				return f(st, AppendLong(dst, int64(i)), enc)
			}, nil
		}
	}
	return nil, fmt.Errorf("%s matches no branch of %s", w, r)
}

// named reports whether two named types match by name, without the namespace as in
// Avro's rules, or by an alias of the reader's type.
func (c *resolverCompiler) named(w, r *Node) bool {
	short := func(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }
	return short(w.Name) == short(r.Name) || slices.ContainsFunc(c.aliases[r.Name], func(a string) bool { return a == w.Name || short(a) == short(w.Name) })
}

func (c *resolverCompiler) blocks(w, r *Node) (resolveFunc, error) {
	item, err := c.pair(w.Elem, r.Elem)
	if err != nil {
		return nil, err
	}
	return func(st *resolveState, dst, enc []byte) ([]byte, []byte, error) {
		for {
			count, rest, err := ReadLong(enc)
			if err == nil && count < 0 {
				count = -count
				_, rest, err = ReadLong(rest)
			}
			if err != nil {
				return dst, rest, err
			}
			dst, enc = AppendLong(dst, count), rest
			if count == 0 {
				return dst, enc, nil
			}
			for range count {
				if w.Kind == Map {
					var key []byte
					key, enc, err = ReadText(enc)
					dst = AppendBytes(dst, key)
				}
				if err == nil {
					dst, enc, err = item(st, dst, enc)
				}
				if err != nil {
					return dst, enc, err
				}
			}
		}
	}, nil
}

// record returns a function that reads the fields in the writer's order and appends
// them in the reader's.
func (c *resolverCompiler) record(w, r *Node) (resolveFunc, error) {
	type part struct {
		from  int    // index of the writer's field; -1 for a default
		value []byte // the default
		read  resolveFunc
	}
	parts := make([]part, len(r.Fields))
	for i := range r.Fields {
		f := &r.Fields[i]
		from := slices.IndexFunc(w.Fields, func(was Field) bool { return was.Name == f.Name })
		for _, alias := range c.aliases[r.Name+"."+f.Name] {
			if from < 0 {
				from = slices.IndexFunc(w.Fields, func(was Field) bool { return was.Name == alias })
			}
		}
		var err error
		if parts[i].from = from; from < 0 {
			if !f.HasDefault {
				return nil, fmt.Errorf("%s.%s has no default, and the writer's schema lacks it", r.Name, f.Name)
			}
			parts[i].value, err = AppendDefault(nil, f)
		} else {
			parts[i].read, err = c.pair(w.Fields[from].Type, f.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return func(st *resolveState, dst, enc []byte) ([]byte, []byte, error) {
		base := len(st.fields)
		for i := range w.Fields {
			st.fields = append(st.fields, enc)
			enc = enc[end(w.Fields[i].Type, enc):]
		}
		for i := range parts {
			p := &parts[i]
			if p.from < 0 {
				dst = append(dst, p.value...)
				continue
			}
			var err error
			if dst, _, err = p.read(st, dst, st.fields[base+p.from]); err != nil {
				return dst, enc, fmt.Errorf("%s: %w", r.Fields[i].Name, err)
			}
		}
		st.fields = st.fields[:base]
		return dst, enc, nil
	}, nil
}

// SameBytes reports whether every body of a is, byte for byte, a body of b with the
// same meaning.
func SameBytes(a, b *Schema) bool {
	return a == b || same(a.Root(), b.Root(), map[[2]*Node]bool{})
}

func same(a, b *Node, seen map[[2]*Node]bool) bool {
	if a == b || seen[[2]*Node{a, b}] {
		return true
	}
	if a.Kind != b.Kind || a.Name != b.Name || a.Logical != b.Logical || a.Precision != b.Precision ||
		a.Scale != b.Scale || a.Size != b.Size || len(a.Fields) != len(b.Fields) ||
		len(a.Branches) != len(b.Branches) || !slices.Equal(a.Symbols, b.Symbols) {
		return false
	}
	seen[[2]*Node{a, b}] = true
	if a.Elem != nil && !same(a.Elem, b.Elem, seen) {
		return false
	}
	for i := range a.Branches {
		if !same(a.Branches[i], b.Branches[i], seen) {
			return false
		}
	}
	for i := range a.Fields {
		if a.Fields[i].Name != b.Fields[i].Name || !same(a.Fields[i].Type, b.Fields[i].Type, seen) {
			return false
		}
	}
	return true
}
