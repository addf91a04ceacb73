package projection

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/projectiontest"
)

// newRows returns a world in which the text of an event says what it does: d deletes, r
// creates again, x does nothing. A tombstone deletes.
func newRows(t testing.TB) *world {
	src := func(text string) expr.Source { return expr.Source{Text: text} }
	w := newCounts(t, func(s *fold.Spec) {
		set := s.On[0].Set
		s.Types = projectiontest.Rows(t)
		s.Tombstones = fold.DeleteByTombstones
		s.On = []fold.On{
			{When: src("data.text.startsWith('d')"), Set: set, Delete: true},
			{When: src("data.text.startsWith('r')"), Set: set, Revive: true},
			{When: src("!data.text.startsWith('x') && size(state.all) < 6"), Set: set},
		}
	})
	return w
}

// row adds an event of a row, or a tombstone if text is empty.
func (w *world) row(id, text string) {
	r := pipeline.Record{Topic: projectiontest.EventsTopic, Offset: int64(len(w.log)), Key: []byte(id), Time: time.UnixMilli(int64(len(w.log)))}
	if text != "" {
		r.Value = projectiontest.Row(id, fmt.Sprint(text, r.Offset))
	}
	w.log = append(w.log, r)
}

// rows folds the log from its start, without interruptions.
func (w *world) rows() map[string]string {
	w.t.Helper()
	f := w.fold.NewFolder()
	all := map[string]*fold.Aggregate{}
	for i := range w.log {
		r := &w.log[i]
		typ, body := fold.Tombstone, []byte(nil)
		if r.Value != nil {
			typ, body = 0, r.Value[5:]
		}
		id, err := f.Read(typ, body, fold.OriginOf(r, nil))
		if err != nil {
			w.t.Fatal(err)
		}
		a := all[string(id)]
		if a == nil {
			a = &fold.Aggregate{Source: fold.Source{Topic: projectiontest.EventsTopic, TopicID: w.topicID}}
			all[string(id)] = a
		}
		if outcome, err := f.Apply(a); err != nil {
			w.t.Fatal(err)
		} else if outcome == fold.Applied {
			a.Offset = int64(i)
		}
	}
	out := map[string]string{}
	for id, a := range all {
		if a.Version > 0 {
			out[id] = string(w.fold.AppendSnapshot(nil, []byte(id), a))
		}
	}
	return out
}

func TestATombstoneDeletesAndALaterEventCreatesAgain(t *testing.T) {
	w := newRows(t)
	for _, e := range []string{"a", "", "", "b", "d", "c", "r", "x", ""} {
		w.row("k", e)
	}
	w.row("none", "")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k": "r6"}) // deleted, with its last state
	results := fw.projection().metrics.Events
	for o, want := range map[measure.Result]float64{measure.Applied: 6, measure.Late: 1, measure.Ignored: 3} {
		if got := testutil.ToFloat64(results[o]); got != want {
			t.Errorf("%s: %v, want %v", o, got, want)
		}
	}
	same(t, "states", fw.states(), w.rows())
	r := w.snapshots["k"]
	if _, ok := r.Header("millrace.tombstone"); !ok {
		t.Error("the snapshot does not tell that a tombstone deleted it")
	}
	fw.stop()
	w.row("k", "e")
	fw = w.restored()
	wants(t, fw, map[string]string{"k": "e10"})
	same(t, "states", fw.states(), w.rows())
	r = w.snapshots["k"]
	if _, ok := r.Header(internalrecord.TombstoneHeader); ok {
		t.Errorf("the snapshot has the headers %v", r.Headers)
	}
	fw.stop()
}

// Tombstones that have no meaning are ignored, or block their aggregate, as the topic
// declares.
func TestTombstonesWithoutAMeaning(t *testing.T) {
	for mode, want := range map[fold.Tombstones]string{fold.IgnoreTombstones: "a b", fold.RejectTombstones: "blocked a"} {
		w := newCounts(t, func(s *fold.Spec) { s.Tombstones = mode })
		w.counted("k", 0, 0, "a")
		w.row("k", "")
		w.counted("k", 0, 0, "b")
		fw := w.start()
		fw.run()
		wants(t, fw, map[string]string{"k": want})
		fw.stop()
	}
	w := newCounts(t, func(s *fold.Spec) {
		s.Tombstones, s.Window = fold.DeleteByTombstones, fold.Window{Size: time.Hour, Every: time.Hour}
	})
	w.counted("k", 0, 0, "a")
	w.row("k", "")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k@2026-01-01T10:00:00Z": "a"})
	if n := testutil.ToFloat64(fw.projection().metrics.Events[measure.Ignored]); n != 1 {
		t.Errorf("%v tombstones are ignored, want 1", n)
	}
	fw.stop()
}

// A tombstone of a blocked aggregate waits like an event, and a release applies it.
func TestATombstoneOfABlockedAggregateWaits(t *testing.T) {
	w := newRows(t)
	w.row("k", "a")
	w.poison("k")
	w.row("k", "")
	w.row("k", "b")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k": "blocked a0"})
	fw.release("k", true)
	wants(t, fw, map[string]string{"k": "b3"})
	fw.stop()
}

// Whatever happens to the worker, the states are those of the log: after crashes, aborts
// and restores from snapshots, from the store or from nothing; and a follower has the
// same.
func TestDeletedAndRevivedRowsSurviveRestarts(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newRows(t)
		w.history, w.seldom = rapid.Bool().Draw(rt, "history"), rapid.Bool().Draw(rt, "seldom")
		add := func(n int) {
			for range n {
				w.row(fmt.Sprint("k-", rapid.IntRange(0, 2).Draw(rt, "id")), rapid.SampledFrom([]string{"a", "b", "d", "r", "x", "", ""}).Draw(rt, "what"))
			}
		}
		add(rapid.IntRange(1, 30).Draw(rt, "events"))
		owner, beside := w.shakeBeside(rt, add)
		owner.run()
		owner.quiet(true)
		beside.catchUp()
		want := w.rows()
		same(t, "states", owner.states(), want)
		same(t, "the follower's states", beside.states(), want)
		same(t, "snapshots", w.published(), want)
		beside.leave()
		owner.stop()
		if t.Failed() {
			rt.FailNow()
		}
		w.disk = vfs.NewCrashableMem()
		owner = w.start()
		same(t, "restored", owner.states(), want)
		owner.stop()
	})
}
