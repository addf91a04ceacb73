package projection

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/topology"
)

// followWorker follows the world's partition, step by step, on a disk of its own.
type followWorker struct {
	*foldWorker
	own   *vfs.MemFS
	h     *Follower
	heard map[string]int64 // next offset of each topic of the owner to be read
}

// follow starts a follower on a disk.
func (w *world) follow(disk *vfs.MemFS) *followWorker {
	w.t.Helper()
	outer := w.configure
	w.configure = func(cfg *Config) {
		if outer != nil {
			outer(cfg)
		}
		cfg.Follows, cfg.Metrics = true, nil
		cfg.Ends = func(context.Context, string, int32) (int64, error) { return int64(len(w.log)), nil }
	}
	fw := &followWorker{foldWorker: w.open(disk), own: disk}
	w.configure = outer
	fw.h = fw.ps.NewFollower()
	fw.handler = fw.h.handler
	at := kafka.Partition{Topic: projectiontest.EventsTopic, Committed: -1, Start: w.logStart, End: int64(len(w.log))}
	from, err := fw.ps.OpenFollowed(w.t.Context(), at, func(context.Context, string) (int64, error) { return 0, nil })
	if err != nil {
		w.t.Fatal(err)
	}
	fw.at, fw.heard = from.From, from.Snapshots
	return fw
}

// take reads at most so many events, and so many records of the owner.
func (fw *followWorker) take(events, heard int) {
	fw.t.Helper()
	for _, topic := range slices.Sorted(maps.Keys(fw.heard)) {
		fw.hear(topic, heard)
	}
	for ; events > 0 && fw.at < int64(len(fw.log)); events-- {
		if err := fw.h.Handle(fw.t.Context(), &fw.log[fw.at]); err != nil {
			fw.t.Fatal(err)
		}
		fw.at++
	}
	if err := fw.h.EndBatch(fw.t.Context()); err != nil {
		fw.t.Fatal(err)
	}
}

// hear reads at most so many records of a topic of the owner.
func (fw *followWorker) hear(topic string, n int) {
	fw.t.Helper()
	for all := *fw.records(topic); n > 0 && fw.heard[topic] < int64(len(all)); n-- {
		if err := fw.h.Handle(fw.t.Context(), &all[fw.heard[topic]]); err != nil {
			fw.t.Fatal(err)
		}
		fw.heard[topic]++
	}
}

// unheard returns the number of records of the owner that were not read.
func (fw *followWorker) unheard() (n int64) {
	for topic, next := range fw.heard {
		n += int64(len(*fw.records(topic))) - next
	}
	return n
}

// catchUp reads everything.
func (fw *followWorker) catchUp() {
	fw.t.Helper()
	for fw.at < int64(len(fw.log)) || fw.unheard() > 0 {
		fw.take(7, 10)
	}
}

// leave leaves the partition and closes the store.
func (fw *followWorker) leave() {
	fw.t.Helper()
	fw.ps.Leave(Key{projectiontest.EventsTopic, 0})
	fw.close()
}

// everything is what a follower must have exactly as the owner has it.
func (fw *foldWorker) everything() map[string]string {
	out := fw.kept()
	for key, value := range fw.index() {
		out["index "+key] = value
	}
	return out
}

// shakeBeside runs an owner and a follower through random crashes, aborts, losses and
// hand-overs. It returns the last owner and the last follower.
func (w *world) shakeBeside(rt *rapid.T, add func(n int)) (*foldWorker, *followWorker) {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
	owner, beside := w.start(), w.follow(vfs.NewCrashableMem())
	for range rapid.IntRange(0, 20).Draw(rt, "steps") {
		start := owner.at
		switch rapid.SampledFrom([]string{"batch", "batch", "batch", "abort", "kill", "follow", "follow", "follow", "follow", "leave", "kill follower", "lose follower", "hand over", "more", "more"}).Draw(rt, "step") {
		case "batch":
			owner.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
			owner.commit()
			owner.handler.EndBatch(true)
		case "abort":
			owner.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
			owner.abort(start)
		case "kill":
			owner.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
			if rapid.Bool().Draw(rt, "committed, but the worker does not know") {
				owner.commit()
			}
			owner.kill(rng, rapid.SampledFrom([]int{50, 100}).Draw(rt, "left"))
			owner = w.start()
		case "follow":
			for _, topic := range slices.Sorted(maps.Keys(beside.heard)) { // one may be behind the other
				beside.hear(topic, rapid.IntRange(0, 30).Draw(rt, "heard of "+topic))
			}
			beside.take(rapid.IntRange(0, 12).Draw(rt, "events"), 0)
		case "leave":
			beside.leave()
			beside = w.follow(beside.own)
		case "kill follower":
			left := beside.own.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rapid.SampledFrom([]int{50, 100}).Draw(rt, "left"), RNG: rng})
			beside.close()
			beside = w.follow(left)
		case "lose follower":
			beside.close()
			w.settling = func() { // the owner publishes while the follower restores
				if rapid.Bool().Draw(rt, "meanwhile") {
					owner.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
					owner.commit()
					owner.handler.EndBatch(true)
				}
			}
			beside = w.follow(vfs.NewCrashableMem())
			w.settling = nil
		case "hand over": // the former owner follows from then on
			if rapid.Bool().Draw(rt, "as the owner was killed") {
				owner.batch(rapid.IntRange(1, 12).Draw(rt, "n"))
				if rapid.Bool().Draw(rt, "having committed") {
					owner.commit()
				}
				owner.close()
			} else {
				owner.stop()
			}
			beside.leave()
			theirs := w.disk
			w.disk = beside.own
			owner, beside = w.start(), w.follow(theirs)
		case "more":
			add(rapid.IntRange(1, 10).Draw(rt, "more"))
		}
	}
	return owner, beside
}

