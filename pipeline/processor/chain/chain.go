// Package chain takes the events of one session through the stages of a pipeline.
//
// Start at [NewLoop], which makes a pipeline's loop, then [Handler.Handle], the
// journey of one event. lanes.go runs stages that wait, keep.go holds the state of
// stages that remember, table.go the rows that stages look up, tap.go shows events
// to people who watch.
//
// A [Handler] belongs to the goroutine of its session. [Tables] and [Taps] are
// shared by all sessions of the process.
package chain

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/receipt"
	"millrace/pipeline/rows"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// keyOf returns the key of the event in a record that is not its turn yet. Of one
// that cannot be read it is the record's; what is wrong is found out later.
func (h *Handler) keyOf(ctx context.Context, in *pipeline.Record) []byte {
	if h.envelope == nil {
		return in.Key
	}
	d, err := h.decoder.Decode(ctx, in, nil)
	if err != nil {
		return in.Key
	}
	e := &h.event
	e.Record, e.Type, e.NewKey = in, d.Type, nil
	if err := h.layouts[d.Type].Walk(d.Body, &e.View); err != nil {
		return in.Key
	}
	if err := h.envelope.Open(e); err != nil || e.NewKey == nil {
		return in.Key
	}
	return e.NewKey
}

// Handler runs one pipeline's chain over the records of one session.
type Handler struct {
	Pipeline   string
	to         string
	DeadLetter string
	receipts   *receipt.Writer
	decoder    *event.Decoder
	layouts    []*codec.Layout // by type
	old        []topology.Old
	IDs        map[string][]int // schema ids of what is written, by topic and type
	toIDs      []int            // those of to
	Stages     *pipeline.Chain
	*keepers                   // of the chain
	envelope   *event.Envelope // nil if events have one, or their records say it all
	headers    *event.OutputHeaders
	missers    []misser
	limits     kafka.Limits // of what the topics take
	toMost     int          // bytes of a record, of to
	now        func() time.Time
	waits      bool // a stage of it does, so that for each event the clock has to be asked
	log        *slog.Logger
	metrics    *Metrics
	tap        *sessionTap // nil if nobody can watch

	event pipeline.Event
	arena *rows.Arena       // of the part at hand
	parts []*rows.Arena     // those before it that were sealed
	spare []*rows.Arena     // to be used again
	outs  []pipeline.Record // of the event at hand
	keep  func(*pipeline.Event) error
	batch Counts
}

// Config is what handlers of a pipeline are made of.
type Config struct {
	Topology     *topology.Topology
	Schemas      event.Schemas
	IDs          map[string][]int // schema ids of what is written, by topic and type
	client       kafka.Config
	Metrics      *Metrics
	StateMetrics *StateMetrics
	taps         *Taps // nil if nobody can watch
	receipts     bool  // are written, if the pipeline has a topic for them
	Now          func() time.Time
	Log          *slog.Logger
}

// NewHandler returns the handler of one session.
func (s Config) NewHandler(pl *topology.Pipeline) *Handler {
	chain := pl.Chain()
	h := &Handler{
		Pipeline:   pl.Name,
		to:         pl.To.Name,
		DeadLetter: pl.DeadLetter.Name,
		decoder:    event.NewDecoder(s.Schemas, pl.Types, pl.Old),
		layouts:    pl.Layouts,
		old:        pl.Old,
		IDs:        s.IDs,
		toIDs:      s.IDs[pl.To.Name],
		toMost:     kafka.Limits(nil).Record(pl.To.Name), // until Limit says
		Stages:     chain,
		envelope:   event.NewEnvelope(pl.Bare),
		headers:    event.NewOutputHeaders(pl),
		missers:    missersOf(pl, chain, s.Metrics),
		keepers:    newKeepers(s.Topology, pl, chain, s.client, s.StateMetrics, s.Now, s.Log),
		now:        s.Now,
		waits:      slices.ContainsFunc(pl.Stages, func(s topology.Stage) bool { _, ok := s.Built.(stage.Waiter); return ok }),
		log:        s.Log,
		metrics:    s.Metrics,
		tap:        s.taps.tap(pl, chain),
		arena:      &rows.Arena{},
		batch:      Counts{Dead: map[pipeline.Reason]int{}},
	}
	if s.receipts {
		h.receipts = receipt.NewWriter(pl, s.Schemas, s.Now)
	}
	return h
}

// Counts is what became of the input of a batch:
// in = out + filtered + the sum of dead. An event that was split, or routed to
// several topics, is one of out all the same.
type Counts struct {
	In, Out, Filtered int

	Dead    map[pipeline.Reason]int
	example error // of a dead letter
}

// Limit implements [kafka.Limited].
func (h *Handler) Limit(limits kafka.Limits) { h.limits, h.toMost = limits, limits.Record(h.to) }

