package projection

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/topology"
)

// lost returns a worker whose store was lost after it had published 40 events.
func lost(t testing.TB) *foldWorker {
	t.Helper()
	w := newWorld(t)
	w.some(39)
	w.add(projectiontest.UserCreated, "u-last")
	fw := w.start()
	fw.run()
	fw.stop()
	w.disk = vfs.NewCrashableMem()
	return w.start()
}

// next reads one record and commits.
func (fw *foldWorker) next() {
	fw.t.Helper()
	fw.batch(1)
	fw.commit()
	fw.handler.EndBatch(true)
}

func (fw *foldWorker) complete() error { return fw.ps.Partitions(fw.projection())[0].Complete() }

// straight compares a worker with one that folds the log without interruptions.
func (fw *foldWorker) straight() {
	fw.t.Helper()
	w := fw.world
	same(fw.t, "store", fw.states(), w.folded())
	same(fw.t, "snapshots", w.published(), w.folded())
	got := fw.index()
	fw.stop()
	w.disk, w.snapshots = vfs.NewCrashableMem(), map[string]pipeline.Record{}
	other := w.start()
	other.run()
	same(fw.t, "index", got, other.index())
	other.stop()
}

// A worker that restarts while its history is filled publishes before that is complete.
func TestEventsArePublishedAfterARestartDuringTheFill(t *testing.T) {
	fw := lost(t)
	fw.fillSome(0)
	fw.fillSome(10)
	for range 3 {
		fw.stop()
		fw = fw.world.start()
		fw.fillSome(0) // the ids
		fw.add(projectiontest.UserUpdated, "u-last")
		fw.next()
		if err := fw.complete(); !errors.Is(err, query.ErrFilling) {
			t.Errorf("the history is said to be %v", err)
		}
		same(t, "published", fw.published(), fw.folded())
	}
	fw.fill()
	fw.straight()
}

// While the history is filled, new events are folded and published, also duplicates of new
// events. The history has them in the end.
func TestTheTailIsFoldedWhileTheHistoryIsFilled(t *testing.T) {
	fw := lost(t)
	if !fw.paused() {
		t.Error("the tail is read before the ids of the past are known")
	}
	if err := fw.ps.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	fw.fillSome(0)
	fw.fillSome(10)
	if fw.paused() {
		t.Error("the tail is not read although the ids of the past are known")
	}
	fw.add(projectiontest.UserUpdated, "u-last")
	fw.repeat(40)
	fw.add(projectiontest.UserUpdated, "u-last")
	for range 3 {
		fw.next()
	}
	if fw.at != 43 || fw.paused() {
		t.Errorf("read up to %d, paused %v", fw.at, fw.paused())
	}
	same(t, "published", fw.published(), fw.folded())
	if err := fw.complete(); !errors.Is(err, query.ErrFilling) || !strings.Contains(err.Error(), "of 4") {
		t.Errorf("the history is said to be %v", err)
	}
	_, history := fw.ps.FillProgress()
	if len(history) != 1 || history[0].End == 0 {
		t.Errorf("the progress is %v", history)
	}
	fw.fill()
	if err := fw.complete(); err != nil {
		t.Error(err)
	}
	if _, history := fw.ps.FillProgress(); len(history) != 0 {
		t.Errorf("the progress is %v", history)
	}
	fw.straight()
}

// An event of the tail that has the id of an event of the past is not decided before the
// history is complete. The events after it wait, too, and then all are decided.
func TestAnEventThatMayBeADuplicateWaitsForTheHistory(t *testing.T) {
	fw := lost(t)
	fw.fillSome(0)
	fw.add(projectiontest.UserUpdated, "u-last")
	fw.repeat(6)
	fw.add(projectiontest.UserUpdated, "u-last")
	fw.next()
	fw.next()
	if fw.at != 41 || !fw.paused() {
		t.Errorf("read up to %d, paused %v", fw.at, fw.paused())
	}
	if got := fw.handler.Handled(projectiontest.EventsTopic, 0); got != 41 {
		t.Errorf("folded up to %d", got)
	}
	fw.fill()
	if fw.paused() {
		t.Error("still paused")
	}
	fw.run()
	fw.straight()
}

// If a filler always finds more that the session has folded meanwhile, the session waits
// for it at the end.
func TestTheSessionWaitsForTheEndOfTheHistory(t *testing.T) {
	fw := lost(t)
	fw.fillSome(0)
	tail := fw.ps.cfg.Tail
	fw.ps.cfg.Tail = func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) error {
		err := tail(ctx, topic, partition, from, f)
		fw.add(projectiontest.UserUpdated, "u-last")
		fw.next() // before the filler is done
		return err
	}
	n := 0
	for ; fw.fillSome(-1); n++ {
		if n > 3 {
			t.Fatal("the history is never complete")
		}
	}
	fw.ps.cfg.Tail = tail
	fw.run()
	fw.straight()
}

