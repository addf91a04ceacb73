package projection

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/rows"
	"millrace/pipeline/store"
)

// discarded is an Emitter that is as fast as can be.
type discarded struct{ records, bytes int }

func (d *discarded) Emit(r *pipeline.Record) {
	d.records++
	d.bytes += len(r.Key) + len(r.Value)
}

// BenchmarkProject measures the projector without Kafka: from framed records of one
// partition to states in the store and encoded snapshots. Each event updates one of a
// number of users, chosen uniformly. A batch has as many records as a worker with a
// backlog reads between two commits.
func BenchmarkProject(b *testing.B) {
	for _, history := range []bool{false, true} {
		for _, users := range []int{10_000, 1_000_000} {
			b.Run(fmt.Sprintf("history=%v/users=%d", history, users), func(b *testing.B) { benchmarkProject(b, history, users) })
		}
	}
}

// benched is a projector without Kafka: one partition on disk.
type benched struct {
	store   *store.Store
	ps      *Set
	types   []*codec.Schema
	fold    *fold.Fold
	handler *Handler
}

// noSnapshots is a snapshots topic with nothing on it.
func noSnapshots(context.Context, string, int32, func(*pipeline.Record) error) (int64, error) {
	return 0, nil
}

// openBenched opens the store in a directory, and the partition from it.
func openBenched(b *testing.B, dir string, history bool, restore RestoreFunc, tail ...TailFunc) *benched {
	b.Helper()
	tail = append(tail, nil)
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	w := &benched{store: s, types: projectiontest.UserTypes(b), fold: projectiontest.UserFold(b, "user", "active")}
	w.ps = New(Config{
		Store: s, Registry: eventtest.SchemaList(w.types), Restore: restore, Tail: tail[0], NoHistory: !history, Progress: func(topic string, partition int32) kafka.PartitionProgress {
			return kafka.PartitionProgress{Topic: topic, Partition: partition, End: 1 << 40}
		},
		Projections: []Spec{{
			Fold: w.fold, Events: kafka.TopicInfo{Name: projectiontest.EventsTopic, ID: "t-1", Partitions: 1}, Types: w.types,
			Identity: "bench", Snapshots: projectiontest.SnapshotsTopic, SnapshotID: 100,
		}},
	})
	w.handler = w.ps.NewHandler()
	if _, err := w.handler.Assign(b.Context(), []kafka.Partition{{Topic: projectiontest.EventsTopic, Committed: -1, End: 1 << 40}}); err != nil {
		b.Fatal(err)
	}
	return w
}

func (w *benched) close(b *testing.B) {
	if err := w.store.Close(); err != nil {
		b.Error(err)
	}
}

// foldOne folds the event at an offset, with an id of its own, and ends a batch after
// every 50,000 events.
func (w *benched) foldOne(b *testing.B, out *discarded, n int, value []byte) {
	in := benchedRecord(n, value)
	if err := w.handler.Handle(b.Context(), &in, out); err != nil {
		b.Fatal(err)
	}
	if (n+1)%benchBatch == 0 {
		w.flush(b, out)
	}
}

// benchedRecord is the event at an offset, with an id of its own.
func benchedRecord(n int, value []byte) pipeline.Record {
	// The id begins at the seventh byte of the value.
	var id [8]byte
	binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15) // no order, as in a random UUID
	hex.Encode(value[6:14], id[:4])
	hex.Encode(value[15:19], id[4:6])
	hex.Encode(value[20:24], id[6:])
	return pipeline.Record{Topic: projectiontest.EventsTopic, Offset: int64(n), Value: value, Time: time.UnixMilli(1767225600_000)}
}

// userUpdate is an event that updates a user.
type userUpdate struct {
	value  []byte
	digits []byte // part of value: the digits of the user's id
}

func newUserUpdate(b *testing.B, types []*codec.Schema) userUpdate {
	const user = "u-000000000000"
	value := projectiontest.UserEvent(b, types, projectiontest.UserUpdated, 0, user)
	at := bytes.Index(value, []byte(user))
	return userUpdate{value, value[at+len("u-") : at+len(user)]}
}

// of returns the event of a user. It is valid until the next call.
func (u userUpdate) of(user int) []byte {
	for i := len(u.digits) - 1; i >= 0; i-- {
		u.digits[i] = byte('0' + user%10)
		user /= 10
	}
	return u.value
}

// benchBatch is the number of events that a worker with a backlog reads between two
// commits.
const benchBatch = 50_000

func (w *benched) flush(b *testing.B, out *discarded) {
	if err := w.handler.Flush(b.Context(), out); err != nil {
		b.Fatal(err)
	}
	w.handler.EndBatch(true)
}

func benchmarkProject(b *testing.B, history bool, users int) {
	w := openBenched(b, b.TempDir(), history, noSnapshots)
	defer w.close(b)
	rng := rand.New(rand.NewPCG(1, 2))
	e := newUserUpdate(b, w.types)
	var out discarded
	began := cpuTime(b)
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		w.foldOne(b, &out, n, e.of(rng.IntN(users)))
		n++
	}
	b.ReportMetric(float64(n)/(cpuTime(b)-began).Seconds(), "events/cpu-s")
	b.ReportMetric(float64(out.records)/float64(n), "snapshots/event")
}

