package projection

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/handover"
	"millrace/pipeline/projector/internalrecord"
)

// This file brings a lane that continues in its store up to the releases that other owners
// have published: see package handover. A lane publishes nothing before. A follower hears
// of releases as they are published, too.

// heard is what a lane has to do because of what other owners have published. The lock of
// the unit guards it.
type heard struct {
	todo handover.Heard
	due  bool // no checkpoint has the sums
}

// blockedSum identifies all blocked aggregates.
func (t *track) blockedSum() string {
	if t.sum == "" {
		t.sum = internalrecord.SumBlocked(t.blocked, math.MaxInt64)
	}
	return t.sum
}

// newest is how many of the newest records of a snapshots topic are searched for the last
// checkpoint: at first, and if it is not there because many records were rolled back.
var newest = [...]int64{1 << 8, 1 << 16}

// checkpoints are the last checkpoints of partitions.
type checkpoints map[*Projection]map[int32]internalrecord.Checkpoint

// lastCheckpoints reads the last checkpoints of partitions: see [internalrecord.LastCheckpoints].
func (s *Set) lastCheckpoints(ctx context.Context, p *Projection, partitions []int32, n int64) (map[int32]internalrecord.Checkpoint, error) {
	if s.cfg.Recent == nil {
		return nil, nil
	}
	return internalrecord.LastCheckpoints(ctx, s.cfg.Recent, p.Spec.internal(), partitions, n)
}

// lastOf reads the last checkpoints of all projections of partitions.
func (s *Set) lastOf(ctx context.Context, ps []kafka.Partition) (checkpoints, error) {
	byTopic := map[string][]int32{}
	for _, p := range ps {
		byTopic[p.Topic] = append(byTopic[p.Topic], p.Partition)
	}
	out := checkpoints{}
	for topic, partitions := range byTopic {
		for _, p := range s.topics[topic].projections {
			found, err := s.lastCheckpoints(ctx, p, partitions, newest[0])
			if err != nil {
				return nil, fmt.Errorf("projection %s: reading how far it is published: %w", p.Label(), err)
			}
			out[p] = found
		}
	}
	return out, nil
}

// lastCheckpoint returns the last checkpoint of the lane's partition. ok is false if it
// was not found.
func (o *opening) lastCheckpoint(ctx context.Context) (c internalrecord.Checkpoint, ok bool, err error) {
	if c, ok = o.last[o.projection][o.at.Partition]; ok {
		return c, true, nil
	}
	found, err := o.set.lastCheckpoints(ctx, o.projection, []int32{o.at.Partition}, newest[1])
	c, ok = found[o.at.Partition]
	return c, ok, err
}

// hear compares the store with the last checkpoint. It returns false if the store cannot
// be brought up to it: then the snapshots have more.
func (o *opening) hear(ctx context.Context, l *lane) (ok bool, err error) {
	c, ok, err := o.lastCheckpoint(ctx)
	if err != nil {
		return false, err
	}
	// The brokers may have forgotten up to where dead letters were sent.
	all := !ok || c.Skipped != l.skips.Offsets.Sum() || l.follow == nil && o.at.Committed < 0 && o.projection.Spec.Late != ""
	if ok && l.continues(&c) {
		next := min(c.Next, o.at.End)
		l.publication.floor = next
		l.heard.todo.Compare(next, c.Blocked)
		if l.next >= next || !internalrecord.InLog(maps.Values(l.own.blocked), o.at.Start) {
			all = all || internalrecord.SumBlocked(l.own.blocked, next) != c.Blocked
		}
	}
	if !all {
		return true, nil
	}
	r, err := o.set.readRecords(ctx, l, internalrecord.LostIn(l.own.blocked))
	if err != nil {
		return false, err
	}
	here := handover.Decided{Next: l.next, Skipped: &l.skips.Offsets, Blocked: l.own.blocked}
	for _, h := range l.own.held.All() {
		here.Held = append(here.Held, h.Offset())
	}
	conflict := r.Found && l.continues(&r.Checkpoint) && handover.Conflicts(here, r)
	l.hearRecords(r, o.at.End)
	return !conflict && o.canRelease(l), nil
}

// maxHeard is the number of releases up to which a store is brought up to its owner. Above,
// the snapshots are read again, which is faster.
const maxHeard = 10_000

// canRelease reports whether what owners have released can be folded from the log.
func (o *opening) canRelease(l *lane) bool {
	var released []*internalrecord.Blocked
	for _, q := range l.own.blocked {
		if l.heard.todo.Overrules(q) {
			released = append(released, q)
		}
	}
	// While the index catches up, it does not know all duplicates. A follower waits for it.
	fills := len(released) > 0 && l.shadow != nil && l.follow == nil
	return !fills && len(released) <= maxHeard && internalrecord.InLog(slices.Values(released), o.at.Start)
}

