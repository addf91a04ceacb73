package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/gauges"
	"millrace/pipeline/rows"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// Tables are the tables of this process that are topics. All sessions share them.
type Tables []*table

// table is a topic whose newest record under each key is a row. It is read to its end
// before the first event, and followed from then on. A null value deletes the row, and so
// does the snapshot of a deleted aggregate. A record that cannot be read also deletes the
// row of its key, because the old row is no longer current.
//
// If the topic is deleted and created again, it is read from its start. Lookups have the
// rows of the old topic until all of the new one is read.
//
// The goroutine of run owns decoder, and the keys of the contents. Everything else is safe
// for concurrent use.
type table struct {
	name      string
	topic     *topology.Topic
	kafka     kafka.Config
	schemas   event.Schemas
	decoder   *event.Decoder
	schema    *codec.Schema // of the records
	snapshots bool          // the records are snapshots; a row is the state in one
	log       *slog.Logger
	rejected  *prometheus.CounterVec
	redriven  prometheus.Counter

	mu      sync.Mutex               // held to change the next two
	reading atomic.Pointer[contents] // of the topic as it is now
	shown   atomic.Pointer[contents] // what lookups have: reading once that is loaded, until then the contents before

	told    atomic.Bool                   // the log says that it is loaded
	changed atomic.Pointer[chan struct{}] // closed at the next change; nil: no goroutine waits
}

// contents are the rows of one topic. A topic that is created again has others.
type contents struct {
	rows *rows.Map
	keys *rowKeys
	tail *kafka.Tail
}

// TablesOf returns the tables that the stages of the pipelines use.
func TablesOf(t *topology.Topology, pipelines ...*topology.Pipeline) (out []*topology.Table) {
	used := map[*stage.Table]bool{}
	for _, pl := range pipelines {
		for _, s := range pl.Stages {
			if joiner, ok := s.Built.(stage.TableReader); ok {
				used[joiner.Table()] = true
			}
		}
	}
	for _, table := range t.Tables {
		if used[&table.Table] {
			out = append(out, table)
		}
	}
	return out
}

// OpenTables connects tables to their rows. It reads the tables that are files. The tables
// that are topics are empty until [Tables.RunDuring] and [Tables.Load]. It calls ready
// with a readiness check for each of these.
func OpenTables(w *worker.Worker, used []*topology.Table, ready func(name string, f func(context.Context) error)) (Tables, error) {
	var out Tables
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_table_rejected_total", Help: "Records of a table's topic that could not be read, by reason. Their keys have no row.",
	}, []string{"table", "reason"})
	w.Metrics.MustRegister(rejected)
	for _, decl := range used {
		if decl.Topic == nil {
			all, err := FileRows(decl)
			if err != nil {
				return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
			}
			decl.Rows = all
			tableMetrics(w.Metrics, decl.Name, func() *rows.Map { return all })
			continue
		}
		t, err := newTable(w, decl, rejected)
		if err != nil {
			return nil, err
		}
		decl.Rows = t
		out = append(out, t)
		ready("table "+t.name, func(context.Context) error { return t.ready() })
		tableMetrics(w.Metrics, decl.Name, func() *rows.Map { return t.shown.Load().rows })
	}
	return out, nil
}

func newTable(w *worker.Worker, decl *topology.Table, rejected *prometheus.CounterVec) (*table, error) {
	t := &table{
		name: decl.Name, topic: decl.Topic, kafka: w.Kafka, schemas: w.Registry, schema: decl.Schema, rejected: rejected, log: w.Log.With("table", decl.Name),
	}
	if p := decl.Topic.Snapshots; p != nil {
		t.schema, t.snapshots = p.Fold.Snapshot(), true
	}
	t.decoder = event.NewDecoder(w.Registry, []*codec.Schema{t.schema}, nil)
	t.decoder.LogDrift(event.NewDrift(t.log))
	if err := t.startAnew(); err != nil {
		return nil, err
	}
	t.shown.Store(t.reading.Load())
	t.redriven = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_table_redriven_total", Help: "Records of a table's topic that were skipped, because they are dead letters that were sent back to a pipeline.",
		ConstLabels: prometheus.Labels{"table": t.name},
	})
	w.Metrics.MustRegister(t.redriven, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_table_lag_records", Help: "Offsets of the table's topic that were not read yet.", ConstLabels: prometheus.Labels{"table": t.name},
	}, func() float64 {
		lag, _ := t.reading.Load().tail.Lag()
		return float64(lag)
	}), gauges.Following("table "+t.name, decl.Topic.Name, t.current))
	return t, nil
}

