package codec

import (
	"fmt"
	"slices"
	"strings"
)

// A Selection describes a record that has some of the fields of another one.
type Selection struct {
	From  []string                // the path of a record in the schema; its fields are selected. Empty: those of the schema's own record
	Keep  func(field string) bool // which fields stay; nil: all
	Names map[string]string       // new names of fields that stay
	Name  string                  // of the record; without a namespace, the one of the record stays. "": the name stays
}

// Select returns the schema of a selection from s. Docs, defaults, logical types and
// other properties stay. The text of the result depends only on the schema and the
// selection, so a registry receives the same schema each time.
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
	out := *n
	out.Fields = slices.Clone(n.Fields)
	if sel.Keep != nil {
		kept := out.Fields[:0]
		for _, f := range out.Fields {
			if sel.Keep(f.Name) {
				kept = append(kept, f)
			}
		}
		out.Fields = kept
	}
	for i := range out.Fields {
		if name, ok := sel.Names[out.Fields[i].Name]; ok {
			out.Fields[i].Name, out.Fields[i].Aliases = name, nil
		}
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