// compareBeside runs both to the end, in the same batches, and compares them, and then
// the owner with a worker that folds the log without interruptions.
func compareBeside(rt *rapid.T, w *world, owner *foldWorker, beside *followWorker, at time.Duration) {
	for _, text := range []string{"a", "b"} {
		owner.run()
		beside.catchUp()
		w.counted("beside", 0, at, text) // windows are deleted with the flush after it
	}
	owner.run()
	beside.catchUp()
	same(w.t, "the follower", beside.everything(), owner.everything())
	beside.leave()
	compare(rt, w, owner, at)
}

// Standbys and replicas depend on this: whatever happens to owner and follower, the
// follower has the owner's states and history byte for byte, and an owner that continues
// in a follower's store publishes the snapshots and dead letters that were not published.
func TestAFollowerHasWhatItsOwnerHasAfterAnyFailure(t *testing.T) {
	t.Run("numbers, gaps and poison", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			apply := rapid.Bool().Draw(rt, "apply")
			w := newCounts(t, func(s *fold.Spec) { s.ApplyGap, s.Wait = apply, 4 })
			w.history, w.seldom, w.internal = rapid.Bool().Draw(rt, "history"), rapid.Bool().Draw(rt, "seldom"), rapid.Bool().Draw(rt, "internal")
			w.publish = rapid.SampledFrom([]topology.Publish{{}, {Events: 10}}).Draw(rt, "publish")
			add := func(n int) { w.addRandomNumbered(rt, n) }
			add(rapid.IntRange(1, 30).Draw(rt, "events"))
			owner, beside := w.shakeBeside(rt, add)
			compareBeside(rt, w, owner, beside, 0)
		})
	})
	t.Run("windows", func(t *testing.T) {
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
					w.counted(fmt.Sprint("k-", rapid.IntRange(0, 2).Draw(rt, "id")), 0, clock.next(rt), fmt.Sprint("t", len(w.log)))
				}
			}
			add(rapid.IntRange(1, 30).Draw(rt, "events"))
			owner, beside := w.shakeBeside(rt, add)
			compareBeside(rt, w, owner, beside, clock.latest)
		})
	})
}

// An owner that is behind folds windows again that the owner before it has deleted. It does
// not publish them again: if the partition goes back, nobody would delete them.
func TestADeletedWindowIsNotPublishedByAnOwnerThatIsBehind(t *testing.T) {
	w := newCounts(t, func(s *fold.Spec) {
		s.Window = fold.Window{Size: time.Hour, Every: time.Hour, Retention: 3 * time.Hour}
	})
	w.counted("j", 0, 0, "older")
	w.counted("k", 0, 0, "old")
	w.counted("j", 0, 10*time.Hour, "new")
	first, behind := w.start(), w.follow(vfs.NewCrashableMem())
	behind.take(1, 0)
	first.run()
	w.counted("j", 0, 10*time.Hour, "newer") // windows are deleted with the flush after it
	first.run()
	const old = "k@2026-01-01T10:00:00Z"
	if _, ok := w.published()[old]; ok || !slices.Contains(w.writes, old) {
		t.Fatalf("the first owner wrote %v, and the snapshots are %v", w.writes, w.published())
	}
	first.stop()
	behind.leave()
	firsts := w.disk
	w.disk = behind.own
	second := w.start()
	second.batch(10)
	second.commit()
	second.handler.EndBatch(true)
	second.stop()

	w.disk = firsts
	third := w.start()
	third.run()
	if state, ok := w.published()[old]; ok {
		t.Errorf("the deleted window is published again: %q", state)
	}
	third.stop()
}

