package kafka

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// lagWorld is a topic with one partition, and all that reads it.
type lagWorld struct {
	t    *testing.T
	c    *cluster
	txn  *kgo.Client
	n    int // records written
	cfg  LoopConfig
	reg  *prometheus.Registry
	held atomic.Int64 // offset of the record that cannot be handled; -1: none

	loop     *Loop
	follower *Follower
	tail     *Tail
	stop     func() error
}

func newLagWorld(t *testing.T, guarantee Guarantee) *lagWorld {
	w := &lagWorld{t: t, c: newBubbleCluster(t, 1), reg: prometheus.NewRegistry()}
	w.txn = w.c.client(t, kgo.TransactionalID("elsewhere"))
	w.held.Store(-1)
	w.cfg = testConfig(w.c, &copier{before: func(_ context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
		if in.Offset == w.held.Load() {
			return errors.New("not at the moment")
		}
		return nil
	}})
	w.cfg.Guarantee, w.cfg.Metrics = guarantee, NewMetrics(w.reg)
	var err error
	if w.follower, err = NewFollower(FollowerConfig{Client: w.c.config(), Group: "f", Handler: &taker{}, Interval: 5 * time.Millisecond, Metrics: w.cfg.Metrics}); err != nil {
		t.Fatal(err)
	}
	w.tail = NewTail(w.c.config(), "in")
	w.follower.Add(PartitionProgress{Topic: "in"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- w.follower.Run(ctx) }()
	go func() {
		done <- w.tail.Follow(ctx, func(*pipeline.Record) error { return nil }, func(error, time.Duration) {})
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	w.loop, w.stop = start(t, w.cfg)
	return w
}

// restart starts another loop in place of the current one.
func (w *lagWorld) restart() {
	if err := w.stop(); err != nil {
		w.t.Error(err)
	}
	w.reg = prometheus.NewRegistry()
	w.cfg.Metrics = NewMetrics(w.reg)
	w.loop, w.stop = start(w.t, w.cfg)
}

// transaction writes n records in a transaction.
func (w *lagWorld) transaction(n int, commit bool) {
	if err := w.txn.BeginTransaction(); err != nil {
		w.t.Fatal(err)
	}
	for range n {
		if err := w.txn.ProduceSync(w.t.Context(), &kgo.Record{Topic: "in", Value: fmt.Appendf(nil, "t%d", w.n)}).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.txn.EndTransaction(w.t.Context(), kgo.TransactionEndTry(commit)); err != nil {
		w.t.Fatal(err)
	}
}

// send writes n records without a transaction.
func (w *lagWorld) send(n int) {
	inject(w.t, w.c, w.n, w.n+n)
	w.n += n
}

// end returns the end of the log.
func (w *lagWorld) end() int64 {
	ends, err := LastStableOffsets(w.t.Context(), w.c.config(), "in")
	if err != nil {
		w.t.Fatal(err)
	}
	return ends[0]
}

// deleteRead deletes records that the group has passed.
func (w *lagWorld) deleteRead(share float64) {
	to := int64(share * float64(groupOffset(w.c, "in", 0)))
	if to <= 0 {
		return
	}
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: "in", At: to, LeaderEpoch: -1})
	if _, err := kadm.NewClient(w.txn).DeleteRecords(w.t.Context(), offsets); err != nil {
		w.t.Fatal(err)
	}
}

// gauge returns the value of a lag metric of the loop's group.
func (w *lagWorld) gauge(name string) float64 {
	families, err := w.reg.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name && len(f.GetMetric()) == 1 {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

// lags returns the lag of the loop by all ways to see it.
func (w *lagWorld) lags() map[string]int64 {
	done, total, err := GroupProgress(w.t.Context(), w.c.config(), "g", "in")
	if err != nil {
		w.t.Fatal(err)
	}
	group, err := Lag(w.t.Context(), w.c.config(), "g", "in")
	if err != nil {
		w.t.Fatal(err)
	}
	return map[string]int64{
		"progress": lag(w.loop), "metric": int64(w.gauge("millrace_consumer_lag_records")), "group progress": total - done, "group": group,
		"committed offset": w.end() - groupOffset(w.c, "in", 0),
	}
}

// await waits until the lag is want everywhere, and checks the age.
func (w *lagWorld) await(want int64) {
	w.t.Helper()
	last := map[string]int64{}
	deadline := time.Now().Add(20 * time.Second)
	same := func() bool {
		last = w.lags()
		for _, n := range last {
			if n != want {
				return false
			}
		}
		return true
	}
	for synctest.Wait(); !same(); synctest.Wait() {
		if time.Now().After(deadline) {
			w.t.Fatalf("20 s of fake time have passed without a lag of %d everywhere: %v", want, last)
		}
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // fake time: it advances the clock of the bubble
	}
	if age := w.gauge("millrace_consumer_lag_seconds"); want == 0 && age != 0 {
		w.t.Errorf("no lag, but an age of %v seconds", age)
	}
}

// Once everything on a topic is read, the lag is 0 in all places, also if
// markers or rolled-back records are last. While a record cannot be handled, the lag in all
// places is the number of offsets from that record to the end.
func TestLagIsTheSameInAllPlaces(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		for seed := range uint64(6) {
			t.Run(fmt.Sprint(guarantee, " ", seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newLagWorld(t, guarantee)
					r := rand.New(rand.NewPCG(seed, 1))
					w.send(1) // the group has an offset
					for range 12 {
						switch r.IntN(7) {
						case 0, 1:
							w.send(1 + r.IntN(40))
						case 2:
							w.transaction(r.IntN(4), true)
						case 3:
							w.transaction(r.IntN(4), false)
						case 4:
							w.deleteRead(r.Float64())
						case 5:
							w.restart()
						case 6:
							w.hold(r)
						}
						if r.IntN(3) == 0 {
							w.caughtUp()
						}
					}
					w.caughtUp()
				})
			})
		}
	}
}

