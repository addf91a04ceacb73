package chain

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
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
// The goroutine of run owns decoder and keys. Everything else is safe for concurrent use.
type table struct {
	name      string
	topic     *topology.Topic
	rows      *rows.Map
	decoder   *event.Decoder
	keys      *rowKeys
	schema    *codec.Schema // of the records
	snapshots bool          // the records are snapshots; a row is the state in one
	tail      *kafka.Tail
	log       *slog.Logger
	rejected  *prometheus.CounterVec
	redriven  prometheus.Counter

	told    atomic.Bool                   // the log says that it is loaded
	changed atomic.Pointer[chan struct{}] // closed at the next change; nil: no goroutine waits
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
		var all *rows.Map
		if decl.Topic == nil {
			var err error
			if all, err = FileRows(decl); err != nil {
				return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
			}
			decl.Rows = all
		} else {
			t, err := newTable(w, decl, rejected)
			if err != nil {
				return nil, err
			}
			all = t.rows
			decl.Rows = t
			out = append(out, t)
			ready("table "+t.name, func(context.Context) error { return t.ready() })
		}
		tableMetrics(w.Metrics, decl.Name, all)
	}
	return out, nil
}

func newTable(w *worker.Worker, decl *topology.Table, rejected *prometheus.CounterVec) (*table, error) {
	t := &table{
		name: decl.Name, topic: decl.Topic, rows: rows.New(), schema: decl.Schema, rejected: rejected,
		tail: kafka.NewTail(w.Kafka, decl.Topic.Name), log: w.Log.With("table", decl.Name),
	}
	if p := decl.Topic.Snapshots; p != nil {
		t.schema, t.snapshots = p.Fold.Snapshot(), true
	}
	t.decoder = event.NewDecoder(w.Registry, []*codec.Schema{t.schema}, nil)
	t.decoder.LogDrift(event.NewDrift(t.log))
	var err error
	if t.keys, err = newRowKeys(decl.Topic, t.schema, w.Registry); err != nil {
		return nil, err
	}
	t.redriven = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "millrace_table_redriven_total", Help: "Records of a table's topic that were skipped, because they are dead letters that were sent back to a pipeline.",
		ConstLabels: prometheus.Labels{"table": t.name},
	})
	w.Metrics.MustRegister(t.redriven, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_table_lag_records", Help: "Offsets of the table's topic that were not read yet.", ConstLabels: prometheus.Labels{"table": t.name},
	}, func() float64 {
		lag, _ := t.tail.Lag()
		return float64(lag)
	}), gauges.Following("table "+t.name, decl.Topic.Name, t.tail.Err))
	return t, nil
}

func tableMetrics(reg prometheus.Registerer, name string, all *rows.Map) {
	labels := prometheus.Labels{"table": name}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_table_rows", Help: "Rows of a table.", ConstLabels: labels}, func() float64 { return float64(all.Len()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_table_bytes", Help: "Memory of a table, in bytes.", ConstLabels: labels}, func() float64 { return float64(all.Bytes()) }),
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
	topics := make([]*topology.Topic, len(ts))
	for i, t := range ts {
		topics[i] = t.topic
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
		select {
		case <-t.tail.Loaded():
			if !t.told.Swap(true) {
				t.log.Info("table loaded", "rows", t.rows.Len(), "bytes", t.rows.Bytes())
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-check.C:
			if err := t.tail.Err(); err != nil {
				return fmt.Errorf("table %s: %w", t.name, err)
			}
		}
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

// run follows the topic until the context ends. It retries unless an error is fatal.
func (t *table) run(ctx context.Context) error {
	apply := func(r *pipeline.Record) error { return t.apply(ctx, r) }
	return t.tail.Follow(ctx, apply, func(err error, wait time.Duration) {
		t.log.Warn("reading the table failed; retrying", "err", err, "wait", wait)
	})
}

// apply applies one record to the rows.
func (t *table) apply(ctx context.Context, r *pipeline.Record) error {
	if t.snapshots && bytes.HasPrefix(r.Key, []byte(fold.ReservedKeys)) {
		return nil // a record of the projector itself
	}
	if deadletter.RedrivenTo(r) != nil {
		t.redriven.Inc() // the table has read the record before
		return nil
	}
	row, err := t.row(ctx, r)
	if err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
		return err
	}
	before, key, bad := t.keys.of(ctx, r, row)
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
		t.rows.Delete(before)
	}
	if row != nil && key != nil {
		t.rows.Set(key, row)
	}
	if changed := t.changed.Swap(nil); changed != nil {
		close(*changed)
	}
	return nil
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
func (t *table) Get(key []byte) ([]byte, bool) { return t.rows.Get(key) }

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
	err := t.tail.Err()
	left, known := t.tail.Lag()
	select {
	case <-t.tail.Loaded():
		if err == nil {
			return nil
		}
		return fmt.Errorf("table %s: no longer followed: %w", t.name, err)
	default:
	}
	switch {
	case err != nil:
		return fmt.Errorf("table %s: loaded %d rows: %w", t.name, t.rows.Len(), err)
	case !known:
		return fmt.Errorf("table %s: not started", t.name)
	}
	return fmt.Errorf("table %s: loaded %d rows, %d records left", t.name, t.rows.Len(), left)
}
