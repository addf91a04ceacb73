package event

import (
	"time"

	"millrace/pipeline"
	"millrace/pipeline/expr"
)

// Envelope gives events that carry no envelope what their topic says that stands
// for it: the key that they are written under, and the time that stages see. What
// is written keeps the record's timestamp, for a broker may refuse any other.
type Envelope struct {
	types []expr.BareType

	// Of the event at hand.
	scope   expr.Scope
	record  pipeline.Record
	Derived Derived
}

// Derived is what a topic's expressions say of an event.
type Derived struct {
	ID, Key []byte // empty if nothing is said
	Time    time.Time
}

func NewEnvelope(types []expr.BareType) *Envelope {
	if types == nil {
		return nil
	}
	return &Envelope{types: types}
}

// Open reads what stands for the envelope of an event whose fields were found.
func (v *Envelope) Open(e *pipeline.Event) error {
	t := &v.types[e.Type]
	v.scope.Reset(e.Taken, &e.View)
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

// Close gives what is written of a record its timestamp.
func (v *Envelope) Close(outs []pipeline.Record, in *pipeline.Record) {
	for i := range outs {
		outs[i].Time = in.Time
	}
}
