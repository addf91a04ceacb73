package projection

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// newCounts returns a world of counted events: see [projectiontest.Counts].
func newCounts(t testing.TB, change func(*fold.Spec)) *world {
	t.Helper()
	w := newWorld(t)
	w.types, w.fold = projectiontest.Counts(t, change)
	return w
}

// counted adds a counted event.
func (w *world) counted(id string, number int, at time.Duration, text string) {
	w.t.Helper()
	n := int64(len(w.log))
	w.log = append(w.log, pipeline.Record{Topic: projectiontest.EventsTopic, Offset: n, Key: []byte(id), Value: projectiontest.Counted(id, number, at, text), Time: time.UnixMilli(n)})
}

// poison adds a record that is no valid event.
func (w *world) poison(id string) {
	w.log = append(w.log, pipeline.Record{Topic: projectiontest.EventsTopic, Offset: int64(len(w.log)), Key: []byte(id), Value: projectiontest.Poison(0), Time: time.UnixMilli(int64(len(w.log)))})
}

// texts returns the status and the texts of each aggregate in the store.
func (fw *foldWorker) texts() map[string]string {
	fw.t.Helper()
	out := map[string]string{}
	var l *lane
	for _, u := range fw.ps.units {
		l = u.lanes[0]
	}
	for id, value := range fw.entries(states.FamilyState) {
		var a fold.Aggregate
		if err := fold.ReadAggregate([]byte(value), &a); err != nil {
			fw.t.Fatal(err)
		}
		out[id] = strings.TrimSpace(l.status(id, &a) + " " + fw.textsOf(a.State))
	}
	return out
}

func (w *world) textsOf(state []byte) string {
	w.t.Helper()
	text, err := codec.AppendJSON(nil, w.fold.State().Root(), state)
	if err != nil {
		w.t.Fatal(err)
	}
	s := strings.TrimSuffix(strings.TrimPrefix(string(text), `{"all":[`), `]}`)
	return strings.ReplaceAll(strings.ReplaceAll(s, `"`, ""), ",", " ")
}

// kept returns everything that the store has of decisions, except for the index and for
// what is due: that it was sent is stored with the next flush.
func (fw *foldWorker) kept() map[string]string {
	fw.t.Helper()
	out := map[string]string{}
	for _, f := range []store.Family{familyHeld, familyBlocked, familyShadowHeld, familyShadowBlocked, familyWindow} {
		for key, value := range fw.entries(f) {
			out[fmt.Sprintf("%d %q", f, key)] = value
		}
	}
	for id, s := range fw.states() {
		out["state "+id] = s
	}
	return out
}

// lettersAt returns the offsets of the events of the committed dead letters, in order.
func (w *world) lettersAt() (offsets []string) {
	for _, r := range w.letters {
		if r.Topic != projectiontest.LateTopic {
			w.t.Errorf("a record went to %s", r.Topic)
		}
		offsets = append(offsets, fmt.Sprint(deadletter.Parse(&r).SourceOffset))
	}
	slices.Sort(offsets)
	return offsets
}

// all returns the committed records of the snapshots topic, except for those with
// offsets.
func (w *world) all() map[string]string {
	out := map[string]string{}
	for k, r := range w.snapshots {
		if k != internalrecord.CheckpointKey && k != internalrecord.SentKey {
			out[k] = string(r.Value)
		}
	}
	return out
}

func wants(t testing.TB, fw *foldWorker, want map[string]string) {
	t.Helper()
	same(t, "texts", fw.texts(), want)
}