// Only the owner gets a release. The follower learns of it, whether it is ahead of the
// owner or behind.
func TestAFollowerReleasesWhatItsOwnerReleases(t *testing.T) {
	for _, when := range []string{"ahead", "behind", "restarted", "restored"} {
		for _, skip := range []bool{true, false} {
			w := newCounts(t, nil)
			w.counted("k", 0, 0, "a")
			w.poison("k")
			w.counted("k", 0, 0, "b")
			w.counted("j", 0, 0, "c")
			owner, beside := w.start(), w.follow(vfs.NewCrashableMem())
			owner.run()
			if when != "behind" {
				beside.catchUp()
				wants(t, beside.foldWorker, map[string]string{"k": "blocked a", "j": "c"})
			}
			want := "a b"
			if !skip {
				other := newCounts(t, nil)
				other.counted("k", 0, 0, "repaired")
				w.log[1].Value, want = other.log[0].Value, "a repaired b"
			}
			if r := owner.release("k", skip); r.Blocked != nil {
				t.Fatalf("%+v", r)
			}
			w.counted("j", 0, 0, "d")
			owner.run()
			switch when {
			case "restarted":
				beside.leave()
				beside = w.follow(beside.own)
			case "restored":
				beside.leave()
				beside = w.follow(vfs.NewCrashableMem())
			}
			beside.catchUp()
			w.counted("k", 0, 0, "e")
			owner.run()
			beside.catchUp()
			wants(t, beside.foldWorker, map[string]string{"k": want + " e", "j": "c d"})
			same(t, when, beside.everything(), owner.everything())
			beside.leave()
			owner.stop()
		}
	}
}

// An owner that continues in a follower's store publishes what the previous owner did not
// publish, and nothing else.
func TestAnOwnerThatContinuesInAFollowersStorePublishesTheRest(t *testing.T) {
	w := newWorld(t)
	w.some(40)
	owner, beside := w.start(), w.follow(vfs.NewCrashableMem())
	owner.batch(20)
	owner.commit()
	owner.handler.EndBatch(true)
	beside.catchUp() // all 40, of which 20 are published
	before := len(w.writes)
	owner.close() // like a process that is killed
	beside.leave()
	w.disk = beside.own
	owner = w.start()
	if owner.at != 20 {
		t.Errorf("it reads from offset %d, want 20: everything below is published", owner.at)
	}
	owner.run()
	same(t, "snapshots", w.published(), w.folded())
	ids := map[string]bool{}
	for _, r := range w.log[20:] {
		if typ := int(r.Value[4]); typ != projectiontest.OrderCreated {
			ids[string(r.Key)] = true
		}
	}
	for _, key := range w.writes[before:] {
		if key != internalrecord.CheckpointKey && !ids[key] {
			t.Errorf("%q was published again", key)
		}
	}
	owner.stop()
}

// dueEntries returns the number of entries that a follower's store has as due.
func (fw *followWorker) dueEntries() int {
	return len(fw.entries(familyDue)) + len(fw.entries(familyLetter))
}

// What the owner has published is not due any more in a follower's store, which would
// grow without limit otherwise.
func TestAFollowersStoreDropsWhatItsOwnerPublished(t *testing.T) {
	for _, first := range []string{"the owner", "the follower"} {
		w := newCounts(t, hours(0, 2*time.Hour))
		owner, beside := w.start(), w.follow(vfs.NewCrashableMem())
		for hour := range 50 {
			w.counted("k", 0, time.Duration(hour)*time.Hour, fmt.Sprint(hour))
			w.counted("late", 0, 0, fmt.Sprint("late ", hour))
			if first == "the owner" {
				owner.run()
				beside.catchUp()
			} else {
				beside.catchUp()
				owner.run()
			}
		}
		for range 2 {
			w.counted("k", 0, 49*time.Hour, fmt.Sprint(len(w.log)))
			owner.run()
			beside.catchUp()
		}
		if len(w.letters) < 40 || len(w.published()) > 5 {
			t.Fatalf("%d dead letters, %d windows left: the test is useless", len(w.letters), len(w.published()))
		}
		if n := beside.dueEntries(); n > 2 {
			t.Errorf("%s first: %d entries are still due", first, n)
		}
		beside.leave()
		owner.stop()
	}
}
