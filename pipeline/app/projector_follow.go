package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
)

// groupFollower folds partitions of a group's topics without being its member, into this
// worker's store. A replica follows all of them, and answers from that. A standby
// follows those that the group gave to others, so that one that is given to it is
// nearly at its end: then the follower lets go of it, and the group's loop goes on in
// the same store. Of a partition, one of the two has the store at a time: whoever has
// it in held or phases.
type groupFollower struct {
	group    string
	standby  bool
	ps       *projections
	readers  []*projectionReader
	sessions []*kafka.Follower // partitions by their number, as sessions of a group
	opening  *foldHandler
	bounds   func(ctx context.Context, topic string) (map[int32]kafka.Bounds, error)
	opened   func(ctx context.Context) error // when a partition came
	restore  *restoring
	settle   time.Duration // how long a partition is left alone that the group gave up
	log      *slog.Logger
	all      []unitKey

	mu      sync.Mutex // guards what follows
	held    map[unitKey]bool
	phases  map[unitKey]followPhase // of those that are followed
	after   map[unitKey]time.Time   // not to be opened earlier
	tries   map[unitKey]int
	why     map[unitKey]error // it could not be opened
	changed chan struct{}     // closed with the next change
}

// followPhase is what becomes of a partition that is followed.
type followPhase int

const (
	followOpening followPhase = iota + 1
	followReading
	followClosing
)

// followSettle is how long a partition that nobody has is left alone: most often it
// comes to the group's loop at once.
const followSettle = 3 * time.Second

// followRetries is how long after a failure a partition is opened again, at most.
const followRetries = 30 * time.Second

// newFollow returns what follows a version loop's partitions: with its own
// projections if it has no group, else beside them.
func (v *versions) newFollow(l *versionLoop, ps *projections, readers []*projectionReader) (*groupFollower, error) {
	f := &groupFollower{
		group: l.group, standby: v.standby, ps: ps, readers: readers, restore: v.restore, log: v.w.log.With("group", l.group),
		held: map[unitKey]bool{}, phases: map[unitKey]followPhase{}, after: map[unitKey]time.Time{}, tries: map[unitKey]int{}, why: map[unitKey]error{}, changed: make(chan struct{}),
	}
	f.bounds = func(ctx context.Context, topic string) (map[int32]kafka.Bounds, error) {
		return kafka.TopicBounds(ctx, v.w.kafka, topic, false)
	}
	f.opened = func(ctx context.Context) error {
		v.change()
		return l.erase(ctx)
	}
	ps.follows, ps.end, ps.ends = true, f.end, f.ends
	f.opening = ps.newHandler(v.w.registry)
	for _, t := range ps.topics {
		for p := range int32(t.projections[0].partitions) {
			f.all = append(f.all, unitKey{t.name, p})
		}
	}
	slices.SortFunc(f.all, func(a, b unitKey) int {
		return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition))
	})
	if f.standby {
		f.settle = followSettle
		for _, key := range f.all {
			f.after[key] = time.Now().Add(f.settle) // the group gives some of them at once
		}
	}
	for range v.w.sessions() {
		one, err := kafka.NewFollower(kafka.FollowerConfig{
			Client: v.w.kafka, Group: l.group, Handler: ps.newFollowHandler(v.w.registry), Memory: kafka.DefaultMemory / 4 / v.w.sessions(),
			Interval: v.w.flags.commitInterval, Metrics: v.loops, Logger: v.w.log,
		})
		if err != nil {
			return nil, err
		}
		f.sessions = append(f.sessions, one)
	}
	return f, nil
}

// progressName is what the progress of restores calls it: that of a standby keeps
// nobody from being ready.
func (f *groupFollower) progressName() string {
	if f.standby {
		return standbyName(f.group)
	}
	return f.group
}

func standbyName(group string) string { return group + " standby" }