func TestEventsAreFoldedInTheOrderOfTheirNumbers(t *testing.T) {
	type e struct {
		number int
		text   string
	}
	for _, test := range []struct {
		name   string
		events []e
		block  string // the state if a gap blocks
		apply  string // the state if a gap is ignored
	}{
		{"in order", []e{{1, "a"}, {2, "b"}, {3, "c"}}, "a b c", "a b c"},
		{"without numbers", []e{{0, "a"}, {0, "b"}}, "a b", "a b"},
		{"one that comes late", []e{{1, "a"}, {3, "c"}, {4, "d"}, {2, "b"}}, "a b c d", "a b c d"},
		{"the first comes last", []e{{3, "c"}, {2, "b"}, {1, "a"}}, "a b c", "a b c"},
		{"of two with a number, the first", []e{{1, "a"}, {2, "b"}, {2, "x"}, {3, "c"}}, "a b c", "a b c"},
		{"of two that wait, the first", []e{{1, "a"}, {3, "c"}, {3, "x"}, {2, "b"}}, "a b c", "a b c"},
		{"the same again", []e{{1, "a"}, {1, "a"}, {2, "b"}, {2, "b"}}, "a b", "a b"},
		{"the same again, while it waits", []e{{1, "a"}, {3, "c"}, {3, "c"}, {2, "b"}}, "a b c", "a b c"},
		{"numbers from some time on", []e{{0, "a"}, {7, "b"}, {8, "c"}}, "a b c", "a b c"},
		{"some without, in between", []e{{1, "a"}, {3, "c"}, {0, "n"}, {2, "b"}}, "a n b c", "a n b c"},
		{"a gap", []e{{1, "a"}, {3, "c"}, {4, "d"}, {9, "z"}}, "blocked a", "gap a c d z"},
		{"a gap at the beginning", []e{{2, "b"}}, "", "gap b"},
		{"a number that is none", []e{{1, "a"}, {-1, "x"}, {2, "b"}}, "blocked a", "blocked a"},
	} {
		for _, apply := range []bool{false, true} {
			w := newCounts(t, func(s *fold.Spec) { s.ApplyGap = apply })
			for _, e := range test.events {
				w.counted("k", e.number, 0, e.text)
			}
			for range 10 {
				w.counted("other", 0, 0, fmt.Sprint(len(w.log)))
			}
			fw := w.start()
			fw.run()
			want := test.block
			if apply {
				want = test.apply
			}
			if got := fw.texts()["k"]; got != want {
				t.Errorf("%s, apply %v: %q, want %q", test.name, apply, got, want)
			}
			fw.stop()
		}
	}
}

// addRandomNumbered adds n random events with numbers, some of which are invalid or
// duplicates.
func (w *world) addRandomNumbered(rt *rapid.T, n int) {
	for range n {
		id := fmt.Sprint("k-", rapid.IntRange(0, 3).Draw(rt, "id"))
		switch kind := rapid.IntRange(0, 19).Draw(rt, "what"); {
		case kind == 0:
			w.poison(id)
		case kind > 1:
			w.counted(id, rapid.IntRange(0, 6).Draw(rt, "number"), 0, fmt.Sprint("t", len(w.log)))
		case len(w.log) > 0:
			w.repeat(rapid.IntRange(0, len(w.log)-1).Draw(rt, "which"))
		}
	}
}

// Whatever happens to a worker, its decisions are those of a worker that folds the log
// without interruptions: which events waited, conflicted, were ignored, or block an
// aggregate.
func TestGapsAndPoisonAreDecidedTheSameOnEveryReplay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		apply := rapid.Bool().Draw(rt, "apply")
		w := newCounts(t, func(s *fold.Spec) { s.ApplyGap, s.Wait = apply, 4 })
		w.history, w.seldom, w.internal = rapid.Bool().Draw(rt, "history"), rapid.Bool().Draw(rt, "seldom"), rapid.Bool().Draw(rt, "internal")
		w.publish = rapid.SampledFrom([]topology.Publish{{}, {Events: 10}}).Draw(rt, "publish")
		add := func(n int) { w.addRandomNumbered(rt, n) }
		add(rapid.IntRange(1, 30).Draw(rt, "events"))
		compare(rt, w, w.shake(rt, add), 0)
	})
}

// compare runs a worker to the end, and compares it with a worker that folds the log
// without interruptions.
func compare(rt *rapid.T, w *world, fw *foldWorker, at time.Duration) {
	fw.run()
	w.publish = topology.Publish{}
	for _, u := range fw.ps.units {
		u.lanes[0].publication.policy = w.publish
	}
	w.counted("last", 0, at, "last")
	fw.run()
	w.counted("last", 0, at, "the very last") // stores what was noted when the batch before committed
	fw.run()
	got, out, index := fw.kept(), w.all(), fw.index()
	fw.stop()

	straight := *w
	straight.disk, straight.snapshots, straight.letters, straight.committed, straight.committedSnapshots, straight.committedInternal = vfs.NewCrashableMem(), map[string]pipeline.Record{}, nil, -1, nil, nil
	// The same batches at the end, because windows are deleted with a flush after they
	// were written.
	straight.log = w.log[:len(w.log)-2]
	other := straight.start()
	for range 3 {
		other.run()
		straight.log = w.log[:min(len(w.log), len(straight.log)+1)]
	}
	same(w.t, "store", got, other.kept())
	same(w.t, "snapshots", out, straight.all())
	same(w.t, "index", index, other.index())
	if a, b := w.lettersAt(), straight.lettersAt(); !slices.Equal(a, b) {
		w.t.Errorf("dead letters of %v, want %v", a, b)
	}
	other.stop()
	if w.t.Failed() {
		rt.FailNow()
	}
}