// startAnew makes the contents of the topic as it is now empty.
func (t *table) startAnew() error {
	keys, err := newRowKeys(t.topic, t.schema, t.schemas)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reading.Store(&contents{rows: rows.New(), keys: keys, tail: kafka.NewTail(t.kafka, t.topic.Name)})
	return nil
}

func tableMetrics(reg prometheus.Registerer, name string, all func() *rows.Map) {
	labels := prometheus.Labels{"table": name}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_table_rows", Help: "Rows of a table.", ConstLabels: labels}, func() float64 { return float64(all().Len()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_table_bytes", Help: "Memory of a table, in bytes.", ConstLabels: labels}, func() float64 { return float64(all().Bytes()) }),
	)
}

// RunDuring keeps the tables up to date while f runs. It returns the first error, and
// cancels the context of f if a table fails.
func (ts Tables) RunDuring(ctx context.Context, f func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	following, stop := context.WithCancel(ctx)
	defer stop()
	for _, t := range ts {
		g.Go(func() error { return t.run(following) })
	}
	g.Go(func() error {
		defer stop()
		return f(ctx)
	})
	return g.Wait()
}

// Of returns the tables that the stages of a pipeline use.
func (ts Tables) Of(t *topology.Topology, pl *topology.Pipeline) (out Tables) {
	for _, decl := range TablesOf(t, pl) {
		for _, one := range ts {
			if one.name == decl.Name {
				out = append(out, one)
			}
		}
	}
	return out
}

// loadCheck is how often Load looks whether reading a table fails.
const loadCheck = time.Second

// Load waits until all tables are read to the ends of their topics. It fails if one cannot be
// read; reading it is tried again, so Load can be called again. It must run inside
// [Tables.RunDuring]. Several goroutines can call it.
func (ts Tables) Load(ctx context.Context, w *worker.Worker) error {
	if len(ts) == 0 {
		return nil
	}
	var topics []*topology.Topic
	for _, t := range ts {
		if !t.told.Load() { // the topic of a loaded table is not created again here: it would be empty
			topics = append(topics, t.topic)
		}
	}
	if _, err := w.EnsureTopics(ctx, topics); err != nil {
		return err
	}
	for _, t := range ts {
		if err := t.load(ctx); err != nil {
			return err
		}
	}
	return nil
}

// load waits until the table is read to the end of its topic.
func (t *table) load(ctx context.Context) error {
	check := time.NewTicker(loadCheck)
	defer check.Stop()
	for {
		c := t.reading.Load()
		select {
		case <-c.tail.Loaded():
			t.show(c)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-check.C:
			if err := c.tail.Err(); err != nil {
				return fmt.Errorf("table %s: %w", t.name, err)
			}
		}
	}
}

// show makes loaded contents those of lookups, unless there are newer ones.
func (t *table) show(c *contents) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reading.Load() != c {
		return
	}
	before, first := t.shown.Swap(c), !t.told.Swap(true)
	switch {
	case before != c:
		t.log.Warn("the table is loaded from its new topic; lookups have these rows now", "rows", c.rows.Len(), "bytes", c.rows.Bytes(), "rows_before", before.rows.Len())
		t.wake()
	case first:
		t.log.Info("table loaded", "rows", c.rows.Len(), "bytes", c.rows.Bytes())
	}
}

// WithTables calls f while the tables of the pipelines have their rows. A table whose
// topic does not exist in d is empty.
func WithTables(ctx context.Context, w *worker.Worker, d kafka.Description, pipelines []*topology.Pipeline, f func(context.Context) error) error {
	all, err := OpenTables(w, TablesOf(w.Topology, pipelines...), func(string, func(context.Context) error) {})
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(t *table) bool { _, ok := d.Topics[t.topic.Name]; return !ok })
	return all.RunDuring(ctx, func(ctx context.Context) error {
		if err := all.Load(ctx, w); err != nil {
			return err
		}
		return f(ctx)
	})
}

// run follows the topic until the context ends, and its successor if it is created again.
// It retries unless an error is fatal.
func (t *table) run(ctx context.Context) error {
	for {
		err := t.follow(ctx, t.reading.Load())
		if !errors.Is(err, kafka.ErrRecreated) {
			return err
		}
		t.log.Warn("reading the table's topic from its start; lookups have the rows of the old topic until all of it is read", "err", err)
		if err := t.startAnew(); err != nil {
			return err
		}
	}
}

// follow reads contents until the context ends or an error is fatal, and shows them when
// they are loaded.
func (t *table) follow(ctx context.Context, c *contents) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g.Go(func() error {
		select {
		case <-c.tail.Loaded():
			t.show(c)
		case <-ctx.Done():
		}
		return nil
	})
	g.Go(func() error {
		defer stop()
		return c.tail.Follow(ctx, func(r *pipeline.Record) error { return t.apply(ctx, c, r) }, func(err error, wait time.Duration) {
			t.log.Warn("reading the table failed; retrying", "err", err, "wait", wait)
		})
	})
	return g.Wait()
}