// benchSize is the size of the data in a benchmark: MILLRACE_BENCH_SIZE, else a small one.
func benchSize(b *testing.B) int {
	text := os.Getenv("MILLRACE_BENCH_SIZE")
	if text == "" {
		return 200_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkRestart measures how long a projector takes to continue after kill -9, with a
// history of many events, each of an aggregate of its own. It does not measure reading
// the tail. A process that kills itself makes the store; its memory is reported, too.
func BenchmarkRestart(b *testing.B) {
	size := benchSize(b)
	if dir := os.Getenv("MILLRACE_BENCH_KILLED"); dir != "" {
		foldAndDie(b, dir, size)
	}
	dir := b.TempDir()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^$", "-test.bench=^BenchmarkRestart$", "-test.benchtime=1x")
	cmd.Env = append(os.Environ(), "MILLRACE_BENCH_KILLED="+dir)
	output, err := cmd.CombinedOutput()
	if dead, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || dead.Signal() != syscall.SIGKILL {
		b.Fatalf("the process should have killed itself: %v\n%s", err, output)
	}
	used := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	b.ResetTimer()
	var took time.Duration
	for range b.N {
		began := time.Now()
		w := openBenched(b, dir, true, noSnapshots)
		took += time.Since(began)
		if from := w.ps.units[Key{projectiontest.EventsTopic, 0}].lanes[0].next; from < int64(size)/2 {
			b.Fatalf("of %d events, the store has %d", size, from)
		}
		b.StopTimer()
		w.close(b)
		b.StartTimer()
	}
	b.ReportMetric(took.Seconds()/float64(b.N), "restart-s")
	b.ReportMetric(float64(used.Maxrss)/1024, "MiB") // Linux counts in KiB
	b.ReportMetric(float64(size)/time.Duration(used.Utime.Nano()+used.Stime.Nano()).Seconds(), "events/cpu-s")
}

func foldAndDie(b *testing.B, dir string, size int) {
	w := openBenched(b, dir, true, noSnapshots)
	e := newUserUpdate(b, w.types)
	var out discarded
	for n := range size {
		w.foldOne(b, &out, n, e.of(n*7919%1_000_000_007))
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		b.Fatal(err)
	}
	select {}
}

// BenchmarkRestoreSnapshots measures how fast an empty store is filled from snapshots, one
// per aggregate, in no order.
func BenchmarkRestoreSnapshots(b *testing.B) {
	size := benchSize(b)
	types, f := projectiontest.UserTypes(b), projectiontest.UserFold(b, "user", "active")
	folder := f.NewFolder()
	snapshots := make([]pipeline.Record, 0, size+1)
	var mem rows.Arena
	for n := range size {
		id := fmt.Appendf(nil, "u-%012d", n*7919%1_000_000_007)
		a := fold.Aggregate{Source: fold.Source{Topic: projectiontest.EventsTopic, TopicID: "t-1"}}
		if _, err := folder.Read(projectiontest.UserUpdated, projectiontest.UserEvent(b, types, projectiontest.UserUpdated, n, string(id))[5:], fold.Origin{}); err != nil {
			b.Fatal(err)
		}
		if _, err := folder.Apply(&a); err != nil {
			b.Fatal(err)
		}
		a.Offset = int64(n)
		value := codec.AppendFrame(mem.Grow(5+512+len(a.State)), 100)
		snapshots = append(snapshots, pipeline.Record{Topic: projectiontest.SnapshotsTopic, Key: id, Value: mem.Keep(f.AppendSnapshot(value, id, &a))})
	}
	last, err := json.Marshal(internalrecord.Checkpoint{Fold: f.Hash(), TopicID: "t-1", Dedupe: dedupeLast, Next: int64(size), Redo: int64(size)})
	if err != nil {
		b.Fatal(err)
	}
	snapshots = append(snapshots, pipeline.Record{Topic: projectiontest.SnapshotsTopic, Key: []byte(internalrecord.CheckpointKey), Value: last})
	b.ResetTimer()
	began := cpuTime(b)
	for range b.N {
		dir := b.TempDir()
		w := openBenched(b, dir, false, func(_ context.Context, _ string, _ int32, do func(*pipeline.Record) error) (int64, error) {
			for i := range snapshots {
				if err := do(&snapshots[i]); err != nil {
					return 0, err
				}
			}
			return int64(len(snapshots)), nil
		})
		if from := w.ps.units[Key{projectiontest.EventsTopic, 0}].lanes[0].next; from != int64(size) {
			b.Fatalf("restored up to %d of %d", from, size)
		}
		b.StopTimer()
		w.close(b)
		b.StartTimer()
	}
	b.ReportMetric(float64(size*b.N)/(cpuTime(b)-began).Seconds(), "aggregates/cpu-s")
	b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "aggregates/s")
}

// cpuTime is the CPU time of this process on all cores. It contains the background work of
// the store.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
