package chain

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/kafka"
	"millrace/pipeline/rows"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// SampleRecord is a record that would be written.
type SampleRecord struct {
	Pipeline  string          `json:"pipeline"`
	To        string          `json:"to"`
	Key       string          `json:"key"`
	Topic     string          `json:"topic"` // of the event that it came of
	Partition int32           `json:"partition"`
	Offset    int64           `json:"offset"`
	Type      string          `json:"type,omitempty"`
	Event     json.RawMessage `json:"event,omitempty"`
	Stage     string          `json:"stage,omitempty"` // of a dead letter, and so are those that follow
	Reason    string          `json:"reason,omitempty"`
	Error     string          `json:"error,omitempty"`
}

func (r *Rehearsal) Sample(in, out *pipeline.Record) SampleRecord {
	s := SampleRecord{To: out.Topic, Key: string(out.Key), Topic: in.Topic, Partition: in.Partition, Offset: in.Offset}
	if out.Topic == r.DeadLetter {
		letter := deadletter.Parse(out)
		s.Stage, s.Reason, s.Error = letter.Stage, string(letter.Reason), letter.Error
		return s
	}
	typ, body := r.TypeOf(out)
	s.Type, s.Event = r.Plan.Output[typ].ShortName(), EventJSON(r.Plan.Output[typ], body)
	return s
}

// Rehearsal runs a pipeline by the code of workers, on records that somebody
// reads. Nothing is written and nothing committed; what comes out has the number
// of its type where the id of its schema would be.
type Rehearsal struct {
	*Handler
	Plan *topology.Pipeline
	n    int // records since the last end
	out  Records
}

// endEvery is how many records are a batch of a rehearsal.
const endEvery = 1000

func NewRehearsal(w *worker.Worker, pl *topology.Pipeline, limits kafka.Limits) *Rehearsal {
	ids := map[string][]int{}
	for _, topic := range pl.Writes() {
		ids[topic.Name] = make([]int, len(pl.Output))
		for typ := range pl.Output {
			ids[topic.Name][typ] = typ
		}
	}
	unseen := prometheus.NewRegistry()
	r := &Rehearsal{Plan: pl, Handler: Config{
		Topology: w.Topology, Schemas: w.Registry, IDs: ids, client: w.Kafka,
		Metrics: NewMetrics(unseen), StateMetrics: NewStateMetrics(unseen), Now: w.Flags.Env.Now, Log: w.Log,
	}.NewHandler(pl)}
	r.Limit(limits)
	return r
}

// TypeOf returns the type of what was written, and its body.
func (r *Rehearsal) TypeOf(rec *pipeline.Record) (typ int, body []byte) {
	return int(binary.BigEndian.Uint32(rec.Value[1:codec.FrameSize])), rec.Value[codec.FrameSize:]
}