// session returns who reads a partition.
func (f *groupFollower) session(key unitKey) *kafka.Follower {
	return f.sessions[int(key.partition)%len(f.sessions)]
}

// Progress returns where all sessions stand.
func (f *groupFollower) Progress() (all []kafka.PartitionProgress) {
	for _, s := range f.sessions {
		all = append(all, s.Progress()...)
	}
	return all
}

// end returns where a partition ends, as far as is known.
func (f *groupFollower) end(topic string, partition int32) int64 {
	return endIn(f.session(unitKey{topic, partition}).Progress(), topic, partition)
}

// ends asks where a partition ends now.
func (f *groupFollower) ends(ctx context.Context, topic string, partition int32) (int64, error) {
	b, err := f.bounds(ctx, topic)
	return b[partition].End, err
}

// ready returns nil if all partitions are followed that are to be.
func (f *groupFollower) ready() error {
	f.mu.Lock()
	var faults []error
	left := 0
	for _, key := range f.all {
		if f.held[key] || f.phases[key] == followReading {
			continue
		}
		left++
		if err := f.why[key]; err != nil {
			faults = append(faults, fmt.Errorf("partition %d of %s: %w", key.partition, key.topic, err))
		}
	}
	f.mu.Unlock()
	if left > 0 {
		faults = append(faults, fmt.Errorf("of %d partitions, %d are not followed yet", len(f.all), left))
	}
	for _, s := range f.sessions {
		faults = append(faults, s.Ready())
	}
	return errors.Join(faults...)
}

// run follows until the context ends, or a replica cannot go on.
func (f *groupFollower) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range f.sessions {
		g.Go(func() error { return f.read(ctx, s) })
	}
	g.Go(func() error { return f.open(ctx) })
	err := g.Wait()
	for _, key := range f.all {
		f.letGo(key, nil)
	}
	f.restore.gone(f.progressName())
	return err
}

// read runs one session. What it cannot go on with is opened again.
func (f *groupFollower) read(ctx context.Context, s *kafka.Follower) error {
	for {
		err := s.Run(ctx)
		if err == nil {
			return nil
		}
		gone := errors.Is(err, kafka.ErrOffsetGone)
		if !gone && !f.standby {
			return err
		}
		f.log.Error("partitions cannot be followed from where they are; opening them again", "err", err)
		for _, key := range f.all {
			if f.session(key) == s {
				f.letGo(key, err)
			}
		}
	}
}

