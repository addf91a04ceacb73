// Package chain runs the events of a pipeline through its stages.
//
// Start at [NewLoop], which prepares the loop of a pipeline, then at handler.Handle
// (chain.go), the path of one event:
//
//   - input.go: from the bytes of a record to an event;
//   - output.go: from the events that leave the chain to records;
//   - tombstone.go: records without a value;
//   - letters.go: dead letters;
//   - keepers.go: the state of stages, on state topics;
//   - lanes.go: several handlers at the same time, for stages that wait for services;
//   - table.go: the rows that stages look up;
//   - tap.go, sessiontap.go: events for clients that watch;
//   - rehearse.go: [Rehearsal], a pipeline without output, for the tools.
//
// A handler belongs to the goroutine of its session, with two exceptions: the goroutine
// of the consumer group calls Assign and Revoke, and with lanes, each handler belongs to
// its lane while the lanes work. [Tables], [Taps] and [Metrics] belong to the process;
// all sessions share them. The locks are keepers.mu, Taps.mu and tapClient.mu. None is
// held while another one is taken, and no callback runs under a lock.
package chain

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/receipt"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// config is what the handlers of a pipeline share.
type config struct {
	topology *topology.Topology
	schemas  event.Schemas
	ids      map[string][]int // schema ids of the output, by topic and type
	sourceID string           // of the input topic; "" if it is unknown
	kafka    kafka.Config     // for state topics
	metrics  *Metrics
	taps     *Taps        // nil: clients cannot watch
	receipts bool         // write receipts, if the pipeline has a topic for them
	drift    *event.Drift // nil: dropped fields are not logged
	now      func() time.Time
	log      *slog.Logger
}

// handler runs the chain of one pipeline over the records of one session. The session's
// goroutine owns all fields. Only Assign and Revoke are called by another goroutine;
// they use nothing but keepers.
type handler struct {
	pipeline string
	stages   *pipeline.Chain
	waits    bool // a stage waits for a service, so the clock must be read for each event

	tombstones topology.Tombstone // what happens to records without a value

	input    input
	output   output
	letters  letters
	receipts *receipt.Writer // nil: no receipts
	keepers  *keepers
	batchers []stage.Batcher // stages that need the end of each batch
	missers  []misser
	metrics  *Metrics
	tap      *sessionTap // nil: clients cannot watch

	event pipeline.Event              // the current event
	keep  func(*pipeline.Event) error // output.append; a method value would be allocated per use
	batch Counts                      // of the current batch
}

// newHandler returns the handler of one session.
func (c config) newHandler(pl *topology.Pipeline) *handler {
	stages := pl.Chain()
	envelope := event.NewEnvelope(pl.Bare)
	h := &handler{
		pipeline: pl.Name,
		stages:   stages,
		waits:    slices.ContainsFunc(pl.Stages, func(s topology.Stage) bool { _, ok := s.Built.(stage.Waiter); return ok }),
		input:    newInput(c.schemas, pl, envelope),
		output:   newOutput(pl, c.ids, envelope),
		letters:  letters{pipeline: pl.Name, topic: pl.DeadLetter.Name, sourceID: c.sourceID, envelope: envelope, now: c.now, log: c.log},
		keepers:  newKeepers(c, pl, stages),
		missers:  missersOf(pl, stages, c.metrics),
		metrics:  c.metrics,
		tap:      c.taps.session(pl, stages),
		batch:    Counts{Dead: map[pipeline.Reason]int{}},
	}
	h.input.decoder.LogDrift(c.drift)
	h.tombstones = pl.Tombstone
	h.keep = h.output.append
	stages.Each(func(_ string, s pipeline.Stage) {
		if b, ok := s.(stage.Batcher); ok {
			h.batchers = append(h.batchers, b)
		}
	})
	if c.receipts {
		h.receipts = receipt.NewWriter(pl, c.schemas, c.now)
	}
	h.SetLimits(nil)
	return h
}

var _ = []kafka.SizeLimited{(*handler)(nil), (*lanes)(nil)}

// SetLimits implements [kafka.SizeLimited].
func (h *handler) SetLimits(limits kafka.Limits) {
	h.output.limit(limits, h.letters.now)
	h.letters.gate = limits.Gate(h.letters.topic, h.letters.now)
}

// Assign implements [kafka.Assigner].
func (h *handler) Assign(ctx context.Context, ps []kafka.Partition) ([]int64, error) {
	return h.keepers.assign(ctx, ps)
}

// Revoke implements [kafka.Assigner].
func (h *handler) Revoke(ps []kafka.Partition) { h.keepers.revoke(ps) }

// Prepare implements [pipeline.Preparer].
func (h *handler) Prepare(ctx context.Context, records []*pipeline.Record) error {
	return h.input.decoder.Prepare(ctx, records)
}

