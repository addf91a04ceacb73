package app

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// chainHandler runs one pipeline's chain over the records of one session.
type chainHandler struct {
	pipeline   string
	to         string
	deadLetter string
	receipts   *receiptWriter
	decoder    *decoder
	layouts    []*codec.Layout // by type
	old        []topology.Old
	ids        map[string][]int // schema ids of what is written, by topic and type
	toIDs      []int            // those of to
	chain      *pipeline.Chain
	*keepers             // of the chain
	envelope   *envelope // nil if events have one, or their records say it all
	headers    *chainHeaders
	missers    []misser
	limits     kafka.Limits // of what the topics take
	toMost     int          // bytes of a record, of to
	now        func() time.Time
	waits      bool // a stage of it does, so that for each event the clock has to be asked
	log        *slog.Logger
	metrics    *chainMetrics
	tap        *sessionTap // nil if nobody can watch

	event pipeline.Event
	arena *arena            // of the part at hand
	parts []*arena          // those before it that were sealed
	spare []*arena          // to be used again
	outs  []pipeline.Record // of the event at hand
	keep  func(*pipeline.Event) error
	batch chainCounts
}

// chainSetup is what handlers of a pipeline are made of.
type chainSetup struct {
	topology *topology.Topology
	schemas  schemaSource
	ids      map[string][]int // schema ids of what is written, by topic and type
	client   kafka.Config
	chains   *chainMetrics
	kept     *keepMetrics
	taps     *taps // nil if nobody can watch
	receipts bool  // are written, if the pipeline has a topic for them
	now      func() time.Time
	log      *slog.Logger
}

// handler returns the handler of one session.
func (s chainSetup) handler(pl *topology.Pipeline) *chainHandler {
	chain := pl.Chain()
	h := &chainHandler{
		pipeline:   pl.Name,
		to:         pl.To.Name,
		deadLetter: pl.DeadLetter.Name,
		decoder:    newDecoder(s.schemas, pl.Types, pl.Old),
		layouts:    pl.Layouts,
		old:        pl.Old,
		ids:        s.ids,
		toIDs:      s.ids[pl.To.Name],
		toMost:     kafka.Limits(nil).Record(pl.To.Name), // until Limit says
		chain:      chain,
		envelope:   newEnvelope(pl.Bare),
		headers:    newChainHeaders(pl),
		missers:    missersOf(pl, chain, s.chains),
		keepers:    newKeepers(s.topology, pl, chain, s.client, s.kept, s.now, s.log),
		now:        s.now,
		waits:      slices.ContainsFunc(pl.Stages, func(s topology.Stage) bool { _, ok := s.Built.(stage.Waiter); return ok }),
		log:        s.log,
		metrics:    s.chains,
		tap:        s.taps.tap(pl, chain),
		arena:      &arena{},
		batch:      chainCounts{dead: map[pipeline.Reason]int{}},
	}
	if s.receipts {
		h.receipts = newReceiptWriter(pl, s.schemas, s.now)
	}
	return h
}

// chainCounts is what became of the input of a batch:
// in = out + filtered + the sum of dead. An event that was split, or routed to
// several topics, is one of out all the same.
type chainCounts struct {
	in, out, filtered int

	dead    map[pipeline.Reason]int
	example error // of a dead letter
}

// Limit implements [kafka.Limited].
func (h *chainHandler) Limit(limits kafka.Limits) { h.limits, h.toMost = limits, limits.Record(h.to) }

// Handle implements [pipeline.Handler]. Of an event that becomes several, all
// are written or none.
func (h *chainHandler) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	h.batch.in++
	h.outs = h.outs[:0]
	if h.waits {
		in.Taken = time.Time{}
	}
	h.tap.begin(in)
	stage, err := h.process(ctx, in)
	h.tap.end(in, stage, err)
	switch {
	case err == nil && len(h.outs) == 0:
		h.batch.filtered++
		h.receipts.filtered(&h.event, h.chain, out)
	case err == nil:
		h.batch.out++
		for i := range h.outs {
			out.Emit(&h.outs[i])
		}
	case pipeline.ClassOf(err) != pipeline.ClassReject:
		return err
	default:
		h.rejected(in)
		h.reject(in, out, stage, err)
		return h.receipts.deadLetter(ctx, &h.event, in, stage, pipeline.ReasonOf(err), out)
	}
	return nil
}