func hours(grace, keep time.Duration) func(*fold.Spec) {
	return func(s *fold.Spec) {
		s.Window = fold.Window{Size: time.Hour, Every: time.Hour, Grace: grace, Retention: keep}
	}
}

func TestAWindowTakesTheEventsOfItsTime(t *testing.T) {
	w := newCounts(t, hours(5*time.Minute, 0))
	w.counted("k", 0, 0, "a")
	w.counted("k", 0, 59*time.Minute, "b")
	w.counted("k", 0, 61*time.Minute, "c")
	w.counted("k", 0, 30*time.Minute, "d")  // in the grace
	w.counted("j", 0, 65*time.Minute, "e")  // the clock is the partition's: this closes the first hour
	w.counted("k", 0, 31*time.Minute, "f")  // late
	w.counted("k", 0, -61*time.Minute, "g") // late
	w.counted("k", 0, 64*time.Minute, "h")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{
		"k@2026-01-01T10:00:00Z": "a b d",
		"k@2026-01-01T11:00:00Z": "c h",
		"j@2026-01-01T11:00:00Z": "e",
	})
	if got := fmt.Sprint(w.lettersAt()); got != "[5 6]" {
		t.Errorf("dead letters of %s, want those of 5 and 6", got)
	}
	letter := w.letters[0]
	parsed := deadletter.Parse(&letter)
	if parsed.Reason != reasonLate || string(letter.Value) != string(w.log[5].Value) {
		t.Errorf("the reason of the dead letter is %s", parsed.Reason)
	}
	if !strings.Contains(parsed.Error, "2026-01-01T10:00:00Z") {
		t.Errorf("the error %s does not name the window", parsed.Error)
	}
	fw.stop()
}

func TestWindowsThatOverlapShareEvents(t *testing.T) {
	w := newCounts(t, func(s *fold.Spec) { s.Window = fold.Window{Size: time.Hour, Every: 30 * time.Minute} })
	w.counted("k", 0, 10*time.Minute, "a")
	w.counted("k", 0, 40*time.Minute, "b")
	w.counted("k", 0, 61*time.Minute, "c") // ends the windows of 09:30 and 10:00
	w.counted("k", 0, 50*time.Minute, "d") // too late for 10:00, but not for 10:30
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{
		"k@2026-01-01T09:30:00Z": "a",
		"k@2026-01-01T10:00:00Z": "a b",
		"k@2026-01-01T10:30:00Z": "b c d",
		"k@2026-01-01T11:00:00Z": "c",
	})
	if got := fmt.Sprint(w.lettersAt()); got != "[3]" {
		t.Errorf("dead letters of %s, want that of 3", got)
	}
	fw.stop()
}

func TestWindowsAreDeletedAfterTheirTimeToKeep(t *testing.T) {
	w := newCounts(t, hours(0, 2*time.Hour))
	for hour := range 6 {
		w.counted("k", 0, time.Duration(hour)*time.Hour, fmt.Sprint(hour))
	}
	fw := w.start()
	fw.batch(2)
	fw.commit()
	fw.handler.EndBatch(true)
	if len(w.published()) != 2 {
		t.Errorf("%d windows, want 2", len(w.published()))
	}
	fw.run()
	w.counted("k", 0, 5*time.Hour+time.Minute, "more")
	fw.run()
	want := map[string]string{"k@2026-01-01T13:00:00Z": "3", "k@2026-01-01T14:00:00Z": "4", "k@2026-01-01T15:00:00Z": "5 more"}
	wants(t, fw, want)
	if got := w.published(); len(got) != len(want) {
		t.Errorf("%d snapshots are left, want %d", len(got), len(want))
	}
	fw.stop()
	w.disk = vfs.NewCrashableMem()
	fw = w.start()
	wants(t, fw, want)
	w.counted("k", 0, 6*time.Hour, "last")
	fw.run()
	delete(want, "k@2026-01-01T13:00:00Z")
	want["k@2026-01-01T16:00:00Z"] = "last"
	w.counted("k", 0, 6*time.Hour, "of all")
	fw.run()
	want["k@2026-01-01T16:00:00Z"] = "last of all"
	wants(t, fw, want)
	fw.stop()
}

