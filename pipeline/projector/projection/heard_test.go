package projection

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/topology"
)

// law checks what is published: versions of states never go back, and an aggregate that
// was released is never blocked again by the same event.
type law struct {
	w        *world
	versions map[string]int64
	blocked  map[string]internalrecord.Place
	released map[string]bool // "id place"
	faults   []string
}

// obey makes the world check the law.
func (w *world) obey() *law {
	l := &law{w: w, versions: map[string]int64{}, blocked: map[string]internalrecord.Place{}, released: map[string]bool{}}
	w.wrote = l.take
	return l
}

func (l *law) take(r *pipeline.Record) {
	key := string(r.Key)
	id, isBlocked := strings.CutPrefix(key, internalrecord.BlockedKey(""))
	switch {
	case isBlocked:
		at, err := internalrecord.PlaceOf(id, r.Value)
		if err != nil {
			l.faults = append(l.faults, fmt.Sprintf("the record of the blocked aggregate %s is %s", id, r.Value))
		}
		if before, ok := l.blocked[id]; ok && before != internalrecord.Nowhere && !before.Same(at) {
			l.released[fmt.Sprint(id, before.Offset)] = true
		}
		if l.blocked[id] = at; l.released[fmt.Sprint(id, at.Offset)] {
			l.faults = append(l.faults, fmt.Sprintf("%s is blocked at %d again", id, at.Offset))
		}
	case strings.HasPrefix(key, fold.ReservedKeys) || r.Value == nil:
	default:
		var a fold.Aggregate
		if err := l.w.fold.ReadSnapshot(r.Value[5:], r.Key, &a); err != nil {
			l.w.t.Fatal(err)
		}
		if a.Version < l.versions[key] {
			l.faults = append(l.faults, fmt.Sprintf("the version of %s goes from %d to %d", key, l.versions[key], a.Version))
		}
		l.versions[key] = a.Version
	}
}

func (l *law) check(t interface{ Errorf(string, ...any) }, when string) {
	if len(l.faults) > 0 {
		t.Errorf("%s: %s", when, strings.Join(l.faults, "; "))
	}
	l.faults = nil
}

// step reads and commits up to n records.
func (fw *foldWorker) step(n int) {
	fw.t.Helper()
	fw.batch(n)
	fw.commit()
	fw.handler.EndBatch(true)
}

// blockedIDs returns the blocked aggregates, in order.
func (fw *foldWorker) blockedIDs() []string {
	fw.t.Helper()
	for _, u := range fw.ps.assignedUnits() {
		return slices.Sorted(maps.Keys(u.lanes[0].own.blocked))
	}
	return nil
}

// repair replaces an event that cannot be decoded.
func (w *world) repair(offset int) {
	w.log[offset].Value = projectiontest.Counted(string(w.log[offset].Key), 0, 0, fmt.Sprint("repaired", offset))
}

