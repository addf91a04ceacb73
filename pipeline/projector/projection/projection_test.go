package projection

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/fold"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// world is the state of Kafka for one partition of a projection, and the disk.
type world struct {
	t                  testing.TB
	types              []*codec.Schema
	log                []pipeline.Record
	logStart           int64                               // everything below is deleted
	internal           bool                                // internal records are on a topic of their own
	snapshots          map[string]pipeline.Record          // compacted, committed, of both topics
	writes             []string                            // keys of committed snapshots, in order
	committedSnapshots []pipeline.Record                   // committed records of the snapshots topic, by offset
	committedInternal  []pipeline.Record                   // committed records of the topic of internal records, by offset
	snapshotsID        string                              // Kafka's id of the snapshots topic
	visible            func(topic string, end int64) int64 // up to where Settled reads, unless it is nil
	settling           func()                              // called before Settled reads, if it is not nil
	committed          int64                               // the group's offset
	topicID            string
	disk               *vfs.MemFS
	wrap               func(vfs.FS) vfs.FS // of the store's file system
	fold               *fold.Fold
	history            bool
	letters            []pipeline.Record // committed dead letters
	publish            topology.Publish
	clock              *fakeClock // the real one if nil
	seldom             bool       // flush as rarely as a worker with a long backlog
	configure          func(*Config)
	stored             store.Options          // but for its file system
	wrote              func(*pipeline.Record) // gets each committed record of the snapshots topic; nil for none
	broken             int                    // how many records of the log a filler can read; no limit if negative
}

func newWorld(t testing.TB) *world {
	return &world{t: t, types: projectiontest.UserTypes(t), snapshots: map[string]pipeline.Record{}, committed: -1, topicID: "t-1", internal: true, snapshotsID: "s-1",
		disk: vfs.NewCrashableMem(), fold: projectiontest.UserFold(t, "user", "active"), history: true, broken: -1}
}

func (w *world) add(typ int, id string) {
	n := int64(len(w.log))
	w.log = append(w.log, pipeline.Record{Topic: projectiontest.EventsTopic, Offset: n, Key: []byte(id), Value: projectiontest.UserEvent(w.t, w.types, typ, int(n), id), Time: time.UnixMilli(n)})
}

// repeat adds a copy of an event.
func (w *world) repeat(n int) {
	r := w.log[n]
	r.Offset = int64(len(w.log))
	w.log = append(w.log, r)
}

// foldWorker is a projector that works in the world, step by step.
type foldWorker struct {
	*world
	store   *store.Store
	ps      *Set
	handler *Handler
	at      int64 // next offset to be read
	before  int64 // at after the last commit
	out     harness.Emitted
	logged  bytes.Buffer
}

// start opens the store and assigns the partition.
func (w *world) start() *foldWorker {
	w.t.Helper()
	fw, err := w.tryStart()
	if err != nil {
		w.t.Fatal(err)
	}
	return fw
}

// tryStart is start, for a partition that may not be opened. The store is open even after
// an error.
func (w *world) tryStart() (*foldWorker, error) {
	w.t.Helper()
	fw := w.open(w.disk)
	fw.handler = fw.ps.NewHandler()
	from, err := fw.handler.Assign(w.t.Context(), []kafka.Partition{{Topic: projectiontest.EventsTopic, Committed: w.committed, Start: w.logStart, End: int64(len(w.log))}})
	if err != nil {
		return fw, err
	}
	if fw.at = from[0]; fw.at < w.logStart {
		w.t.Fatalf("it reads from offset %d, and the log starts at %d", fw.at, w.logStart)
	}
	fw.before = fw.at
	return fw, nil
}

