// Package receipt writes and reads receipts: short records that say what became of
// an event that a pipeline did not write to its output.
//
// Start at [Writer], which belongs to one session of a processor, and [Reader],
// which a projector shares between all goroutines.
package receipt

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// A receipt says what became of an event that did not come out of a pipeline. It
// is the value of a record, in JSON, under the event's id. That an event passed
// needs no receipt: it stands on the topic that the pipeline writes.
//
// It is JSON like all that the programs tell each other: nobody has to register a
// schema for it, and people can read it with any tool.
type Receipt struct {
	Outcome  Outcome         `json:"outcome"`
	Pipeline string          `json:"pipeline"`
	Stage    string          `json:"stage"`
	Reason   pipeline.Reason `json:"reason,omitempty"` // why it is a dead letter
	// Duplicate says that the stage drops what it has seen before: the first of its
	// kind, which may be a copy of the same event, passed the stage.
	Duplicate bool `json:"duplicate,omitempty"`

	Topic     string `json:"topic"` // where the event stood
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// Outcome is a constant word of the format.
type Outcome string

const (
	OutcomeFiltered   Outcome = "filtered"
	OutcomeDeadLetter Outcome = "dead_letter"
)

// maxReceiptID bounds the ids that receipts are written under.
const maxReceiptID = 1024

// Writer writes the receipts of one session's chain, into the transaction
// with what passes. A nil one writes none.
type Writer struct {
	topic, pipeline string
	schemas         event.Schemas
	types           []*codec.Schema
	duplicates      map[string]bool // names of stages that drop what they have seen before
	bare            *expr.Bare      // of events without an envelope
	readers         map[*codec.Schema]idReader
	view            pipeline.View
	scope           expr.Scope
	text            []byte
	now             func() time.Time
}

// idReader finds the id in events of a schema. Its layout is nil if they have none.
type idReader struct {
	layout *codec.Layout
	bare   expr.BareType // of events without an envelope
}

// NewWriter returns nil if the pipeline has no topic for receipts.
func NewWriter(pl *topology.Pipeline, schemas event.Schemas, now func() time.Time) *Writer {
	if pl.Receipts == nil {
		return nil
	}
	w := &Writer{
		topic: pl.Receipts.Name, pipeline: pl.Name, schemas: schemas, types: pl.Types,
		duplicates: map[string]bool{}, bare: pl.From.Bare, readers: map[*codec.Schema]idReader{}, now: now,
	}
	for _, s := range pl.Stages {
		if _, ok := s.Built.(stage.Keeper); ok {
			w.duplicates[s.Name] = true
		}
	}
	return w
}

// Filtered writes that a stage dropped the event that has just come through the
// chain.
func (w *Writer) Filtered(e *pipeline.Event, chain *pipeline.Chain, out pipeline.Emitter) {
	if w == nil {
		return
	}
	stage := chain.Dropped()
	w.emit(w.id(w.types[e.Type], e.Body), e.Record, Receipt{Outcome: OutcomeFiltered, Stage: stage, Duplicate: w.duplicates[stage]}, out)
}

// DeadLetter writes that an event became a dead letter. Where it could not be
// decoded, its id is what can be read of it by the schema that it was written with.
func (w *Writer) DeadLetter(ctx context.Context, e *pipeline.Event, in *pipeline.Record, stage string, reason pipeline.Reason, out pipeline.Emitter) error {
	if w == nil {
		return nil
	}
	var id []byte
	if stage != deadletter.StageDecode {
		id = w.id(w.types[e.Type], e.Body)
	} else if ref, body, err := codec.Unframe(in); err == nil {
		s, err := w.schemas.Schema(ctx, ref)
		if err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
			return err
		}
		if err == nil {
			id = w.id(s, body)
		}
	}
	w.emit(id, in, Receipt{Outcome: OutcomeDeadLetter, Stage: stage, Reason: reason}, out)
	return nil
}

// id returns the id in the body of an event, which may be damaged behind it; nil if
// it has none. A fold takes the same field for it.
func (w *Writer) id(s *codec.Schema, body []byte) []byte {
	r, ok := w.readers[s]
	if !ok {
		r = w.reader(s)
		w.readers[s] = r
	}
	if r.layout == nil {
		return nil
	}
	_ = r.layout.Walk(body, &w.view) // the slot is empty if the walk did not come so far
	var id []byte
	var err error
	if w.bare != nil {
		w.scope.Reset(time.Time{}, &w.view)
		id, err = r.bare.AppendID(w.text[:0], &w.scope)
		w.text = id[:0]
	} else {
		id, _, err = codec.ReadText(w.view.Get(0))
	}
	if err != nil || len(id) > maxReceiptID {
		return nil
	}
	return id
}

// reader finds out where the id is in events of a schema.
func (w *Writer) reader(s *codec.Schema) (r idReader) {
	if w.bare != nil {
		id := expr.Bare{ID: w.bare.ID}
		var faults []expr.Fault
		if r.bare, faults = id.Compile(s, w.topic); len(faults) > 0 || id.ID.Text == "" {
			return idReader{} // of a schema that is not one of the topic's
		}
		r.layout, _ = codec.NewLayout(s, r.bare.Paths()) // the fields are there
		if r.layout == nil || r.bare.Bind(r.layout) != nil {
			return idReader{}
		}
		return r
	}
	if f := s.Root().Field("id"); f != nil && f.Type.Kind == codec.String {
		r.layout, _ = codec.NewLayout(s, [][]string{{"id"}}) // the field is there
	}
	return r
}

// emit writes a receipt, unless nobody could ask for it.
func (w *Writer) emit(id []byte, in *pipeline.Record, r Receipt, out pipeline.Emitter) {
	if len(id) == 0 {
		return
	}
	r.Pipeline, r.Topic, r.Partition, r.Offset = w.pipeline, in.Topic, in.Partition, in.Offset
	value, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers
	}
	// By the clock and not the event's time: a replay's receipts would be deleted
	// by their age at once.
	out.Emit(&pipeline.Record{Topic: w.topic, Partition: pipeline.KeyPartition, Key: append([]byte(nil), id...), Value: value, Time: w.now()})
}

// text says it in words.
func (r *Receipt) text() string {
	switch {
	case r.Outcome == OutcomeDeadLetter:
		return fmt.Sprintf("pipeline %s put it among its dead letters: stage %s, %s", r.Pipeline, r.Stage, r.Reason)
	case r.Duplicate:
		return fmt.Sprintf("pipeline %s dropped it as a duplicate: stage %s", r.Pipeline, r.Stage)
	}
	return fmt.Sprintf("pipeline %s filtered it: stage %s", r.Pipeline, r.Stage)
}
