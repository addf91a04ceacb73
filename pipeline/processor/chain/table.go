package chain

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/rows"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// Tables are the tables of a topology, in this process once for all sessions.
type Tables []*Table

// Table is a topic whose newest record under each key is a row. It is read to its
// end before any event is handled, and followed from then on. Null values delete
// rows, and so do the snapshots of deleted aggregates. A record that cannot be
// read leaves no row under its key: what was there is no longer true.
type Table struct {
	name      string
	topic     *topology.Topic
	rows      *rows.Map
	decoder   *event.Decoder
	schema    *codec.Schema // of the records
	snapshots bool          // a row is the state in them
	tail      *kafka.Tail
	log       *slog.Logger
	rejected  *prometheus.CounterVec

	waiting atomic.Pointer[chan struct{}] // for a change
}

// TablesOf returns the tables that stages of some pipelines look into.
func TablesOf(t *topology.Topology, pipelines ...*topology.Pipeline) (out []*topology.Table) {
	used := map[*stage.Table]bool{}
	for _, pl := range pipelines {
		for _, s := range pl.Stages {
			if joiner, ok := s.Built.(stage.Joiner); ok {
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

// OpenTables gives tables their rows: those of files are read here, those of topics
// by while.
func OpenTables(w *worker.Worker, used []*topology.Table, ready func(name string, f func(context.Context) error)) (Tables, error) {
	var out Tables
	rejected := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_table_rejected_total", Help: "Records of a table's topic that could not be read, by reason. There is no row under their keys.",
	}, []string{"table", "reason"})
	w.Metrics.MustRegister(rejected)
	for _, decl := range used {
		var held *rows.Map
		if decl.Topic == nil {
			var err error
			if held, err = FileRows(decl); err != nil {
				return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
			}
			decl.Rows = held
		} else {
			t := newTable(w, decl, rejected)
			held = t.rows
			decl.Rows = t
			out = append(out, t)
			ready("table "+t.name, func(context.Context) error { return t.ready() })
		}
		tableMetrics(w.Metrics, decl.Name, held)
	}
	return out, nil
}

func newTable(w *worker.Worker, decl *topology.Table, rejected *prometheus.CounterVec) *Table {
	t := &Table{
		name: decl.Name, topic: decl.Topic, rows: rows.New(), schema: decl.Schema, rejected: rejected,
		tail: kafka.NewTail(w.Kafka, decl.Topic.Name), log: w.Log.With("table", decl.Name),
	}
	if p := decl.Topic.Snapshots; p != nil {
		t.schema, t.snapshots = p.Fold.Snapshot(), true
	}
	t.decoder = event.NewDecoder(w.Registry, []*codec.Schema{t.schema}, nil)
	w.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_table_lag_records", Help: "Offsets of the table's topic that have yet to be read.", ConstLabels: prometheus.Labels{"table": t.name},
	}, func() float64 {
		lag, _ := t.tail.Lag()
		return float64(lag)
	}))
	return t
}

func tableMetrics(reg prometheus.Registerer, name string, held *rows.Map) {
	labels := prometheus.Labels{"table": name}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_table_rows", Help: "Rows of a table.", ConstLabels: labels}, func() float64 { return float64(held.Len()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_table_bytes", Help: "Memory that they take.", ConstLabels: labels}, func() float64 { return float64(held.Bytes()) }),
	)
}

// RunDuring keeps the tables up to date while f runs.
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

// Load waits until all tables have been read to their ends.
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
		select {
		case <-t.tail.Loaded():
			t.log.Info("table loaded", "rows", t.rows.Len(), "bytes", t.rows.Bytes())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// run reads the table until the context ends.
func (t *Table) run(ctx context.Context) error {
	const most = 5 * time.Second
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, most) {
		err := t.tail.Run(ctx, func(r *pipeline.Record) error { return t.apply(ctx, r) })
		if err == nil || pipeline.ClassOf(err) == pipeline.ClassFatal {
			return err
		}
		t.log.Warn("the table cannot be read for the moment; trying again", "err", err, "wait", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// apply takes in one record.
func (t *Table) apply(ctx context.Context, r *pipeline.Record) error {
	row, err := t.row(ctx, r)
	switch {
	case err != nil && pipeline.ClassOf(err) != pipeline.ClassReject:
		return err
	case err != nil:
		t.rejected.WithLabelValues(t.name, string(pipeline.ReasonOf(err))).Inc()
		t.log.Warn("a record of the table cannot be read; there is no row under its key", "partition", r.Partition, "offset", r.Offset, "err", err)
		t.rows.Delete(r.Key)
	case row == nil:
		t.rows.Delete(r.Key)
	default:
		t.rows.Set(r.Key, row)
	}
	if waiting := t.waiting.Swap(nil); waiting != nil {
		close(*waiting)
	}
	return nil
}

// row returns the row that a record is, nil if it deletes one, or is no row: a
// projector's own records stand among the snapshots.
func (t *Table) row(ctx context.Context, r *pipeline.Record) ([]byte, error) {
	if r.Value == nil || t.snapshots && bytes.HasPrefix(r.Key, []byte(fold.ReservedKeys)) {
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

// stateOf returns the state in a snapshot, nil if the aggregate is deleted.
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
func (t *Table) Get(key []byte) ([]byte, bool) { return t.rows.Get(key) }

// Changed implements [stage.ChangingRows].
func (t *Table) Changed() <-chan struct{} {
	for {
		if waiting := t.waiting.Load(); waiting != nil {
			return *waiting
		}
		fresh := make(chan struct{})
		if t.waiting.CompareAndSwap(nil, &fresh) {
			return fresh
		}
	}
}

// ready returns nil when the table has been loaded and is being followed.
func (t *Table) ready() error {
	err := t.tail.Err()
	left, known := t.tail.Lag()
	select {
	case <-t.tail.Loaded():
		if err == nil {
			return nil
		}
		return fmt.Errorf("table %s: it is not followed any more: %w", t.name, err)
	default:
	}
	switch {
	case err != nil:
		return fmt.Errorf("table %s: loaded %d rows: %w", t.name, t.rows.Len(), err)
	case !known:
		return fmt.Errorf("table %s: not begun", t.name)
	}
	return fmt.Errorf("table %s: loaded %d rows, %d records to go", t.name, t.rows.Len(), left)
}