// Whatever happens while a history is filled, and in whatever order the past and the tail
// are read, all ends as if the store was never lost.
func TestAHistoryThatIsFilledIsThatOfAWorkerThatLostNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		numbered := rapid.Bool().Draw(rt, "numbered")
		w := newWorld(t)
		add := func(n int) {
			for range n {
				switch rapid.IntRange(0, 5).Draw(rt, "what") {
				case 0:
					if len(w.log) > 0 {
						w.repeat(rapid.IntRange(0, len(w.log)-1).Draw(rt, "which"))
					}
				case 1:
					w.add(projectiontest.UserDeleted, fmt.Sprint("u-", rapid.IntRange(0, 30).Draw(rt, "id")))
				default:
					w.add(projectiontest.UserUpdated, fmt.Sprint("u-", rapid.IntRange(0, 30).Draw(rt, "id")))
				}
			}
		}
		if numbered {
			w = newCounts(t, func(s *fold.Spec) { s.ApplyGap, s.Wait = rapid.Bool().Draw(rt, "apply"), 4 })
			add = func(n int) { w.addRandomNumbered(rt, n) }
		}
		w.seldom = rapid.Bool().Draw(rt, "seldom")
		w.publish = rapid.SampledFrom([]topology.Publish{{}, {Events: 9}}).Draw(rt, "publish")
		add(rapid.IntRange(1, 40).Draw(rt, "events"))
		fw := w.start()
		fw.run()
		if rapid.Bool().Draw(rt, "states ahead of the checkpoint") {
			add(20)
			fw.batch(20) // in the store, and not published
			fw.close()
			fw = w.start()
			fw.batch(rapid.IntRange(1, 20).Draw(rt, "some"))
			fw.commit()
			fw.handler.EndBatch(true)
		}
		fw.stop()
		w.disk = vfs.NewCrashableMem()
		add(rapid.IntRange(0, 10).Draw(rt, "tail"))
		fw = w.start()
		for range rapid.IntRange(0, 25).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"past", "past", "tail", "tail", "tail", "abort", "more", "kill", "stop", "erase nothing"}).Draw(rt, "step") {
			case "past":
				fw.fillSome(rapid.IntRange(0, 15).Draw(rt, "read"))
			case "tail":
				fw.batch(rapid.IntRange(1, 5).Draw(rt, "n"))
				fw.commit()
				fw.handler.EndBatch(true)
			case "abort":
				fw.batch(rapid.IntRange(1, 5).Draw(rt, "n"))
				fw.abort(fw.before)
			case "more":
				add(rapid.IntRange(1, 5).Draw(rt, "more"))
			case "kill":
				fw.close()
				fw = w.start()
			case "stop":
				fw.stop()
				fw = w.start()
			case "erase nothing":
				if err := fw.ps.Erase(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
		compare(rt, w, fw, 0)
	})
}

// A release folds events that waited, and so has to recognize duplicates: it is refused
// while the history is filled.
func TestAReleaseIsRefusedWhileTheHistoryIsFilled(t *testing.T) {
	fw := blockedWorker(t)
	fw.stop()
	fw.world.disk = vfs.NewCrashableMem()
	w := fw.start()
	fill := func() {
		if _, err := w.ps.Release(t.Context(), w.projection(), "k", true); !errors.Is(err, query.ErrFilling) || !strings.Contains(err.Error(), `"k" waits`) {
			t.Errorf("the release returned %v", err)
		}
	}
	fill()
	w.fillSome(0)
	fill()
	w.fillSome(1)
	fill()
	w.fill()
	if out, err := w.ps.Release(t.Context(), w.projection(), "k", true); err != nil || out.Events != 2 {
		t.Errorf("the release returned %v, %v", out, err)
	}
	wants(t, w, map[string]string{"k": "a b"})
	w.stop()
}

// A follower that lost its store hears of a release before its own history is complete. It
// releases the aggregate then, also after a restart.
func TestAFollowerReleasesWhenItsHistoryIsComplete(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		w := newCounts(t, nil)
		for n := range 10 {
			w.counted("other", 0, 0, fmt.Sprint(n))
		}
		w.counted("k", 0, 0, "a")
		w.poison("k")
		w.counted("k", 0, 0, "b")
		w.repeat(10) // a duplicate of a
		owner := w.start()
		owner.run()
		beside := w.follow(vfs.NewCrashableMem())
		beside.take(2, 100)
		if _, err := owner.ps.Release(t.Context(), owner.projection(), "k", true); err != nil {
			t.Fatal(err)
		}
		w.counted("other", 0, 0, "last")
		owner.run()
		beside.take(2, 100)
		if got := beside.texts()["k"]; got != "blocked a" {
			t.Errorf("during the fill, k is %q", got)
		}
		if restarts {
			beside.leave()
			beside = w.follow(beside.own)
		}
		beside.catchUp()
		if got := beside.texts()["k"]; got != "a b" {
			t.Errorf("restarts %v: k is %q", restarts, got)
		}
		beside.leave()
		owner.stop()
	}
}
