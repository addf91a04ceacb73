package projection

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/projectiontest"
)

// publishEverything makes a worker publish internal records of all kinds, and snapshots.
func publishEverything(w *world) {
	w.counted("k", 0, 0, "a")
	w.poison("k")
	w.poison("j")
	w.counted("j", 0, 0, "b")
	w.counted("i", 0, 10*time.Hour, "new")
	w.counted("i", 0, 0, "late")
	fw := w.start()
	fw.run()
	fw.release("j", true)
	w.counted("i", 0, 20*time.Hour, "newer")
	fw.run()
	w.counted("i", 0, 20*time.Hour, "newest") // windows are deleted with the flush after it
	fw.run()
	fw.stop()
}

// Sinks decode every value on the snapshots topic by its schema.
func TestEveryRecordOnTheSnapshotsTopicIsThatOfAnAggregate(t *testing.T) {
	w := newCounts(t, hours(0, 3*time.Hour))
	publishEverything(w)
	nulls := 0
	for _, r := range w.committedSnapshots {
		if err := w.fold.CheckStateID(r.Key); err != nil {
			t.Errorf("the key %q: %v", r.Key, err)
		}
		if r.Value == nil {
			nulls++
			continue
		}
		var a fold.Aggregate
		_, body, err := codec.Unframe(&r)
		if err == nil {
			err = w.fold.ReadSnapshot(body, r.Key, &a)
		}
		if err != nil {
			t.Errorf("the value of %q: %v", r.Key, err)
		}
	}
	kinds := map[internalrecord.Kind]int{}
	for _, r := range w.committedInternal {
		kind, _ := internalrecord.KindOf(r.Key)
		kinds[kind]++
	}
	for _, kind := range []internalrecord.Kind{internalrecord.OfCheckpoint, internalrecord.OfBlocked, internalrecord.OfSkipped, internalrecord.OfSent} {
		if kinds[kind] == 0 {
			t.Errorf("no internal record is of kind %d: %v", kind, kinds)
		}
	}
	if nulls == 0 || kinds[internalrecord.Other] > 0 || len(kinds) != 4 {
		t.Errorf("%d deletions, internal records %v", nulls, kinds)
	}
}

// Workers of an earlier release, too, continue such a version.
func TestAVersionOfAnEarlierReleaseKeepsItsInternalRecordsOnTheSnapshotsTopic(t *testing.T) {
	w := newCounts(t, hours(0, 3*time.Hour))
	w.internal = false
	publishEverything(w)
	if n := len(w.committedInternal); n > 0 {
		t.Errorf("%d records are on a topic of their own", n)
	}
	c, err := internalrecord.DecodeCheckpoint(w.snapshots[internalrecord.CheckpointKey].Value)
	if err != nil || c.Transaction != "" || c.SnapshotsID != "" {
		t.Errorf("the checkpoint is %+v, %v", c, err)
	}
	for _, r := range w.committedSnapshots {
		if len(r.Headers) > 0 {
			t.Errorf("the record of %q has the headers %v", r.Key, r.Headers)
		}
	}
	fw := w.restored()
	if !strings.Contains(fw.logged.String(), "restored from snapshots") {
		t.Errorf("logged %s", fw.logged.String())
	}
	fw.stop()
}

// A follower that mixes the internal records of one transaction with the states of a later
// one would fold events of a released aggregate twice.
func TestAFollowerRestoresAsOfTheEndOfOneTransaction(t *testing.T) {
	for _, skip := range []bool{true, false} {
		for _, partly := range []bool{true, false} {
			t.Run(fmt.Sprintf("skip %v, partly %v", skip, partly), func(t *testing.T) {
				w := newCounts(t, nil)
				w.counted("k", 1, 0, "a")
				w.poison("k")
				w.counted("k", 2, 0, "b")
				w.counted("j", 2, 0, "second") // waits for the first
				owner := w.start()
				owner.run()
				if !skip {
					other := newCounts(t, nil)
					other.counted("k", 2, 0, "repaired")
					w.log[1].Value = other.log[0].Value
				}
				reads := 0
				w.settling = func() {
					switch reads++; reads {
					case 2: // between the internal records and the snapshots
						owner.release("k", skip)
						w.counted("j", 1, 0, "first")
						owner.run()
					case 3:
						w.counted("k", 3, 0, "c")
						owner.run()
					}
				}
				if partly { // another transaction is open, so the end of the last one is not readable
					w.visible = func(topic string, end int64) int64 {
						if topic == projectiontest.SnapshotsTopic && reads == 2 {
							return end - 1
						}
						return end
					}
				}
				beside := w.follow(vfs.NewCrashableMem())
				w.settling, w.visible = nil, nil
				if reads != 4 {
					t.Errorf("%d reads, want 4: the internal records, the snapshots, and the rest of both", reads)
				}
				if !strings.Contains(beside.logged.String(), "restored from snapshots") {
					t.Errorf("logged %s", beside.logged.String())
				}
				beside.catchUp()
				w.counted("k", 4, 0, "d")
				owner.run()
				beside.catchUp()
				want := "a b c d"
				if !skip {
					want = "a repaired c d" // b has the number of the repaired event
				}
				wants(t, beside.foldWorker, map[string]string{"k": want, "j": "first second"})
				same(t, "the follower", beside.everything(), owner.everything())
				beside.leave()
				owner.stop()
			})
		}
	}
}

