package resolve

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"millrace/pipeline/codec"
)

// A reading is how values of a pair of types are read.
type reading struct {
	read     readFunc
	identity bool     // the bytes stay the same
	never    *misfit  // why no value fits; nil if some may fit
	changes  []Change // paths begin at the value
	whole    bool     // a recursive pair is compiled; its other fields are set
}

type compiler struct {
	done  map[[2]*codec.Node]*reading
	paths paths
}

func compile(writer, reader *codec.Schema) *reading {
	c := compiler{done: map[[2]*codec.Node]*reading{}}
	return c.pair(writer.Root(), reader.Root())
}

func (c *compiler) pair(w, r *codec.Node) *reading {
	if codec.Same(w, r) && !c.paths.renames() {
		return &reading{read: copied(w), identity: true}
	}
	if c.paths.special() {
		return c.compile(w, r)
	}
	key := [2]*codec.Node{w, r}
	p := c.done[key]
	switch {
	case p == nil:
		p = &reading{}
		c.done[key] = p
		*p = *c.compile(w, r)
		p.whole = true
	case !p.whole: // the schemas are recursive, and this is within the pair
		return &reading{read: func(st *state, dst, enc []byte) ([]byte, []byte, error) { return p.read(st, dst, enc) }}
	}
	return p
}

func (c *compiler) compile(w, r *codec.Node) *reading {
	switch {
	case w.Kind == codec.Union:
		return c.fromUnion(w, r)
	case r.Kind == codec.Union:
		return c.toUnion(w, r)
	case w.Name != "" && r.Name != "" && w.Kind == r.Kind && !isDecimal(w, r) && codec.MatchName(w, r) == codec.NoMatch && !c.paths.special():
		return never("%s is not %s: the names differ, and it is no alias", w, r)
	case w.Kind == codec.Record && r.Kind == codec.Record:
		return c.record(w, r)
	case w.Kind == r.Kind && (w.Kind == codec.Array || w.Kind == codec.Map):
		return c.blocks(w, r)
	case w.Kind == codec.Enum && r.Kind == codec.Enum:
		return enum(w, r)
	}
	return value(w, r)
}

// never returns the reading of a pair of types of which no value fits.
func never(format string, args ...any) *reading { return refused(misfitf(format, args...)) }

func refused(why *misfit) *reading {
	return &reading{never: why, read: func(_ *state, dst, enc []byte) ([]byte, []byte, error) { return dst, enc, why }}
}

// copied returns a function that copies a value unchanged.
func copied(n *codec.Node) readFunc {
	return func(_ *state, dst, enc []byte) ([]byte, []byte, error) {
		rest, err := codec.Skip(n, enc)
		return append(dst, enc[:len(enc)-len(rest)]...), rest, err
	}
}

// enum maps the symbols of the writer to those of the reader.
func enum(w, r *codec.Node) *reading {
	out := &reading{identity: true}
	to := make([]int, len(w.Symbols))
	var unknown []string
	for i, symbol := range w.Symbols {
		if to[i] = slices.Index(r.Symbols, symbol); to[i] < 0 {
			unknown = append(unknown, symbol)
			if r.Unknown != "" {
				to[i] = slices.Index(r.Symbols, r.Unknown)
			}
		}
		out.identity = out.identity && to[i] == i
	}
	switch {
	case len(unknown) == 0:
	case r.Unknown != "":
		out.changes = []Change{{Converted, "", fmt.Sprintf("symbols %s become %s", listed(unknown), r.Unknown)}}
	case len(unknown) == len(w.Symbols):
		return never("%s has none of the symbols of %s (%s), and no default", r, w, listed(w.Symbols))
	default:
		out.changes = []Change{{Partial, "", fmt.Sprintf("%s has no symbols %s, and no default", r, listed(unknown))}}
	}
	out.read = func(_ *state, dst, enc []byte) ([]byte, []byte, error) {
		v, rest, err := codec.ReadLong(enc)
		if err == nil && to[v] < 0 {
			err = misfitf("%s has no symbol %q, and no default", r, w.Symbols[v])
		}
		if err != nil {
			return dst, rest, err
		}
		return codec.AppendLong(dst, int64(to[v])), rest, nil
	}
	return out
}