// caughtUp checks that nothing has a lag.
func (w *lagWorld) caughtUp() {
	w.t.Helper()
	w.await(0)
	await(w.t, "a lag of 0 of the follower", func() bool { at := w.follower.ProgressOf("in", 0); return at.Lag() == 0 && at.End == w.end() })
	await(w.t, "a lag of 0 of the tail", func() bool { n, known := w.tail.Lag(); return known && n == 0 })
}

// hold makes a record wait, and writes around it.
func (w *lagWorld) hold(r *rand.Rand) {
	w.t.Helper()
	w.caughtUp()
	before := r.IntN(20)
	k := w.end() + int64(before)
	w.held.Store(k)
	w.send(before + 1 + r.IntN(20))
	w.transaction(1+r.IntN(3), r.IntN(2) == 0)
	w.await(w.end() - k)
	if r.IntN(2) == 0 {
		w.restart()
		w.send(1)
		w.await(w.end() - k)
	}
	w.held.Store(-1)
}

// A worker starts a loop again that has ended. The metrics show one loop, and none when no
// loop runs.
func TestALoopThatHasEndedHasNoLag(t *testing.T) {
	c := newCluster(t, 2)
	inject(t, c, 0, 10)
	metrics := NewMetrics(prometheus.NewRegistry())
	for range 2 {
		cfg := testConfig(c, &copier{})
		cfg.Metrics = metrics
		_, stop := start(t, cfg)
		waitFor(t, func() bool { return testutil.CollectAndCount(metrics.lag) == 4 }) // two series for each partition
		if n := len(metrics.lag.loops); n != 1 {
			t.Errorf("%d loops have a lag, want 1", n)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if n := testutil.CollectAndCount(metrics.lag); n != 0 {
			t.Errorf("%d series of lag are left", n)
		}
	}
}

// A loop that hangs in its handler knows what has arrived since.
func TestALoopThatHangsHasALag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		hang, hangs := make(chan struct{}), make(chan struct{}, 1)
		cfg := testConfig(c, &copier{before: func(_ context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
			if in.Offset == 5 {
				hangs <- struct{}{}
				<-hang
			}
			return nil
		}})
		l, _ := start(t, cfg)
		goOn := sync.OnceFunc(func() { close(hang) })
		defer goOn()
		inject(t, c, 0, 5)
		await(t, "no lag", func() bool { return lag(l) == 0 && l.Progress()[0].Position == 5 })
		inject(t, c, 5, 6)
		<-hangs
		await(t, "a lag of 1", func() bool { return lag(l) == 1 })
		inject(t, c, 6, 10)
		await(t, "a lag of 5", func() bool { return lag(l) == 5 })
		goOn()
		await(t, "no lag", func() bool { return lag(l) == 0 })
	})
}

// Records before one that cannot be handled do not wait for it.
func TestRecordsBeforeOneThatWaitsAreCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 3)
		var fails atomic.Bool
		fails.Store(true)
		l, _ := start(t, testConfig(c, &copier{before: func(_ context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
			if string(in.Value) == "000077" && fails.Load() {
				return errors.New("not at the moment")
			}
			return nil
		}}))
		inject(t, c, 0, 100)
		const after = 2 // records of the same key and partition that follow, at least
		await(t, "all records before it", func() bool {
			got := readAll(t.Context(), t, c, "out")
			return len(got) >= 70 && len(got) <= 100-after+1
		})
		fails.Store(false)
		await(t, "no lag", func() bool { return lag(l) == 0 && l.Ready() == nil })
		wantEach(t, readAll(t.Context(), t, c, "out"), 100)
	})
}

// The age of a lag is that of the last record that was read, by its timestamp, or the time
// since the assignment. Without a lag there is no age.
func TestTheAgeOfALag(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		at   PartitionProgress
		lag  int64
		want time.Duration
	}{
		{PartitionProgress{Position: 5, End: 5, Last: now.Add(-time.Hour)}, 0, 0},
		{PartitionProgress{Position: 5, End: 6, Last: now.Add(-time.Hour)}, 1, time.Hour},
		{PartitionProgress{Position: 5, End: 6, Last: now.Add(time.Hour)}, 1, 0},
		{PartitionProgress{Position: 2, Done: 5, End: 6, Last: now.Add(-time.Hour)}, 1, time.Hour},
		{PartitionProgress{Position: 2, Done: 6, End: 6, Last: now.Add(-time.Hour)}, 0, 0},
		{PartitionProgress{Position: 7, End: 6, Last: now.Add(-time.Hour)}, 0, 0},
	} {
		if n, age := tt.at.Lag(), tt.at.Age(now); n != tt.lag || age != tt.want {
			t.Errorf("%+v: lag %d, age %v; want %d, %v", tt.at, n, age, tt.lag, tt.want)
		}
	}
}
