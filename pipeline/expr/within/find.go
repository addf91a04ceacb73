package within

import (
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/wording"
)

// A Found is the field that a path names.
type Found struct {
	Leaf   []string    // the path of the leaf that is or holds the field
	Place  *Place      // of the field in the leaf; nil if it is the leaf
	Path   []string    // of the field
	Node   *codec.Node // the type of the field
	Entry  bool        // the path names one entry of the field, a map
	Key    string      // of the entry: the text after the path of the map, including dots
	Unions []string    // the dotted paths on the way whose values must not be null
}

// A Fault says why a path names no field that has a value of its own. At is its offset in
// the path, in bytes.
type Fault struct {
	At        int
	Msg, Hint string
}

// Error returns the message.
func (f *Fault) Error() string { return f.Msg }

func faultAt(at int, hint, format string, args ...any) *Fault {
	return &Fault{At: at, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// A Finder finds the fields of a record.
type Finder struct {
	Schema *codec.Schema
	// Word describes a type in a message, such as "a string".
	Word func(n *codec.Node) string
	// Same reports whether values of both types have the same bytes and meaning.
	Same func(a, b *codec.Node) bool
	// Whole says that a path may also name a whole record.
	Whole bool
}

// Find finds the field at a path such as data.total, metadata.source or after.email.
//
// Below a union, the path leads into each branch that is a record with the rest of the
// path. In an event with another branch, the field does not exist.
func (f Finder) Find(path string) (Found, *Fault) {
	out := Found{}
	record := f.Schema.Root()
	at := 0
	for rest := path; ; {
		name, after, more := strings.Cut(rest, ".")
		if name == "" {
			return out, faultAt(at, "a.b.c", "%q is not a path", path)
		}
		field := record.Field(name)
		out.Leaf = append(out.Leaf, name)
		if field == nil {
			return out, faultAt(at, wording.Nearest(name, record.FieldNames()), "%s has no field %s", f.Schema.Name(), strings.Join(out.Leaf, "."))
		}
		at += len(name) + 1
		if field.Type.Kind == codec.Record && more {
			record, rest = field.Type, after
			continue
		}
		text := ""
		if more {
			text = path[at:]
			if text == "" && field.Type.NotNull().Kind != codec.Map {
				return out, faultAt(at, "a.b.c", "%q is not a path", path)
			}
		}
		w := search{Finder: f, path: path}
		p, fault := w.find(field.Type, at, text, more)
		if fault != nil {
			return out, fault
		}
		if p.next != nil {
			out.Place = p
		}
		out.Node, out.Entry, out.Key, out.Unions = w.node, w.entry, w.key, w.unions
		if out.Path = strings.Split(path, "."); w.entry {
			out.Path = strings.Split(strings.TrimSuffix(path, "."+w.key), ".")
		}
		return out, nil
	}
}

// A search is the search for the rest of a path in the value of a leaf.
type search struct {
	Finder
	path   string
	unions []string

	// The result; node is nil until there is one.
	node  *codec.Node
	entry bool
	key   string
}

// find returns the place of rest, the part of the path from the offset at, in values of
// type n. more is false if the path ends at the value itself.
func (w *search) find(n *codec.Node, at int, rest string, more bool) (*Place, *Fault) {
	upTo := w.path[:max(0, at-1)] // the path of the value
	switch {
	case !more && n.Kind == codec.Record && !w.Whole:
		return nil, faultAt(0, "name one of its fields: "+wording.List(n.FieldNames(), 4), "%s is a whole record (%s)", w.path, n.Name)
	case !more:
		return w.end(n, false, "")
	case n.Kind == codec.Map && rest == "":
		return nil, faultAt(at-1, upTo+".KEY", "the key is missing")
	case n.Kind == codec.Map:
		return w.end(n, true, rest)
	case n.Kind == codec.Record:
		name, after, more := strings.Cut(rest, ".")
		if name == "" {
			return nil, faultAt(at, "a.b.c", "%q is not a path", w.path)
		}
		for i := range n.Fields {
			if n.Fields[i].Name != name {
				continue
			}
			p, fault := w.find(n.Fields[i].Type, at+len(name)+1, after, more)
			return &Place{node: n, next: []*Place{p}, field: i}, fault
		}
		return nil, faultAt(at, wording.Nearest(name, n.FieldNames()), "%s has no field %s", n.Name, name)
	case n.Kind == codec.Union:
		return w.union(n, at, rest)
	}
	return nil, faultAt(at, "", "%s is %s, which has no fields to set", upTo, w.Word(n))
}

// union returns the place in a union: in each branch that has the rest of the path.
func (w *search) union(n *codec.Node, at int, rest string) (*Place, *Fault) {
	w.unions = append(w.unions, w.path[:at-1])
	p := &Place{node: n, next: make([]*Place, len(n.Branches))}
	var first *Fault
	some := false
	for i, branch := range n.Branches {
		if branch.Kind != codec.Record && branch.Kind != codec.Map {
			continue
		}
		next, fault := w.find(branch, at, rest, true)
		switch {
		case fault == nil:
			p.next[i], some = next, true
		case strings.HasPrefix(fault.Msg, severalKinds):
			return nil, fault
		case first == nil:
			first = fault
		}
	}
	switch {
	case some:
		return p, nil
	case first != nil:
		return nil, first
	}
	return nil, faultAt(at, "name "+w.path[:at-1]+" as a whole", "%s is %s, which has no fields to set", w.path[:at-1], w.Word(n))
}

// Leads reports whether a path can lead through a union, because a branch is a record or a
// map.
func Leads(n *codec.Node) bool {
	return slices.ContainsFunc(n.Branches, func(b *codec.Node) bool { return b.Kind == codec.Record || b.Kind == codec.Map })
}

// severalKinds starts the message of a path that leads to values of several types.
const severalKinds = "several branches "

// end ends a search at a value. Another branch of a union may have led to one before.
func (w *search) end(n *codec.Node, entry bool, key string) (*Place, *Fault) {
	if w.node != nil && (w.entry != entry || w.key != key || !w.Same(w.node, n)) {
		return nil, faultAt(0, "use a name that only one of them has, or one with the same type in all", severalKinds+"of a union have %s, as %s and as %s", w.path, w.Word(w.node), w.Word(n))
	}
	w.node, w.entry, w.key = n, entry, key
	return &Place{node: n}, nil
}
