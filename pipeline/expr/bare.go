package expr

import (
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/metadata"
)

// A Bare replaces the envelope of events without one: expressions over their
// fields, without now(). If Time or Key is empty, the event has the timestamp or
// the key of its record. If ID is empty, the event has no id.
type Bare struct {
	ID, Time, Key Source

	// RecordKey is the type of the keys of the records: see [Root.Key].
	RecordKey *metadata.Key
}

// IsZero reports whether there is no expression.
func (b *Bare) IsZero() bool { return b.ID == Source{} && b.Time == Source{} && b.Key == Source{} }

// A BareType is a [Bare], compiled for one event type. It is used like a [Program].
type BareType struct {
	id, time, key *Program
	warnings      []Fault
}

// Compile compiles the expressions for one event type. Faults name the topic.
func (b *Bare) Compile(schema *codec.Schema, topic string) (BareType, []Fault) {
	var t BareType
	env, err := NewEnv(Root{Schema: schema, Key: b.RecordKey})
	if err != nil {
		return t, []Fault{{Source: b.ID, Type: schema.Name(), Msg: err.Error()}}
	}
	env = env.Knowing(nil)
	var faults []Fault
	for _, e := range []struct {
		src  Source
		name string
		node *codec.Node
		to   **Program
	}{
		{b.ID, "id", &codec.Node{Kind: codec.String}, &t.id},
		{b.Time, "time", &codec.Node{Kind: codec.Long, Logical: "timestamp-micros"}, &t.time},
		{b.Key, "key", &codec.Node{Kind: codec.String}, &t.key},
	} {
		if e.src == (Source{}) {
			continue
		}
		p, more := env.CompileAt(e.src, schema.Name(), Value(e.node, e.name, topic))
		faults = append(faults, more...)
		*e.to = p
	}
	t.warnings = env.Warnings()
	return t, faults
}

// Warnings returns what the expressions do that probably is a mistake.
func (t *BareType) Warnings() []Fault { return t.warnings }

// Paths returns the fields that the expressions read.
func (t *BareType) Paths() (paths [][]string) {
	for _, p := range t.Programs() {
		paths = append(paths, p.Paths(0)...)
	}
	return paths
}

// Metadata returns what the expressions read of the record of the event.
func (t *BareType) Metadata() (use metadata.Use) {
	for _, p := range t.Programs() {
		use.Add(p.metadata)
	}
	return use
}

// Programs returns the compiled expressions.
func (t *BareType) Programs() []*Program {
	return slices.DeleteFunc([]*Program{t.id, t.time, t.key}, func(p *Program) bool { return p == nil })
}

// Bind resolves the fields to slots of the layout; see [Program.Bind].
func (t *BareType) Bind(layout *codec.Layout) error {
	for _, p := range t.Programs() {
		if err := p.Bind(layout); err != nil {
			return err
		}
	}
	return nil
}

// AppendID appends the id of an event, or nothing if it has no id. Errors of
// AppendID, AppendKey and Time are of [pipeline.ClassReject].
func (t *BareType) AppendID(dst []byte, s *Scope) ([]byte, error) {
	return appendTextOf(dst, s, t.id)
}

// AppendKey appends the key of an event. ok is false if it has the key of its record.
func (t *BareType) AppendKey(dst []byte, s *Scope) (_ []byte, ok bool, err error) {
	n := len(dst)
	if dst, err = appendTextOf(dst, s, t.key); err == nil && t.key != nil && len(dst) == n {
		err = pipeline.Reject(pipeline.ReasonExpression, "the key %s is empty", t.key.text)
	}
	return dst, t.key != nil, err
}

// Time returns the time of an event, in microseconds since 1970. ok is false if
// the event has the timestamp of its record.
func (t *BareType) Time(s *Scope) (micros int64, ok bool, err error) {
	if t.time == nil {
		return 0, false, nil
	}
	var room [10]byte
	enc, err := t.time.AppendIn(s, room[:0])
	if err == nil {
		micros, _, err = codec.ReadLong(enc)
	}
	return micros, true, err
}

// appendTextOf appends the string that p returns, without its length prefix;
// nothing if p is nil.
func appendTextOf(dst []byte, s *Scope, p *Program) ([]byte, error) {
	if p == nil {
		return dst, nil
	}
	n := len(dst)
	out, err := p.AppendIn(s, dst)
	if err != nil {
		return dst, err
	}
	text, _, err := codec.ReadText(out[n:])
	if err != nil {
		return dst, err
	}
	return append(out[:n], text...), nil // the text overwrites its length prefix
}