// apply applies one record to the rows.
func (t *table) apply(ctx context.Context, c *contents, r *pipeline.Record) error {
	if t.snapshots && bytes.HasPrefix(r.Key, []byte(fold.ReservedKeys)) {
		return nil // a record of the projector itself
	}
	if deadletter.RedrivenTo(r) != nil {
		if deadletter.IsTaken(r, c.tail.TopicID()) {
			t.redriven.Inc() // these contents have the record already, or a newer one
			return nil
		}
		r = deadletter.Plain(r)
	}
	row, err := t.row(ctx, r)
	if err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
		return err
	}
	before, key, bad := c.keys.of(ctx, r, row)
	if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	if err == nil {
		err = bad
	}
	if err != nil {
		t.rejected.WithLabelValues(t.name, string(pipeline.ReasonOf(err))).Inc()
		t.log.Warn("a record of the table cannot be read; its key has no row now", "partition", r.Partition, "offset", r.Offset, "err", err)
	}
	if before != nil && (row == nil || !bytes.Equal(before, key)) {
		c.rows.Delete(before)
	}
	if row != nil && key != nil {
		c.rows.Set(key, row)
	}
	t.wake()
	return nil
}

// wake wakes those that wait for a change.
func (t *table) wake() {
	if changed := t.changed.Swap(nil); changed != nil {
		close(*changed)
	}
}

// row returns the row of a record, nil if the record deletes a row.
func (t *table) row(ctx context.Context, r *pipeline.Record) ([]byte, error) {
	if r.Value == nil {
		return nil, nil
	}
	d, err := t.decoder.Decode(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	if err := codec.Validate(t.schema.Root(), d.Body); err != nil {
		return nil, err
	}
	if !t.snapshots {
		return d.Body, nil
	}
	return stateOf(t.schema, d.Body)
}

// stateOf returns the state in a snapshot, nil if the aggregate is deleted. The fields of
// a snapshot before its state are strings and longs.
func stateOf(snapshot *codec.Schema, body []byte) ([]byte, error) {
	rest := body
	for i := range snapshot.Root().Fields {
		f := &snapshot.Root().Fields[i]
		if f.Name == "state" {
			return rest, nil
		}
		var err error
		if f.Type.Kind == codec.String {
			var text []byte
			if text, rest, err = codec.ReadText(rest); f.Name == "status" && string(text) == fold.Deleted {
				return nil, err
			}
		} else {
			_, rest, err = codec.ReadLong(rest)
		}
		if err != nil {
			return nil, pipeline.Reject(pipeline.ReasonBadBody, "%s: %w", f.Name, err)
		}
	}
	return nil, pipeline.Reject(pipeline.ReasonBadSchema, "%s has no state", snapshot.Name())
}

// Get implements [stage.Rows].
func (t *table) Get(key []byte) ([]byte, bool) { return t.shown.Load().rows.Get(key) }

// Changed implements [stage.ChangingRows].
func (t *table) Changed() <-chan struct{} {
	for {
		if changed := t.changed.Load(); changed != nil {
			return *changed
		}
		changed := make(chan struct{})
		if t.changed.CompareAndSwap(nil, &changed) {
			return changed
		}
	}
}

// ready returns nil if the table is loaded and followed.
func (t *table) ready() error {
	c := t.reading.Load()
	err := t.current()
	left, known := c.tail.Lag()
	select {
	case <-c.tail.Loaded():
		if err == nil {
			return nil
		}
		return fmt.Errorf("table %s: no longer followed: %w", t.name, err)
	default:
	}
	switch {
	case err != nil:
		return fmt.Errorf("table %s: loaded %d rows: %w", t.name, c.rows.Len(), err)
	case !known:
		return fmt.Errorf("table %s: not started", t.name)
	}
	return fmt.Errorf("table %s: loaded %d rows, %d records left", t.name, c.rows.Len(), left)
}

// current returns why lookups do not have the rows of the topic as it is now, nil if they
// do or if the first contents are still being read.
func (t *table) current() error {
	c := t.reading.Load()
	err := c.tail.Err()
	if before := t.shown.Load(); err == nil && before != c {
		left, _ := c.tail.Lag()
		return fmt.Errorf("topic %s: %w; lookups have the %d rows of the old one until the new one is read: %d records left", t.topic.Name, kafka.ErrRecreated, before.rows.Len(), left)
	}
	return err
}
