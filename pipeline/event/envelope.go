package event

import (
	"time"

	"millrace/pipeline"
	"millrace/pipeline/expr"
)

// Envelope derives id, key and time of events without an envelope from the
// expressions of their topic. The key is the one that the event is written with, and
// the time the one that stages see. Written records keep the original timestamp: a
// broker may refuse any other.
//
// One goroutine owns an Envelope.
type Envelope struct {
	types []expr.BareType

	// Of the current event:
	scope   expr.Scope
	record  pipeline.Record
	Derived Derived // set by Open; read-only for others
}

// Derived is the result of a topic's expressions for an event.
type Derived struct {
	ID, Key []byte    // empty if the topic has no such expression
	Time    time.Time // zero if the topic has no such expression
}

// NewEnvelope returns nil if types is nil: the events have an envelope.
func NewEnvelope(types []expr.BareType) *Envelope {
	if types == nil {
		return nil
	}
	return &Envelope{types: types}
}

// Open evaluates the expressions for an event whose fields are in its view, and sets
// its NewKey and the time of its record. The key is valid until the next Open.
func (v *Envelope) Open(e *pipeline.Event) error {
	t := &v.types[e.Type]
	v.scope.Reset(e.Started, &e.View)
	id, err := t.AppendID(v.Derived.ID[:0], &v.scope)
	if err != nil {
		return err
	}
	key, keyed, err := t.AppendKey(v.Derived.Key[:0], &v.scope)
	if err != nil {
		return err
	}
	micros, timed, err := t.Time(&v.scope)
	if err != nil {
		return err
	}
	v.Derived = Derived{ID: id, Key: key}
	if keyed {
		e.NewKey = key
	}
	if timed {
		v.Derived.Time = time.UnixMicro(micros)
		v.record = *e.Record
		v.record.Time = v.Derived.Time
		e.Record = &v.record
	}
	return nil
}

// Close gives the records that an event became its original timestamp.
func (v *Envelope) Close(outs []pipeline.Record, in *pipeline.Record) {
	for i := range outs {
		outs[i].Time = in.Time
	}
}