// eventClock makes random event times, which may go back.
type eventClock struct{ now, latest time.Duration }

func (c *eventClock) next(rt *rapid.T) time.Duration {
	c.now += time.Duration(rapid.IntRange(-100, 120).Draw(rt, "minutes")) * time.Minute
	c.latest = max(c.latest, c.now)
	return c.now
}

// Whatever happens to a worker, the same events are late and the same windows are
// deleted, and each late event becomes a dead letter.
func TestWindowsAreTheSameOnEveryReplay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		every := rapid.SampledFrom([]time.Duration{time.Hour, 20 * time.Minute}).Draw(rt, "every")
		keep := rapid.SampledFrom([]time.Duration{0, 3 * time.Hour}).Draw(rt, "keep")
		w := newCounts(t, func(s *fold.Spec) {
			s.Window = fold.Window{Size: time.Hour, Every: every, Grace: 10 * time.Minute, Retention: keep}
		})
		w.history, w.seldom, w.internal = rapid.Bool().Draw(rt, "history"), rapid.Bool().Draw(rt, "seldom"), rapid.Bool().Draw(rt, "internal")
		w.publish = rapid.SampledFrom([]topology.Publish{{}, {Events: 10}}).Draw(rt, "publish")
		clock := &eventClock{}
		add := func(n int) {
			for range n {
				id := fmt.Sprint("k-", rapid.IntRange(0, 2).Draw(rt, "id"))
				switch kind := rapid.IntRange(0, 19).Draw(rt, "what"); {
				case kind == 0:
					w.poison(id)
				case kind > 2:
					w.counted(id, 0, clock.next(rt), fmt.Sprint("t", len(w.log)))
				case len(w.log) > 0:
					w.repeat(rapid.IntRange(0, len(w.log)-1).Draw(rt, "which"))
				}
			}
		}
		add(rapid.IntRange(1, 30).Draw(rt, "events"))
		fw := w.shake(rt, add)
		compare(rt, w, fw, clock.latest)
	})
}

func TestABlockedAggregateLeavesTheOthersAlone(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("k")
	w.counted("k", 0, 0, "b")
	w.counted("j", 0, 0, "c")
	w.counted("k", 0, 0, "d")
	fw := w.start()
	fw.run()
	p := fw.projection()
	check := func(when string) {
		t.Helper()
		wants(t, fw, map[string]string{"k": "blocked a", "j": "c"})
		_, _, q, _ := fw.ps.findBlocked(p, "k")
		if q.ID != "k" || q.Offset != 1 || q.Queued != 2 || q.Reason != pipeline.ReasonBadBody || fmt.Sprint(q.Queue) != "[2 4]" {
			t.Errorf("%s: %+v", when, q)
		}
	}
	check("at first")
	var a fold.Aggregate
	if r := w.snapshots["k"]; w.fold.ReadSnapshot(r.Value[5:], []byte("k"), &a) != nil || !strings.Contains(string(r.Value), fold.Blocked) {
		t.Errorf("the snapshot %q is not marked as blocked", r.Value)
	}
	fw.stop()
	fw = w.start()
	p = fw.projection()
	check("after a restart")
	fw.stop()
	w.disk = vfs.NewCrashableMem()
	fw = w.start()
	p = fw.projection()
	check("without the store")
	fw.stop()
}

// projection returns the only projection.
func (fw *foldWorker) projection() *Projection {
	return fw.ps.topics[projectiontest.EventsTopic].projections[0]
}

// decoder returns a decoder of the events.
func (fw *foldWorker) decoder() *event.Decoder {
	d := event.NewDecoder(eventtest.SchemaList(fw.types), fw.types, nil)
	d.ReadKeys(fw.fold.Keys(), projectiontest.EventsTopic)
	return d
}

// release releases an aggregate and publishes.
func (fw *foldWorker) release(id string, skip bool) Released {
	fw.t.Helper()
	r, _, err := fw.ps.release(fw.t.Context(), fw.projection(), id, skip, fw.decoder())
	if err != nil {
		fw.t.Fatal(err)
	}
	return r
}

