package reshape

import (
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
)

// A Mapping says where the fields of an event are in the record that a selection makes.
type Mapping struct {
	From  []string          // the path of the record whose fields are copied; empty: the event itself
	Names map[string]string // new names of fields, by path in that record; "" for a field that moves
	Moves []Moved
	Given [][]string // the fields of Out that are not copied
	Out   *codec.Node
}

// A Moved field of the record is elsewhere in Out. Both paths are dotted.
type Moved struct{ From, To string }

// Rename adds renames of fields of the record to fields of Out, as paths. A field stays in
// its record if that is the one that the new path names; otherwise it moves.
func (m *Mapping) Rename(renames []Moved) {
	m.Names, m.Moves = map[string]string{}, nil
	for _, r := range renames {
		parent, name := cut(r.To)
		if old, _ := cut(r.From); renamed(renames, old) == parent {
			m.Names[r.From] = name
			continue
		}
		m.Names[r.From], m.Moves = "", append(m.Moves, r)
	}
}

// cut splits a path before its last name.
func cut(path string) (parent, name string) {
	at := strings.LastIndexByte(path, '.')
	return path[:max(at, 0)], path[at+1:]
}

// renamed returns where a field of the record, or its items, are after renames.
func renamed(renames []Moved, path string) string {
	if of, ok := strings.CutSuffix(path, "[]"); ok {
		return renamed(renames, of) + "[]"
	}
	if i := slices.IndexFunc(renames, func(r Moved) bool { return r.From == path }); i >= 0 {
		return renames[i].To
	}
	parent, name := cut(path)
	if parent == "" {
		return name
	}
	return renamed(renames, parent) + "." + name
}

// Overlaps returns the faults of fields of Out that have two sources: given ones and copied
// ones with new names. A field can be given in a record that is copied.
func Overlaps(given, copied []expr.Source) (faults []expr.Fault) {
	check := func(one expr.Source, others []expr.Source, overlap func(a, b string) bool) {
		for _, other := range others {
			switch {
			case one.Text == other.Text:
				faults = append(faults, expr.Fault{Source: one, Msg: one.Text + " is set twice", Hint: "remove one of them"})
			case overlap(one.Text, other.Text):
				faults = append(faults, expr.Fault{Source: one, Msg: fmt.Sprintf("%s and %s overlap", other.Text, one.Text), Hint: "set one of them"})
			}
		}
	}
	holds := func(a, b string) bool { return a == b || strings.HasPrefix(b, a+".") }
	for i := range given {
		check(given[i], given[:i], func(a, b string) bool { return holds(a, b) || holds(b, a) })
		check(given[i], copied, holds)
	}
	for i := range copied {
		check(copied[i], copied[:i], func(string, string) bool { return false })
	}
	return faults
}

// Origins returns the dotted paths of the fields of the record that are copied to fields of
// Out.
func (m *Mapping) Origins(record *codec.Node, to []string) (from []string) {
	for _, path := range to {
		if origin := m.origin(strings.Split(path, ".")); origin != "" {
			if _, fault := within.FieldIn(record, strings.Split(origin, ".")); fault == nil {
				from = append(from, origin)
			}
		}
	}
	return from
}

// origin returns the path of the field that would be copied to a field of Out; "" if none
// is.
func (m *Mapping) origin(to []string) (from string) {
next:
	for _, name := range to {
		for path, other := range m.Names {
			if parent, _ := cut(path); parent == from && other == name {
				from = path
				continue next
			}
		}
		if from != "" {
			name = from + "." + name
		}
		if _, other := m.Names[name]; other {
			return ""
		}
		from = name
	}
	return from
}

// Follow returns the fields of Out that copy some fields of the event, whole or in part.
// record reports whether these hold the whole record at From, so that they also say
// whether it is null.
func (m *Mapping) Follow(of [][]string) (fields [][]string, record bool) {
	for _, path := range of {
		n := min(len(path), len(m.From))
		switch {
		case !slices.Equal(path[:n], m.From[:n]):
		case len(path) <= len(m.From):
			record = true
		default:
			if to := m.to(path[n:]); to != nil {
				fields = append(fields, to)
			}
			fields = append(fields, m.moved(path[n:])...)
		}
	}
	if !record {
		return fields, false
	}
	fields = m.moved(nil)
	for i := range m.Out.Fields {
		if path := []string{m.Out.Fields[i].Name}; !m.given(path) {
			fields = append(fields, path)
		}
	}
	return fields, true
}

// moved returns where the fields are that move out of a field of the record, or into which
// it moves.
func (m *Mapping) moved(path []string) (fields [][]string) {
	for _, move := range m.Moves {
		from := strings.Split(move.From, ".")
		if n := min(len(from), len(path)); slices.Equal(from[:n], path[:n]) {
			fields = append(fields, strings.Split(move.To, "."))
		}
	}
	return fields
}

// to returns where a field of the record is; nil if it is left out.
func (m *Mapping) to(path []string) (to []string) {
	n, at := m.Out, ""
	for i, name := range path {
		n = n.NotNull()
		if n.Kind != codec.Record {
			return append(to, path[i:]...) // the key of a map
		}
		at += name
		if other, ok := m.Names[at]; ok {
			name = other
		}
		at += "."
		f := n.Field(name)
		if to = append(to, name); f == nil || m.given(to) {
			return nil
		}
		n = f.Type
	}
	return to
}

func (m *Mapping) given(path []string) bool {
	return slices.ContainsFunc(m.Given, func(g []string) bool { return slices.Equal(g, path) })
}
