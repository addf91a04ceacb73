// Package resolve reads bodies of a writer's schema with a reader's schema.
//
// Start at [New]. compile.go decides how a pair of types is read, values.go has the
// conversions of single values, unions.go selects branches.
//
// The rules are those of the Avro specification: missing fields take their defaults,
// removed fields are dropped, numbers are promoted, aliases are followed, named types
// match without their namespace. They are decided per value: a symbol or a branch that
// the reader does not know rejects the bodies that have it, and no others. It differs
// from the specification in a few points:
//
//   - Logical types count. A time in another unit keeps its meaning; a date is no
//     timestamp. A decimal of another precision or scale, in bytes or a fixed, keeps its
//     exact value, or is rejected.
//   - Bytes become a string only if they are UTF-8.
//   - A name that matches several branches of the reader's union without namespace
//     matches none of them.
package resolve

import (
	"fmt"
	"sync"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// A Resolver turns bodies of a writer's schema into bodies of the reader's. It is
// compiled once, works on bytes, and is safe for concurrent use.
type Resolver struct {
	writer, reader *codec.Schema
	root           readFunc
	changes        []Change
	states         sync.Pool
}

// readFunc reads a value of the writer's type at the start of enc, appends it as a
// value of the reader's type, and returns the rest of enc. Validate has accepted the
// value before. An error is a *misfit, or an error of reading, which is impossible then.
type readFunc func(st *state, dst, enc []byte) (out, rest []byte, err error)

// state is the scratch memory of one resolution. fields holds the starts of the fields
// of the records being read, outermost record first.
type state struct{ fields [][]byte }

// New compiles the resolution of a pair of schemas. It returns nil if the bytes stay the
// same. An error means that no value of the writer's schema fits the reader's.
func New(writer, reader *codec.Schema) (*Resolver, error) {
	r := compile(writer, reader)
	switch {
	case r.never != nil:
		return nil, r.never
	case r.identity:
		return nil, nil
	}
	return &Resolver{writer: writer, reader: reader, root: r.read, changes: r.changes}, nil
}

// Append appends the body, converted to the reader's schema. The same body always gives
// the same bytes. An error is of pipeline.ClassReject; it names the field.
func (r *Resolver) Append(dst, body []byte) ([]byte, error) {
	if err := codec.Validate(r.writer.Root(), body); err != nil {
		return dst, err
	}
	st, ok := r.states.Get().(*state)
	if !ok {
		st = new(state)
	}
	out, _, err := r.root(st, dst, body)
	st.fields = st.fields[:0]
	r.states.Put(st)
	if err != nil {
		return dst, pipeline.Reject(pipeline.ReasonBadSchema, "%s cannot be read with our schema: %w", r.writer.Name(), err)
	}
	if err := r.reader.CheckWritten(out[len(dst):]); err != nil {
		return dst, fmt.Errorf("%s, read with our schema: %w", r.writer.Name(), err)
	}
	return out, nil
}

// Changes returns how the reader's values differ from the writer's.
func (r *Resolver) Changes() []Change { return r.changes }

// A Change is a difference between a writer's schema and the reader's.
type Change struct {
	Kind ChangeKind
	Path string // of the field, as in data.items[].price; "" for the whole record
	What string // the types, the default, or the reason
}

// String returns the change without its kind.
func (c Change) String() string {
	if c.Path == "" {
		return c.What
	}
	return c.Path + ": " + c.What
}

// ChangeKind is the kind of a [Change].
type ChangeKind uint8

// The kinds of changes.
const (
	Dropped   ChangeKind = iota // a field that the reader's schema lacks
	Filled                      // a field that the writer's schema lacks: it has its default
	Converted                   // a value of another type
	Partial                     // values that do not fit, and reject their record
)

// String returns the kind in one word.
func (k ChangeKind) String() string {
	return [...]string{"dropped", "defaulted", "converted", "partial"}[k]
}

// maxChanges bounds the changes of a pair of schemas.
const maxChanges = 1000

// under returns changes with a step before their paths.
func under(step string, changes []Change) []Change {
	out := make([]Change, len(changes))
	for i, c := range changes {
		out[i] = Change{c.Kind, join(step, c.Path), c.What}
	}
	return out
}

func join(step, path string) string {
	if path == "" || path[0] == '[' {
		return step + path
	}
	return step + "." + path
}

// Of returns the changes from a writer's schema to the reader's, or an error if no value
// of it can be read.
func Of(writer, reader *codec.Schema) ([]Change, error) {
	r := compile(writer, reader)
	if r.never != nil {
		return nil, r.never
	}
	return r.changes, nil
}

// A misfit is a value, or a type, that does not fit the reader's. It collects its path
// on the way out.
type misfit struct{ path, msg string }

func (m *misfit) Error() string {
	if m.path == "" {
		return m.msg
	}
	return m.path + ": " + m.msg
}

func misfitf(format string, args ...any) *misfit { return &misfit{msg: fmt.Sprintf(format, args...)} }

// at adds a step to the path of an error.
func at(step string, err error) error {
	if m, ok := err.(*misfit); ok { // never wrapped
		return &misfit{join(step, m.path), m.msg}
	}
	return err
}
