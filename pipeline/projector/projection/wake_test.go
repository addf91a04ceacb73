package projection

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka/admin"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/topology"
)

// fakeClock is a clock that is advanced by pass, with timers.
type fakeClock struct {
	mu     sync.Mutex
	time   time.Time
	timers []*fakeTimer
}

type fakeTimer struct {
	at time.Time
	f  func()
}

func newFakeClock() *fakeClock { return &fakeClock{time: projectiontest.Epoch} }

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.time
}

func (c *fakeClock) after(d time.Duration, f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &fakeTimer{c.time.Add(d), f}
	c.timers = append(c.timers, t)
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := len(c.timers)
		c.timers = slices.DeleteFunc(c.timers, func(o *fakeTimer) bool { return o == t })
		return len(c.timers) < n
	}
}

// pass advances the clock, and calls the timers that are due.
func (c *fakeClock) pass(d time.Duration) {
	c.mu.Lock()
	c.time = c.time.Add(d)
	var due []*fakeTimer
	c.timers = slices.DeleteFunc(c.timers, func(t *fakeTimer) bool {
		if t.at.After(c.time) {
			return false
		}
		due = append(due, t)
		return true
	})
	c.mu.Unlock()
	for _, t := range due {
		t.f()
	}
}

// startOn starts a worker on a clock. woken reports whether the session was woken since
// the last call.
func (w *world) startOn(clock *fakeClock) (fw *foldWorker, woken func() bool) {
	w.t.Helper()
	w.clock = clock
	fw = w.start()
	wake := false
	fw.handler.OnWake(func() { wake = true })
	return fw, func() bool {
		was := wake
		wake = false
		return was
	}
}

// quiet is a batch without records.
func (fw *foldWorker) quiet(committed bool) {
	fw.t.Helper()
	fw.batch(0)
	if !committed {
		fw.abort(fw.at)
		return
	}
	fw.commit()
	fw.handler.EndBatch(true)
}

func TestWhatAPolicyHoldsBackIsPublishedInTimeWithoutAnEvent(t *testing.T) {
	w := newWorld(t)
	w.publish = topology.Publish{Every: 10 * time.Second}
	w.add(projectiontest.UserCreated, "a")
	w.add(projectiontest.UserCreated, "b")
	clock := newFakeClock()
	fw, woken := w.startOn(clock)
	clock.pass(time.Second)
	fw.run()
	for range 8 {
		clock.pass(time.Second)
		if woken() || len(w.snapshots) > 0 {
			t.Fatalf("at %s: the session was woken or %d records were published too early", clock.now(), len(w.snapshots))
		}
	}
	clock.pass(time.Second)
	if !woken() {
		t.Fatal("the session is not woken after ten seconds")
	}
	fw.quiet(false)
	if woken() {
		t.Error("the session is woken immediately after an aborted batch")
	}
	if clock.pass(retryFlush); !woken() {
		t.Fatal("the session is not woken after an aborted batch")
	}
	fw.quiet(true)
	if got := strings.Join(slices.Sorted(slices.Values(w.writes)), " "); got != "\x00checkpoint a b" {
		t.Errorf("%q was published", got)
	}
	if got := string(w.snapshots[internalrecord.CheckpointKey].Value); !strings.Contains(got, `"next":2`) {
		t.Errorf("the checkpoint is %s", got)
	}
	if clock.pass(time.Hour); woken() {
		t.Error("the session is woken although nothing is due")
	}
	w.add(projectiontest.UserUpdated, "a")
	clock.pass(time.Second)
	fw.run()
	if n := len(w.writes); n != 5 {
		t.Errorf("%d records were published, want a and the checkpoint, because they are due", n-3)
	}
	w.add(projectiontest.UserUpdated, "a")
	fw.run()
	fw.stop()
	if clock.pass(time.Hour); woken() {
		t.Error("the session is woken for a revoked partition")
	}

	// The next owner continues with the store.
	fw, woken = w.startOn(clock)
	clock.pass(10 * time.Second)
	if fw.run(); !woken() && len(w.writes) == 5 {
		t.Error("what was due is neither published nor scheduled")
	}
	fw.quiet(true)
	if n := len(w.writes); n != 7 {
		t.Errorf("%d records were published, want a and the checkpoint", n-5)
	}
	fw.stop()
}