// open opens one partition after the other that is to be followed.
func (f *groupFollower) open(ctx context.Context) error {
	for {
		key, ok, wait, changed := f.next()
		if ok {
			if err := f.openOne(ctx, key); err != nil {
				return err
			}
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// next claims the next partition to be opened; if there is none, it says when there
// may be one.
func (f *groupFollower) next() (key unitKey, ok bool, wait time.Duration, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	wait = time.Hour
	for _, key := range f.all {
		if f.held[key] || f.phases[key] != 0 {
			continue
		}
		if left := time.Until(f.after[key]); left > 0 {
			wait = min(wait, left)
			continue
		}
		f.phases[key] = followOpening
		return key, true, 0, nil
	}
	return unitKey{}, false, wait, f.changed
}

// openOne brings up a partition and makes a session read it.
func (f *groupFollower) openOne(ctx context.Context, key unitKey) error {
	at, u, err := f.bringUp(ctx, key)
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.tell()
	if err != nil || ctx.Err() != nil || f.held[key] {
		// If the group gave it to this worker meanwhile, its loop waits and goes on
		// from here.
		f.ps.leave(key)
		delete(f.phases, key)
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil && !f.standby && pipeline.ClassOf(err) == pipeline.ClassFatal:
		return err
	case err != nil:
		f.failed(key, err)
		f.log.Warn("a partition cannot be followed; trying again", "topic", key.topic, "partition", key.partition, "err", err, "wait", time.Until(f.after[key]).Round(time.Second))
		return nil
	case f.held[key]:
		return nil
	}
	from := u.read
	f.restore.tail(f.progressName(), f, at, from)
	f.phases[key] = followReading
	delete(f.tries, key)
	delete(f.why, key)
	s := f.session(key)
	for _, l := range u.lanes {
		s.Add(l.snapshots, key.partition, l.follow.heard, l.follow.heard)
	}
	s.Add(key.topic, key.partition, from, at.End)
	f.log.Info("following", "topic", key.topic, "partition", key.partition, "from", from, "lag", at.End-from)
	return nil
}

// bringUp opens the lanes of a partition.
func (f *groupFollower) bringUp(ctx context.Context, key unitKey) (kafka.Partition, *unit, error) {
	at := kafka.Partition{Topic: key.topic, Partition: key.partition, Committed: -1}
	bounds, err := f.bounds(ctx, key.topic)
	if err != nil {
		return at, nil, err
	}
	at.Start, at.End = bounds[key.partition].Start, bounds[key.partition].End
	u, err := f.opening.open(ctx, at)
	if err != nil {
		return at, nil, err
	}
	for _, l := range u.lanes {
		bounds, err := f.bounds(ctx, l.snapshots)
		if err != nil {
			return at, nil, err
		}
		l.follow.heard = max(l.follow.heard, bounds[key.partition].Start)
	}
	f.ps.follow(u)
	return at, u, f.opened(ctx)
}

// failed notes that a partition could not be followed. The caller has the lock.
func (f *groupFollower) failed(key unitKey, err error) {
	f.tries[key] = min(f.tries[key]+1, 10)
	f.after[key] = time.Now().Add(min(followRetries, minFollowRetry<<f.tries[key]))
	f.why[key] = err
}

// minFollowRetry is half of how long after its first failure a partition is opened
// again.
const minFollowRetry = 50 * time.Millisecond

// tell tells those who wait that something has changed. The caller has the lock.
func (f *groupFollower) tell() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// letGo ends the following of a partition if it is read, because of an error or for
// good: when it returns, the store has what was folded, and nobody writes to its
// part.
func (f *groupFollower) letGo(key unitKey, why error) {
	f.mu.Lock()
	if f.phases[key] != followReading {
		f.mu.Unlock()
		return
	}
	f.phases[key] = followClosing
	f.mu.Unlock()
	s := f.session(key)
	s.Remove(key.topic, key.partition)
	for _, t := range f.ps.topics {
		if t.name != key.topic {
			continue
		}
		for _, p := range t.projections {
			s.Remove(p.snapshots, key.partition)
		}
	}
	f.ps.leave(key)
	f.restore.revoked(f.progressName(), key.topic, key.partition)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.phases, key)
	if why != nil {
		f.failed(key, why)
	}
	f.tell()
}

// yield lets go of partitions that the group gives to this worker. The one that is
// being opened is waited for: the rest of a restore is less than all of it.
func (f *groupFollower) yield(ctx context.Context, ps []kafka.Partition) error {
	f.mu.Lock()
	for _, p := range ps {
		f.held[unitKey{p.Topic, p.Partition}] = true
	}
	f.mu.Unlock()
	for _, p := range ps {
		key := unitKey{p.Topic, p.Partition}
		began := time.Now()
		for {
			f.letGo(key, nil)
			f.mu.Lock()
			phase, changed := f.phases[key], f.changed
			f.mu.Unlock()
			if phase == 0 {
				break
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
		}
		f.log.Info("following no longer: the partition is this worker's", "topic", key.topic, "partition", key.partition, "took", time.Since(began))
	}
	return nil
}

// takeBack follows partitions that the group took away from this worker, after a
// while.
func (f *groupFollower) takeBack(ps []kafka.Partition) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range ps {
		key := unitKey{p.Topic, p.Partition}
		delete(f.held, key)
		f.after[key] = time.Now().Add(f.settle)
	}
	f.tell()
}