func TestAReleaseFoldsWhatWaited(t *testing.T) {
	for _, test := range []struct {
		name   string
		add    func(w *world)
		repair func(w *world) // repairs the log, as if the schema were known now
		skip   bool
		want   string
		events int
	}{
		{"not yet repaired", func(w *world) { w.poison("k") }, nil, false, "blocked a", 0},
		{"skipped", func(w *world) { w.poison("k") }, nil, true, "a b d", 3},
		{"repaired", func(w *world) { w.poison("k") }, func(w *world) {
			other := newCounts(t, nil)
			other.counted("k", 0, 0, "repaired")
			w.log[1].Value = other.log[0].Value
		}, false, "a repaired b d", 3},
		{"a second one", func(w *world) { w.poison("k"); w.poison("k") }, nil, true, "blocked a", 1},
	} {
		w := newCounts(t, nil)
		w.counted("k", 0, 0, "a")
		test.add(w)
		w.counted("k", 0, 0, "b")
		w.counted("j", 0, 0, "c")
		w.counted("k", 0, 0, "d")
		fw := w.start()
		fw.run()
		if test.repair != nil {
			test.repair(w)
		}
		if r := fw.release("k", test.skip); r.Events != test.events || (r.Blocked != nil) != strings.HasPrefix(test.want, "blocked") {
			t.Errorf("%s: %+v", test.name, r)
		}
		want := map[string]string{"k": test.want, "j": "c"}
		wants(t, fw, want)

		// A crash before the release is published, then a lost store, then only the log.
		fw.close()
		fw = w.start()
		wants(t, fw, want)
		w.counted("j", 0, 0, "e")
		want["j"] = "c e"
		fw.run()
		wants(t, fw, want)
		fw.stop()
		w.disk = vfs.NewCrashableMem()
		fw = w.start()
		wants(t, fw, want)
		fw.stop()
		w.disk = vfs.NewCrashableMem()
		delete(w.snapshots, internalrecord.CheckpointKey) // as for another fold
		fw = w.start()
		fw.run()
		wants(t, fw, want)
		fw.stop()
	}
}

// Events that waited for a release are in no snapshot, although the snapshots and the
// store reach further.
func TestAReleaseAfterARestartFoldsWhatWaited(t *testing.T) {
	for _, numbers := range [][4]int{{}, {1, 2, 3, 4}} {
		for _, lost := range []bool{false, true} {
			w := newCounts(t, nil)
			w.counted("k", numbers[0], 0, "a")
			w.poison("k")
			w.counted("k", numbers[1], 0, "b")
			w.counted("j", 0, 0, "c")
			w.counted("k", numbers[2], 0, "d")
			fw := w.start()
			fw.run()
			fw.stop()
			if lost {
				w.disk = vfs.NewCrashableMem()
			}
			fw = w.start()
			fw.run()
			wants(t, fw, map[string]string{"k": "blocked a", "j": "c"})
			if r := fw.release("k", true); r.Events != 3 || r.Blocked != nil {
				t.Errorf("%+v", r)
			}
			w.counted("k", numbers[3], 0, "e")
			fw.run()
			wants(t, fw, map[string]string{"k": "a b d e", "j": "c"})
			same(t, "snapshots", w.published(), fw.states())
			fw.stop()
		}
	}
}

func TestAReleaseWithSkipIgnoresAGap(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 1, 0, "a")
	w.counted("k", 3, 0, "c")
	w.counted("k", 4, 0, "d")
	for range 10 {
		w.counted("j", 0, 0, "x")
	}
	w.counted("k", 5, 0, "e")
	fw := w.start()
	fw.run()
	if got := fw.texts()["k"]; got != "blocked a" {
		t.Fatalf("%q", got)
	}
	if r := fw.release("k", false); r.Blocked == nil || r.Blocked.Reason != string(internalrecord.ReasonGap) {
		t.Errorf("%+v: the missing event is not there yet", r)
	}
	if r := fw.release("k", true); r.Blocked != nil || fw.texts()["k"] != "gap a c d e" {
		t.Errorf("%+v: %q", r, fw.texts()["k"])
	}
	w.counted("k", 2, 0, "b") // too late
	fw.run()
	if got := fw.texts()["k"]; got != "gap a c d e" {
		t.Errorf("%q", got)
	}
	fw.stop()
	w.disk, w.snapshots = vfs.NewCrashableMem(), map[string]pipeline.Record{internalrecord.SkippedKey: w.snapshots[internalrecord.SkippedKey]}
	fw = w.start()
	fw.run()
	if got := fw.texts()["k"]; got != "gap a c d e" {
		t.Errorf("folded again: %q", got)
	}
	fw.stop()
	if _, _, err := fw.ps.release(t.Context(), fw.projection(), "k", true, fw.decoder()); err == nil {
		t.Error("an aggregate that is not blocked was released")
	}
}
