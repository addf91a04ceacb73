package codec

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/avro"
)

// A NewField is a field that [Schema.With] adds to a record.
type NewField struct {
	Path    []string // names of the records on the way, then the name of the field
	Type    string   // as in a schema document: "long", ["null", "string"], or the full name of a type in the schema
	Default string   // JSON, as in a schema document; "" makes the field nullable with the default null
	Doc     string
}

// With returns the schema with the fields added, each at the end of its record, in
// the given order. Names, docs, defaults and logical types stay. The text of the
// result depends only on the schema and the fields, so a registry receives the same
// schema each time.
//
// A path can lead through unions that have one record among their branches, or one with the
// next name of the path. A record type that the schema uses in several places gets the field in all of them.
func (s *Schema) With(fields []NewField) (*Schema, error) {
	if s.avro == nil {
		return nil, fmt.Errorf("%s has no schema document to add fields to", s.Name())
	}
	root := s.avro.Root()
	added := map[string]bool{}
	for _, f := range fields {
		if err := s.add(root, f, added); err != nil {
			return nil, fmt.Errorf("adding %s to %s: %w", strings.Join(f.Path, "."), s.Name(), err)
		}
	}
	derived, err := root.Schema()
	if err != nil {
		return nil, fmt.Errorf("adding fields to %s: %w", s.Name(), err)
	}
	return ParseSchema(derived.String())
}

// add adds one field to root, the tree of s. added holds the records and names of the
// fields that were added before.
func (s *Schema) add(root *avro.SchemaNode, f NewField, added map[string]bool) error {
	if len(f.Path) == 0 {
		return errors.New("the path is empty")
	}
	record := s.Root()
	for i, name := range f.Path[:len(f.Path)-1] {
		field, path := record.Field(name), strings.Join(f.Path[:i+1], ".")
		if field == nil {
			return fmt.Errorf("there is no record %s", path)
		}
		next := ""
		if i+2 < len(f.Path) {
			next = f.Path[i+1]
		}
		inner, err := onlyRecord(field.Type, next)
		if err != nil {
			return fmt.Errorf("%s is %s, %w", path, field.Type, err)
		}
		record = inner
	}
	name := f.Path[len(f.Path)-1]
	switch {
	case record.Kind != Record:
		return fmt.Errorf("%s is not a record", s.Name())
	case record.Field(name) != nil || added[record.Name+"."+name]:
		return errors.New("the field already exists")
	}
	field, err := s.parseField(record, name, f)
	if err != nil {
		return err
	}
	in := definition(root, record.Name)
	if in == nil {
		return fmt.Errorf("the schema does not define %s", record.Name)
	}
	added[record.Name+"."+name] = true
	in.Fields = append(in.Fields, *field)
	return nil
}

// onlyRecord returns the record that a value of the type is, unless it is of another branch
// of a union. Of several records, it is the one with the field next; "" is the field of none.
func onlyRecord(n *Node, next string) (*Node, error) {
	if n.Kind == Record {
		return n, nil
	}
	var records, having []*Node
	for _, b := range n.Branches {
		if b.Kind == Record {
			records = append(records, b)
			if b.Field(next) != nil {
				having = append(having, b)
			}
		}
	}
	switch {
	case len(records) == 0:
		return nil, errors.New("not a record")
	case len(records) == 1:
		return records[0], nil
	case len(having) == 1:
		return having[0], nil
	}
	return nil, errors.New("which has several records")
}

// definition returns the node of a schema document that defines a record; nil if n has
// none.
func definition(n *avro.SchemaNode, name string) *avro.SchemaNode {
	if n == nil || (n.Type == "record" || n.Type == "error") && definedName(n) == name {
		return n
	}
	parts := []*avro.SchemaNode{n.Items, n.Values}
	for i := range n.Fields {
		parts = append(parts, &n.Fields[i].Type)
	}
	for i := range n.Branches {
		parts = append(parts, &n.Branches[i])
	}
	for _, part := range parts {
		if found := definition(part, name); found != nil {
			return found
		}
	}
	return nil
}

// parseField parses the field with the named types of the schema in scope. To do so,
// it parses a record of the same namespace with two fields: the whole schema, then the
// new field.
func (s *Schema) parseField(record *Node, name string, f NewField) (*avro.SchemaField, error) {
	typ := json.RawMessage(f.Type)
	if !strings.ContainsAny(f.Type, `[{"`) { // a plain name
		quoted, err := json.Marshal(f.Type)
		if err != nil {
			return nil, err
		}
		typ = quoted
	}
	def := f.Default
	if def == "" {
		nullable, err := nullFirst(typ)
		if err != nil {
			return nil, err
		}
		typ, def = nullable, "null"
	}
	if !json.Valid([]byte(def)) {
		return nil, fmt.Errorf("the default %s is not JSON", def)
	}
	namespace := record.Name[:max(0, strings.LastIndexByte(record.Name, '.'))]
	text, err := json.Marshal(map[string]any{
		"type": "record", "name": "millrace_beside", "namespace": namespace,
		"fields": []map[string]any{
			{"name": "millrace_base", "type": json.RawMessage(s.text)},
			{"name": name, "type": typ, "default": json.RawMessage(def), "doc": f.Doc},
		},
	})
	if err != nil {
		return nil, err
	}
	parsed, err := avro.Parse(string(text))
	if err != nil {
		return nil, err
	}
	return &parsed.Root().Fields[1], nil
}

// nullFirst returns the type as a union whose first branch is null.
func nullFirst(typ json.RawMessage) (json.RawMessage, error) {
	var branches []json.RawMessage
	if json.Unmarshal(typ, &branches) != nil {
		branches = []json.RawMessage{typ}
	}
	isNull := func(b json.RawMessage) bool { return string(b) == `"null"` }
	return json.Marshal(append([]json.RawMessage{json.RawMessage(`"null"`)}, slices.DeleteFunc(branches, isNull)...))
}

// Splices reports whether [NewDerivedLayout] can add the fields of derived to bodies of
// base. It cannot if they are within an array, a map or a union.
func Splices(base, derived *Schema) bool {
	l := &Layout{}
	return l.compile(base.Root(), derived.Root(), "", nil, 1) == nil
}

// NewDerivedLayout returns a layout that walks bodies of base and has slots of
// derived, which is base with fields added by [Schema.With]. Paths name leaves of
// derived. Every added leaf has a slot, named or not. A walk sets it to its default
// and gives it an empty span at the end of its record. So View.Append gives a body of
// derived.
func NewDerivedLayout(base, derived *Schema, paths [][]string) (*Layout, error) {
	return newLayout(base, derived, paths)
}

// compileAdded adds the steps of a field that bodies lack; enc begins with its default.
// It returns the rest of enc. A walk adds each leaf of the field at its current position.
func (l *Layout) compileAdded(n *Node, path string, enc []byte, depth int) ([]byte, error) {
	if depth > maxWalkDepth {
		return nil, errTooDeep
	}
	if n.Kind == Record {
		var err error
		for i := range n.Fields {
			if enc, err = l.compileAdded(n.Fields[i].Type, path+"."+n.Fields[i].Name, enc, depth+1); err != nil {
				return nil, err
			}
		}
		return enc, nil
	}
	w := walker{buf: enc}
	end := w.value(n, 0, depth)
	if w.msg != "" {
		return nil, w.err(path)
	}
	err := l.add(step{added: true, slot: len(l.slots), node: n, path: path, depth: depth, preset: enc[:end:end]})
	l.slots = append(l.slots, leaf{path, n})
	return enc[end:], err
}
