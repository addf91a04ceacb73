package projection

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/states"
)

// garbage writes a record of another program to the topic of its key.
func (w *world) garbage(key string, value []byte) {
	w.write(&pipeline.Record{Topic: w.publishedTo(key), Key: []byte(key), Value: value, Time: time.UnixMilli(1)})
}

// restored loses the store of a stopped worker and starts a new one, from the snapshots.
func (w *world) restored() *foldWorker {
	w.t.Helper()
	w.disk = vfs.NewCrashableMem()
	fw := w.start()
	fw.run()
	return fw
}

func (fw *foldWorker) unreadable() float64 {
	return testutil.ToFloat64(fw.projection().metrics.Unreadable)
}

// An unreadable snapshot blocks its aggregate and no other. A release computes it again
// from the log, and replaces the record.
func TestAnUnreadableSnapshotBlocksItsAggregate(t *testing.T) {
	for _, test := range []struct {
		name, key string
		value     []byte
		blocked   string // the state while it is blocked, as listed
	}{
		{"no frame", "k", []byte("{"), ""},
		{"a frame without a snapshot", "k", append([]byte{0, 0, 0, 0, 100}, "\xff\xff\xff"...), ""},
		{"a blocked record", internalrecord.BlockedKey("k"), []byte("{"), "blocked a b"},
		{"a blocked record of another aggregate", internalrecord.BlockedKey("k"), []byte(`{"id":"other","offset":1,"since":2}`), "blocked a b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newCounts(t, nil)
			w.counted("k", 1, 0, "a")
			w.counted("j", 1, 0, "x")
			w.counted("k", 2, 0, "b")
			fw := w.start()
			fw.run()
			fw.stop()
			w.garbage(test.key, test.value)
			w.counted("k", 3, 0, "c")
			w.counted("j", 2, 0, "y")
			fw = w.restored()
			want := map[string]string{"j": "x y"}
			if test.blocked != "" {
				want["k"] = test.blocked
			}
			wants(t, fw, want)
			if n := fw.unreadable(); n != 1 {
				t.Errorf("%v unreadable records are counted, want 1", n)
			}
			_, _, q, found := fw.ps.findBlocked(fw.projection(), "k")
			if !found || q.Reason != internalrecord.ReasonBadSnapshot || q.Queued != 1 || !strings.Contains(q.Error, "cannot be read") {
				t.Errorf("blocked: %+v (%v)", q, found)
			}
			fw.stop()
			fw = w.restored() // again, from what the first restore published
			wants(t, fw, want)
			out := fw.release("k", false)
			if out.Events != 3 || out.Blocked != nil {
				t.Errorf("released: %+v", out)
			}
			wants(t, fw, map[string]string{"k": "a b c", "j": "x y"})
			fw.quiet(true)
			fw.stop()
			fw = w.restored()
			wants(t, fw, map[string]string{"k": "a b c", "j": "x y"})
			if n := fw.unreadable(); n != 0 {
				t.Errorf("%v unreadable records are left", n)
			}
			fw.stop()
		})
	}
}

// A record of an aggregate that never existed is deleted by a release.
func TestAReleaseDeletesTheSnapshotOfNothing(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 1, 0, "a")
	fw := w.start()
	fw.run()
	fw.stop()
	w.garbage("ghost", []byte("{"))
	fw = w.restored()
	if out := fw.release("ghost", false); out.Events != 0 || out.Blocked != nil {
		t.Errorf("released: %+v", out)
	}
	fw.quiet(true)
	if _, ok := w.snapshots["ghost"]; ok {
		t.Error("the record is still there")
	}
	fw.stop()
	fw = w.restored()
	wants(t, fw, map[string]string{"k": "a"})
	fw.stop()
}

// If the log has lost its beginning, a release without skip does not compute a state
// that lacks events.
func TestALostAggregateIsNotFoldedFromAPartOfTheLog(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.counted("k", 0, 0, "b")
	fw := w.start()
	fw.run()
	fw.stop()
	w.garbage("k", []byte("{"))
	w.configure = func(cfg *Config) {
		cfg.LogStart = func(context.Context, string, int32) (int64, error) { return 1, nil }
	}
	fw = w.restored()
	_, err := fw.ps.Release(t.Context(), fw.projection(), "k", false)
	if err == nil || !strings.Contains(err.Error(), "starts at offset 1") {
		t.Errorf("release: %v", err)
	}
	if out := fw.release("k", true); out.Events != 2 || out.Blocked != nil { // this world's log has everything
		t.Errorf("release with skip: %+v", out)
	}
	fw.stop()
}

// A record that cannot concern an aggregate is skipped, and an earlier checkpoint is
// still valid.
func TestOtherUnreadableRecordsAreSkipped(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("j")
	fw := w.start()
	fw.run()
	fw.release("j", true)
	fw.quiet(true)
	fw.stop()
	n := 0
	for key, value := range map[string]string{
		"\xff\xfe\x00": "{", internalrecord.CheckpointKey + " ": "{", internalrecord.SentKey: "{", internalrecord.SkippedKey: "{", internalrecord.BlockedKey("\xff"): "{", "": "x", strings.Repeat("k", 2000): "x",
	} {
		w.garbage(key, []byte(value))
		n++
	}
	w.garbage(internalrecord.CheckpointKey+"x", []byte("{")) // unknown reserved keys are not counted
	fw = w.restored()
	wants(t, fw, map[string]string{"k": "a"})
	if got := fw.unreadable(); got != float64(n-1) {
		t.Errorf("%v unreadable records are counted, want %d", got, n-1)
	}
	fw.stop()
}

