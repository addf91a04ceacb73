package expr

import (
	"errors"

	celast "cel.dev/cel-go/common/ast"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/metadata"
)

// This file has the names key and headers: the key and the headers of the record that
// holds the event. A field of the event or a root with the same name hides them.

// recordView is the view of the leaves that are parts of the record. It is no index:
// field.get reads them from the record.
const recordView = -1

// recordRoot returns a root with the parts of the record that no other name hides; nil
// if there are none.
func (e *Env) recordRoot() *Root {
	event := e.event()
	if event == nil || event.Key == nil {
		return nil
	}
	var fields []codec.Field
	for _, f := range event.Key.Fields() {
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
	case l.rel[0] == metadata.HeadersName:
		s.headers = metadata.AppendHeaders(s.headers[:0], in)
		return s.headers
	default:
		if s.key, err = l.key.Append(s.key[:0], s.views[0]); err == nil {
			var enc []byte
			if enc, err = metadata.Member(l.key.Node, s.key, l.rel[1:]); err == nil {
				return enc
			}
		}
	}
	s.partErr = err
	return nil
}

// usedMetadata returns what the expression reads of the record.
func (c *compiler) usedMetadata() (use metadata.Use) {
	for _, f := range c.fields {
		use.Key = use.Key || f.view == recordView && f.rel[0] == metadata.KeyName
	}
	use.AddHeaders(c.ast.Expr(), func(e celast.Expr) bool {
		l := c.leafOf(e)
		return l != nil && l.view == recordView && l.rel[0] == metadata.HeadersName
	})
	return use
}

// Metadata returns what the expression reads of the record of the event.
func (p *Program) Metadata() metadata.Use { return p.metadata }
