package codec

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/twmb/avro"
)

// A Part says how much of a field a [Selection] keeps.
type Part uint8

// The values of Part.
const (
	None  Part = iota
	Some       // some of the fields of the records in it
	Whole      // the field as it is
)

// A Selection describes a record that has some of the fields of another one. Its paths
// begin at the record; [] stands for the items of an array and the entries of a map
// (items[].price).
type Selection struct {
	From  []string               // the path of a record in the schema; its fields are selected. Empty: those of the schema's own record
	Keep  func(path string) Part // nil: everything
	Names map[string]string      // new names of fields that stay, by path
	Name  string                 // of the record; without a namespace, the one of the record stays. "": the name stays
}

// ErrNoField is the error of a selection that keeps no field of a record.
var ErrNoField = errors.New("no field stays")

// Select returns the schema of a selection from s. Docs, defaults, logical types and
// other properties stay. A renamed field below the record has its old name as an alias,
// so that the schema can read values of s. The text of the result depends only on the
// schema and the selection, so a registry receives the same schema each time.
func (s *Schema) Select(sel Selection) (*Schema, error) {
	if s.avro == nil {
		return nil, fmt.Errorf("%s has no schema document to select from", s.Name())
	}
	// A definition can be in a field that is left out, so every use needs its own.
	n := s.avro.Root().ExpandReferences()
	for i, name := range sel.From {
		at := -1
		for f := range n.Fields {
			if n.Fields[f].Name == name {
				at = f
			}
		}
		if at < 0 {
			return nil, fmt.Errorf("%s has no record %s", s.Name(), strings.Join(sel.From[:i+1], "."))
		}
		n = &n.Fields[at].Type
		for b := range n.Branches {
			if n.Branches[b].Type != "null" {
				n = &n.Branches[b]
				break
			}
		}
	}
	if n.Type != "record" {
		return nil, fmt.Errorf("%s of %s is not a record with fields of its own", strings.Join(sel.From, "."), s.Name())
	}
	out, err := sel.record(*n, "")
	if err != nil {
		return nil, fmt.Errorf("selecting fields of %s: %w", s.Name(), err)
	}
	if sel.Name != "" {
		out.Aliases = nil
		out.Name = baseName(sel.Name)
		if at := strings.LastIndexByte(sel.Name, '.'); at >= 0 {
			out.Namespace = sel.Name[:at]
		}
	}
	derived, err := out.Schema()
	if err != nil {
		return nil, fmt.Errorf("selecting fields of %s: %w", s.Name(), err)
	}
	return ParseSchema(derived.String())
}

// record returns a record with the fields that stay. at is the path of its fields up to
// their names.
func (sel *Selection) record(n avro.SchemaNode, at string) (avro.SchemaNode, error) {
	var kept []avro.SchemaField
	for _, f := range n.Fields {
		path, part := at+f.Name, Whole
		if sel.Keep != nil {
			part = sel.Keep(path)
		}
		name, renamed := sel.Names[path]
		switch {
		case part == None:
			continue
		case part == Some || sel.renames(path):
			var err error
			if f.Type, err = sel.within(f.Type, path); err != nil {
				return n, err
			}
			if !empty(f.Default) { // it may have fields that are left out
				f.HasDefault, f.Default = false, nil
			}
		}
		switch {
		case renamed && at == "":
			f.Name, f.Aliases = name, nil
		case renamed:
			f.Name, f.Aliases = name, []string{f.Name}
		}
		kept = append(kept, f)
	}
	if len(kept) == 0 {
		return n, fmt.Errorf("%s: %w", cmp.Or(strings.TrimSuffix(at, "."), n.Name), ErrNoField)
	}
	n.Fields = kept
	return n, nil
}

// empty reports whether a default has no fields: null, or an empty array, map or record.
func empty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

// renames reports whether a field within the value at a path gets a new name.
func (sel *Selection) renames(path string) bool {
	for name := range sel.Names {
		if rest, ok := strings.CutPrefix(name, path); ok && rest != "" && (rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}

// within returns a type whose records have the fields that stay.
func (sel *Selection) within(n avro.SchemaNode, at string) (avro.SchemaNode, error) {
	var err error
	switch n.Type {
	case "record":
		return sel.record(n, at+".")
	case "array":
		items := *n.Items
		if items, err = sel.within(items, at+"[]"); err == nil {
			n.Items = &items
		}
		return n, err
	case "map":
		values := *n.Values
		if values, err = sel.within(values, at+"[]"); err == nil {
			n.Values = &values
		}
		return n, err
	case "union":
		branches := append([]avro.SchemaNode(nil), n.Branches...)
		for i := range branches {
			if branches[i].Type != "null" && err == nil {
				branches[i], err = sel.within(branches[i], at)
			}
		}
		n.Branches = branches
		return n, err
	}
	return n, fmt.Errorf("%s is a %s that is defined by itself, so its fields cannot be selected", at, n.Type)
}
