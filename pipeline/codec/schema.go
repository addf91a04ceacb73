// Package codec reads and writes Avro without decoding it into Go values. It parses
// schemas into trees, walks over bodies and splices fields into them, resolves
// schemas, converts between Avro and the JSON form of events, adds and removes
// Confluent's framing, and talks to the schema registry.
//
// Start at [Schema] and [Layout] (layout.go). A walk has two parts: a fast program
// (program.go) and the walker in layout.go, which describes faults.
//
// [Schema], [Layout], [Resolver] and [Registry] are safe for concurrent use. [JSON] and
// [Items] belong to one goroutine.
package codec

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/twmb/avro"
)

// Kind is the kind of an Avro type.
type Kind uint8

// The kinds of Avro types.
const (
	Null Kind = iota
	Boolean
	Int
	Long
	Float
	Double
	Bytes
	String
	Fixed
	Enum
	Array
	Map
	Record
	Union
)

var kindNames = [...]string{"null", "boolean", "int", "long", "float", "double", "bytes", "string", "fixed", "enum", "array", "map", "record", "union"}

// String returns the name of the kind in a schema document.
func (k Kind) String() string { return kindNames[k] }

// A Node is one type in a schema. Nodes of a recursive schema form a cycle. A Node does
// not change after [ParseSchema].
type Node struct {
	Kind    Kind
	Name    string // full name of a record, enum or fixed
	Doc     string
	Logical string // logical type, "" if none

	Precision, Scale int      // of a decimal
	Size             int      // bytes of a fixed
	Symbols          []string // of an enum
	Unknown          string   // of an enum: its default, the symbol for those that a reader does not know; "" if none
	Aliases          []string // other names of a named type, as written
	Elem             *Node    // items of an array, values of a map
	Fields           []Field  // of a record, in the order of the body
	Branches         []*Node  // of a union

	// Tag is set on the type of a field with personal data, which is encrypted: the
	// name that the ciphertexts are bound to. See [PII].
	Tag string
}

// A Field is one field of a record.
type Field struct {
	Name       string
	Doc        string
	Type       *Node
	Aliases    []string // other names of the field
	HasDefault bool
	Default    any // in the Go types of avro.SchemaField

	pii any // value of the property PII, nil if it is not set
}

// Field returns the record's field of that name, or nil.
func (n *Node) Field(name string) *Field {
	for i := range n.Fields {
		if n.Fields[i].Name == name {
			return &n.Fields[i]
		}
	}
	return nil
}

// Nullable reports whether the node is a union of null and one other type, and
// returns that type with the branch numbers of null and of it.
func (n *Node) Nullable() (other *Node, null, branch int, ok bool) {
	if n.Kind != Union || len(n.Branches) != 2 {
		return nil, 0, 0, false
	}
	switch {
	case n.Branches[0].Kind == Null && n.Branches[1].Kind != Null:
		return n.Branches[1], 0, 1, true
	case n.Branches[1].Kind == Null && n.Branches[0].Kind != Null:
		return n.Branches[0], 1, 0, true
	}
	return nil, 0, 0, false
}

// NotNull returns the type of the values that are not null: the other type of a union of
// null and one other type, and each other node itself.
func (n *Node) NotNull() *Node {
	if other, _, _, ok := n.Nullable(); ok {
		return other
	}
	return n
}

// HoldsNull reports whether null is a value of the type.
func (n *Node) HoldsNull() bool {
	return n.Kind == Null || n.Kind == Union && slices.ContainsFunc(n.Branches, (*Node).HoldsNull)
}

// FieldNames returns the names of a record's fields, in their order.
func (n *Node) FieldNames() []string {
	names := make([]string, len(n.Fields))
	for i := range n.Fields {
		names[i] = n.Fields[i].Name
	}
	return names
}

// String returns a readable form of the type: "string", "array of shop.Item",
// "long (timestamp-micros)", "null or string".
func (n *Node) String() string {
	switch n.Kind {
	case Record, Enum, Fixed:
		return n.Name
	case Array:
		return "array of " + n.Elem.String()
	case Map:
		return "map of " + n.Elem.String()
	case Union:
		parts := make([]string, len(n.Branches))
		for i, b := range n.Branches {
			parts[i] = b.String()
		}
		return strings.Join(parts, " or ")
	}
	if n.Logical != "" {
		return n.Kind.String() + " (" + n.Logical + ")"
	}
	return n.Kind.String()
}

// Limits of a schema document. A larger one is refused before it is parsed.
const (
	maxSchemaBytes = 1 << 20
	maxSchemaDepth = 128
	maxFixed       = math.MaxInt32 // bytes of a fixed
)

// A Schema is a parsed Avro schema. It is safe for concurrent use.
type Schema struct {
	text string
	avro *avro.Schema
	root *Node
	open bool // see Open
}

