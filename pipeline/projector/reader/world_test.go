package reader

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/fold"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
)

// world is a topic of events with one partition, and the disk of a worker.
type world struct {
	t       testing.TB
	types   []*codec.Schema
	fold    *fold.Fold
	log     []pipeline.Record
	keys    []*codec.Schema // of Avro keys; the first has the schema id after those of types
	disk    *vfs.MemFS
	history bool

	rare    bool             // flush as rarely as a worker with a long backlog
	now     func() time.Time // time.Now if nil
	end     func() int64     // end of the topic as the worker knows it; the end of log if nil
	reading func()           // is called when the log is read again
}

func newWorld(t testing.TB) *world {
	return &world{t: t, types: projectiontest.UserTypes(t), fold: projectiontest.UserFold(t, "user", "active"), disk: vfs.NewCrashableMem(), history: true}
}

// newCounts returns a world of counted events.
func newCounts(t testing.TB, change func(*fold.Spec)) *world {
	t.Helper()
	w := newWorld(t)
	w.types, w.fold = projectiontest.Counts(t, change)
	return w
}

func (w *world) append(id string, value []byte) {
	n := int64(len(w.log))
	w.log = append(w.log, pipeline.Record{Topic: projectiontest.EventsTopic, Offset: n, Key: []byte(id), Value: value, Time: time.UnixMilli(n)})
}

// add adds an event of a user.
func (w *world) add(typ int, id string) {
	w.append(id, projectiontest.UserEvent(w.t, w.types, typ, len(w.log), id))
}

// counted adds a counted event.
func (w *world) counted(id string, number int, at time.Duration, text string) {
	w.append(id, projectiontest.Counted(id, number, at, text))
}

// poison adds a record that cannot be decoded.
func (w *world) poison(id string) { w.append(id, projectiontest.Poison(0)) }

// foldWorker is a worker that folds the world's partition, step by step.
type foldWorker struct {
	*world
	store   *store.Store
	set     *projection.Set
	handler *projection.Handler
	at      int64 // next offset to read
	out     harness.Emitted
}

// start opens the store and assigns the partition.
func (w *world) start() *foldWorker {
	w.t.Helper()
	fw := &foldWorker{world: w}
	var err error
	if fw.store, err = store.Open("data", store.Options{FS: w.disk}); err != nil {
		w.t.Fatal(err)
	}
	events := kafka.TopicInfo{Name: projectiontest.EventsTopic, ID: "t-1", Partitions: 1}
	cfg := projection.Config{
		Store: fw.store, Registry: eventtest.SchemaList(append(slices.Clone(w.types), w.keys...)), NoHistory: !w.history,
		Memory: 8 << 10, // a handful of aggregates: some are in use, some packed, some only in the store
		Projections: []projection.Spec{{
			Fold: w.fold, Events: events, Types: w.types, Identity: projection.Identity("c", events, kafka.TopicInfo{ID: "s-1"}, kafka.TopicInfo{}, w.fold),
			Snapshots: projectiontest.SnapshotsTopic, SnapshotID: 100, Late: projectiontest.LateTopic,
		}},
		Restore: func(context.Context, string, int32, func(*pipeline.Record) error) (int64, error) { return 0, nil },
		Tail: func(_ context.Context, _ string, _ int32, from int64, f func(*pipeline.Record) error) error {
			if w.reading != nil {
				w.reading()
			}
			for i := from; i < int64(len(w.log)); i++ {
				if err := f(&w.log[i]); err != nil {
					return err
				}
			}
			return nil
		},
		Progress: func(topic string, partition int32) kafka.PartitionProgress {
			at := kafka.PartitionProgress{Topic: topic, Partition: partition}
			if w.end != nil {
				at.End = w.end() // while log grows
			} else {
				at.End = int64(len(w.log))
			}
			return at
		},
		Now: func() time.Time {
			if w.now != nil {
				return w.now()
			}
			return time.Now()
		},
	}
	if w.rare {
		cfg.Flush = projection.FlushPolicy{Little: -1, Much: 25, Bytes: 1 << 20, After: time.Hour}
	}
	fw.set = projection.New(cfg)
	fw.handler = fw.set.NewHandler()
	from, err := fw.handler.Assign(w.t.Context(), []kafka.Partition{{Topic: projectiontest.EventsTopic, Committed: -1, End: int64(len(w.log))}})
	if err != nil {
		w.t.Fatal(err)
	}
	fw.at = from[0]
	return fw
}

