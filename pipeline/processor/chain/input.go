package chain

import (
	"context"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/topology"
)

// input reads records as events.
type input struct {
	decoder  *event.Decoder
	layouts  []*codec.Layout // by type
	old      []topology.Old
	envelope *event.Envelope // nil: events carry their envelope, or the record has all of it

	keys    *keyformat.Reader
	text    bool   // the bytes of keys are their text form
	scratch []byte // the text form of the current key, if it is another
}

func newInput(schemas event.Schemas, pl *topology.Pipeline, envelope *event.Envelope) input {
	return input{
		decoder: event.NewDecoder(schemas, pl.Types, pl.Old), layouts: pl.Layouts, old: pl.Old, envelope: envelope,
		keys: keyformat.NewReader(pl.From.KeyFormat, pl.From.Name, schemas), text: pl.From.KeyFormat.IsText(),
	}
}

// read decodes a record into e.
func (r *input) read(ctx context.Context, in *pipeline.Record, e *pipeline.Event) error {
	d, err := r.decoder.Decode(ctx, in, nil)
	if err != nil {
		return err
	}
	e.Record, e.View.Record, e.Type, e.KeyText, e.NewKey, e.To, e.OldType, e.Arena = in, in, d.Type, in.Key, nil, nil, -1, e.Arena[:0]
	if !r.text || !keyformat.ValidText(in.Key) {
		if e.KeyText, err = r.keyText(ctx, in, e); err != nil {
			return err
		}
	}
	if err := r.layouts[d.Type].Walk(d.Body, &e.View); err != nil {
		return err
	}
	if d.Old >= 0 {
		e.OldType = d.Old
		if err := r.old[d.Old].Layout.Walk(d.OldBody, &e.Old); err != nil {
			return err
		}
	}
	if r.envelope != nil {
		return r.envelope.Open(e)
	}
	return nil
}

// keyText returns the text form of the record's key, which is valid until the next call.
// It gives e the body of an Avro key.
func (r *input) keyText(ctx context.Context, in *pipeline.Record, e *pipeline.Event) (text []byte, err error) {
	if r.text {
		return in.Key, r.keys.Check(ctx, in)
	}
	r.scratch, err = r.keys.AppendText(ctx, r.scratch[:0], in)
	e.View.KeyBody = r.keys.Body()
	return r.scratch, err
}

// key returns the key of the event in a record, or the key of the record if the event
// cannot be read: read reports this error later. It overwrites e.
func (r *input) key(ctx context.Context, in *pipeline.Record, e *pipeline.Event) []byte {
	if r.envelope == nil {
		return in.Key
	}
	d, err := r.decoder.Decode(ctx, in, nil)
	if err != nil {
		return in.Key
	}
	e.Record, e.View.Record, e.Type, e.NewKey = in, in, d.Type, nil
	if _, err := r.keyText(ctx, in, e); err != nil {
		return in.Key
	}
	if err := r.layouts[d.Type].Walk(d.Body, &e.View); err != nil {
		return in.Key
	}
	if err := r.envelope.Open(e); err != nil || e.NewKey == nil {
		return in.Key
	}
	return e.NewKey
}