// Handle implements [pipeline.Handler]. Of an event that becomes several, all
// are written or none.
func (h *Handler) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	h.batch.In++
	h.outs = h.outs[:0]
	if h.waits {
		in.Taken = time.Time{}
	}
	h.tap.begin(in)
	stage, err := h.process(ctx, in)
	h.tap.end(in, stage, err)
	switch {
	case err == nil && len(h.outs) == 0:
		h.batch.Filtered++
		h.receipts.Filtered(&h.event, h.Stages, out)
	case err == nil:
		h.batch.Out++
		for i := range h.outs {
			out.Emit(&h.outs[i])
		}
	case pipeline.ClassOf(err) != pipeline.ClassReject:
		return err
	default:
		h.rejected(in)
		h.reject(in, out, stage, err)
		return h.receipts.DeadLetter(ctx, &h.event, in, stage, pipeline.ReasonOf(err), out)
	}
	return nil
}

// process takes one record from bytes to the records in outs. With an error, it
// says how far the record came.
func (h *Handler) process(ctx context.Context, in *pipeline.Record) (stage string, err error) {
	d, err := h.decoder.Decode(ctx, in, nil)
	if err != nil {
		return deadletter.StageDecode, err
	}
	e := &h.event
	e.Record, e.Type, e.NewKey, e.To, e.OldType, e.Arena = in, d.Type, nil, nil, -1, e.Arena[:0]
	if err := h.layouts[d.Type].Walk(d.Body, &e.View); err != nil {
		return deadletter.StageDecode, err
	}
	if d.Old >= 0 {
		e.OldType = d.Old
		if err := h.old[d.Old].Layout.Walk(d.OldBody, &e.Old); err != nil {
			return deadletter.StageDecode, err
		}
	}
	if h.envelope != nil {
		if err := h.envelope.Open(e); err != nil {
			return deadletter.StageDecode, err
		}
	}
	if h.keep == nil {
		h.keep = h.append // once: a method value is memory of its own
	}
	if err := h.Stages.Process(ctx, e, h.keep); err != nil {
		var at *pipeline.StageError
		if errors.As(err, &at) {
			return at.Stage, err
		}
		return deadletter.StageEncode, err
	}
	if h.envelope != nil {
		h.envelope.Close(h.outs, in)
	}
	return "", nil
}

// append encodes an event that has come through the chain.
func (h *Handler) append(e *pipeline.Event) error {
	key := e.Key
	if e.NewKey != nil {
		// The arena is reused for the next event, the record is not done then.
		key = h.arena.Keep(append(h.arena.Grow(len(e.NewKey)), e.NewKey...))
	}
	if e.To == nil {
		return h.write(e, h.to, h.toIDs, h.toMost, key)
	}
	for _, topic := range e.To {
		if err := h.write(e, topic, h.IDs[topic], h.limits.Record(topic), key); err != nil {
			return err
		}
	}
	return nil
}

// write adds a record to outs, of so many bytes at most.
func (h *Handler) write(e *pipeline.Event, topic string, ids []int, most int, key []byte) error {
	value := h.arena.Grow(codec.FrameSize + len(e.Body) + len(e.Arena))
	value = h.arena.Keep(e.Append(codec.AppendFrame(value, ids[e.Type])))
	headers := e.Headers
	if h.headers != nil {
		var err error
		if headers, err = h.headers.For(e, topic, key, h.envelope); err != nil {
			return err
		}
	}
	if n := len(key) + len(value) + pipeline.HeadersSize(headers); n > most {
		return pipeline.Reject(pipeline.ReasonTooLarge, "%d bytes after the last stage, but %s takes at most %d", n, topic, most)
	}
	n := len(h.outs)
	h.outs = slices.Grow(h.outs, 1)[:n+1]
	r := &h.outs[n] // has all of its fields set, but for the offset
	r.Topic, r.Partition, r.Key, r.Value, r.Headers, r.Time = topic, pipeline.KeyPartition, key, value, headers, e.Time
	return nil
}

func (h *Handler) reject(in *pipeline.Record, out pipeline.Emitter, stage string, err error) {
	reason := pipeline.ReasonOf(err)
	h.batch.Dead[reason]++
	if h.batch.example == nil {
		h.batch.example = err
	}
	var panicked *pipeline.PanicError
	if errors.As(err, &panicked) {
		h.log.Error("a stage panicked", "stage", stage, "topic", in.Topic, "partition", in.Partition, "offset", in.Offset, "panic", panicked.Value, "stack", string(panicked.Stack))
	}
	letter := deadletter.New(in, h.DeadLetter, h.Pipeline, stage, err, h.now())
	if h.envelope != nil && stage != deadletter.StageDecode {
		deadletter.AddDerived(h.envelope.Derived, &letter)
	}
	deadletter.Truncate(&letter, h.limits.Record(h.DeadLetter))
	out.Emit(&letter)
}

// misser is a stage of a session's chain that may find nothing for an event.
type misser struct {
	stage.Misser
	count prometheus.Counter
}

func missersOf(pl *topology.Pipeline, chain *pipeline.Chain, metrics *Metrics) (out []misser) {
	chain.Each(func(name string, s pipeline.Stage) {
		if m, ok := s.(stage.Misser); ok {
			out = append(out, misser{m, metrics.stageMissed.WithLabelValues(pl.Name, name)})
		}
	})
	return out
}

