package chain

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/trace"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// A Rehearsal runs a pipeline with the code of a worker, but writes and commits nothing.
// For each record that the caller reads, [Rehearsal.Run] returns the records that a
// worker would write. It writes no receipts. It belongs to one goroutine.
type Rehearsal struct {
	plan    *topology.Pipeline
	handler *handler
	batch   int  // events per batch
	n       int  // events in the current batch
	spared  bool // the current event passed a stage whose service was not called
	emitted collector
	out     []Output
}

// An Output is a record that a worker would write: an event, or a dead letter.
type Output struct {
	// Record has the number of the type instead of the schema id in its value.
	Record pipeline.Record
	Schema *codec.Schema // of the event; nil for a dead letter and a tombstone
	Body   []byte        // of the event

	Tombstone bool   // the record has no value, and is not a dead letter
	Key       string // the text form of the record's key
}

// DeadLetter reports whether the record is a dead letter.
func (o *Output) DeadLetter() bool { return o.Schema == nil && !o.Tombstone }

// Type returns the full name of the event's type; "" for a dead letter and a tombstone.
func (o *Output) Type() string {
	if o.Schema == nil {
		return ""
	}
	return o.Schema.Name()
}

// batchOfRehearsal is the number of events in a batch of a rehearsal on Kafka.
const batchOfRehearsal = 1000

// NewRehearsal returns a rehearsal on the records of a cluster.
func NewRehearsal(w *worker.Worker, pl *topology.Pipeline, cluster kafka.Description) *Rehearsal {
	c := config{topology: w.Topology, schemas: w.Registry, sourceID: cluster.Topics[pl.From.Name].ID, kafka: w.Kafka, now: w.Flags.Env.Now, log: w.Log}
	r := newRehearsal(c, pl, batchOfRehearsal)
	r.handler.SetLimits(cluster.Limits())
	return r
}

// NewOfflineRehearsal returns a rehearsal without Kafka. Its input is partition 0 from
// offset 0 on, the state of the stages is empty, and each event is a batch.
func NewOfflineRehearsal(t *topology.Topology, pl *topology.Pipeline, schemas event.Schemas, now func() time.Time) (*Rehearsal, error) {
	r := newRehearsal(config{topology: t, schemas: schemas, now: now, log: slog.New(slog.DiscardHandler)}, pl, 1)
	return r, r.Restore(context.Background(), kafka.Description{}, 0, 0)
}

func newRehearsal(c config, pl *topology.Pipeline, batch int) *Rehearsal {
	c.metrics = NewMetrics(prometheus.NewRegistry()) // not exported
	c.ids = map[string][]int{}
	for _, topic := range pl.Writes() {
		c.ids[topic.Name] = make([]int, len(pl.Output))
		for typ := range pl.Output {
			c.ids[topic.Name][typ] = typ
		}
	}
	return &Rehearsal{plan: pl, handler: c.newHandler(pl), batch: batch}
}

