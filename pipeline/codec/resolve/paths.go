package resolve

import (
	"slices"
	"strings"

	"millrace/pipeline/codec"
)

// paths say where a pair of types is in the records of a projection, and what is special
// below it. It is empty for other resolutions.
type paths struct {
	names  map[string]string // new names of fields of the source, by path; "" if the field is left out
	values []string          // the paths in the target that are not copied
	from   string            // the path of the pair in the source
	to     string            // and in the target
}

// enter makes the pair one of a field, or of the items of an array or a map. leave undoes it.
func (p *paths) enter(from, to string) (leave func()) {
	if p.names == nil && p.values == nil {
		return func() {}
	}
	was := *p
	p.from, p.to = join2(p.from, from), join2(p.to, to)
	return func() { p.from, p.to = was.from, was.to }
}

// join2 returns the path of a field, or of items, below a path.
func join2(at, name string) string {
	if at == "" || name == "[]" {
		return at + name
	}
	return at + "." + name
}

// below reports whether a path leads into the value at another one.
func below(path, at string) bool {
	rest, ok := strings.CutPrefix(path, at)
	return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "["))
}

// renames reports whether a field within the pair gets a new name.
func (p *paths) renames() bool {
	for path := range p.names {
		if below(path, p.from) {
			return true
		}
	}
	return false
}

// special reports whether a field within the pair is not copied under its own name. The
// names of records do not count then.
func (p *paths) special() bool {
	return p.renames() || slices.ContainsFunc(p.values, func(v string) bool { return below(v, p.to) })
}

// given reports whether the value of a field of the target is given.
func (p *paths) given(name string) bool {
	return p.values != nil && slices.Contains(p.values, join2(p.to, name))
}

// fieldOf is [fieldOf] with the new names.
func (p *paths) fieldOf(w *codec.Node, f *codec.Field) (int, *misfit) {
	for i := range w.Fields {
		if name, ok := p.names[join2(p.from, w.Fields[i].Name)]; ok && name == f.Name {
			return i, nil
		}
	}
	from, why := fieldOf(w, f)
	if from >= 0 && p.names != nil {
		if _, other := p.names[join2(p.from, w.Fields[from].Name)]; other {
			from = -1
		}
	}
	return from, why
}

// only returns the only record of a union, nil if there are several.
func only(n *codec.Node) (record *codec.Node) {
	for _, b := range n.Branches {
		switch {
		case b.Kind != codec.Record:
		case record != nil:
			return nil
		default:
			record = b
		}
	}
	return record
}

// blank appends a valid value of a type: null if the type has it, otherwise zero or empty.
// ok is false if the shortest value is endless.
func blank(dst []byte, n *codec.Node) (out []byte, ok bool) { return blankAt(dst, n, 0) }

func blankAt(dst []byte, n *codec.Node, depth int) (out []byte, ok bool) {
	const most = 64 // no body is deeper
	if depth > most {
		return dst, false
	}
	switch n.Kind {
	case codec.Null:
	case codec.Float:
		dst = codec.AppendFloat(dst, 0)
	case codec.Double:
		dst = codec.AppendDouble(dst, 0)
	case codec.Fixed:
		dst = append(dst, make([]byte, n.Size)...)
	case codec.Bytes:
		dst = codec.AppendBytes(dst, []byte{0}) // also a decimal
	case codec.Union:
		at := max(0, slices.IndexFunc(n.Branches, func(b *codec.Node) bool { return b.Kind == codec.Null }))
		return blankAt(codec.AppendLong(dst, int64(at)), n.Branches[at], depth+1)
	case codec.Record:
		for i := range n.Fields {
			if dst, ok = blankAt(dst, n.Fields[i].Type, depth+1); !ok {
				return dst, false
			}
		}
	default: // a number, an empty text, array or map, the first symbol
		dst = append(dst, 0)
	}
	return dst, true
}