// A worker takes a partition over with a store from before a release that another owner
// made. What that owner released stays released.
func TestAReleaseSurvivesAHandOverToAnOlderStore(t *testing.T) {
	type scene struct {
		*world
		first *foldWorker // has made the release, and leaves then
	}
	for _, test := range []struct {
		name    string
		old     int // events that the old store has
		follows bool
		skip    bool
		more    func(*scene) // after the release, before it is published
		want    string
	}{
		{"skipped, and the event is not in the store", 1, false, true, nil, "a b z"},
		{"skipped, and the store has it blocked", 2, false, true, nil, "a b z"},
		{"skipped, and the store is at the group's offset", 4, false, true, nil, "a b z"},
		{"skipped, and the store is that of a follower", 4, true, true, nil, "a b z"},
		{"repaired, and the event is not in the store", 1, false, false, nil, "a repaired1 b z"},
		{"repaired, and the store has it blocked", 2, false, false, nil, "a repaired1 b z"},
		{"repaired, and the store is at the group's offset", 4, false, false, nil, "a repaired1 b z"},
		{"blocked again later", 2, false, true, func(s *scene) { s.poison("k"); s.counted("k", 0, 0, "c") }, "blocked a b"},
		{"blocked again later, with the store at the group's offset", 4, false, false, func(s *scene) { s.poison("k"); s.counted("k", 0, 0, "c") }, "blocked a repaired1 b"},
		{"released twice", 3, false, true, func(s *scene) {
			s.poison("k")
			s.first.step(10)
			s.first.release("k", true)
		}, "a b z"},
	} {
		for _, policy := range []topology.Publish{{}, {Events: 3}} {
			for _, history := range []bool{true, false} {
				for _, without := range []string{"", "the newest records", "sums", "the nulls"} {
					name := fmt.Sprintf("%s, published after %d events, history %v, without %s", test.name, policy.Events, history, without)
					w := newCounts(t, nil)
					w.publish, w.history = policy, history
					rules := w.obey()
					w.counted("k", 0, 0, "a")
					w.poison("k")
					w.counted("k", 0, 0, "b")
					w.counted("j", 0, 0, "j")
					old := vfs.NewCrashableMem()
					if test.follows {
						beside := w.follow(old)
						beside.take(test.old, 100)
						beside.leave()
					} else {
						w.disk = old
						second := w.start()
						second.step(test.old)
						second.stop()
					}
					w.disk = vfs.NewCrashableMem()
					s := &scene{world: w, first: w.start()}
					s.first.run()
					if !test.skip {
						w.repair(1)
					}
					s.first.release("k", test.skip)
					if test.more != nil {
						test.more(s)
					}
					s.first.finish()
					s.first.stop()
					rules.check(t, name+", first owner")
					switch without {
					case "the newest records":
						w.configure = func(c *Config) { c.Recent = nil }
					case "sums": // of an older release
						r := w.snapshots[internalrecord.CheckpointKey]
						c, err := internalrecord.DecodeCheckpoint(r.Value)
						if err != nil {
							t.Fatal(err)
						}
						text := string(r.Value)
						r.Value = []byte(strings.ReplaceAll(strings.ReplaceAll(text, fmt.Sprintf(`"skipped":"%s",`, c.Skipped), ""), fmt.Sprintf(`"blocked":"%s"`, c.Blocked), `"x":0`))
						w.snapshots[internalrecord.CheckpointKey] = r
					case "the nulls": // the world never has them
					}
					w.disk = old
					second := w.start()
					w.counted("k", 0, 0, "z")
					second.run()
					second.finish()
					rules.check(t, name)
					if got := second.texts()["k"]; got != test.want {
						t.Errorf("%s: the state is %q, want %q", name, got, test.want)
					}
					second.stop()
				}
			}
		}
	}
}

// hands are workers with stores of different age, one of which owns the partition.
type hands struct {
	*world
	disks []*vfs.MemFS
	now   int // of disks: the owner's
	owner *foldWorker
}

// take makes a worker the owner.
func (h *hands) take(i int) {
	h.disks[h.now] = h.world.disk
	h.now, h.world.disk = i, h.disks[i]
	h.owner = h.start()
}

// shake runs the workers through random releases, repairs, failures and hand-overs.
func (h *hands) shake(rt *rapid.T, add func(n int)) {
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
	for range rapid.IntRange(0, 25).Draw(rt, "steps") {
		n := rapid.IntRange(1, 12).Draw(rt, "n")
		switch rapid.SampledFrom([]string{"batch", "batch", "batch", "abort", "kill", "stop", "hand over", "hand over", "lose store", "fill", "fill", "follow", "release", "release", "release", "more"}).Draw(rt, "step") {
		case "batch":
			h.owner.step(n)
		case "abort":
			start := h.owner.at
			h.owner.batch(n)
			h.owner.abort(start)
		case "kill", "hand over":
			h.owner.batch(n)
			if rapid.Bool().Draw(rt, "committed, but the worker does not know") {
				h.owner.commit()
			}
			h.owner.kill(rng, rapid.SampledFrom([]int{50, 100}).Draw(rt, "left"))
			h.take(rapid.IntRange(0, len(h.disks)-1).Draw(rt, "next"))
		case "stop":
			h.owner.stop()
			h.take(rapid.IntRange(0, len(h.disks)-1).Draw(rt, "next"))
		case "lose store":
			h.owner.stop()
			h.world.disk = vfs.NewCrashableMem()
			h.owner = h.start()
		case "fill":
			h.owner.fillSome(n)
		case "follow":
			if i := rapid.IntRange(0, len(h.disks)-1).Draw(rt, "follower"); i != h.now {
				f := h.follow(h.disks[i])
				for range 3 {
					f.take(rapid.IntRange(0, 12).Draw(rt, "events"), rapid.IntRange(0, 30).Draw(rt, "heard"))
				}
				f.leave()
			}
		case "release":
			u := h.owner.ps.assignedUnits()[0]
			if ids := h.owner.blockedIDs(); len(ids) > 0 && u.canRelease(u.lanes[0]) == nil {
				id, skip := rapid.SampledFrom(ids).Draw(rt, "released"), rapid.Bool().Draw(rt, "skip")
				_, _, q, _ := h.owner.ps.findBlocked(h.owner.projection(), id)
				if !skip && len(h.log[q.Offset].Value) == len(projectiontest.Poison(0)) {
					h.repair(int(q.Offset))
				}
				h.owner.release(id, skip)
			}
		case "more":
			add(n)
		}
	}
}