// Assign gives the stages what they remembered when they came to an offset. On a
// state topic that does not exist, that is nothing.
func (r *Rehearsal) Assign(ctx context.Context, d kafka.Description, partition int32, next int64) error {
	for i := range r.Kept {
		kept := &r.Kept[i]
		if _, ok := d.Topics[kept.topic]; ok {
			if err := r.restore(ctx, kept, partition, next); err != nil {
				return err
			}
			continue
		}
		if err := kept.Keeper.Assign(partition, next, func(func([]byte) error) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// Feed runs a record, adds what became of it to the counts, and returns the
// records that a worker would write. They are valid until next.
func (r *Rehearsal) Feed(ctx context.Context, in *pipeline.Record, counts *Counts) ([]pipeline.Record, error) {
	r.out.All = r.out.All[:0]
	err := r.Handle(ctx, in, &r.out)
	counts.In += r.batch.In
	counts.Out += r.batch.Out
	counts.Filtered += r.batch.Filtered
	for reason, n := range r.batch.Dead {
		counts.Dead[reason] += n
	}
	dead := r.batch.Dead
	clear(dead)
	r.batch = Counts{Dead: dead}
	return r.out.All, err
}

// Next is called after each record. It ends batches as a committed one ends, but
// state topics are left alone.
func (r *Rehearsal) Next() {
	if r.n++; r.n < endEvery {
		return
	}
	r.n = 0
	for _, b := range r.ends {
		b.EndBatch(true)
	}
	r.arena.Reset(rows.ArenaKeep)
}

// WithTables gives the tables of pipelines their rows, and runs f. Those whose topics do not
// exist are empty.
func WithTables(w *worker.Worker, ctx context.Context, d kafka.Description, pipelines []*topology.Pipeline, f func(context.Context) error) error {
	all, err := OpenTables(w, TablesOf(w.Topology, pipelines...), func(string, func(context.Context) error) {})
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(t *Table) bool { _, ok := d.Topics[t.topic.Name]; return !ok })
	return all.RunDuring(ctx, func(ctx context.Context) error {
		if err := all.Load(ctx, w); err != nil {
			return err
		}
		return f(ctx)
	})
}

// TraceLine is what is told of an event at a stage.
type TraceLine struct {
	Pipeline  string          `json:"pipeline"`
	Stage     string          `json:"stage"`
	At        string          `json:"at"`
	Topic     string          `json:"topic"`
	Partition int32           `json:"partition"`
	Offset    int64           `json:"offset"`
	Time      time.Time       `json:"time"`
	Key       string          `json:"key"`
	Type      string          `json:"type,omitempty"`
	Event     json.RawMessage `json:"event,omitempty"`   // where it may have changed
	NewKey    *string         `json:"new_key,omitempty"` // if it was given another
	To        []string        `json:"to,omitempty"`      // if it was routed
	Reason    string          `json:"reason,omitempty"`
	Error     string          `json:"error,omitempty"`
	Dropped   int64           `json:"dropped,omitempty"` // lines before this one that were not sent
}

// How moments are called.
var MomentNames = [...]string{"entering", "passed", "filtered", "skipped", "failed"}

// newTraceLine tells of an event at a stage. Fields that a later stage adds are
// shown with their defaults.
func newTraceLine(pl *topology.Pipeline, m pipeline.Moment, at int, e *pipeline.Event, err error) TraceLine {
	l := TraceLine{
		Pipeline: pl.Name, Stage: pl.Stages[at].Name, At: MomentNames[m],
		Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, Time: e.Time.UTC(), Key: string(e.Key),
		Type: pl.Output[e.Type].ShortName(), To: slices.Clone(e.To),
	}
	if e.NewKey != nil {
		key := string(e.NewKey)
		l.NewKey = &key
	}
	l.fail(err)
	if m == pipeline.Passed || m == pipeline.Entering {
		l.Event = EventJSON(pl.Output[e.Type], e.Append(nil))
	}
	return l
}

func (l *TraceLine) fail(err error) {
	if err != nil {
		l.Reason, l.Error = string(pipeline.ReasonOf(err)), err.Error()
	}
}

// EventJSON returns a body as JSON; what cannot be shown is null.
func EventJSON(s *codec.Schema, body []byte) json.RawMessage {
	text, err := codec.AppendJSON(nil, s.Root(), body)
	if err != nil {
		return json.RawMessage("null")
	}
	return text
}

// Changes returns in what two values of JSON differ, as "path: before -> after".
func Changes(before, after json.RawMessage) []string {
	a, errA := cli.ParseJSON(before)
	b, errB := cli.ParseJSON(after)
	if errors.Join(errA, errB) != nil {
		return nil
	}
	var out []string
	walkChanges("", a, b, func(path string, a, b any) {
		out = append(out, fmt.Sprintf("%s: %s -> %s", path, shown(a), shown(b)))
	})
	return out
}

type noValue struct{}

func shown(v any) string {
	if _, none := v.(noValue); none {
		return "nothing"
	}
	return cli.Clip(cli.CompactJSON(v), 200)
}

func walkChanges(path string, a, b any, f func(path string, a, b any)) {
	x, xok := a.(cli.OrderedJSON)
	y, yok := b.(cli.OrderedJSON)
	if !xok || !yok {
		if cli.CompactJSON(a) != cli.CompactJSON(b) {
			f(path, a, b)
		}
		return
	}
	join := func(name string) string {
		if path == "" {
			return name
		}
		return path + "." + name
	}
	for _, field := range x {
		if other, ok := y.Get(field.Name); ok {
			walkChanges(join(field.Name), field.Value, other, f)
		} else {
			f(join(field.Name), field.Value, noValue{})
		}
	}
	for _, field := range y {
		if _, ok := x.Get(field.Name); !ok {
			f(join(field.Name), noValue{}, field.Value)
		}
	}
}

type Place struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

func (p *Place) String() string { return fmt.Sprintf("%s/%d@%d", p.Topic, p.Partition, p.Offset) }

// TypeOf returns the number of the type of what a rehearsal wrote.
func TypeOf(r *pipeline.Record) int {
	return int(binary.BigEndian.Uint32(r.Value[1:codec.FrameSize]))
}