// process takes one record from bytes to the records in outs. With an error, it
// says how far the record came.
func (h *chainHandler) process(ctx context.Context, in *pipeline.Record) (stage string, err error) {
	d, err := h.decoder.decode(ctx, in, nil)
	if err != nil {
		return stageDecode, err
	}
	e := &h.event
	e.Record, e.Type, e.NewKey, e.To, e.OldType, e.Arena = in, d.typ, nil, nil, -1, e.Arena[:0]
	if err := h.layouts[d.typ].Walk(d.body, &e.View); err != nil {
		return stageDecode, err
	}
	if d.old >= 0 {
		e.OldType = d.old
		if err := h.old[d.old].Layout.Walk(d.oldBody, &e.Old); err != nil {
			return stageDecode, err
		}
	}
	if h.envelope != nil {
		if err := h.envelope.open(e); err != nil {
			return stageDecode, err
		}
	}
	if h.keep == nil {
		h.keep = h.append // once: a method value is memory of its own
	}
	if err := h.chain.Process(ctx, e, h.keep); err != nil {
		var at *pipeline.StageError
		if errors.As(err, &at) {
			return at.Stage, err
		}
		return stageEncode, err
	}
	if h.envelope != nil {
		h.envelope.close(h.outs, in)
	}
	return "", nil
}

// append encodes an event that has come through the chain.
func (h *chainHandler) append(e *pipeline.Event) error {
	key := e.Key
	if e.NewKey != nil {
		// The arena is reused for the next event, the record is not done then.
		key = h.arena.keep(append(h.arena.grow(len(e.NewKey)), e.NewKey...))
	}
	if e.To == nil {
		return h.write(e, h.to, h.toIDs, h.toMost, key)
	}
	for _, topic := range e.To {
		if err := h.write(e, topic, h.ids[topic], h.limits.Record(topic), key); err != nil {
			return err
		}
	}
	return nil
}

