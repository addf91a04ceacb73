package projection

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/pipeline"
)

// acceptLoss makes the workers of a world continue without events that are deleted.
func (w *world) acceptLoss() { w.configure = func(cfg *Config) { cfg.AcceptLoss = true } }

// unread returns the ranges that the partition has not read, as answers show them.
func (fw *foldWorker) unread() (out []string) {
	for _, p := range fw.ps.AssignedPartitions(fw.projection()) {
		for _, r := range p.At(0).Unread {
			out = append(out, fmt.Sprintf("%d-%d", r.From, r.To))
			if r.Noticed.Std().IsZero() {
				fw.t.Error("the time when the range was noticed is missing")
			}
		}
	}
	return out
}

func (fw *foldWorker) wantUnread(want ...string) {
	fw.t.Helper()
	if got := fw.unread(); !slices.Equal(got, want) {
		fw.t.Errorf("unread: %v, want %v", got, want)
	}
}

// deletedWorld has a projection that has read three events of five. Then the log deletes
// all but the last. before is the disk after the second event.
func deletedWorld(t *testing.T) (w *world, before *vfs.MemFS) {
	t.Helper()
	w = newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.counted("k", 0, 0, "b")
	fw := w.start()
	fw.run()
	fw.stop()
	before = w.disk.CrashClone(vfs.CrashCloneCfg{})
	w.counted("j", 0, 0, "x")
	fw = w.start()
	fw.run()
	fw.stop()
	w.counted("k", 0, 0, "c")
	w.counted("k", 0, 0, "d")
	w.logStart = 4
	return w, before
}

func TestAPartitionContinuesWithoutDeletedEventsIfTheOperatorAcceptsIt(t *testing.T) {
	for _, test := range []struct {
		name string
		disk func(w *world, before *vfs.MemFS) *vfs.MemFS
	}{
		{"the store is intact", func(w *world, _ *vfs.MemFS) *vfs.MemFS { return w.disk }},
		{"the store is lost", func(*world, *vfs.MemFS) *vfs.MemFS { return vfs.NewCrashableMem() }},
		{"the store is behind the snapshots", func(_ *world, before *vfs.MemFS) *vfs.MemFS { return before }},
		{"the store is intact, and the group's offset was reset", func(w *world, _ *vfs.MemFS) *vfs.MemFS {
			w.committed = w.logStart
			return w.disk
		}},
		{"the store is intact, and the group's offset is forgotten", func(w *world, _ *vfs.MemFS) *vfs.MemFS {
			w.committed = -1
			return w.disk
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, before := deletedWorld(t)
			w.disk = test.disk(w, before)
			kept := w.disk.CrashClone(vfs.CrashCloneCfg{})
			fw, err := w.tryStart()
			if pipeline.ClassOf(err) != pipeline.ClassFatal || !strings.Contains(err.Error(), "--accept-loss") {
				t.Fatalf("without the flag: %v", err)
			}
			fw.close()

			w.disk = kept
			w.acceptLoss()
			fw = w.start()
			fw.wantUnread("3-4")
			if n := testutil.ToFloat64(fw.projection().metrics.Unread); n != 1 {
				t.Errorf("the metric says %v offsets, want 1", n)
			}
			if !strings.Contains(fw.logged.String(), "from=3 to=4 offsets=1") {
				t.Errorf("the log does not have the range:\n%s", fw.logged.String())
			}
			fw.run()
			wants(t, fw, map[string]string{"k": "a b d", "j": "x"})
			fw.stop()

			// Neither a restart nor a restore needs the flag again, and both show the range.
			w.configure = nil
			fw = w.start()
			fw.wantUnread("3-4")
			fw.stop()
			fw = w.restored()
			fw.wantUnread("3-4")
			wants(t, fw, map[string]string{"k": "a b d", "j": "x"})
			fw.stop()
			beside := w.follow(vfs.NewCrashableMem())
			beside.wantUnread("3-4")
			beside.catchUp()
			wants(t, beside.foldWorker, map[string]string{"k": "a b d", "j": "x"})
			beside.leave()
		})
	}
}

// Without events, too, a checkpoint has the range, so that a restore finds it.
func TestADeletedRangeIsPublishedWithoutAnotherEvent(t *testing.T) {
	w, _ := deletedWorld(t)
	w.logStart = int64(len(w.log))
	kept := w.disk.CrashClone(vfs.CrashCloneCfg{})
	w.acceptLoss()
	w.start().close() // it ends before it publishes
	fw := w.start()
	fw.quiet(true)
	fw.stop()
	w.configure = nil
	fw = w.restored()
	fw.wantUnread("3-5")
	wants(t, fw, map[string]string{"k": "a b", "j": "x"})
	fw.stop()

	// The old store has less than the snapshots claim now.
	w.disk = kept
	fw = w.start()
	fw.wantUnread("3-5")
	fw.stop()
}

func TestSeveralDeletedRangesAreShown(t *testing.T) {
	w, _ := deletedWorld(t)
	w.acceptLoss()
	fw := w.start()
	fw.run()
	fw.stop()
	w.counted("j", 0, 0, "y")
	w.counted("j", 0, 0, "z")
	w.logStart = 6
	fw = w.start()
	fw.run()
	fw.wantUnread("3-4", "5-6")
	wants(t, fw, map[string]string{"k": "a b d", "j": "x z"})
	fw.stop()
}

// A follower never accepts a loss by itself: it waits until the snapshots of the owner are
// past the range.
func TestAFollowerContinuesWithTheRangeOfItsOwner(t *testing.T) {
	w, before := deletedWorld(t)
	w.acceptLoss()
	owner := w.start()
	owner.run()
	owner.stop()
	w.configure = nil
	beside := w.follow(before)
	beside.wantUnread("3-4")
	beside.catchUp()
	wants(t, beside.foldWorker, map[string]string{"k": "a b d", "j": "x"})
	beside.leave()
}

func TestAFirstFoldOfALogWithoutItsBeginningShowsWhatItLacks(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.counted("k", 0, 0, "b")
	w.logStart = 1
	fw := w.start()
	fw.run()
	fw.wantUnread("0-1")
	wants(t, fw, map[string]string{"k": "b"})
	fw.stop()
}

// The dead letter of a late event needs the event. Without it, the partition opens all the
// same, and the log has the loss.
func TestALateEventThatIsDeletedBeforeItsDeadLetterIsReported(t *testing.T) {
	w := newCounts(t, hours(0, 0))
	w.counted("k", 0, 0, "a")
	w.counted("k", 0, 3*time.Hour, "b")
	w.counted("k", 0, time.Minute, "late")
	fw := w.start()
	fw.batch(3)
	fw.stop() // stored, and not committed
	w.counted("k", 0, 3*time.Hour, "c")
	w.logStart = 3
	fw = w.start()
	fw.run()
	if len(w.letters) != 0 {
		t.Errorf("%d dead letters of an event that is deleted", len(w.letters))
	}
	if !strings.Contains(fw.logged.String(), "late events were deleted from the log before their dead letters were written") {
		t.Errorf("the log does not have it:\n%s", fw.logged.String())
	}
	fw.wantUnread()
	fw.stop()
}