// Handle implements [pipeline.Handler]. It emits all records of an event or none: all
// parts of a split event, to all topics.
func (h *handler) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	read := in
	if to := deadletter.RedrivenTo(in); to != nil {
		if h.tookBefore(to, in) {
			h.batch.Elsewhere++
			return nil
		}
		read = deadletter.Plain(in)
	}
	h.batch.In++
	h.output.records = h.output.records[:0]
	if h.waits {
		read.Started = time.Time{}
	}
	if h.tap != nil {
		h.tap.begin(ctx, in, h.input.keys)
	}
	if in.Value == nil {
		return h.tombstone(ctx, in, read, out)
	}
	failed := deadletter.StageDecode
	err := h.input.read(ctx, read, &h.event)
	if err == nil {
		if err = h.stages.Process(ctx, &h.event, h.keep); err != nil {
			failed = failedStage(err)
		} else if h.output.envelope != nil {
			h.output.envelope.Close(h.output.records, read)
		}
	}
	if h.tap != nil {
		h.tap.end(in, failed, err)
	}
	switch {
	case err == nil && len(h.output.records) == 0:
		h.batch.Filtered++
		h.receipts.Filtered(&h.event, h.stages, out)
	case err == nil:
		h.batch.Out++
		for i := range h.output.records {
			if h.output.records[i].Value == nil {
				h.batch.Tombstones.Written++
			}
			out.Emit(&h.output.records[i])
		}
	case pipeline.ClassOf(err) != pipeline.ClassReject:
		return err
	default:
		return h.reject(ctx, in, failed, err, out)
	}
	return nil
}

// tookBefore reports whether this pipeline has taken a record of its topic before, which was
// sent back to another pipeline.
func (h *handler) tookBefore(to []byte, in *pipeline.Record) bool {
	return string(to) != h.pipeline && deadletter.IsTaken(in, h.letters.sourceID)
}

// failedStage returns the stage of an error of the chain. The error of a record that
// cannot be encoded has none.
func failedStage(err error) string {
	var at *pipeline.StageError
	if errors.As(err, &at) {
		return at.Stage
	}
	return deadletter.StageEncode
}

// reject emits the dead letter of an event. stage is the stage that failed.
func (h *handler) reject(ctx context.Context, in *pipeline.Record, stage string, err error, out pipeline.Emitter) error {
	h.keepers.undo(in)
	h.batch.Dead[pipeline.ReasonOf(err)]++
	h.letters.emit(in, stage, err, out)
	return h.receipts.DeadLetter(ctx, &h.event, in, stage, pipeline.ReasonOf(err), out)
}

var _ = []kafka.Refuser{(*handler)(nil), (*lanes)(nil)}

// Refuse implements [kafka.Refuser].
func (h *handler) Refuse(ctx context.Context, in *pipeline.Record, why error, out pipeline.Emitter) error {
	h.batch.In++
	stage, read := deadletter.StageEncode, in
	if deadletter.RedrivenTo(in) != nil {
		read = deadletter.Plain(in)
	}
	if err := h.input.read(ctx, read, &h.event); err != nil {
		if pipeline.ClassOf(err) != pipeline.ClassReject {
			return err
		}
		stage = deadletter.StageDecode
	}
	return h.reject(ctx, in, stage, &pipeline.RejectError{Reason: pipeline.ReasonRefused, Err: why}, out)
}

// Flush implements [pipeline.Handler].
func (h *handler) Flush(_ context.Context, out pipeline.Emitter) error {
	h.keepers.flush(out)
	return nil
}

// EndBatch implements [pipeline.Handler].
func (h *handler) EndBatch(committed bool) {
	h.endStages(committed)
	if committed {
		h.keepers.committed()
		h.metrics.add(h.pipeline, &h.batch)
		h.stages.Counts(func(stage string, n pipeline.StageCounts) { h.metrics.addStage(h.pipeline, stage, n) })
	} else {
		h.stages.Counts(nil)
	}
	h.letters.endBatch(committed)
	for _, m := range h.missers {
		m.endBatch(committed)
	}
	h.batch.reset()
	h.output.memory.reset()
}

// endStages ends the batch for the stages only.
func (h *handler) endStages(committed bool) {
	for _, b := range h.batchers {
		b.EndBatch(committed)
	}
}

// Seal implements [pipeline.Recycler]. Keepers write the changes of a batch at its end,
// so a chain with keepers cannot be sealed.
func (h *handler) Seal() bool {
	if h.keepers.any() {
		return false
	}
	h.output.memory.seal()
	return true
}

// Reuse implements [pipeline.Recycler].
func (h *handler) Reuse() { h.output.memory.reuse() }
