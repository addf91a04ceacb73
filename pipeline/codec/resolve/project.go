package resolve

import (
	"slices"
	"strings"

	"millrace/pipeline/codec"
)

// A Projection makes a record of one type from a record of another type, whatever their
// names. Fields of the same name are copied as bytes, or converted if they have another
// type. It is immutable and safe for concurrent use.
type Projection struct {
	cells []*codec.Node // the parts of the source record that are copied or skipped one by one
	parts []projected   // of the target, in its order
	whole bool          // the bytes stay the same
}

// A projected part of the target is one of: cells of the source, a given value, a default.
type projected struct {
	from, to int      // the cells; from is -1 if the part has none
	read     readFunc // converts the one cell; nil copies the cells
	given    int      // index of the given value; -1 if the part is none
	value    []byte   // the default
}

// A Gap is a field of the target for which a projection has no value.
type Gap struct{ Path, Why string }

// Scratch is the memory of a projection. One goroutine at a time may use it.
type Scratch struct {
	starts []int
	state  state
}

type span struct {
	node     *codec.Node
	path     string // in the source
	from, to int
}

type projector struct {
	compiler
	*Projection
	spans map[string]span // of the source, by path in the target
	gaps  []Gap
}

// NewProjection returns the projection of a record w to a record r. names are the new names
// of fields of w, by path; they take the place of fields of w with these names, and a field
// with the name "" is left out. [] stands for the items of an array and the entries of a map
// (items[].price).
//
// given are the paths of the fields of r whose values the caller of Append gives. A field
// within a union gets a placeholder instead, which the caller replaces in the result.
//
// Records whose fields are given or renamed do not need the same name. The projection is
// valid if there is no Gap.
func NewProjection(w, r *codec.Node, names map[string]string, given []string) (*Projection, []Gap) {
	p := projector{compiler{done: map[[2]*codec.Node]*reading{}, paths: paths{names: names, values: given}}, &Projection{}, map[string]span{}, nil}
	p.source(w, "", "")
	all := len(p.cells)
	p.target(r, "")
	if len(p.parts) == 1 && p.parts[0].from == 0 && p.parts[0].to == all && p.parts[0].read == nil {
		p.whole = true
	}
	used := 0
	for i := range p.parts {
		used = max(used, p.parts[i].to)
	}
	p.cells = p.cells[:used]
	return p.Projection, p.gaps
}

// divided reports whether a value is given for a field within the record at a path.
func (p *projector) divided(path string) bool {
	return slices.ContainsFunc(p.paths.values, func(g string) bool { return strings.HasPrefix(g, path+".") })
}

// source adds the cells of a record, which is at a path of the source and of the target. If
// only some of its fields are copied, each field is a cell.
func (p *projector) source(w *codec.Node, src, at string) {
	for i := range w.Fields {
		f := &w.Fields[i]
		own := join2(src, f.Name)
		name, renamed := p.paths.names[own]
		if !renamed && !p.taken(src, f.Name) {
			name = f.Name
		}
		path, from := "", len(p.cells) // another field takes its place, or it is left out
		if name != "" {
			path = join2(at, name)
		}
		if f.Type.Kind == codec.Record && path != "" && p.divided(path) {
			p.source(f.Type, own, path)
		} else {
			p.cells = append(p.cells, f.Type)
		}
		p.spans[path] = span{f.Type, own, from, len(p.cells)}
	}
}

// taken reports whether another field of the record at a path of the source has a name.
func (p *projector) taken(src, name string) bool {
	for path, to := range p.paths.names {
		if parent := path[:max(0, strings.LastIndexByte(path, '.'))]; to == name && parent == src {
			return true
		}
	}
	return false
}

func (p *projector) target(r *codec.Node, at string) {
	for i := range r.Fields {
		f := &r.Fields[i]
		path := join2(at, f.Name)
		given := slices.Index(p.paths.values, path)
		from, ok := p.spans[path]
		switch {
		case given >= 0:
			p.parts = append(p.parts, projected{from: -1, given: given})
		case f.Type.Kind == codec.Record && p.divided(path):
			p.target(f.Type, path)
		case ok:
			p.copy(from, f.Type, path)
		case f.HasDefault:
			enc, why := defaultOf(r, f)
			if why != nil {
				p.gaps = append(p.gaps, Gap{path, why.Error()})
			}
			p.parts = append(p.parts, projected{from: -1, given: -1, value: enc})
		default:
			p.gaps = append(p.gaps, Gap{Path: path, Why: "it has no value and no default"})
		}
	}
}

// copy adds a field that the source has.
func (p *projector) copy(from span, to *codec.Node, path string) {
	p.paths.from, p.paths.to = from.path, path
	field := p.pair(from.node, to)
	p.paths.from, p.paths.to = "", ""
	why := ""
	switch partial := slices.IndexFunc(field.changes, func(c Change) bool { return c.Kind == Partial }); {
	case !sameTags(from.node, to):
		why = "only one of both is encrypted, or they are encrypted under other names"
	case field.never != nil:
		why = field.never.Error()
	case partial >= 0:
		why = "not every value fits: " + field.changes[partial].String()
	}
	if why != "" {
		p.gaps = append(p.gaps, Gap{path, why})
		return
	}
	part := projected{from: from.from, to: from.to, given: -1}
	if !field.identity {
		part.read = field.read
	} else if n := len(p.parts) - 1; n >= 0 && p.parts[n].from >= 0 && p.parts[n].read == nil && p.parts[n].to == part.from {
		p.parts[n].to = part.to // one copy for both
		return
	}
	p.parts = append(p.parts, part)
}

// sameTags reports whether the encrypted fields of two types are encrypted under the same
// names.
func sameTags(a, b *codec.Node) bool {
	if tagOf(a) != tagOf(b) {
		return false
	}
	if a.Kind != codec.Record || b.Kind != codec.Record || a == b {
		return true
	}
	for i := range b.Fields {
		if f := a.Field(b.Fields[i].Name); f != nil && f.Type.Kind != codec.Union && !sameTags(f.Type, b.Fields[i].Type) {
			return false
		}
	}
	return true
}

func tagOf(n *codec.Node) string {
	if other, _, _, ok := n.Nullable(); ok && n.Tag == "" {
		return other.Tag
	}
	return n.Tag
}

// Append appends the target that a source record becomes. A walk has accepted the record.
// given holds the encoded values of the given fields.
func (p *Projection) Append(dst, record []byte, given [][]byte, s *Scratch) ([]byte, error) {
	if p.whole {
		return append(dst, record...), nil
	}
	s.starts, s.state.fields = append(s.starts[:0], 0), s.state.fields[:0]
	for rest, i := record, 0; i < len(p.cells); i++ {
		var err error
		if rest, err = codec.Skip(p.cells[i], rest); err != nil {
			return dst, err
		}
		s.starts = append(s.starts, len(record)-len(rest))
	}
	for i := range p.parts {
		part := &p.parts[i]
		switch {
		case part.given >= 0:
			dst = append(dst, given[part.given]...)
		case part.from < 0:
			dst = append(dst, part.value...)
		case part.read == nil:
			dst = append(dst, record[s.starts[part.from]:s.starts[part.to]]...)
		default:
			var err error
			if dst, _, err = part.read(&s.state, dst, record[s.starts[part.from]:]); err != nil {
				return dst, err
			}
		}
	}
	return dst, nil
}