// A checkpoint would claim states that were on a topic that is gone.
func TestACheckpointIsAboutTheSnapshotsOfItsTopicOnly(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.run()
	fw.stop()
	w.loseTopic(projectiontest.SnapshotsTopic)
	fw = w.start()
	if fw.at != 0 {
		t.Errorf("it continues from offset %d, want 0", fw.at)
	}
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}

func TestSnapshotsWithoutInternalRecordsAreFoldedAgainFromTheLog(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	fw := w.start()
	fw.run()
	fw.stop()
	w.loseTopic(internalTopic)
	fw = w.start()
	if fw.at != 0 {
		t.Errorf("it continues from offset %d, want 0", fw.at)
	}
	fw.run()
	same(t, "store", fw.states(), w.folded())
	fw.stop()

	w.loseTopic(internalTopic)
	w.logStart = 5
	fw, err := w.tryStart()
	want := "shop.user.snapshots.internal, partition 0, has no checkpoint for the snapshots on shop.user.snapshots, and shop.events starts at 5: the states cannot be folded again from it. Restore the records of shop.user.snapshots.internal, or delete shop.user.snapshots to start over from what is left"
	if err == nil || pipeline.ClassOf(err) != pipeline.ClassFatal || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v, want %s", err, want)
	}
	fw.close()
}

// Otherwise a later restore would block the aggregate again, with events that are gone.
func TestStatesThatAreFoldedAgainReplaceTheRecordsOfBlockedAggregates(t *testing.T) {
	for _, killed := range []bool{false, true} {
		w := newCounts(t, nil)
		w.poison("k")
		w.counted("k", 0, 0, "a")
		w.counted("k", 0, 0, "b")
		fw := w.start()
		fw.run()
		fw.stop()
		if _, ok := w.snapshots[internalrecord.BlockedKey("k")]; !ok {
			t.Fatal("k is not blocked")
		}
		w.loseTopic(projectiontest.SnapshotsTopic)
		w.logStart = 1
		fw = w.start()
		if killed {
			fw.close()
			fw = w.start()
		}
		fw.run()
		wants(t, fw, map[string]string{"k": "a b"})
		fw.stop()
		if r, ok := w.snapshots[internalrecord.BlockedKey("k")]; ok {
			t.Errorf("k is still blocked on the topic: %s", r.Value)
		}
		fw = w.restored()
		wants(t, fw, map[string]string{"k": "a b"})
		fw.stop()
	}
}

// Only the records that belong on a topic count. Another program may have written others.
func TestRecordsOnTheWrongTopicOfAProjectionAreSkipped(t *testing.T) {
	w := newWorld(t)
	w.some(10)
	fw := w.start()
	fw.run()
	want := fw.states()
	fw.stop()
	w.write(&pipeline.Record{Topic: projectiontest.SnapshotsTopic, Key: []byte("\x00other"), Value: []byte("x")})
	w.write(&pipeline.Record{Topic: internalTopic, Key: []byte("u-x"), Value: []byte("x")})
	beside := w.follow(vfs.NewCrashableMem())
	if n := beside.unreadable(); n != 2 {
		t.Errorf("%v records are counted as unreadable, want 2", n)
	}
	w.write(&pipeline.Record{Topic: projectiontest.SnapshotsTopic, Key: []byte(internalrecord.CheckpointKey), Value: []byte("{")})
	w.write(&pipeline.Record{Topic: internalTopic, Key: []byte("u-1")})
	beside.catchUp()
	same(t, "the follower", beside.states(), want)
	if ids := beside.dueEntries(); ids > 0 {
		t.Errorf("%d entries are due", ids)
	}
	beside.leave()
	fw = w.start()
	if got := slices.Sorted(func(yield func(string) bool) {
		for id := range fw.states() {
			if !yield(id) {
				return
			}
		}
	}); slices.Contains(got, "u-x") {
		t.Errorf("the states are of %v", got)
	}
	fw.stop()
}
