// Package metadata has what an expression can read of the record that holds an event: its
// key and its headers.
//
// A [Key] and a [Use] are immutable while they are in use, and then safe for concurrent use.
package metadata

import (
	"errors"
	"unicode/utf8"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
	"millrace/pipeline/keyformat"
)

// The names of the parts of a record.
const (
	KeyName     = "key"
	HeadersName = "headers"
)

// IsName reports whether a name is that of a part of a record.
func IsName(name string) bool { return name == KeyName || name == HeadersName }

// A Key is the type of the keys of the records on a topic.
type Key struct {
	// Node is the type of the name key: a string, a long, or a record whose fields
	// expressions read as key.NAME.
	Node *codec.Node
	// Append appends the key of the record of a view, encoded as Node.
	Append func(dst []byte, v *pipeline.View) ([]byte, error)
}

// KeyOf returns the type of keys of a format. Of Avro keys, the view has the body
// ([pipeline.View.KeyBody]).
func KeyOf(f keyformat.Format) *Key {
	if f.IsText() {
		return &Key{Node: f.Node(), Append: appendText}
	}
	return &Key{Node: f.Node(), Append: func(dst []byte, v *pipeline.View) ([]byte, error) {
		return f.AppendValue(dst, v.Record.Key, v.KeyBody)
	}}
}

func appendText(dst []byte, v *pipeline.View) ([]byte, error) {
	switch key := v.Record.Key; {
	case key == nil:
		return dst, errors.New("the record has no key")
	case !utf8.Valid(key):
		return dst, errors.New("the key of the record is not UTF-8")
	default:
		return codec.AppendBytes(dst, key), nil
	}
}

// Fields returns the parts of a record with keys of a type, as fields.
func (k *Key) Fields() []codec.Field {
	return []codec.Field{
		{Name: KeyName, Type: k.Node},
		{Name: HeadersName, Type: &codec.Node{Kind: codec.Map, Elem: &codec.Node{Kind: codec.String}}},
	}
}

// Member returns the field at a path of an encoded record.
func Member(n *codec.Node, enc []byte, path []string) ([]byte, error) {
	for _, name := range path {
		var err error
		for i := range n.Fields {
			if n.Fields[i].Name == name {
				n = n.Fields[i].Type
				break
			}
			if enc, err = raw.Skip(n.Fields[i].Type, enc); err != nil {
				return nil, err
			}
		}
	}
	rest, err := raw.Skip(n, enc)
	return enc[:len(enc)-len(rest)], err
}

// isText reports whether expressions can read a header: it has a value, and is UTF-8.
func isText(h *pipeline.Header) bool {
	return h.Value != nil && utf8.ValidString(h.Key) && utf8.Valid(h.Value)
}

// AppendHeaders appends the headers as an Avro map of strings. It leaves out a header
// that is not text. A reader of the map uses the last entry of a name.
func AppendHeaders(dst []byte, in *pipeline.Record) []byte {
	count := int64(0)
	for i := range in.Headers {
		if isText(&in.Headers[i]) {
			count++
		}
	}
	if count == 0 {
		return append(dst, 0)
	}
	dst = codec.AppendLong(dst, count)
	for i := range in.Headers {
		if h := &in.Headers[i]; isText(h) {
			dst = codec.AppendBytes(codec.AppendString(dst, h.Key), h.Value)
		}
	}
	return append(dst, 0)
}
