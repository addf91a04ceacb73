package projector

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
	"millrace/pipeline/projector/projection"
)

// groupFollower folds partitions of a group's topics into this worker's store without
// being a member of the group. A replica follows all partitions, and answers from them.
// A standby follows the partitions that the group assigned to other workers. When one of
// them is assigned to this worker, the follower is close to its end: it stops following,
// and the loop of the group continues in the same store. At any time, either the loop or
// the follower has the store of a partition: held and phases show which.
//
// mu is held while a session takes a partition up, which takes the lock of that session;
// otherwise no other lock is taken under it.
type groupFollower struct {
	group     string
	name      string // of its restores; those of a standby do not affect readiness
	standby   bool
	set       *projection.Set
	snapshots map[string][]string // topic of events -> topics that its owners publish on
	sessions  []*kafka.Follower   // a partition belongs to the session of its number, as in a group
	bounds    func(ctx context.Context, topic string) (map[int32]kafka.Bounds, error)
	opened    func(ctx context.Context) error // called after a partition was opened
	restores  *restores
	settle    time.Duration // delay before a partition that the group revoked is opened
	log       *slog.Logger
	all       []projection.Key

	mu      sync.Mutex                     // guards the fields below
	held    map[projection.Key]bool        // assigned to this worker by the group
	phases  map[projection.Key]followPhase // partitions that are followed
	after   map[projection.Key]time.Time   // earliest time to open a partition
	tries   map[projection.Key]int         // failures to open it, in a row
	why     map[projection.Key]error       // last failure to open it
	changed chan struct{}                  // closed at the next change
}

// followPhase is the phase of a partition that is followed.
type followPhase int

const (
	followOpening followPhase = iota + 1
	followReading
	followClosing
)

// followSettle is how long a partition that no worker has is left alone: usually it is
// assigned to the group's loop soon.
const followSettle = 3 * time.Second

// maxFollowRetry is the longest delay before a partition is opened again after a failure;
// minFollowRetry is half of the shortest.
const (
	maxFollowRetry = 30 * time.Second
	minFollowRetry = 50 * time.Millisecond
)

// newGroupFollower returns the follower of a loop's group. name is the name of its
// restores. It must be attached to a set before it is used.
func newGroupFollower(b *builder, l *groupLoop, name string) *groupFollower {
	f := &groupFollower{
		group: l.group, standby: b.options.standby && !l.follows, name: name, restores: b.restores, log: b.w.Log.With("group", l.group),
		held: map[projection.Key]bool{}, phases: map[projection.Key]followPhase{}, after: map[projection.Key]time.Time{}, tries: map[projection.Key]int{}, why: map[projection.Key]error{}, changed: make(chan struct{}),
	}
	f.bounds = func(ctx context.Context, topic string) (map[int32]kafka.Bounds, error) {
		return kafka.TopicBounds(ctx, b.w.Kafka, topic, false)
	}
	f.opened = func(ctx context.Context) error {
		b.announcer.changed()
		return l.erase(ctx)
	}
	return f
}