// open opens the store on a disk, for a worker without partitions.
func (w *world) open(disk *vfs.MemFS) *foldWorker {
	w.t.Helper()
	fw := &foldWorker{world: w}
	log := slog.New(slog.NewTextHandler(&fw.logged, nil))
	var err error
	var fs vfs.FS = disk
	if w.wrap != nil {
		fs = w.wrap(disk)
	}
	options := w.stored
	options.FS = fs
	if fw.store, err = store.Open("data", options); err != nil {
		w.t.Fatal(err)
	}
	events := kafka.TopicInfo{Name: projectiontest.EventsTopic, ID: w.topicID, Partitions: 1}
	cfg := Config{
		Store: fw.store, Registry: eventtest.SchemaList(w.types), Log: log, NoHistory: !w.history, Metrics: measure.NewMetrics(prometheus.NewRegistry()),
		Memory: 8 << 10, // a handful of aggregates: some are in use, some packed, some only in the store
		Progress: func(topic string, partition int32) kafka.PartitionProgress {
			return kafka.PartitionProgress{Topic: topic, Partition: partition, End: int64(len(w.log))}
		},
		Projections: []Spec{{
			Fold: w.fold, Events: events, Types: w.types, Identity: Identity("c", events, kafka.TopicInfo{ID: w.snapshotsID}, kafka.TopicInfo{}, w.fold),
			Snapshots: projectiontest.SnapshotsTopic, SnapshotID: 100, Late: projectiontest.LateTopic, Publish: w.publish,
		}},
	}
	cfg.Restore = func(_ context.Context, topic string, _ int32, f func(*pipeline.Record) error) (int64, error) {
		return w.read(topic, 0, f)
	}
	if w.internal {
		cfg.Projections[0].Internal, cfg.Projections[0].SnapshotsTopicID = internalTopic, w.snapshotsID
		cfg.Settled = func(_ context.Context, topic string, _ int32, from int64, f func(*pipeline.Record) error) (int64, error) {
			if w.settling != nil {
				w.settling()
			}
			end, all := int64(len(*w.records(topic))), *w.records(topic)
			if w.visible != nil {
				end = w.visible(topic, end)
			}
			*w.records(topic) = all[:end]
			defer func() { *w.records(topic) = all }()
			return w.read(topic, from, f)
		}
	}
	cfg.Recent = func(_ context.Context, topic string, _ []int32, n int64, f func(*pipeline.Record) error) error {
		_, err := w.read(topic, 0, func(in *pipeline.Record) error {
			if in.Offset < int64(len(*w.records(topic)))-n {
				return nil
			}
			return f(in)
		})
		return err
	}
	cfg.Tail = func(_ context.Context, _ string, _ int32, from int64, f func(*pipeline.Record) error) error {
		for i := max(from, w.logStart); i < int64(len(w.log)); i++ {
			if w.broken == 0 {
				return errBroken
			}
			w.broken--
			if err := f(&w.log[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if w.clock != nil {
		cfg.Now, cfg.After = w.clock.now, w.clock.after
	}
	if w.seldom {
		cfg.Flush = FlushPolicy{Little: -1, Much: 25, Bytes: 1 << 20, After: time.Hour}
	}
	if w.configure != nil {
		w.configure(&cfg)
	}
	fw.ps = New(cfg)
	return fw
}

const internalTopic = projectiontest.SnapshotsTopic + ".internal"

// records returns the committed records of a topic that owners publish on.
func (w *world) records(topic string) *[]pipeline.Record {
	if topic == internalTopic {
		return &w.committedInternal
	}
	return &w.committedSnapshots
}

// publishedTo returns the topic of a record with a key.
func (w *world) publishedTo(key string) string {
	if w.internal && strings.HasPrefix(key, fold.ReservedKeys) {
		return internalTopic
	}
	return projectiontest.SnapshotsTopic
}

// write commits a record of an owner. A broker compacts at once.
func (w *world) write(r *pipeline.Record) {
	all := w.records(r.Topic)
	r.Offset = int64(len(*all))
	*all = append(*all, *r)
	if w.snapshots[string(r.Key)] = *r; r.Value == nil {
		delete(w.snapshots, string(r.Key))
	}
}

// loseTopic deletes a topic that owners publish on. It is created again. The store that
// was made with it is not used any more.
func (w *world) loseTopic(topic string) {
	for key := range w.snapshots {
		if w.publishedTo(key) == topic {
			delete(w.snapshots, key)
		}
	}
	w.disk, *w.records(topic) = vfs.NewCrashableMem(), nil
	if topic == projectiontest.SnapshotsTopic {
		w.snapshotsID += "+"
	}
}

// read reads a topic that owners publish on. A broker compacts what is older than the read.
func (w *world) read(topic string, from int64, f func(*pipeline.Record) error) (end int64, err error) {
	all := *w.records(topic)
	for _, r := range all[from:] {
		if from == 0 {
			if last, ok := w.snapshots[string(r.Key)]; !ok || last.Offset != r.Offset {
				continue
			}
		}
		if err := f(&r); err != nil {
			return 0, err
		}
	}
	return int64(len(all)), nil
}

var errBroken = errors.New("the connection is broken")

// paused reports whether the session may not read.
func (fw *foldWorker) paused() bool { return fw.handler.Paused(projectiontest.EventsTopic, 0) }

// fill fills the history until nothing is left.
func (fw *foldWorker) fill() {
	fw.t.Helper()
	for fw.fillSome(-1) {
	}
}

// fillSome reads the ids of the past, or n records for the history. It returns false if
// nothing is left to do.
func (fw *foldWorker) fillSome(n int) bool {
	fw.t.Helper()
	work := fw.ps.claimFill()
	if work == nil {
		return false
	}
	if len(fw.ps.assignedUnits()[0].unreadIDs()) == 0 {
		fw.broken = n
	}
	err := work(fw.t.Context())
	fw.broken = -1
	if err != nil && !errors.Is(err, errBroken) {
		fw.t.Fatal(err)
	}
	return true
}

// batch reads up to n records and flushes. commit and EndBatch, or abort, must follow. A
// batch with an event that waits for the history is rolled back, and an empty one follows.
func (fw *foldWorker) batch(n int) {
	fw.t.Helper()
	for ; n > 0 && fw.at < int64(len(fw.log)) && !fw.paused(); n-- {
		err := fw.handler.Handle(fw.t.Context(), &fw.log[fw.at], &fw.out)
		if errors.Is(err, kafka.ErrPaused) {
			fw.abort(fw.before)
			break
		}
		if err != nil {
			fw.t.Fatal(err)
		}
		fw.at++
	}
	if err := fw.handler.Flush(fw.t.Context(), &fw.out); err != nil {
		fw.t.Fatal(err)
	}
}

// commit makes the batch's output and offset visible.
func (fw *foldWorker) commit() {
	for _, r := range fw.out {
		if r.Topic == projectiontest.LateTopic {
			fw.letters = append(fw.letters, r)
			continue
		}
		if want := fw.publishedTo(string(r.Key)); r.Topic != want {
			fw.t.Errorf("%q is written to %s, want %s", r.Key, r.Topic, want)
		}
		fw.write(&r)
		if fw.wrote != nil {
			fw.wrote(&r)
		}
		if r.Value != nil {
			fw.writes = append(fw.writes, string(r.Key))
		}
	}
	fw.committed = max(fw.committed, fw.at) // as the loop does
	fw.out, fw.before = nil, fw.at
}

// abort rolls the batch back. from is the next offset that the client reads.
func (fw *foldWorker) abort(from int64) {
	fw.out = nil
	fw.handler.EndBatch(false)
	fw.at, fw.before = from, from
}

// stop gives the partition up and closes the store.
func (fw *foldWorker) stop() {
	fw.t.Helper()
	fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
	fw.close()
}

func (fw *foldWorker) close() {
	fw.t.Helper()
	if err := fw.store.Close(); err != nil {
		fw.t.Fatal(err)
	}
}

// run reads to the end of the log, in small batches, and fills the history.
func (fw *foldWorker) run() {
	fw.t.Helper()
	for fw.at < int64(len(fw.log)) {
		if fw.paused() {
			fw.fill()
		}
		fw.batch(7)
		fw.commit()
		fw.handler.EndBatch(true)
	}
	fw.fill()
}

// publishNow publishes everything that a policy holds back.
func (fw *foldWorker) publishNow() {
	fw.t.Helper()
	for _, u := range fw.ps.units {
		for _, l := range u.lanes {
			l.publication.policy = topology.Publish{}
		}
	}
	fw.add(projectiontest.OrderCreated, "u-0") // a type that the fold does nothing on
	fw.run()
}

// kill ends the process. Its last writes may not have reached the operating system, and
// after a power failure, not all of those that did are on the disk.
func (fw *foldWorker) kill(rng *rand.Rand, kept int) {
	fw.t.Helper()
	left := fw.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: kept, RNG: rng})
	fw.close()
	fw.world.disk = left
}

// entries returns the entries of a family of the store.
func (fw *foldWorker) entries(f store.Family) map[string]string {
	fw.t.Helper()
	out := map[string]string{}
	for _, u := range fw.ps.units {
		for _, l := range u.lanes {
			v := l.part.View()
			if err := v.Scan(f, nil, nil, false, func(key, value []byte) bool {
				out[string(key)] = string(value)
				return true
			}); err != nil {
				fw.t.Fatal(err)
			}
			if err := v.Close(); err != nil {
				fw.t.Fatal(err)
			}
		}
	}
	return out
}

// states returns the aggregates in the store, as snapshots.
func (fw *foldWorker) states() map[string]string {
	fw.t.Helper()
	out := map[string]string{}
	for id, value := range fw.entries(states.FamilyState) {
		a := fold.Aggregate{Source: fold.Source{Topic: projectiontest.EventsTopic, TopicID: fw.topicID}}
		if err := fold.ReadAggregate([]byte(value), &a); err != nil {
			fw.t.Error(err)
		}
		out[id] = string(fw.fold.AppendSnapshot(nil, []byte(id), &a))
	}
	return out
}

// index returns the entries of the history.
func (fw *foldWorker) index() map[string]string {
	fw.t.Helper()
	out := map[string]string{}
	families := []store.Family{17} // conflicts
	for f := states.FamilyState + 1; f <= states.FamilyShadow; f++ {
		families = append(families, f)
	}
	for _, f := range families {
		for key, value := range fw.entries(f) {
			out[fmt.Sprintf("%d %q", f, key)] = value
		}
	}
	return out
}

// published returns the committed snapshots.
func (w *world) published() map[string]string {
	out := map[string]string{}
	for k, r := range w.snapshots {
		if !strings.HasPrefix(k, fold.ReservedKeys) {
			out[k] = string(r.Value[5:])
		}
	}
	return out
}

// folded folds the log from its start, without interruptions. Everything must end in the
// same states.
func (w *world) folded() map[string]string {
	w.t.Helper()
	f := w.fold.NewFolder()
	all := map[string]*fold.Aggregate{}
	applied := map[string]bool{}
	for i, r := range w.log {
		typ := int(r.Value[4])
		if !w.fold.Folds(typ) {
			continue
		}
		id, err := f.Read(typ, r.Value[5:], fold.Origin{})
		if err != nil {
			continue
		}
		a := all[string(id)]
		if a == nil {
			a = &fold.Aggregate{Source: fold.Source{Topic: projectiontest.EventsTopic, TopicID: w.topicID}}
			all[string(id)] = a
		}
		event := string(f.EventID())
		if w.history && applied[event] || string(a.EventID) == event {
			continue // a duplicate
		}
		if outcome, err := f.Apply(a); err == nil && outcome == fold.Applied {
			a.Offset, applied[event] = int64(i), true
		}
	}
	out := map[string]string{}
	for id, a := range all {
		if a.Version == 0 {
			continue
		}
		out[id] = string(w.fold.AppendSnapshot(nil, []byte(id), a))
	}
	return out
}

func same(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for id := range want {
		if got[id] != want[id] {
			t.Errorf("%s: %s is %q, want %q", what, id, got[id], want[id])
		}
	}
	for id := range got {
		if _, ok := want[id]; !ok {
			t.Errorf("%s: unexpected %s", what, id)
		}
	}
}

func (w *world) some(n int) {
	for i := range n {
		w.add([]int{projectiontest.UserCreated, projectiontest.UserUpdated, projectiontest.OrderCreated, projectiontest.UserUpdated, projectiontest.UserUpdated, projectiontest.UserDeleted}[i%6], fmt.Sprint("u-", i%5))
	}
}

func TestAWorkerFoldsAndPublishes(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}

func TestARestartContinuesFromTheStore(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.run()
	fw.stop()
	writes := len(w.writes)
	w.some(10)
	fw = w.start()
	if fw.at != 40 {
		t.Errorf("reads from %d, want 40", fw.at)
	}
	if !strings.Contains(fw.logged.String(), "restored from the store") {
		t.Errorf("logged %s", fw.logged.String())
	}
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	if n := len(w.writes) - writes; n > 10+2 {
		t.Errorf("%d snapshots for 10 events", n)
	}
	fw.stop()
}

func TestWithoutTheStoreAWorkerRestoresFromSnapshotsAndTheTail(t *testing.T) {
	for _, history := range []bool{false, true} {
		w := newWorld(t)
		w.history = history
		w.some(39)
		w.add(projectiontest.UserCreated, "u-last") // a checkpoint goes with snapshots only
		fw := w.start()
		fw.run()
		fw.stop()
		w.disk = vfs.NewCrashableMem()
		want := w.folded()
		w.some(10)
		fw = w.start()
		if !strings.Contains(fw.logged.String(), "restored from snapshots") {
			t.Errorf("logged %s", fw.logged.String())
		}
		// The states are restored immediately; the history is filled beside the session.
		same(t, "store", fw.states(), want)
		if fw.at != 40 {
			t.Errorf("history %v: reads from %d, want 40", history, fw.at)
		}
		fw.run()
		same(t, "store", fw.states(), w.folded())
		same(t, "snapshots", w.published(), w.folded())
		fw.stop()
	}
}

// Only the log is left. Everything is folded and published again, although the group has
// committed the offset of the log's end.
func TestWithoutStoreAndSnapshotsAWorkerFoldsTheLog(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.run()
	fw.stop()
	w.disk, w.snapshots = vfs.NewCrashableMem(), map[string]pipeline.Record{}
	fw = w.start()
	if fw.at != 0 {
		t.Errorf("reads from %d, want 0", fw.at)
	}
	// A crash before the first transaction after that: the group's offset is the old one
	// and must be ignored.
	fw.batch(40)
	fw.close()
	fw = w.start()
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}

func TestAnotherFoldStartsOver(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.run()
	fw.stop()
	w.fold = projectiontest.UserFold(t, "user", "new")
	fw = w.start()
	if fw.at != 0 {
		t.Errorf("reads from %d, want 0", fw.at)
	}
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}

func TestARecreatedTopicStartsOver(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.run()
	fw.stop()
	w.log, w.topicID, w.committed = nil, "t-2", -1
	w.some(30)
	fw = w.start()
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}

// The store has a batch whose transaction did not commit. Its events must be published
// after the restart, and folded only once. While only some of them are published, the
// checkpoint must not cover all.
func TestACrashBetweenStoreAndCommitLosesNoSnapshot(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.batch(10)
	fw.commit()
	fw.handler.EndBatch(true)
	fw.batch(30) // in the store, and nowhere else
	fw.close()

	fw = w.start()
	if fw.at != 10 {
		t.Fatalf("reads from %d, want 10: the group's offset", fw.at)
	}
	fw.batch(3)
	fw.commit()
	fw.handler.EndBatch(true)
	var c internalrecord.Checkpoint
	if err := json.Unmarshal(w.snapshots[internalrecord.CheckpointKey].Value, &c); err != nil {
		t.Fatal(err)
	}
	// The states are those at offset 40: none of them may be published for offset 13.
	if c.Next != 10 {
		t.Errorf("the checkpoint is at %d, want 10, up to which the snapshots reach", c.Next)
	}
	// Now the store is lost, too.
	fw.close()
	w.disk = vfs.NewCrashableMem()
	fw = w.start()
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}

func TestAnAbortedBatchIsPublishedWithTheNext(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.batch(20)
	fw.abort(0)
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}

// A partition moves between two sessions of a process. The session that lost it must not
// overwrite what the new session has stored.
func TestASessionThatLostAPartitionWritesNothing(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	if err := fw.handler.Handle(t.Context(), &w.log[0], &fw.out); err != nil {
		t.Fatal(err)
	}
	fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
	if err := fw.handler.Flush(t.Context(), &fw.out); err == nil {
		t.Error("a batch with a revoked partition was flushed")
	}
	if err := fw.handler.Handle(t.Context(), &w.log[1], &fw.out); err == nil {
		t.Error("an event of a revoked partition was folded")
	}
	if len(fw.out) > 0 {
		t.Errorf("%d records were emitted", len(fw.out))
	}
	fw.handler.EndBatch(false)
	fw.close()
	fw = w.start()
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}

func TestABadEventIsCountedAndTheNextIsFolded(t *testing.T) {
	w := newWorld(t)
	w.some(5)
	w.log[2].Value = []byte("no frame")
	w.log[3].Value = w.log[3].Value[:20]
	fw := w.start()
	fw.batch(5)
	fw.commit()
	fw.handler.EndBatch(true)
	if got := strings.Count(fw.logged.String(), "cannot be folded"); got != 2 {
		t.Errorf("%d events were logged as invalid, want 2: %s", got, fw.logged.String())
	}
	if w.committed != 5 || len(fw.states()) != 3 {
		t.Errorf("committed %d, %d aggregates", w.committed, len(fw.states()))
	}
	fw.stop()
}

// shake runs a worker through random crashes, aborts, moves and losses. add adds events.
// It returns the last worker.
func (w *world) shake(rt *rapid.T, add func(n int)) *foldWorker {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
	fw := w.start()
	for range rapid.IntRange(0, 12).Draw(rt, "steps") {
		start := fw.at
		switch rapid.SampledFrom([]string{"batch", "batch", "batch", "abort", "kill", "kill after flush", "power", "stop", "lose store", "lose snapshots", "lose one topic", "move", "more", "fill", "fill"}).Draw(rt, "step") {
		case "batch":
			fw.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
			fw.commit()
			fw.handler.EndBatch(true)
		case "abort":
			fw.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
			fw.abort(start)
		case "kill":
			fw.close()
			fw = w.start()
		case "kill after flush":
			fw.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
			if rapid.Bool().Draw(rt, "committed, but the worker does not know") {
				fw.commit()
			}
			if rapid.Bool().Draw(rt, "all of it in the store") {
				fw.close()
			} else {
				fw.kill(rng, 100)
			}
			fw = w.start()
		case "power":
			fw.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
			fw.commit()
			fw.kill(rng, 50)
			fw = w.start()
		case "stop":
			fw.stop()
			fw = w.start()
		case "lose store":
			fw.stop()
			w.disk = vfs.NewCrashableMem()
			fw = w.start()
		case "lose snapshots":
			fw.stop()
			w.disk, w.snapshots = vfs.NewCrashableMem(), map[string]pipeline.Record{}
			fw = w.start()
		case "lose one topic":
			fw.stop()
			w.loseTopic(rapid.SampledFrom([]string{projectiontest.SnapshotsTopic, internalTopic}).Draw(rt, "topic"))
			fw = w.start()
		case "move": // to another worker, and back to an old store
			fw.stop()
			mine := w.disk
			w.disk = vfs.NewCrashableMem()
			other := w.start()
			other.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
			other.commit()
			other.handler.EndBatch(true)
			other.stop()
			w.disk = mine
			fw = w.start()
		case "fill":
			fw.fillSome(rapid.IntRange(1, 40).Draw(rt, "read"))
		case "more":
			add(rapid.IntRange(1, 10).Draw(rt, "more"))
		}
	}
	return fw
}

// Recovery depends on this: whatever happens to a worker, states and snapshots end with
// the same bytes as if the log were folded without interruptions.
func TestStatesAndSnapshotsAreTheSameAfterAnyFailure(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.history, w.seldom, w.internal = rapid.Bool().Draw(rt, "history"), rapid.Bool().Draw(rt, "seldom"), rapid.Bool().Draw(rt, "internal")
		w.publish = rapid.SampledFrom([]topology.Publish{{}, {}, {Events: 15}, {Every: time.Nanosecond}, {Recovery: time.Nanosecond}}).Draw(rt, "publish")
		add := func(n int) {
			for range n {
				if len(w.log) > 0 && rapid.IntRange(0, 9).Draw(rt, "again") == 0 {
					w.repeat(rapid.IntRange(0, len(w.log)-1).Draw(rt, "which"))
					continue
				}
				w.add(rapid.SampledFrom([]int{projectiontest.UserCreated, projectiontest.UserCreated, projectiontest.UserUpdated, projectiontest.UserUpdated, projectiontest.UserUpdated, projectiontest.OrderCreated, projectiontest.UserDeleted}).Draw(rt, "type"),
					fmt.Sprint("u-", rapid.IntRange(0, 6).Draw(rt, "id")))
			}
		}
		add(rapid.IntRange(1, 30).Draw(rt, "events"))
		fw := w.shake(rt, add)
		fw.run()
		want := w.folded()
		same(t, "store", fw.states(), want)
		fw.publishNow()
		same(t, "snapshots", w.published(), want)
		got := fw.index()
		fw.stop()
		w.disk, w.snapshots = vfs.NewCrashableMem(), map[string]pipeline.Record{}
		straight := w.start()
		straight.run()
		same(t, "index", got, straight.index())
		straight.stop()
		if t.Failed() {
			rt.FailNow()
		}
	})
}

func TestWithoutHistoryNoEventIsKept(t *testing.T) {
	w := newWorld(t)
	w.history = false
	w.some(40)
	fw := w.start()
	fw.run()
	if entries := fw.index(); len(entries) > 0 {
		t.Errorf("%d entries of a history: %v", len(entries), entries)
	}
	fw.stop()
}