// write adds a record to outs, of so many bytes at most.
func (h *chainHandler) write(e *pipeline.Event, topic string, ids []int, most int, key []byte) error {
	value := h.arena.grow(codec.FrameSize + len(e.Body) + len(e.Arena))
	value = h.arena.keep(e.Append(codec.AppendFrame(value, ids[e.Type])))
	headers := e.Headers
	if h.headers != nil {
		var err error
		if headers, err = h.headers.of(e, topic, key, h.envelope); err != nil {
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

// What stands for a stage in a dead letter that no stage made.
const (
	stageDecode = "decode"
	stageEncode = "encode"
)

// Headers of a dead letter. Key, value and the headers it came with stay as
// they are, but for a value that is too large for the topic.
const (
	headerSourceTopic     = "dlq.source.topic"
	headerSourcePartition = "dlq.source.partition"
	headerSourceOffset    = "dlq.source.offset"
	headerPipeline        = "dlq.pipeline"
	headerStage           = "dlq.stage"
	headerReason          = "dlq.reason"
	headerError           = "dlq.error"
	headerAttempt         = "dlq.attempt"
	headerTime            = "dlq.time"
	headerTruncated       = "dlq.truncated" // the value's size before it was cut off

	// Of an event without an envelope, what its topic's expressions say.
	headerEventID   = "dlq.event.id"
	headerEventKey  = "dlq.event.key"
	headerEventTime = "dlq.event.time"
)

const maxErrorBytes = 1024

func (h *chainHandler) reject(in *pipeline.Record, out pipeline.Emitter, stage string, err error) {
	reason := pipeline.ReasonOf(err)
	h.batch.dead[reason]++
	if h.batch.example == nil {
		h.batch.example = err
	}
	var panicked *pipeline.PanicError
	if errors.As(err, &panicked) {
		h.log.Error("a stage panicked", "stage", stage, "topic", in.Topic, "partition", in.Partition, "offset", in.Offset, "panic", panicked.Value, "stack", string(panicked.Stack))
	}
	letter := deadLetterOf(in, h.deadLetter, h.pipeline, stage, err, h.now())
	if h.envelope != nil && stage != stageDecode {
		addDerived(h.envelope.told, &letter)
	}
	truncate(&letter, h.limits.Record(h.deadLetter))
	out.Emit(&letter)
}

// truncate cuts off the value of a dead letter of more than so many bytes.
func truncate(letter *pipeline.Record, most int) {
	if room := most - len(letter.Key) - pipeline.HeadersSize(letter.Headers); len(letter.Value) > room {
		letter.Headers = append(letter.Headers, pipeline.Header{Key: headerTruncated, Value: []byte(strconv.Itoa(len(letter.Value)))})
		letter.Value = letter.Value[:max(0, room-64)]
	}
}

// deadLetterOf returns the dead letter of a record, for a topic: by is what could
// not take it, and where in it.
func deadLetterOf(in *pipeline.Record, topic, by, stage string, err error, now time.Time) pipeline.Record {
	attempt := 1
	if before, ok := in.Header(headerAttempt); ok {
		if n, err := strconv.Atoi(string(before)); err == nil && n > 0 {
			attempt = n + 1
		}
	}
	letter := *in
	letter.Topic, letter.Partition = topic, pipeline.KeyPartition
	letter.Headers = make([]pipeline.Header, 0, len(in.Headers)+10)
	for _, have := range in.Headers {
		if !isOwnHeader(have.Key) {
			letter.Headers = append(letter.Headers, have)
		}
	}
	add := func(key, value string) {
		letter.Headers = append(letter.Headers, pipeline.Header{Key: key, Value: []byte(value)})
	}
	add(headerSourceTopic, in.Topic)
	add(headerSourcePartition, strconv.Itoa(int(in.Partition)))
	add(headerSourceOffset, strconv.FormatInt(in.Offset, 10))
	add(headerPipeline, by)
	add(headerStage, stage)
	add(headerReason, string(pipeline.ReasonOf(err)))
	text := err.Error()
	add(headerError, strings.ToValidUTF8(text[:min(len(text), maxErrorBytes)], ""))
	add(headerAttempt, strconv.Itoa(attempt))
	add(headerTime, now.UTC().Format(time.RFC3339Nano))
	return letter
}

// isOwnHeader reports whether a header is one that a dead letter gets anew, so
// that a letter which was sent back and failed again does not collect them.
func isOwnHeader(key string) bool {
	switch key {
	case headerSourceTopic, headerSourcePartition, headerSourceOffset, headerPipeline, headerStage,
		headerReason, headerError, headerAttempt, headerTime, headerTruncated, headerEventID, headerEventKey, headerEventTime:
		return true
	}
	return false
}

// misser is a stage of a session's chain that may find nothing for an event.
type misser struct {
	stage.Misser
	count prometheus.Counter
}

func missersOf(pl *topology.Pipeline, chain *pipeline.Chain, metrics *chainMetrics) (out []misser) {
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
func (h *chainHandler) Flush(_ context.Context, out pipeline.Emitter) error {
	h.flush(out)
	return nil
}

// EndBatch implements [pipeline.Handler].
func (h *chainHandler) EndBatch(committed bool) {
	h.endBatch(committed)
	if committed {
		h.metrics.add(h.pipeline, &h.batch)
		h.chain.Counts(func(stage string, n pipeline.StageCounts) { h.metrics.addStage(h.pipeline, stage, n) })
		if h.batch.example != nil {
			n := 0
			for _, d := range h.batch.dead {
				n += d
			}
			h.log.Warn("dead letters written", "count", n, "topic", h.deadLetter, "example", h.batch.example)
		}
	} else {
		h.chain.Counts(nil)
	}
	for _, m := range h.missers {
		m.endBatch(committed)
	}
	dead := h.batch.dead
	clear(dead)
	h.batch = chainCounts{dead: dead}
	for len(h.parts) > 0 {
		h.Reuse()
	}
	h.arena.reset(arenaKeep)
}

// Seal implements [pipeline.Recycler].
func (h *chainHandler) Seal() bool {
	if h.keeps() {
		return false
	}
	h.parts = append(h.parts, h.arena)
	if n := len(h.spare); n > 0 {
		h.arena, h.spare = h.spare[n-1], h.spare[:n-1]
	} else {
		h.arena = &arena{}
	}
	return true
}

// Reuse implements [pipeline.Recycler].
func (h *chainHandler) Reuse() {
	h.parts[0].reset(arenaKeepPart)
	h.spare = append(h.spare, h.parts[0])
	h.parts = slices.Delete(h.parts, 0, 1)
}

// arena hands out memory for the values of a batch, and takes it back whole.
type arena struct {
	blocks [][]byte
	used   int    // of the blocks
	free   []byte // of the last one that is used
}

const (
	arenaBlock = 256 << 10
	// Blocks that are kept from one batch to the next, or from one part of one.
	arenaKeep, arenaKeepPart = 64, 16
)

// grow returns an empty slice with room for n bytes or more. Append to it, then
// keep it.
func (a *arena) grow(n int) []byte {
	if n > len(a.free) {
		a.next(n)
	}
	return a.free[:0]
}

// next goes on to a block of n bytes or more.
func (a *arena) next(n int) {
	switch {
	case a.used == len(a.blocks):
		a.blocks = append(a.blocks, make([]byte, max(n, arenaBlock)))
	case len(a.blocks[a.used]) < n: // too small, or was too large to keep
		a.blocks[a.used] = make([]byte, max(n, arenaBlock))
	}
	a.free = a.blocks[a.used]
	a.used++
}

// keep makes what was appended to the slice of the last grow permanent until
// reset. If it outgrew its room, it is memory of its own anyway.
func (a *arena) keep(b []byte) []byte {
	if n := len(b); n > 0 && n <= len(a.free) && &b[0] == &a.free[0] {
		a.free = a.free[n:]
	}
	return b[:len(b):len(b)]
}

// reset takes everything back. So many blocks at most stay for the next time.
func (a *arena) reset(keep int) {
	a.used, a.free = 0, nil
	if len(a.blocks) > keep {
		clear(a.blocks[keep:])
		a.blocks = a.blocks[:keep]
	}
	for i, block := range a.blocks {
		if len(block) > arenaBlock {
			a.blocks[i] = nil
		}
	}
}

// chainMetrics counts the events of committed batches: in = out + filtered +
// dead letters, and for each stage in + added = out + filtered + rejected.
type chainMetrics struct {
	in, out, filtered            *prometheus.CounterVec
	dead                         *prometheus.CounterVec
	stageIn, stageOut, stageDrop *prometheus.CounterVec
	stageRejected                *prometheus.CounterVec
	stageAdded, stageSkipped     *prometheus.CounterVec
	stageMissed                  *prometheus.CounterVec
}

func newChainMetrics(reg prometheus.Registerer) *chainMetrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_" + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	return &chainMetrics{
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

func (m *chainMetrics) add(name string, n *chainCounts) {
	m.in.WithLabelValues(name).Add(float64(n.in))
	m.out.WithLabelValues(name).Add(float64(n.out))
	m.filtered.WithLabelValues(name).Add(float64(n.filtered))
	for reason, dead := range n.dead {
		m.dead.WithLabelValues(name, string(reason)).Add(float64(dead))
	}
}

func (m *chainMetrics) addStage(name, stage string, n pipeline.StageCounts) {
	m.stageIn.WithLabelValues(name, stage).Add(float64(n.In))
	m.stageAdded.WithLabelValues(name, stage).Add(float64(n.Added))
	m.stageSkipped.WithLabelValues(name, stage).Add(float64(n.Skipped))
	m.stageOut.WithLabelValues(name, stage).Add(float64(n.Passed))
	m.stageDrop.WithLabelValues(name, stage).Add(float64(n.Filtered))
	for reason, rejected := range n.Rejected {
		m.stageRejected.WithLabelValues(name, stage, string(reason)).Add(float64(rejected))
	}
}