// attach sets the partitions that are followed, and makes the sessions that read them.
func (f *groupFollower) attach(b *builder, set *projection.Set, specs []projection.Spec) error {
	f.set, f.snapshots = set, map[string][]string{}
	for _, spec := range specs {
		topic := spec.Events.Name
		if f.snapshots[topic] == nil {
			for p := range int32(spec.Events.Partitions) {
				f.all = append(f.all, projection.Key{Topic: topic, Partition: p})
			}
		}
		f.snapshots[topic] = append(f.snapshots[topic], spec.Snapshots)
		if spec.Internal != "" {
			f.snapshots[topic] = append(f.snapshots[topic], spec.Internal)
		}
	}
	slices.SortFunc(f.all, func(a, b projection.Key) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	if f.standby {
		for _, key := range f.all {
			f.after[key] = time.Now().Add(f.settle) // the group assigns some of them soon
		}
	}
	for range b.w.Sessions() {
		one, err := kafka.NewFollower(kafka.FollowerConfig{
			Client: b.w.Kafka, Group: f.group, Handler: set.NewFollower(), Memory: kafka.DefaultMemory / 4 / b.w.Sessions(),
			Interval: b.w.Flags.CommitInterval, Metrics: b.loops, Logger: b.w.Log,
		})
		if err != nil {
			return err
		}
		f.sessions = append(f.sessions, one)
	}
	return nil
}

func standbyName(group string) string { return group + " standby" }

// session returns the session that reads a partition.
func (f *groupFollower) session(key projection.Key) *kafka.Follower {
	return f.sessions[int(key.Partition)%len(f.sessions)]
}

// Progress returns the positions of all sessions.
func (f *groupFollower) Progress() (all []kafka.PartitionProgress) {
	for _, s := range f.sessions {
		all = append(all, s.Progress()...)
	}
	return all
}

// progressOf returns the position in one partition.
func (f *groupFollower) progressOf(topic string, partition int32) kafka.PartitionProgress {
	return f.session(projection.Key{Topic: topic, Partition: partition}).ProgressOf(topic, partition)
}

// ends asks Kafka for the end of a partition.
func (f *groupFollower) ends(ctx context.Context, topic string, partition int32) (int64, error) {
	b, err := f.bounds(ctx, topic)
	return b[partition].End, err
}

// ready returns nil if all partitions that are to be followed are followed.
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
			faults = append(faults, fmt.Errorf("partition %d of %s: %w", key.Partition, key.Topic, err))
		}
	}
	f.mu.Unlock()
	if left > 0 {
		faults = append(faults, fmt.Errorf("%[2]d of %[1]d partitions are not followed yet", len(f.all), left))
	}
	for _, s := range f.sessions {
		faults = append(faults, s.Ready())
	}
	return errors.Join(faults...)
}

// run follows until the context ends, or a replica cannot continue.
func (f *groupFollower) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range f.sessions {
		g.Go(func() error { return f.read(ctx, s) })
	}
	g.Go(func() error { return f.open(ctx) })
	err := g.Wait()
	for _, key := range f.all {
		f.stopFollowing(key, nil)
	}
	f.restores.dropGroup(f.name)
	return err
}

// read runs one session. After an error, its partitions are opened again.
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
		f.log.Error("cannot continue to follow partitions; opening them again", "err", err)
		for _, key := range f.all {
			if f.session(key) == s {
				f.stopFollowing(key, err)
			}
		}
	}
}

// open opens partitions, one after the other.
func (f *groupFollower) open(ctx context.Context) error {
	for ctx.Err() == nil {
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
	return nil
}

// next claims the next partition to open. If there is none, it returns how long to wait
// for one, unless changed is closed before.
func (f *groupFollower) next() (key projection.Key, ok bool, wait time.Duration, changed <-chan struct{}) {
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
	return projection.Key{}, false, wait, f.changed
}

// openOne opens a partition and makes a session read it.
func (f *groupFollower) openOne(ctx context.Context, key projection.Key) error {
	at, from, err := f.bringUp(ctx, key)
	if err == nil && ctx.Err() == nil && f.startReading(key, at, from) {
		return nil
	}
	// If the group assigned the partition to this worker meanwhile, its loop waits and
	// continues from here.
	f.set.Leave(key)
	failed := err != nil && ctx.Err() == nil
	fatal := failed && !f.standby && pipeline.ClassOf(err) == pipeline.ClassFatal
	f.mu.Lock()
	delete(f.phases, key)
	if failed {
		f.failed(key, err)
	}
	wait := time.Until(f.after[key]).Round(time.Second)
	f.broadcast()
	f.mu.Unlock()
	if fatal {
		return err
	}
	if failed {
		f.log.Warn("a partition cannot be followed; trying again", "topic", key.Topic, "partition", key.Partition, "err", err, "wait", wait)
	}
	return nil
}

// startReading makes a session read a partition that was opened. It returns false if the
// group has assigned the partition to this worker.
func (f *groupFollower) startReading(key projection.Key, at kafka.Partition, from projection.Followed) bool {
	f.restores.addTail(f.name, f, at, from.Handled)
	f.restores.addFill(f.name, f.set, at)
	if !f.addToSession(key, at, from) {
		f.restores.dropTasks(f.name, key.Topic, key.Partition)
		return false
	}
	f.log.Info("following", "topic", key.Topic, "partition", key.Partition, "from", from.From, "lag", at.End-from.From)
	return true
}

func (f *groupFollower) addToSession(key projection.Key, at kafka.Partition, from projection.Followed) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[key] {
		return false
	}
	s := f.session(key)
	for topic, offset := range from.Snapshots {
		s.Add(kafka.PartitionProgress{Topic: topic, Partition: key.Partition, Position: offset})
	}
	s.Add(kafka.PartitionProgress{Topic: key.Topic, Partition: key.Partition, Position: from.From, Done: from.Handled, End: at.End})
	f.phases[key] = followReading
	delete(f.tries, key)
	delete(f.why, key)
	f.broadcast()
	return true
}