// Whatever happens to workers with stores of different age: the versions of published
// states never go back, and what was released stays released. In the end, all workers have
// the same states.
func TestReleasesSurviveAnyHandOver(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		apply := rapid.Bool().Draw(rt, "apply")
		w := newCounts(t, func(s *fold.Spec) { s.ApplyGap, s.Wait = apply, 4 })
		w.history, w.seldom = rapid.Bool().Draw(rt, "history"), rapid.Bool().Draw(rt, "seldom")
		w.publish = rapid.SampledFrom([]topology.Publish{{}, {Events: 10}}).Draw(rt, "publish")
		rules := w.obey()
		add := func(n int) { w.addRandomNumbered(rt, n) }
		add(rapid.IntRange(1, 30).Draw(rt, "events"))
		h := &hands{world: w, disks: []*vfs.MemFS{w.disk, vfs.NewCrashableMem(), vfs.NewCrashableMem()}}
		h.owner = h.start()
		h.shake(rt, add)
		rules.check(rt, "on the way")
		h.owner.stop()
		for i := range h.disks { // what a worker has released and not published is published now
			h.take(i)
			h.owner.finish()
			rules.check(rt, fmt.Sprintf("worker %d", i))
			h.owner.stop()
		}
		var want map[string]string
		var blocked []string
		for i := range h.disks {
			h.take(i)
			h.owner.run()
			got := w.versions(h.owner.states())
			if i == 0 {
				h.owner.finish()
				got = w.versions(h.owner.states())
				want, blocked = got, h.owner.blockedIDs()
				equal(rt, "snapshots", w.versions(w.published()), want)
			}
			equal(rt, fmt.Sprintf("worker %d", i), got, want)
			if got := h.owner.blockedIDs(); !slices.Equal(got, blocked) {
				rt.Errorf("worker %d has %v as blocked, not %v", i, got, blocked)
			}
			rules.check(rt, fmt.Sprintf("worker %d", i))
			h.owner.stop()
		}
	})
}

func equal(rt *rapid.T, what string, got, want map[string]string) {
	if !maps.Equal(got, want) {
		rt.Errorf("%s: %q, want %q", what, got, want)
	}
}

// versions returns version and state of each snapshot.
func (w *world) versions(snapshots map[string]string) map[string]string {
	out := map[string]string{}
	for id, s := range snapshots {
		var a fold.Aggregate
		if err := w.fold.ReadSnapshot([]byte(s), []byte(id), &a); err != nil {
			w.t.Fatal(err)
		}
		out[id] = fmt.Sprintf("%d %d %s", a.Version, a.Offset, w.textsOf(a.State))
	}
	return out
}

// finish publishes everything, with one more event.
func (fw *foldWorker) finish() {
	fw.t.Helper()
	for _, u := range fw.ps.assignedUnits() {
		u.lanes[0].publication.policy = topology.Publish{}
	}
	fw.counted("last", 0, 0, fmt.Sprint("last", len(fw.log)))
	fw.run()
}