// listed joins names for a message, and cuts a long list.
func listed(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// blocks reads the items of an array or a map. An empty one always fits.
func (c *compiler) blocks(w, r *codec.Node) *reading {
	leave := c.paths.enter("[]", "[]")
	item := c.pair(w.Elem, r.Elem)
	leave()
	if item.identity {
		return &reading{read: copied(w), identity: true, changes: under("[]", item.changes)}
	}
	changes := under("[]", item.changes)
	if item.never != nil {
		changes = []Change{{Partial, join("[]", item.never.path), item.never.msg}}
	}
	return &reading{changes: changes, read: func(st *state, dst, enc []byte) ([]byte, []byte, error) {
		number := 0
		for {
			count, rest, err := codec.ReadBlock(enc)
			if err != nil {
				return dst, rest, err
			}
			if dst, enc = codec.AppendLong(dst, count), rest; count == 0 {
				return dst, enc, nil
			}
			for range count {
				if dst, enc, err = readItem(st, dst, enc, w, number, item); err != nil {
					return dst, enc, err
				}
				number++
			}
		}
	}}
}

// readItem reads an item of an array, or an entry of a map.
func readItem(st *state, dst, enc []byte, w *codec.Node, number int, item *reading) ([]byte, []byte, error) {
	var key []byte
	var err error
	if w.Kind == codec.Map {
		if key, enc, err = codec.ReadText(enc); err != nil {
			return dst, enc, err
		}
		dst = codec.AppendBytes(dst, key)
	}
	if dst, enc, err = item.read(st, dst, enc); err != nil {
		return dst, enc, at(itemStep(w, number, key), err)
	}
	return dst, enc, nil
}

// itemStep returns the step of the path of an item: [2], or ["key"] in a map.
func itemStep(n *codec.Node, number int, key []byte) string {
	if n.Kind == codec.Map {
		return "[" + strconv.Quote(string(key)) + "]"
	}
	return "[" + strconv.Itoa(number) + "]"
}

// A part is how a field of the reader's record is read.
type part struct {
	from  int    // index of the writer's field; -1 for a default
	value []byte // the default
	read  readFunc
}

// record reads the fields in the writer's order and appends them in the reader's.
func (c *compiler) record(w, r *codec.Node) *reading {
	out := &reading{identity: len(w.Fields) == len(r.Fields)}
	parts := make([]part, len(r.Fields))
	used := make([]bool, len(w.Fields))
	for i := range r.Fields {
		f := &r.Fields[i]
		if c.paths.given(f.Name) {
			enc, ok := blank(nil, f.Type)
			if !ok {
				return refused(&misfit{f.Name, "it has no value that another one can replace"})
			}
			parts[i], out.identity = part{from: -1, value: enc}, false
			continue
		}
		from, why := c.paths.fieldOf(w, f)
		if why != nil {
			return refused(why)
		}
		if parts[i].from = from; from < 0 {
			enc, err := defaultOf(r, f)
			if err != nil {
				return refused(err)
			}
			parts[i].value = enc
			out.identity = false
			out.add(Change{Filled, f.Name, defaultText(f, enc)})
			continue
		}
		if used[from] {
			return never("the writer's field %s is both %s and another field of %s, by alias", w.Fields[from].Name, f.Name, r)
		}
		used[from] = true
		leave := c.paths.enter(w.Fields[from].Name, f.Name)
		field := c.pair(w.Fields[from].Type, f.Type)
		leave()
		if field.never != nil {
			return refused(&misfit{join(f.Name, field.never.path), field.never.msg})
		}
		parts[i].read = field.read
		out.identity = out.identity && field.identity && from == i
		out.add(under(f.Name, field.changes)...)
	}
	for i := range w.Fields {
		if !used[i] {
			out.add(Change{Dropped, w.Fields[i].Name, w.Fields[i].Type.String()})
		}
	}
	if out.identity {
		out.read = copied(w)
	} else {
		out.read = readParts(w, r, parts)
	}
	return out
}

func (r *reading) add(changes ...Change) {
	r.changes = append(r.changes, changes[:min(len(changes), maxChanges-len(r.changes))]...)
}

// fieldOf returns the index of the writer's field that is the reader's: of the same name
// or, if there is none, of the first alias. It is -1 if there is none.
func fieldOf(w *codec.Node, f *codec.Field) (int, *misfit) {
	named := func(name string) int {
		return slices.IndexFunc(w.Fields, func(was codec.Field) bool { return was.Name == name })
	}
	from := named(f.Name)
	for _, alias := range f.Aliases {
		switch other := named(alias); {
		case other < 0 || other == from:
		case from < 0:
			from = other
		default:
			return -1, misfitf("the writer's fields %s and %s are both %s, by alias", w.Fields[from].Name, alias, f.Name)
		}
	}
	return from, nil
}

func defaultOf(r *codec.Node, f *codec.Field) ([]byte, *misfit) {
	if !f.HasDefault {
		return nil, misfitf("%s.%s has no default, and the writer's schema lacks it", r, f.Name)
	}
	enc, err := codec.AppendDefault(nil, f)
	if err == nil {
		err = codec.Validate(f.Type, enc)
	}
	if err != nil {
		return nil, &misfit{f.Name, err.Error()}
	}
	return enc, nil
}

// defaultText returns the default for a report, shortened.
func defaultText(f *codec.Field, enc []byte) string {
	const most = 60
	text, err := codec.AppendJSON(nil, f.Type, enc)
	if err != nil {
		return err.Error()
	}
	if len(text) > most {
		return strings.ToValidUTF8(string(text[:most]), "") + "..."
	}
	return string(text)
}

func readParts(w, r *codec.Node, parts []part) readFunc {
	return func(st *state, dst, enc []byte) ([]byte, []byte, error) {
		base := len(st.fields)
		for i := range w.Fields {
			rest, err := codec.Skip(w.Fields[i].Type, enc)
			if err != nil {
				return dst, enc, err
			}
			st.fields, enc = append(st.fields, enc), rest
		}
		for i := range parts {
			p := &parts[i]
			if p.from < 0 {
				dst = append(dst, p.value...)
				continue
			}
			var err error
			if dst, _, err = p.read(st, dst, st.fields[base+p.from]); err != nil {
				return dst, enc, at(r.Fields[i].Name, err)
			}
		}
		st.fields = st.fields[:base]
		return dst, enc, nil
	}
}
