package reshape

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
)

// A Move is a field of a record that becomes a field elsewhere in the new event. It is
// immutable and safe for concurrent use.
type Move struct {
	field   within.Field
	null    []byte              // the new value if a record around the field is null; nil: it never is
	project *resolve.Projection // of a record with this one field
}

// NewMove returns the move of the field at a path of a record to a field of type to. there
// holds the dotted paths whose values are not null where the new field is. The error says
// which values do not fit.
func NewMove(record *codec.Node, path string, to *codec.Node, there []string) (*Move, error) {
	field, fault := within.FieldIn(record, strings.Split(path, "."))
	if fault != nil {
		return nil, fault
	}
	m := &Move{field: field}
	var err error
	if slices.ContainsFunc(field.Above, func(at string) bool { return !slices.Contains(there, at) }) {
		null, err := convert(&codec.Node{Kind: codec.Null}, to)
		if err != nil {
			return nil, fmt.Errorf("%s can be missing, because %s: %w", path, strings.Replace(field.Missing(), " is ", " can be ", 1), err)
		}
		if m.null, err = null.Append(nil, nil, nil, &resolve.Scratch{}); err != nil {
			return nil, err
		}
	}
	m.project, err = convert(field.Node, to)
	return m, err
}

// convert returns the projection of a value of a type to another type.
func convert(from, to *codec.Node) (*resolve.Projection, error) {
	one := func(n *codec.Node) *codec.Node {
		return codec.RecordSchema("", codec.Field{Name: "value", Type: n}).Root()
	}
	p, gaps := resolve.NewProjection(one(from), one(to), nil, nil)
	if len(gaps) > 0 {
		return nil, fmt.Errorf("%s", gaps[0].Why)
	}
	return p, nil
}

// Append appends the new value of the field for an encoded record.
func (m *Move) Append(dst, record []byte, scratch *resolve.Scratch) ([]byte, error) {
	enc, ok, err := m.field.Get(record)
	switch {
	case err != nil:
		return dst, err
	case !ok && m.null == nil:
		return dst, errors.New(m.field.Missing()) // impossible: see there of NewMove
	case !ok:
		return append(dst, m.null...), nil
	}
	return m.project.Append(dst, enc, nil, scratch)
}

// A Value is what a field of the new event is set to: an expression over the old one, or a
// field that moves. Exactly one is set.
type Value struct {
	Program *expr.Program
	Move    *Move
}

// Append appends the value to the arena of an event. record holds the fields of Move.
func (v *Value) Append(e *pipeline.Event, scope *expr.Scope, record []byte, scratch *Scratch) (enc []byte, err error) {
	n := len(e.Arena)
	if v.Move == nil {
		if enc := v.Program.Fixed(); enc != nil {
			return enc[:len(enc):len(enc)], nil
		}
		e.Arena, err = v.Program.AppendIn(scope, e.Arena)
	} else if e.Arena, err = v.Move.Append(e.Arena, record, &scratch.Resolve); err != nil {
		err = badBody(err)
	}
	return e.Arena[n:len(e.Arena):len(e.Arena)], err
}

// badBody returns the rejection of an event whose body the walk accepted by mistake.
func badBody(err error) error { return pipeline.Reject(pipeline.ReasonBadBody, "%w", err) }
