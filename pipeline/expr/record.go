package expr

import (
	"errors"
	"unicode/utf8"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
)

// This file has the names key and headers: the key and the headers of the record that
// holds the event. A field of the event or a root with the same name hides them.

// The names of the parts of a record.
const (
	keyName     = "key"
	headersName = "headers"
)

// recordView is the view of the leaves that are parts of the record. It is no index:
// field.get reads them from the record.
const recordView = -1

// A Key is the type of the keys of the records on a topic.
type Key struct {
	// Node is the type of the name key: a string, a long, or a record whose fields
	// expressions read as key.NAME.
	Node *codec.Node
	// Append appends the key of the record of a view, encoded as Node.
	Append func(dst []byte, v *pipeline.View) ([]byte, error)
}

// TextKey is the type of keys that are text.
func TextKey() *Key {
	return &Key{Node: &codec.Node{Kind: codec.String}, Append: func(dst []byte, v *pipeline.View) ([]byte, error) {
		switch key := v.Record.Key; {
		case key == nil:
			return dst, errors.New("the record has no key")
		case !utf8.Valid(key):
			return dst, errors.New("the key of the record is not UTF-8")
		default:
			return codec.AppendBytes(dst, key), nil
		}
	}}
}

// recordRoot returns a root with the parts of the record that no other name hides; nil
// if there are none.
func (e *Env) recordRoot() *Root {
	event := e.event()
	if event == nil || event.Key == nil {
		return nil
	}
	var fields []codec.Field
	for _, f := range []codec.Field{
		{Name: keyName, Type: event.Key.Node},
		{Name: headersName, Type: &codec.Node{Kind: codec.Map, Elem: &codec.Node{Kind: codec.String}}},
	} {
		if event.Schema.Root().Field(f.Name) == nil && !e.hides(f.Name) {
			fields = append(fields, f)
		}
	}
	if len(fields) == 0 {
		return nil
	}
	return &Root{Schema: codec.RecordSchema("record", fields...), View: recordView, Key: event.Key}
}

var errNoRecord = errors.New("the key and the headers of the record are unknown here")

// part returns a part of the record, encoded. On an error it returns nil, which no
// reader accepts, and keeps the error for the rejection.
func (s *Scope) part(l *leaf) []byte {
	var in *pipeline.Record
	if len(s.views) > 0 {
		in = s.views[0].Record
	}
	var err error
	switch {
	case in == nil:
		err = errNoRecord
	case l.rel[0] == headersName:
		s.headers = appendHeaders(s.headers[:0], in)
		return s.headers
	default:
		if s.key, err = l.key.Append(s.key[:0], s.views[0]); err == nil {
			var enc []byte
			if enc, err = member(l.key.Node, s.key, l.rel[1:]); err == nil {
				return enc
			}
		}
	}
	s.partErr = err
	return nil
}

// member returns the field at a path of an encoded record.
func member(n *codec.Node, enc []byte, path []string) ([]byte, error) {
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

// appendHeaders appends the headers as an Avro map of strings. It leaves out a header
// that is not text: without a value, or not UTF-8. A reader of the map uses the last
// entry of a name.
func appendHeaders(dst []byte, in *pipeline.Record) []byte {
	text := func(h *pipeline.Header) bool { return h.Value != nil && utf8.ValidString(h.Key) && utf8.Valid(h.Value) }
	count := int64(0)
	for i := range in.Headers {
		if text(&in.Headers[i]) {
			count++
		}
	}
	if count == 0 {
		return append(dst, 0)
	}
	dst = codec.AppendLong(dst, count)
	for i := range in.Headers {
		if h := &in.Headers[i]; text(h) {
			dst = codec.AppendBytes(codec.AppendString(dst, h.Key), h.Value)
		}
	}
	return append(dst, 0)
}