// readRecords reads all records of a lane's partition beside the snapshots. It takes no
// lock. A snapshot that is lost here is lost for the owner, too, unless it was replaced.
func (s *Set) readRecords(ctx context.Context, l *lane, lost map[int64]string) (*internalrecord.Records, error) {
	l.log.Info("another owner of the partition has skipped or released other events, or cannot be compared; reading what it published", "projection", l.projection.Label(), "partition", l.source.Partition)
	spec := &l.projection.Spec
	r, err := internalrecord.ReadRecords(func(topic string, f func(*pipeline.Record) error) error {
		_, err := s.cfg.Restore(ctx, topic, l.source.Partition, f)
		return err
	}, internalrecord.Topics{Internal: spec.internal(), Snapshots: spec.Snapshots}, lost, func(in *pipeline.Record, err error) { l.skipUnreadable(in, err, effectIgnored) })
	if err != nil {
		return nil, fmt.Errorf("reading what earlier owners of the partition published: %w", err)
	}
	return r, nil
}

// hearRecords takes in what readRecords has read. end is the end of the log.
func (l *lane) hearRecords(r *internalrecord.Records, end int64) {
	for offset := range r.Skipped.All() {
		l.skips.Offsets.Add(offset)
	}
	l.skips.Unsaved, l.skips.Due = true, l.follow == nil && l.skips.Offsets.Len() > r.Skipped.Len()
	l.letters.Sent(r.Sent)
	l.heard.due = l.follow == nil && r.Found && r.Checkpoint.Skipped == "" // of an older release, which has no sums
	l.heard.todo.Forget()
	if r.Found && l.continues(&r.Checkpoint) { // otherwise the records are about the states of another fold
		l.heard.todo.HearAll(r.Blocked, min(r.Checkpoint.Next, end))
	}
}

// reconcile releases what other owners of a unit have released, as far as the unit has
// folded what they had. It takes the unit's lock itself. dec is a decoder that no other
// goroutine uses; the caller is the only one who folds the unit.
func (s *Set) reconcile(ctx context.Context, u *unit, dec *event.Decoder) error {
	for _, l := range u.lanes {
		todo, lost := u.overruled(l)
		if todo.ReadAll {
			r, err := s.readRecords(ctx, l, lost)
			if err != nil {
				return err
			}
			u.mu.Lock()
			l.hearRecords(r, math.MaxInt64)
			u.mu.Unlock()
			todo, _ = u.overruled(l)
		}
		for len(todo.Release) > 0 {
			for ids := range slices.Chunk(todo.Release, releaseAtOnce) {
				if err := s.releaseHeard(ctx, u, l, ids, dec); err != nil {
					return fmt.Errorf("releasing %d aggregates that another owner has released, %q first: %w", len(ids), ids[0], err)
				}
			}
			todo, _ = u.overruled(l) // what the owner has released twice
		}
	}
	return nil
}

// overruled returns what is to be done now, and what is lost here if all records must be
// read.
func (u *unit) overruled(l *lane) (todo handover.Todo, lost map[int64]string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked || !l.heard.todo.Waits() {
		return handover.Todo{}, nil
	}
	todo = l.heard.todo.Overruled(l.next, l.own.blocked)
	if todo.ReadAll {
		return todo, internalrecord.LostIn(l.own.blocked)
	}
	erased := func(id string) bool { return l.projection.Fence.Has([]byte(id)) } // and released with that
	for _, id := range todo.Release {
		if erased(id) {
			l.heard.todo.Done(id)
		}
	}
	todo.Release = slices.DeleteFunc(todo.Release, erased)
	if l.shadow != nil {
		todo.Release = nil // without its history, a release does not recognize duplicates
	}
	if l.follow == nil {
		for _, id := range slices.DeleteFunc(todo.Publish, erased) {
			l.own.markDue(id)
		}
	}
	return todo, nil
}

// releaseAtOnce is the number of aggregates whose events are read from the log in one pass.
const releaseAtOnce = 1000

// releaseHeard releases aggregates that another owner has released.
func (s *Set) releaseHeard(ctx context.Context, u *unit, l *lane, ids []string, dec *event.Decoder) error {
	var rs []*release
	u.mu.Lock()
	for _, id := range ids {
		if q := l.own.blocked[id]; !u.revoked && q != nil {
			// That owner has folded a lost aggregate again, whatever the log lacked.
			rs = append(rs, &release{id: id, skip: q.IsLost() || l.skips.Offsets.Has(q.Offset), found: q.Clone()})
		}
	}
	u.mu.Unlock()
	if err := readMissed(ctx, s, l, rs, dec); err != nil {
		return err
	}
	for _, r := range rs {
		out, done, _, err := r.foldLocked(s, u, l)
		if err != nil {
			return err
		}
		u.mu.Lock()
		if u.revoked || !done || l.own.blocked[r.id] == nil || l.own.blocked[r.id].Place().Rank <= r.found.Place().Rank {
			l.heard.todo.Done(r.id) // also if it has changed meanwhile, or moved
		}
		u.mu.Unlock()
		if !done {
			continue
		}
		s.cfg.Log.Info("released an aggregate that another owner has released", "projection", l.projection.Label(), "partition", u.key.Partition, "id", r.id, "skip", r.skip, "events", out.Events, "blocked_again", out.Blocked != nil)
	}
	return nil
}
