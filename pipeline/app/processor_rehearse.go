package app

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// remoteFlags are the flags of commands that look, from outside, at what workers
// work with.
type remoteFlags struct {
	env      *Env
	kafka    *KafkaFlags
	registry *RegistryFlags
	topology *TopologyFlags
	log      *LogFlags
}

func addRemoteFlags(e *Env, flags *pflag.FlagSet) *remoteFlags {
	f := &remoteFlags{env: e}
	f.kafka = e.KafkaFlags(flags, "processor")
	f.registry = e.RegistryFlags(flags)
	f.topology = e.TopologyFlags(flags)
	f.log = e.LogFlags(flags)
	f.log.level = "warn" // what they have to say, they print
	flags.Lookup("log-level").DefValue = f.log.level
	return f
}

// open reads the configuration as a worker does, and connects to nothing. What
// it returns creates no topics.
func (f *remoteFlags) open() (*worker, error) {
	log, err := f.log.Logger()
	if err != nil {
		return nil, err
	}
	w := &worker{flags: &WorkerFlags{env: f.env, topology: f.topology, noCreate: true}, metrics: prometheus.NewRegistry(), log: log}
	if w.topology, err = f.topology.Load(f.env); err != nil {
		return nil, err
	}
	if w.kafka, err = f.kafka.Config(log, nil); err != nil {
		return nil, err
	}
	where, err := f.registry.Config()
	if err != nil {
		return nil, err
	}
	if w.registry, err = openRegistry(where); err != nil {
		return nil, &ExitError{ExitUsage, err}
	}
	return w, nil
}

// chosen returns the pipelines of these names, all if there are no names.
func (f *remoteFlags) chosen(w *worker, names []string) ([]*topology.Pipeline, error) {
	return selectPipelines(w.topology, f.topology.File, names)
}

// hostname returns what transactional ids are made of if nothing is said.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "0"
	}
	return name
}

// rehearsal runs a pipeline by the code of workers, on records that somebody
// reads. Nothing is written and nothing committed; what comes out has the number
// of its type where the id of its schema would be.
type rehearsal struct {
	*chainHandler
	of  *topology.Pipeline
	n   int // records since the last end
	out records
}

// endEvery is how many records are a batch of a rehearsal.
const endEvery = 1000

func newRehearsal(w *worker, pl *topology.Pipeline, limits kafka.Limits) *rehearsal {
	ids := map[string][]int{}
	for _, topic := range pl.Writes() {
		ids[topic.Name] = make([]int, len(pl.Output))
		for typ := range pl.Output {
			ids[topic.Name][typ] = typ
		}
	}
	unseen := prometheus.NewRegistry()
	r := &rehearsal{of: pl, chainHandler: chainSetup{
		topology: w.topology, schemas: w.registry, ids: ids, client: w.kafka,
		chains: newChainMetrics(unseen), kept: newKeepMetrics(unseen), now: w.flags.env.Now, log: w.log,
	}.handler(pl)}
	r.Limit(limits)
	return r
}

// typeOf returns the type of what was written, and its body.
func (r *rehearsal) typeOf(rec *pipeline.Record) (typ int, body []byte) {
	return int(binary.BigEndian.Uint32(rec.Value[1:codec.FrameSize])), rec.Value[codec.FrameSize:]
}

// assign gives the stages what they remembered when they came to an offset. On a
// state topic that does not exist, that is nothing.
func (r *rehearsal) assign(ctx context.Context, d kafka.Description, partition int32, next int64) error {
	for i := range r.kept {
		kept := &r.kept[i]
		if _, ok := d.Topics[kept.topic]; ok {
			if err := r.restore(ctx, kept, partition, next); err != nil {
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

// handle runs a record, adds what became of it to the counts, and returns the
// records that a worker would write. They are valid until next.
func (r *rehearsal) handle(ctx context.Context, in *pipeline.Record, counts *chainCounts) ([]pipeline.Record, error) {
	r.out.all = r.out.all[:0]
	err := r.Handle(ctx, in, &r.out)
	counts.in += r.batch.in
	counts.out += r.batch.out
	counts.filtered += r.batch.filtered
	for reason, n := range r.batch.dead {
		counts.dead[reason] += n
	}
	dead := r.batch.dead
	clear(dead)
	r.batch = chainCounts{dead: dead}
	return r.out.all, err
}

// next is called after each record. It ends batches as a committed one ends, but
// state topics are left alone.
func (r *rehearsal) next() {
	if r.n++; r.n < endEvery {
		return
	}
	r.n = 0
	for _, b := range r.ends {
		b.EndBatch(true)
	}
	r.arena.reset(arenaKeep)
}

// withTables gives the tables of pipelines their rows, and runs f. Those whose topics do not
// exist are empty.
func withTables(w *worker, ctx context.Context, d kafka.Description, pipelines []*topology.Pipeline, f func(context.Context) error) error {
	all, err := openTables(w, tablesOf(w.topology, pipelines...), func(string, func(context.Context) error) {})
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(t *table) bool { _, ok := d.Topics[t.topic.Name]; return !ok })
	return all.while(ctx, func(ctx context.Context) error {
		if err := all.load(ctx, w); err != nil {
			return err
		}
		return f(ctx)
	})
}

// traceLine is what is told of an event at a stage.
type traceLine struct {
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
var momentNames = [...]string{"entering", "passed", "filtered", "skipped", "failed"}

// newTraceLine tells of an event at a stage. Fields that a later stage adds are
// shown with their defaults.
func newTraceLine(pl *topology.Pipeline, m pipeline.Moment, at int, e *pipeline.Event, err error) traceLine {
	l := traceLine{
		Pipeline: pl.Name, Stage: pl.Stages[at].Name, At: momentNames[m],
		Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, Time: e.Time.UTC(), Key: string(e.Key),
		Type: pl.Output[e.Type].ShortName(), To: slices.Clone(e.To),
	}
	if e.NewKey != nil {
		key := string(e.NewKey)
		l.NewKey = &key
	}
	l.fail(err)
	if m == pipeline.Passed || m == pipeline.Entering {
		l.Event = eventJSON(pl.Output[e.Type], e.Append(nil))
	}
	return l
}

func (l *traceLine) fail(err error) {
	if err != nil {
		l.Reason, l.Error = string(pipeline.ReasonOf(err)), err.Error()
	}
}

// eventJSON returns a body as JSON; what cannot be shown is null.
func eventJSON(s *codec.Schema, body []byte) json.RawMessage {
	text, err := codec.AppendJSON(nil, s.Root(), body)
	if err != nil {
		return json.RawMessage("null")
	}
	return text
}

// changes returns in what two values of JSON differ, as "path: before -> after".
func changes(before, after json.RawMessage) []string {
	a, errA := readJSON(before)
	b, errB := readJSON(after)
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
	return clip(compact(v), 200)
}

// clip keeps a line readable.
func clip(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "..."
	}
	return text
}

func walkChanges(path string, a, b any, f func(path string, a, b any)) {
	x, xok := a.(orderedJSON)
	y, yok := b.(orderedJSON)
	if !xok || !yok {
		if compact(a) != compact(b) {
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
		if other, ok := y.get(field.name); ok {
			walkChanges(join(field.name), field.value, other, f)
		} else {
			f(join(field.name), field.value, noValue{})
		}
	}
	for _, field := range y {
		if _, ok := x.get(field.name); !ok {
			f(join(field.name), noValue{}, field.value)
		}
	}
}

// sortedKeys returns the keys of a map, sorted.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