func TestAReleaseIsPublishedAtOnceWithoutAnEvent(t *testing.T) {
	for _, policy := range []topology.Publish{{}, {Every: 10 * time.Second}, {Events: 1000}} {
		w := newCounts(t, nil)
		w.publish = policy
		w.counted("k", 0, 0, "a")
		w.poison("k")
		w.counted("k", 0, 0, "b")
		clock := newFakeClock()
		fw, woken := w.startOn(clock)
		fw.run()
		clock.pass(10 * time.Second)
		woken()
		fw.quiet(true)
		fw.release("k", true)
		if !woken() {
			t.Fatalf("%+v: the session is not woken", policy)
		}
		fw.quiet(true)
		var a fold.Aggregate
		r := w.snapshots["k"]
		if err := w.fold.ReadSnapshot(r.Value[5:], []byte("k"), &a); err != nil || w.textsOf(a.State) != "a b" {
			t.Errorf("%+v: the snapshot has %q, %v", policy, w.textsOf(a.State), err)
		}
		if _, ok := w.snapshots[internalrecord.BlockedKey("k")]; ok {
			t.Errorf("%+v: the snapshots topic still has the blocked record", policy)
		}
		fw.stop()
	}
}

// After a batch was aborted and before its records come again, a flush publishes nothing:
// neither a checkpoint that covers its events, nor that its late events are dead letters.
func TestAFlushAfterAnAbortedBatchPublishesNothing(t *testing.T) {
	w := newCounts(t, hours(0, 0))
	w.counted("k", 0, 0, "a")
	w.counted("k", 0, 2*time.Hour, "b")
	fw, _ := w.startOn(newFakeClock())
	fw.run()
	writes := len(w.writes)
	w.counted("k", 0, 0, "late")
	w.counted("k", 0, 3*time.Hour, "c")
	at := fw.at
	fw.batch(2)
	fw.abort(at)
	for _, u := range fw.ps.units {
		fw.handler.requestFlush(u)
	}
	fw.quiet(true)
	if len(w.writes) > writes || len(w.letters) > 0 {
		t.Errorf("it published %v and %d letters", w.writes[writes:], len(w.letters))
	}
	fw.run()
	if got := fmt.Sprint(w.lettersAt()); got != "[2]" {
		t.Errorf("dead letters of %s, want that of 2", got)
	}
	fw.stop()
}

// On a broker, without an event after those that are due.
func TestAWorkerOnABrokerPublishesWithoutAnEvent(t *testing.T) {
	c := newCluster(t)
	c.publish, c.clock, c.sessions = topology.Publish{Every: time.Hour}, newFakeClock(), 1
	c.send(400)
	w := c.work("a", c.world)
	c.caughtUp()
	published := func() (n int) {
		for p := range int32(clusterPartitions) {
			c.read(projectiontest.SnapshotsTopic, p, func(r *pipeline.Record) {
				if !strings.HasPrefix(string(r.Key), fold.ReservedKeys) {
					n++
				}
			})
		}
		return n
	}
	if n := published(); n > 0 {
		t.Errorf("%d snapshots were published too early", n)
	}
	committed := func() int64 {
		at, err := admin.CommittedSum(t.Context(), c.cfg, "shop-projector")
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	before := committed()
	c.clock.pass(time.Hour)
	c.await("the snapshots", func() bool { return published() == 100 })
	if after := committed(); after != before {
		t.Errorf("the group moved from %d to %d", before, after)
	}
	c.agree()
	w.stop()
	if n := published(); n != 100 {
		t.Errorf("%d snapshots of 100 aggregates", n)
	}
}
