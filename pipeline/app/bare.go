package app

import (
	"context"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/expr"
)

// envelope gives events that carry no envelope what their topic says that stands
// for it: the key that they are written under, and the time that stages see. What
// is written keeps the record's timestamp, for a broker may refuse any other.
type envelope struct {
	types []expr.BareType

	// Of the event at hand.
	scope  expr.Scope
	record pipeline.Record
	told   told
}

// told is what a topic's expressions say of an event.
type told struct {
	id, key []byte // empty if nothing is said
	time    time.Time
}

func newEnvelope(types []expr.BareType) *envelope {
	if types == nil {
		return nil
	}
	return &envelope{types: types}
}

// open reads what stands for the envelope of an event whose fields were found.
func (v *envelope) open(e *pipeline.Event) error {
	t := &v.types[e.Type]
	v.scope.Reset(e.Taken, &e.View)
	id, err := t.AppendID(v.told.id[:0], &v.scope)
	if err != nil {
		return err
	}
	key, keyed, err := t.AppendKey(v.told.key[:0], &v.scope)
	if err != nil {
		return err
	}
	micros, timed, err := t.Time(&v.scope)
	if err != nil {
		return err
	}
	v.told = told{id: id, key: key}
	if keyed {
		e.NewKey = key
	}
	if timed {
		v.told.time = time.UnixMicro(micros)
		v.record = *e.Record
		v.record.Time = v.told.time
		e.Record = &v.record
	}
	return nil
}

// close gives what is written of a record its timestamp.
func (v *envelope) close(outs []pipeline.Record, in *pipeline.Record) {
	for i := range outs {
		outs[i].Time = in.Time
	}
}

// keyOf returns the key of the event in a record that is not its turn yet. Of one
// that cannot be read it is the record's; what is wrong is found out later.
func (h *chainHandler) keyOf(ctx context.Context, in *pipeline.Record) []byte {
	if h.envelope == nil {
		return in.Key
	}
	d, err := h.decoder.decode(ctx, in, nil)
	if err != nil {
		return in.Key
	}
	e := &h.event
	e.Record, e.Type, e.NewKey = in, d.typ, nil
	if err := h.layouts[d.typ].Walk(d.body, &e.View); err != nil {
		return in.Key
	}
	if err := h.envelope.open(e); err != nil || e.NewKey == nil {
		return in.Key
	}
	return e.NewKey
}

// addDerived appends to a dead letter what cannot be seen in its record.
func addDerived(t told, letter *pipeline.Record) {
	add := func(name, value string) {
		if value != "" {
			letter.Headers = append(letter.Headers, pipeline.Header{Key: name, Value: []byte(value)})
		}
	}
	add(headerEventID, string(t.id))
	add(headerEventKey, string(t.key))
	if !t.time.IsZero() {
		add(headerEventTime, t.time.UTC().Format(time.RFC3339Nano))
	}
}
