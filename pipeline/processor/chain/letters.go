package chain

import (
	"errors"
	"log/slog"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
)

// letters writes the dead letters of a pipeline. It belongs to a handler.
type letters struct {
	pipeline, topic string
	sourceID        string // of the input, "" if it is unknown
	gate            *kafka.Gate
	envelope        *event.Envelope // nil: the records carry the envelope
	now             func() time.Time
	log             *slog.Logger

	// Of the current batch.
	count   int
	example error // the first error
}

// emit emits the dead letter of a record. stage is the stage that failed.
func (l *letters) emit(in *pipeline.Record, stage string, err error, out pipeline.Emitter) {
	l.count++
	if l.example == nil {
		l.example = err
	}
	var panicked *pipeline.PanicError
	if errors.As(err, &panicked) {
		l.log.Error("a stage panicked", "stage", stage, "topic", in.Topic, "partition", in.Partition, "offset", in.Offset, "panic", panicked.Value, "stack", string(panicked.Stack))
	}
	letter := deadletter.New(in, l.topic, l.pipeline, stage, err, l.now())
	deadletter.SetSourceID(&letter, l.sourceID)
	if l.envelope != nil && stage != deadletter.StageDecode {
		deadletter.AddEnvelope(l.envelope.Derived, &letter)
	}
	at := l.gate.Time(in.Time)
	if pipeline.ReasonOf(err) == pipeline.ReasonRefused {
		at = l.now() // maybe because of its time
	}
	deadletter.SetTime(&letter, at)
	deadletter.Truncate(&letter, l.gate.MaxRecord())
	out.Emit(&letter)
}

// endBatch logs the dead letters of a committed batch.
func (l *letters) endBatch(committed bool) {
	if committed && l.count > 0 {
		l.log.Warn("dead letters written", "count", l.count, "topic", l.topic, "example", l.example)
	}
	l.count, l.example = 0, nil
}
