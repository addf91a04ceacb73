package expr

import (
	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// A Bare says what stands for the envelope of events that carry none: expressions
// over their fields, with no now(). An empty Time or Key leaves it to the record,
// its timestamp and its key; without an ID, events have none.
type Bare struct{ ID, Time, Key Source }

// A BareType is a [Bare], compiled for one event type. It is bound once, as a
// [Program] is, and then does not change.
type BareType struct{ id, time, key *Program }

// Compile compiles for a type of events of a topic, which faults name.
func (b *Bare) Compile(schema *codec.Schema, topic string) (BareType, []Fault) {
	var t BareType
	env, err := NewEnv(Root{Schema: schema})
	if err != nil {
		return t, []Fault{{Source: b.ID, Type: schema.Name(), Msg: err.Error()}}
	}
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
		p, err := env.Compile(e.src.Text, Value(e.node, e.name, topic))
		faults = append(faults, Faults(e.src, schema.Name(), err)...)
		*e.to = p
	}
	return t, faults
}

// Paths returns the fields that are read.
func (t *BareType) Paths() (paths [][]string) {
	for _, p := range []*Program{t.id, t.time, t.key} {
		if p != nil {
			paths = append(paths, p.Paths(0)...)
		}
	}
	return paths
}

// Bind says where they stand.
func (t *BareType) Bind(layout *codec.Layout) error {
	for _, p := range []*Program{t.id, t.time, t.key} {
		if p == nil {
			continue
		}
		if err := p.Bind(layout); err != nil {
			return err
		}
	}
	return nil
}

// AppendID appends the id of an event; nothing if it has none. An error here, and
// in the methods below, is of [pipeline.ClassReject].
func (t *BareType) AppendID(dst []byte, s *Scope) ([]byte, error) {
	return appendTextOf(dst, s, t.id)
}

// AppendKey appends the key of an event. It is not ok if the record tells it.
func (t *BareType) AppendKey(dst []byte, s *Scope) (_ []byte, ok bool, err error) {
	n := len(dst)
	if dst, err = appendTextOf(dst, s, t.key); err == nil && t.key != nil && len(dst) == n {
		err = pipeline.Reject(pipeline.ReasonExpression, "the key, %s, is empty", t.key.text)
	}
	return dst, t.key != nil, err
}

// Time returns the time of an event, in microseconds since 1970. It is not ok if
// the record tells it.
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

// appendTextOf appends the text that p yields, nothing if p is nil.
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
	return append(out[:n], text...), nil // moved down over its length
}