// With any records on the snapshots topic, a worker starts, a follower follows, and every
// aggregate that is not blocked is right.
func TestGarbageOnTheSnapshotsTopicStopsNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newCounts(t, func(s *fold.Spec) {
			if rapid.Bool().Draw(rt, "windows") {
				s.Window = fold.Window{Size: time.Hour, Every: time.Hour}
			}
		})
		w.history = rapid.Bool().Draw(rt, "history")
		more := func() {
			for range rapid.IntRange(1, 10).Draw(rt, "events") {
				w.counted(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "id"), 0, time.Duration(len(w.log))*time.Minute, fmt.Sprint("t", len(w.log)))
			}
		}
		more()
		fw := w.start()
		fw.run()
		beside := w.follow(vfs.NewCrashableMem())
		key := rapid.OneOf(rapid.SampledFrom([]string{"a", "b", "a@2026-01-01T10:00:00Z", internalrecord.CheckpointKey, internalrecord.SentKey, internalrecord.SkippedKey, internalrecord.BlockedKey("a"), internalrecord.BlockedKey(""), "\x00", "\xff\xfe\x00"}), rapid.String(),
			rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 4), func(b []byte) string { return string(b) }))
		value := rapid.OneOf(rapid.SampledFrom([]string{"", "{", "{}", "null", "[]", "[-1]", "1e9", "-1", `{"id":"a"}`, `{"fold":"x","next":-1}`, `{"fold":"x","next":9223372036854775807}`, "\x00\x00\x00\x00\x64"}), rapid.String())
		lost := false
		for range rapid.IntRange(1, 5).Draw(rt, "garbage") {
			k, v := key.Draw(rt, "key"), []byte(value.Draw(rt, "value"))
			if rapid.IntRange(0, 9).Draw(rt, "null") == 0 {
				v = nil
			}
			lost = lost || k == internalrecord.CheckpointKey || v == nil
			w.garbage(k, v)
		}
		more()
		fw.run()
		beside.catchUp()
		beside.leave()
		fw.stop()
		w.t = t
		fw = w.restored()
		defer fw.stop()
		want := w.folded()
		if w.fold.Window().Size > 0 || lost {
			return // folded knows no windows; a null deletes
		}
		u := fw.ps.assignedUnits()[0]
		for id, state := range fw.states() {
			if q := u.lanes[0].own.blocked[id]; q == nil && state != want[id] {
				rt.Fatalf("%q is %q, want %q", id, state, want[id])
			}
		}
		for id := range want {
			if _, ok := fw.entries(states.FamilyState)[id]; !ok && u.lanes[0].own.blocked[id] == nil {
				rt.Fatalf("%q is gone", id)
			}
			if u.lanes[0].own.blocked[id] == nil {
				continue
			}
			fw.release(id, false)
			if got := fw.states()[id]; got != want[id] {
				rt.Fatalf("%q is released as %q, want %q", id, got, want[id])
			}
		}
	})
}

// A binary key without an envelope is no id: the event is rejected, nothing is published
// under it, and the others continue, also after a restore.
func TestABinaryKeyBlocksNothing(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 1, 0, "a")
	w.poison("\xff\xfe\x00")
	w.counted("k", 2, 0, "b")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k": "a b"})
	if n := testutil.ToFloat64(fw.projection().metrics.Events[measure.Rejected]); n != 1 || !strings.Contains(fw.logged.String(), "its aggregate is unknown") {
		t.Errorf("%v events are rejected, want 1: %s", n, fw.logged.String())
	}
	fw.stop()
	fw = w.restored()
	wants(t, fw, map[string]string{"k": "a b"})
	fw.stop()
}

// A record may have a time that JSON cannot have.
func TestABlockedRecordHasAnyTime(t *testing.T) {
	w := newCounts(t, nil)
	w.poison("k")
	w.log[0].Time = time.UnixMilli(1 << 60)
	w.poison("j")
	w.log[1].Time = time.UnixMilli(-1 << 60)
	fw := w.start()
	fw.run()
	fw.stop()
	fw = w.restored()
	for id, millis := range map[string]int64{"k": 1 << 60, "j": -1 << 60} {
		if _, _, q, ok := fw.ps.findBlocked(fw.projection(), id); !ok || !q.Time.Std().Equal(time.UnixMilli(millis)) {
			t.Errorf("%s: %+v (%v)", id, q, ok)
		}
	}
	fw.stop()
}

// The time of an event may be far ahead of the clock, which a broker refuses for the time
// of a record, or before 1970. Its snapshot has the event time in its body.
func TestASnapshotIsNeverRefusedForItsTime(t *testing.T) {
	w := newCounts(t, nil)
	w.clock = newFakeClock()
	now := w.clock.now()
	for id, at := range map[string]time.Time{"ahead": now.Add(2 * time.Hour), "far": time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), "old": time.Date(1816, 1, 1, 0, 0, 0, 0, time.UTC), "usual": now.Add(-time.Hour)} {
		w.counted(id, 0, 0, "t")
		r := &w.log[len(w.log)-1]
		r.Value = projectiontest.CountedAt(id, at.UnixMicro(), "t "+id)
	}
	fw := w.start()
	fw.run()
	for id, want := range map[string]time.Time{"ahead": now, "far": now, "old": time.UnixMicro(0), "usual": now.Add(-time.Hour)} {
		r := w.snapshots[id]
		if !r.Time.Equal(want.Truncate(time.Microsecond)) {
			t.Errorf("the snapshot %s has the time %v, want %v", id, r.Time, want)
		}
	}
	var a fold.Aggregate
	if r := w.snapshots["far"]; w.fold.ReadSnapshot(r.Value[5:], []byte("far"), &a) != nil || time.UnixMicro(a.EventTime).UTC().Year() != 9999 {
		t.Errorf("the event time is %v", time.UnixMicro(a.EventTime))
	}
	fw.stop()
}
