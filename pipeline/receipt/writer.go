package receipt

import (
	"context"
	"encoding/json"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/expr"
	"millrace/pipeline/identity"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// maxReceiptID bounds the id of an event that gets a receipt, in bytes: it is the record
// key.
const maxReceiptID = 1024

// Writer writes the receipts of a session, in the transaction of its output. A nil
// Writer writes none.
type Writer struct {
	topic, pipeline string
	schemas         event.Schemas
	types           []*codec.Schema
	duplicates      map[string]bool // names of the stages that drop events that they have seen
	from            *topology.Topic // the pipeline's input
	readers         map[*codec.Schema]idReader
	now             func() time.Time

	// Of the current event:
	view  pipeline.View
	scope expr.Scope
	text  []byte
}

// idReader finds the identity of events of a schema. Layout is nil if they have none.
type idReader struct {
	layout   *codec.Layout
	identity *identity.Reader
}

// NewWriter returns nil if the pipeline has no receipts topic.
func NewWriter(pl *topology.Pipeline, schemas event.Schemas, now func() time.Time) *Writer {
	if pl.Receipts == nil {
		return nil
	}
	w := &Writer{
		topic: pl.Receipts.Name, pipeline: pl.Name, schemas: schemas, types: pl.Types,
		duplicates: map[string]bool{}, from: pl.From, readers: map[*codec.Schema]idReader{}, now: now,
	}
	for _, s := range pl.Stages {
		if _, ok := s.Built.(stage.Keeper); ok {
			w.duplicates[s.Name] = true
		}
	}
	return w
}

// Filtered writes that a stage dropped the event, which the chain has just processed.
func (w *Writer) Filtered(e *pipeline.Event, chain *pipeline.Chain, out pipeline.Emitter) {
	if w == nil {
		return
	}
	stage := chain.LastFilter()
	w.emit(w.id(w.types[e.Type], e.Body, e.Headers), e.Record, Receipt{Outcome: OutcomeFiltered, Stage: stage, Duplicate: w.duplicates[stage]}, out)
}

// DeadLetter writes that an event became a dead letter. If the event could not be
// decoded, its id is read with the writer's schema, as far as possible. An error means
// that this schema is not available at the moment.
func (w *Writer) DeadLetter(ctx context.Context, e *pipeline.Event, in *pipeline.Record, stage string, reason pipeline.Reason, out pipeline.Emitter) error {
	if w == nil {
		return nil
	}
	var id []byte
	if stage != deadletter.StageDecode {
		id = w.id(w.types[e.Type], e.Body, e.Headers)
	} else if ref, body, err := codec.Unframe(in); err == nil {
		s, err := w.schemas.Schema(ctx, ref)
		if err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
			return err
		}
		if err == nil {
			id = w.id(s, body, in.Headers)
		}
	}
	w.emit(id, in, Receipt{Outcome: OutcomeDeadLetter, Stage: stage, Reason: reason}, out)
	return nil
}

// id returns the identity of an event, nil if it has none. The body may be damaged behind
// the fields of the identity. A fold reads the same identity.
func (w *Writer) id(s *codec.Schema, body []byte, headers []pipeline.Header) []byte {
	r, ok := w.readers[s]
	if !ok {
		r = w.reader(s)
		w.readers[s] = r
	}
	if r.layout == nil {
		return nil
	}
	_ = r.layout.Walk(body, &w.view) // if the walk ends before a field, its slot is empty
	w.scope.Reset(time.Time{}, &w.view)
	id, _, err := r.identity.Append(w.text[:0], headers, &w.view, &w.scope)
	w.text = id[:0]
	if err != nil || len(id) > maxReceiptID {
		return nil
	}
	return id
}

// reader returns the idReader of a schema.
func (w *Writer) reader(s *codec.Schema) idReader {
	r, faults := w.from.Identity.Compile(s, w.from.Bare, w.from.Name)
	if len(faults) > 0 || r == nil {
		return idReader{} // not a schema of the topic
	}
	layout, err := codec.NewLayout(s, r.Paths())
	if err != nil || r.Bind(layout) != nil {
		return idReader{}
	}
	return idReader{layout, r}
}

// emit writes a receipt. Without an id, no query could find it.
func (w *Writer) emit(id []byte, in *pipeline.Record, r Receipt, out pipeline.Emitter) {
	if len(id) == 0 {
		return
	}
	r.Pipeline, r.Topic, r.Partition, r.Offset = w.pipeline, in.Topic, in.Partition, in.Offset
	value, err := json.Marshal(r)
	if err != nil {
		panic(err) // cannot happen: a receipt has only strings and numbers
	}
	// The time is the clock's, not the event's: the retention of the topic would delete
	// the receipts of a replay immediately.
	out.Emit(&pipeline.Record{Topic: w.topic, Partition: pipeline.KeyPartition, Key: append([]byte(nil), id...), Value: value, Time: w.now()})
}