// bringUp opens the lanes of a partition.
func (f *groupFollower) bringUp(ctx context.Context, key projection.Key) (at kafka.Partition, from projection.Followed, err error) {
	at = kafka.Partition{Topic: key.Topic, Partition: key.Partition, Committed: -1}
	bounds, err := f.bounds(ctx, key.Topic)
	if err != nil {
		return at, from, err
	}
	at.Start, at.End = bounds[key.Partition].Start, bounds[key.Partition].End
	from, err = f.set.OpenFollowed(ctx, at, func(ctx context.Context, topic string) (int64, error) {
		bounds, err := f.bounds(ctx, topic)
		return bounds[key.Partition].Start, err
	})
	if err != nil {
		return at, from, err
	}
	return at, from, f.opened(ctx)
}

// failed notes that a partition could not be opened, and delays the next attempt. The
// caller has the lock.
func (f *groupFollower) failed(key projection.Key, err error) {
	f.tries[key] = min(f.tries[key]+1, 10)
	f.after[key] = time.Now().Add(min(maxFollowRetry, minFollowRetry<<f.tries[key]))
	f.why[key] = err
}

// broadcast reports a change to all who wait for one. The caller has the lock.
func (f *groupFollower) broadcast() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// stopFollowing stops following a partition if it is read, because of an error (why) or
// for good. When it returns, the folded events are in the store, and the follower does not
// write to the partition's part of the store.
func (f *groupFollower) stopFollowing(key projection.Key, why error) {
	f.mu.Lock()
	if f.phases[key] != followReading {
		f.mu.Unlock()
		return
	}
	f.phases[key] = followClosing
	f.mu.Unlock()
	s := f.session(key)
	s.Remove(key.Topic, key.Partition)
	for _, topic := range f.snapshots[key.Topic] {
		s.Remove(topic, key.Partition)
	}
	f.set.Leave(key)
	f.restores.dropTasks(f.name, key.Topic, key.Partition)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.phases, key)
	if why != nil {
		f.failed(key, why)
	}
	f.broadcast()
}

// yield stops following partitions that the group assigns to this worker. If one is
// being opened, it waits for that: the rest of a restore takes less time than a new one.
func (f *groupFollower) yield(ctx context.Context, ps []kafka.Partition) error {
	f.mu.Lock()
	for _, p := range ps {
		f.held[projection.Key{Topic: p.Topic, Partition: p.Partition}] = true
	}
	f.mu.Unlock()
	for _, p := range ps {
		key := projection.Key{Topic: p.Topic, Partition: p.Partition}
		began := time.Now()
		for {
			f.stopFollowing(key, nil)
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
		f.log.Info("stopped following: the group assigned the partition to this worker", "topic", key.Topic, "partition", key.Partition, "took", time.Since(began))
	}
	return nil
}

// takeBack follows partitions that the group revoked, after a delay.
func (f *groupFollower) takeBack(ps []kafka.Partition) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range ps {
		key := projection.Key{Topic: p.Topic, Partition: p.Partition}
		delete(f.held, key)
		f.after[key] = time.Now().Add(f.settle)
	}
	f.broadcast()
}