func (m misser) endBatch(committed bool) {
	if n := m.Missed(); committed {
		m.count.Add(float64(n))
	}
}

// Flush implements [pipeline.Handler].
func (h *Handler) Flush(_ context.Context, out pipeline.Emitter) error {
	h.flush(out)
	return nil
}

// EndBatch implements [pipeline.Handler].
func (h *Handler) EndBatch(committed bool) {
	h.endBatch(committed)
	if committed {
		h.metrics.add(h.Pipeline, &h.batch)
		h.Stages.Counts(func(stage string, n pipeline.StageCounts) { h.metrics.addStage(h.Pipeline, stage, n) })
		if h.batch.example != nil {
			n := 0
			for _, d := range h.batch.Dead {
				n += d
			}
			h.log.Warn("dead letters written", "count", n, "topic", h.DeadLetter, "example", h.batch.example)
		}
	} else {
		h.Stages.Counts(nil)
	}
	for _, m := range h.missers {
		m.endBatch(committed)
	}
	dead := h.batch.Dead
	clear(dead)
	h.batch = Counts{Dead: dead}
	for len(h.parts) > 0 {
		h.Reuse()
	}
	h.arena.Reset(rows.ArenaKeep)
}

// Seal implements [pipeline.Recycler].
func (h *Handler) Seal() bool {
	if h.keeps() {
		return false
	}
	h.parts = append(h.parts, h.arena)
	if n := len(h.spare); n > 0 {
		h.arena, h.spare = h.spare[n-1], h.spare[:n-1]
	} else {
		h.arena = &rows.Arena{}
	}
	return true
}

// Reuse implements [pipeline.Recycler].
func (h *Handler) Reuse() {
	h.parts[0].Reset(rows.ArenaKeepPart)
	h.spare = append(h.spare, h.parts[0])
	h.parts = slices.Delete(h.parts, 0, 1)
}

// Metrics counts the events of committed batches: in = out + filtered +
// dead letters, and for each stage in + added = out + filtered + rejected.
type Metrics struct {
	in, out, filtered            *prometheus.CounterVec
	dead                         *prometheus.CounterVec
	stageIn, stageOut, stageDrop *prometheus.CounterVec
	stageRejected                *prometheus.CounterVec
	stageAdded, stageSkipped     *prometheus.CounterVec
	stageMissed                  *prometheus.CounterVec
}

func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_" + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	return &Metrics{
		in:            counter("events_in_total", "Events of committed batches that entered the pipeline.", "pipeline"),
		out:           counter("events_out_total", "Events of committed batches that the pipeline wrote.", "pipeline"),
		filtered:      counter("events_filtered_total", "Events of committed batches that a stage dropped on purpose.", "pipeline"),
		dead:          counter("dead_letters_total", "Events of committed batches that became dead letters, by reason.", "pipeline", "reason"),
		stageIn:       counter("stage_records_in_total", "Events that reached a stage.", "pipeline", "stage"),
		stageOut:      counter("stage_records_out_total", "Events that a stage passed on.", "pipeline", "stage"),
		stageDrop:     counter("stage_records_filtered_total", "Events that a stage dropped on purpose.", "pipeline", "stage"),
		stageAdded:    counter("stage_records_added_total", "Events that a stage made beyond the one that came in.", "pipeline", "stage"),
		stageSkipped:  counter("stage_records_skipped_total", "Events that passed a stage untouched, because it failed on them and is told to skip such events.", "pipeline", "stage"),
		stageMissed:   counter("stage_rows_missing_total", "Events that a lookup or an http stage let pass as they were, because it found nothing for them.", "pipeline", "stage"),
		stageRejected: counter("stage_records_rejected_total", "Events that a stage rejected, by reason.", "pipeline", "stage", "reason"),
	}
}

func (m *Metrics) add(name string, n *Counts) {
	m.in.WithLabelValues(name).Add(float64(n.In))
	m.out.WithLabelValues(name).Add(float64(n.Out))
	m.filtered.WithLabelValues(name).Add(float64(n.Filtered))
	for reason, dead := range n.Dead {
		m.dead.WithLabelValues(name, string(reason)).Add(float64(dead))
	}
}

func (m *Metrics) addStage(name, stage string, n pipeline.StageCounts) {
	m.stageIn.WithLabelValues(name, stage).Add(float64(n.In))
	m.stageAdded.WithLabelValues(name, stage).Add(float64(n.Added))
	m.stageSkipped.WithLabelValues(name, stage).Add(float64(n.Skipped))
	m.stageOut.WithLabelValues(name, stage).Add(float64(n.Passed))
	m.stageDrop.WithLabelValues(name, stage).Add(float64(n.Filtered))
	for reason, rejected := range n.Rejected {
		m.stageRejected.WithLabelValues(name, stage, string(reason)).Add(float64(rejected))
	}
}
