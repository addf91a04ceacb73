// Package reshape holds the parts of the stage select: the record that it takes out of
// an event, the fields of it that stay, and where they are afterwards.
//
// Start at [Fields]; [Origin] finds a record in an event, and [Mapping] follows fields into
// the record that a selection makes.
package reshape

import (
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// Fields says which fields of a record stay. Paths lead through nullable records, and
// through arrays and maps with [] (items[].price).
type Fields struct {
	Keep []string // nil: all but those of Drop
	Drop []string
}

// Part implements [codec.Selection].Keep.
func (f Fields) Part(path string) codec.Part {
	below := func(p string) bool { return isWithin(p, path) }
	switch {
	case slices.Contains(f.Drop, path):
		return codec.None
	case f.Keep != nil && slices.Contains(f.Keep, path):
		return codec.Whole
	case slices.ContainsFunc(f.Keep, below), slices.ContainsFunc(f.Drop, below):
		return codec.Some
	case f.Keep != nil:
		return codec.None
	}
	return codec.Whole
}

// Stays reports whether the field at a path stays, at least in part.
func (f Fields) Stays(path string) bool {
	for at := range path {
		if (path[at] == '.' || path[at] == '[') && f.Part(path[:at]) != codec.Some {
			return f.Part(path[:at]) == codec.Whole
		}
	}
	return f.Part(path) != codec.None
}

// isWithin reports whether a path leads into the value at another path.
func isWithin(path, other string) bool {
	rest, ok := strings.CutPrefix(path, other)
	return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "[]"))
}

// Check returns why a record has no field at a path, as [expr.Errors], or nil. name is
// that of the record in messages.
func Check(record *codec.Node, name, path string) error {
	n, done := record, ""
	for i, part := range strings.Split(path, ".") {
		field, _, _ := strings.Cut(part, "[]")
		items := strings.TrimPrefix(part, field)
		n = n.NotNull()
		at := field
		if i > 0 {
			at = done + "." + field
		}
		if n.Kind != codec.Record {
			return expr.Errors{noRecord(n, name, done)}
		}
		f := n.Field(field)
		if f == nil {
			return expr.Errors{{Msg: fmt.Sprintf("%s has no field %s", name, at), Hint: expr.Suggest(field, n.FieldNames())}}
		}
		n, done = f.Type, at
		for items != "" {
			n = n.NotNull()
			if n.Kind != codec.Array && n.Kind != codec.Map {
				return expr.Errors{{Msg: fmt.Sprintf("%s of %s is %s, and [] is for arrays and maps", done, name, n)}}
			}
			rest, ok := strings.CutPrefix(items, "[]")
			if !ok {
				return expr.Errors{{Msg: fmt.Sprintf("%s: [] is followed by a point and the name of a field", path)}}
			}
			n, items, done = n.Elem, rest, done+"[]"
		}
	}
	if strings.HasSuffix(path, "[]") {
		return expr.Errors{{Msg: fmt.Sprintf("%s is not a field", path), Hint: "name the array or map, or a field of its items"}}
	}
	return nil
}

// noRecord is the error of a path that leads into a value that is no record.
func noRecord(n *codec.Node, name, at string) *expr.Error {
	e := &expr.Error{Msg: fmt.Sprintf("%s of %s is %s, and has no fields", at, name, n)}
	switch n.Kind {
	case codec.Array, codec.Map:
		e.Hint = fmt.Sprintf("write %s[].FIELD for a field of the items", at)
	case codec.Union:
		e.Hint = fmt.Sprintf("name %s as a whole: a path leads through a union only if it is of null and one record", at)
	}
	return e
}