// Restore gives the stages the state that they had at an offset of a partition of the
// source. Without a state topic in d, this state is empty.
func (r *Rehearsal) Restore(ctx context.Context, d kafka.Description, partition int32, next int64) error {
	k := r.handler.keepers
	for i := range k.kept {
		kept := &k.kept[i]
		if _, ok := d.Topics[kept.topic]; ok {
			if err := k.restore(ctx, kept, partition, next); err != nil {
				return err
			}
			continue
		}
		if err := kept.keeper.Assign(partition, next, func(func([]byte) error) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// Skips reports whether the pipeline skips a record: it is a dead letter of another
// pipeline that was sent back to the topic. Run returns nothing for it.
func (r *Rehearsal) Skips(in *pipeline.Record) bool {
	to := deadletter.RedrivenTo(in)
	return to != nil && r.handler.tookBefore(to, in)
}

// SpareServices makes stages that call a service pass all events unchanged, and call
// nothing. [Rehearsal.Spared] says which events that concerns.
func (r *Rehearsal) SpareServices() {
	r.handler.stages.Each(func(_ string, s pipeline.Stage) {
		if asker, ok := s.(stage.Requester); ok {
			asker.SpareService(func() { r.spared = true })
		}
	})
}

// Spared reports whether the last event passed a stage whose service was not called: a
// worker may have written something else, or nothing.
func (r *Rehearsal) Spared() bool { return r.spared }

// Run runs one record and returns the records that a worker would write: none if a stage
// filtered the event. They are valid until the next call. After an error, the batch is
// discarded, like a batch that a worker aborts.
func (r *Rehearsal) Run(ctx context.Context, in *pipeline.Record) ([]Output, error) {
	if r.n == r.batch {
		r.end(true)
	}
	r.n++
	r.emitted.records, r.out, r.spared = r.emitted.records[:0], r.out[:0], false
	if err := r.handler.Handle(ctx, in, &r.emitted); err != nil {
		r.end(false)
		return nil, err
	}
	for i := range r.emitted.records {
		o := Output{Record: r.emitted.records[i]}
		format := r.plan.From.KeyFormat
		if t := r.handler.output.targets[o.Record.Topic]; t != nil {
			format = t.keys
		}
		if o.Key = format.Show(o.Record.Key); bytes.Equal(o.Record.Key, in.Key) {
			o.Key = r.handler.input.keys.Show(ctx, in) // knows the schema that wrote it
		}
		switch {
		case o.Record.Topic == r.plan.DeadLetter.Name:
		case o.Record.Value == nil:
			o.Tombstone = true
		default:
			o.Schema = r.plan.Output[binary.BigEndian.Uint32(o.Record.Value[1:codec.FrameSize])]
			o.Body = o.Record.Value[codec.FrameSize:]
		}
		r.out = append(r.out, o)
	}
	return r.out, nil
}

// end ends the batch for the stages. It does not trim state topics, and keeps the counts
// for StageCounts.
func (r *Rehearsal) end(committed bool) {
	r.n = 0
	r.handler.endStages(committed)
	r.handler.batch.reset()
	r.handler.output.memory.reset()
}

// StageCounts calls f with the counts of each stage since the last call, in order.
func (r *Rehearsal) StageCounts(f func(stage string, n pipeline.StageCounts)) {
	r.handler.stages.Counts(f)
}

// Add counts one event that became these records.
func (n *Counts) Add(out []Output) {
	n.In++
	switch {
	case len(out) == 0:
		n.Filtered++
	case out[0].Tombstone:
		n.Out++
		n.Tombstones.Passed++
	case !out[0].DeadLetter():
		n.Out++
	default:
		if n.Dead == nil {
			n.Dead = map[pipeline.Reason]int{}
		}
		n.Dead[deadletter.Parse(&out[0].Record).Reason]++
	}
}

// SampleRecord shows an [Output] as JSON.
type SampleRecord struct {
	Pipeline  string          `json:"pipeline"`
	To        string          `json:"to"`
	Key       string          `json:"key"`
	Topic     string          `json:"topic"` // Topic, Partition and Offset are those of the input record
	Partition int32           `json:"partition"`
	Offset    int64           `json:"offset"`
	Type      string          `json:"type,omitempty"`
	Event     json.RawMessage `json:"event,omitempty"`
	Tombstone bool            `json:"tombstone,omitempty"`
	Stage     string          `json:"stage,omitempty"` // Stage, Reason and Error: only for a dead letter
	Reason    string          `json:"reason,omitempty"`
	Error     string          `json:"error,omitempty"`
}

// Sample returns the output of an input record as JSON. The caller may set Pipeline.
func (o *Output) Sample(in *pipeline.Record) SampleRecord {
	s := SampleRecord{To: o.Record.Topic, Key: o.Key, Topic: in.Topic, Partition: in.Partition, Offset: in.Offset}
	if o.Tombstone {
		s.Tombstone = true
		return s
	}
	if o.Schema == nil {
		letter := deadletter.Parse(&o.Record)
		s.Stage, s.Reason, s.Error = letter.Stage, string(letter.Reason), letter.Error
		return s
	}
	s.Type, s.Event = o.Schema.ShortName(), trace.EventJSON(o.Schema, o.Body)
	return s
}