// batch reads up to n records and flushes; commit or abort ends it.
func (fw *foldWorker) batch(n int) {
	fw.t.Helper()
	for ; n > 0 && fw.at < int64(len(fw.log)); n-- {
		if err := fw.handler.Handle(fw.t.Context(), &fw.log[fw.at], &fw.out); err != nil {
			fw.t.Fatal(err)
		}
		fw.at++
	}
	if err := fw.handler.Flush(fw.t.Context(), &fw.out); err != nil {
		fw.t.Fatal(err)
	}
}

func (fw *foldWorker) commit() { fw.handler.EndBatch(true) }

// abort rolls the batch back. from is the next offset to read.
func (fw *foldWorker) abort(from int64) {
	fw.handler.EndBatch(false)
	fw.at = from
}

// run reads to the end of the log.
func (fw *foldWorker) run() {
	fw.t.Helper()
	for fw.at < int64(len(fw.log)) {
		fw.batch(7)
		fw.commit()
	}
}

// revoke takes the partition away.
func (fw *foldWorker) revoke() {
	fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
}

// stop takes the partition away and closes the store.
func (fw *foldWorker) stop() {
	fw.t.Helper()
	fw.revoke()
	fw.close()
}

func (fw *foldWorker) close() {
	fw.t.Helper()
	if err := fw.store.Close(); err != nil {
		fw.t.Fatal(err)
	}
}

func (fw *foldWorker) projection() *projection.Projection { return fw.set.Projection(fw.fold.Name()) }

func (fw *foldWorker) reader() *Reader { return New(fw.set, fw.projection(), Config{}) }

func (fw *foldWorker) api() http.Handler {
	return query.Handler(slog.New(slog.DiscardHandler), query.DefaultFeeds, fw.reader())
}

// position returns the position of the store.
func (fw *foldWorker) position() int64 {
	fw.t.Helper()
	next, _, err := fw.set.Partitions(fw.projection())[0].Position()
	if err != nil {
		fw.t.Fatal(err)
	}
	return next
}

// addConcurrently returns a function that adds events while readers may ask for the end
// of the topic.
func (fw *foldWorker) addConcurrently() func(typ int, id string) {
	var end atomic.Int64
	end.Store(int64(len(fw.log)))
	fw.end = end.Load
	return func(typ int, id string) {
		fw.add(typ, id)
		end.Store(int64(len(fw.log)))
	}
}

// wantTexts compares the states of counted events, each with its status before its
// texts.
func (fw *foldWorker) wantTexts(want map[string]string) {
	fw.t.Helper()
	got := map[string]string{}
	if _, err := fw.reader().Scan(fw.t.Context(), "", func(a query.Aggregate) bool {
		text, err := codec.AppendJSON(nil, fw.fold.State().Root(), a.State)
		if err != nil {
			fw.t.Fatal(err)
		}
		all := strings.TrimSuffix(strings.TrimPrefix(string(text), `{"all":[`), `]}`)
		got[a.ID] = strings.TrimSpace(a.Status + " " + strings.ReplaceAll(strings.ReplaceAll(all, `"`, ""), ",", " "))
		return true
	}); err != nil {
		fw.t.Fatal(err)
	}
	for id := range want {
		if got[id] != want[id] {
			fw.t.Errorf("%s is %q, want %q", id, got[id], want[id])
		}
		delete(got, id)
	}
	if len(got) > 0 {
		fw.t.Errorf("unexpected aggregates: %v", got)
	}
}