// ParseSchema parses an Avro schema in JSON.
func ParseSchema(text string) (*Schema, error) {
	if len(text) > maxSchemaBytes {
		return nil, fmt.Errorf("schema of %d bytes: the maximum is %d", len(text), maxSchemaBytes)
	}
	parsed, err := avro.Parse(text)
	if err != nil {
		return nil, err
	}
	b := builder{named: map[string]*Node{}}
	root, err := b.node(parsed.Root(), "", 0)
	if err != nil {
		return nil, err
	}
	types := maxLeaves
	return &Schema{text, parsed, root, isOpen(root, 1, map[*Node]bool{}, &types)}, nil
}

// RecordSchema returns a record of types from other schemas: the values other than the event
// that an expression can use. The schema has no document and no body is ever written
// with it.
func RecordSchema(name string, fields ...Field) *Schema {
	return &Schema{root: &Node{Kind: Record, Name: name, Fields: fields}}
}

// Root returns the schema's outermost type.
func (s *Schema) Root() *Node { return s.root }

// Name returns the full name of the schema's record, or the type if it is not a record.
func (s *Schema) Name() string { return s.root.String() }

// ShortName returns the schema's name without its namespace.
func (s *Schema) ShortName() string { return baseName(s.Name()) }

// Branches returns the types of a union, each as a schema without a document.
func (s *Schema) Branches() []*Schema {
	branches := make([]*Schema, len(s.root.Branches))
	for i, b := range s.root.Branches {
		branches[i] = &Schema{root: b, open: s.open}
	}
	return branches
}

// String returns the schema document as it was parsed.
func (s *Schema) String() string { return s.text }

// Avro returns the schema in the form of the Avro library; nil after [RecordSchema].
func (s *Schema) Avro() *avro.Schema { return s.avro }

// builder converts the library's tree into nodes. In the library's tree, the second use
// of a named type is a reference by name; among nodes it is a pointer.
type builder struct{ named map[string]*Node }

func (b *builder) node(in *avro.SchemaNode, namespace string, depth int) (*Node, error) {
	if depth > maxSchemaDepth {
		return nil, fmt.Errorf("schema nested more than %d deep", maxSchemaDepth)
	}
	n := &Node{Doc: in.Doc, Logical: in.LogicalType, Precision: in.Precision, Scale: in.Scale, Size: in.Size, Symbols: in.Symbols, Aliases: in.Aliases}
	var err error
	switch in.Type {
	case "null":
		n.Kind = Null
	case "boolean":
		n.Kind = Boolean
	case "int":
		n.Kind = Int
	case "long":
		n.Kind = Long
	case "float":
		n.Kind = Float
	case "double":
		n.Kind = Double
	case "bytes":
		n.Kind = Bytes
	case "string":
		n.Kind = String
	case "fixed":
		n.Kind = Fixed
		b.name(n, in)
		if n.Size > maxFixed {
			return nil, fmt.Errorf("%s: a fixed of %d bytes: the maximum is %d", n.Name, n.Size, maxFixed)
		}
	case "enum":
		n.Kind = Enum
		n.Unknown = in.EnumDefault
		b.name(n, in)
	case "array":
		n.Kind = Array
		n.Elem, err = b.node(in.Items, namespace, depth+1)
	case "map":
		n.Kind = Map
		n.Elem, err = b.node(in.Values, namespace, depth+1)
	case "union":
		n.Kind = Union
		for i := range in.Branches {
			branch, err := b.node(&in.Branches[i], namespace, depth+1)
			if err != nil {
				return nil, err
			}
			n.Branches = append(n.Branches, branch)
		}
	case "record", "error":
		n.Kind = Record
		b.name(n, in)
		namespace = n.Name[:max(0, strings.LastIndexByte(n.Name, '.'))]
		for i := range in.Fields {
			f := &in.Fields[i]
			t, err := b.node(&f.Type, namespace, depth+1)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name, err)
			}
			own := Field{Name: f.Name, Doc: f.Doc, Type: t, Aliases: f.Aliases, HasDefault: f.HasDefault, Default: f.Default, pii: f.Props[PII]}
			if tag, fault := own.tag(); fault == "" {
				t.Tag = tag // a string, bytes or a union: a node that only this field uses
				for _, b := range t.Branches {
					b.Tag = tag // only this field uses the branches, too
				}
			}
			n.Fields = append(n.Fields, own)
		}
	default:
		named, ok := b.named[in.Type]
		if !ok && namespace != "" {
			named, ok = b.named[namespace+"."+in.Type]
		}
		if !ok {
			return nil, fmt.Errorf("unknown type %q", in.Type)
		}
		return named, nil
	}
	return n, err
}

// name sets the full name of a named type and registers it. The caller does so before it
// builds the fields, because they may refer to the type.
func (b *builder) name(n *Node, in *avro.SchemaNode) {
	n.Name = definedName(in)
	b.named[n.Name] = n
}

// definedName returns the full name of the type that a node defines.
func definedName(in *avro.SchemaNode) string {
	if in.Namespace != "" && !strings.Contains(in.Name, ".") {
		return in.Namespace + "." + in.Name
	}
	return in.Name
}
