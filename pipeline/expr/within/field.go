package within

import (
	"strings"

	"millrace/pipeline/codec"
)

// A Field is where a reader finds the value at a path. The path can lead through records
// that can be null, and through unions with a record. It is immutable.
type Field struct {
	Leaf []string    // the path of the leaf that is or holds the value
	Node *codec.Node // the type of the value

	// Above are the dotted paths of the values on the way that must not be null.
	Above []string

	place *Place // of the value in the leaf; nil if it is the leaf
	why   string // why an event can lack the value
}

// FieldAt returns the field at a path of a schema. It may be a whole record. The fault says
// what the schema lacks.
func FieldAt(s *codec.Schema, path []string) (Field, *Fault) {
	text := strings.Join(path, ".")
	f, fault := Finder{Schema: s, Word: (*codec.Node).String, Same: codec.Same, Whole: true}.Find(text)
	switch {
	case fault != nil && strings.HasPrefix(fault.Msg, severalKinds):
		return Field{}, fault
	case fault != nil:
		name, _, _ := strings.Cut(text[min(fault.At, len(text)):], ".")
		return Field{}, faultAt(fault.At, fault.Hint, "%s has no field %s", s.Name(), text[:min(fault.At+len(name), len(text))])
	case f.Entry:
		return Field{}, faultAt(0, "", "%s has no field %s: it is an entry of a map", s.Name(), text)
	}
	why := " is null"
	for _, union := range f.Unions {
		u, fault := FieldAt(s, strings.Split(union, "."))
		if fault != nil || u.Node.NotNull() == u.Node {
			why = " is null or of another type"
		}
	}
	return Field{Leaf: f.Leaf, Node: f.Node, Above: f.Unions, place: f.Place, why: strings.Join(f.Unions, " or ") + why}, nil
}

// Get returns the value in an encoded leaf that a walk has accepted. ok is false if the
// event has no such value, because a record around it is null. An error means that no walk
// has accepted the leaf.
func (f *Field) Get(leaf []byte) (value []byte, ok bool, err error) {
	if f.place == nil {
		return leaf, true, nil
	}
	start, end, ok, err := f.place.Span(leaf)
	return leaf[start:end:end], ok, err
}

// Span returns where the value is in an encoded leaf, see [Place.Span].
func (f *Field) Span(leaf []byte) (start, end int, ok bool, err error) {
	if f.place == nil {
		return 0, len(leaf), true, nil
	}
	return f.place.Span(leaf)
}

// Optional reports whether an event may lack the value, because a record around it can be
// null.
func (f *Field) Optional() bool { return f.place != nil }

// Missing says why an event lacks the value: "after is null".
func (f *Field) Missing() string { return f.why }
