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

	place *Place // of the value in the leaf, or in the record; nil if it is the leaf
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

// FieldIn returns the field at a path of a record, as a place in the encoding of the whole
// record. It has no leaf.
func FieldIn(record *codec.Node, path []string) (Field, *Fault) {
	f, fault := FieldAt(codec.RecordSchema(record.Name, record.Fields...), path)
	if fault != nil {
		return f, fault
	}
	inner := f.place
	if inner == nil {
		inner = &Place{node: f.Node}
	}
	n := record
	var steps []*Place
	for _, name := range f.Leaf {
		at := 0
		for n.Fields[at].Name != name {
			at++
		}
		steps, n = append(steps, &Place{node: n, field: at}), n.Fields[at].Type
	}
	for i := len(steps) - 1; i >= 0; i-- {
		steps[i].next, inner = []*Place{inner}, steps[i]
	}
	f.Leaf, f.place = nil, inner
	return f, nil
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

// Place returns where the value is in the leaf; nil if it is the leaf.
func (f *Field) Place() *Place { return f.place }

// Optional reports whether an event may lack the value, because a record around it can be
// null.
func (f *Field) Optional() bool { return len(f.Above) > 0 }

// Missing says why an event lacks the value: "after is null".
func (f *Field) Missing() string { return f.why }
