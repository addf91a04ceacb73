package reader

import (
	"context"
	"fmt"
	"slices"
	"time"

	"millrace/pipeline/projector/changes"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
)

// feedTick is how often a feed checks that its partitions are still assigned, and
// reports its position.
const feedTick = 500 * time.Millisecond

// Changed implements [query.Projection].
func (r *Reader) Changed() <-chan struct{} { return r.set.Changed() }

// Follow implements [query.Projection], for the partitions that this worker has now.
func (r *Reader) Follow(ctx context.Context, start query.Start, f func(query.Changes) error) error {
	if err := r.CheckStart(start); err != nil {
		return err
	}
	var all []int32
	for _, p := range r.set.AssignedPartitions(r.projection) {
		all = append(all, p.Number())
	}
	return r.FollowPartitions(ctx, start, all, f)
}

// CheckStart returns an error if a start names partitions that do not exist.
func (r *Reader) CheckStart(start query.Start) error {
	for n := range start.From {
		if int(n) >= r.NumPartitions() {
			return fmt.Errorf("it has partition %d, but %s has %d: %w", n, r.Topic(), r.NumPartitions(), query.ErrAhead)
		}
	}
	return nil
}

// FollowPartitions calls f with the changes of some partitions until they are not
// assigned any more. The first calls report the position at which each partition
// starts.
//
// When a partition is joined, everything that was folded is in the store: earlier
// changes are read from there, if they are wanted, and all later ones are queued.
func (r *Reader) FollowPartitions(ctx context.Context, start query.Start, partitions []int32, f func(query.Changes) error) error {
	s := &feed{reader: r, changes: r.set.Subscribe(start.ID), byPartition: map[int32]*followed{}, f: f}
	defer s.changes.Close()
	if err := s.join(start, partitions); err != nil {
		return err
	}
	for _, l := range s.all {
		if err := f(query.Changes{At: l.partition.At(l.next)}); err != nil {
			return err
		}
	}
	for _, l := range s.all {
		if l.next < l.joined {
			if err := r.replay(ctx, l, start.ID, f); err != nil {
				return err
			}
		}
		l.next = l.base
	}
	if err := s.reportPositions(); err != nil {
		return err
	}
	return s.run(ctx)
}

// feed is a feed of some partitions. One goroutine has it.
type feed struct {
	reader      *Reader
	changes     *projection.Subscription
	all         []*followed
	byPartition map[int32]*followed
	f           func(query.Changes) error
}

// followed is a partition in a feed.
type followed struct {
	partition *projection.Partition
	indexed   bool  // the history has all events from its first one on
	joined    int64 // earlier changes are in the store, later ones are queued
	base      int64 // changes below were reported before the queue, here or by another worker
	next      int64 // changes below were reported
	// sent are the aggregates that changed out of order and were reported from the
	// store: the queue may contain the same change.
	sent map[string]sentState
}

// sentState is the state of an aggregate that was reported.
type sentState struct {
	version int64
	status  string
}

// join joins the partitions, and determines where each of them starts.
func (s *feed) join(start query.Start, partitions []int32) error {
	for _, n := range partitions {
		l, err := s.reader.join(n, s.changes)
		if err != nil {
			return err
		}
		s.all = append(s.all, l)
		s.byPartition[n] = l
		offset, wanted := start.From[n]
		switch {
		case start.Beginning, !wanted && len(start.From) > 0:
			offset = 0
		case !wanted:
			offset = l.joined
		default:
			if end := max(l.joined, l.partition.End()); offset > end {
				return fmt.Errorf("it continues from offset %d of partition %d of %s, which ends at %d; follow without an id: %w", offset, n, s.reader.Topic(), end, query.ErrAhead)
			}
		}
		l.base, l.next = max(offset, l.joined), offset
	}
	return nil
}

// join adds a partition to a subscription.
func (r *Reader) join(partition int32, s *projection.Subscription) (*followed, error) {
	ps := r.set.AssignedPartitions(r.projection)
	i := slices.IndexFunc(ps, func(p *projection.Partition) bool { return p.Number() == partition })
	if i < 0 || ps[i].Hidden() {
		return nil, fmt.Errorf("partition %d of %s is not with this worker, or is not caught up: %w", partition, r.Topic(), query.ErrElsewhere)
	}
	next, indexed, err := s.Join(ps[i])
	if err != nil {
		return nil, err
	}
	return &followed{partition: ps[i], joined: next, indexed: indexed, sent: map[string]sentState{}}, nil
}

// run reports queued changes until the context ends or the feed cannot continue.
func (s *feed) run(ctx context.Context) error {
	tick := time.NewTicker(feedTick)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.changes.Queue.Ready():
			err = s.reportQueue()
		case <-tick.C:
			if err = s.advance(); err == nil {
				err = s.reportPositions()
			}
		}
		if err != nil {
			return err
		}
	}
}

// reportQueue reports the queued changes.
func (s *feed) reportQueue() error {
	queue, slow := s.changes.Queue.Take()
	for _, t := range queue {
		if c := s.byPartition[t.At.Partition].fresh(t); len(c.Aggregates) > 0 {
			if err := s.f(c); err != nil {
				return err
			}
		}
	}
	if slow {
		return query.ErrSlow
	}
	return nil
}

// reportPositions reports how far each partition is.
func (s *feed) reportPositions() error {
	for _, l := range s.all {
		if err := s.f(query.Changes{At: l.partition.At(l.next), PositionOnly: true}); err != nil {
			return err
		}
	}
	return nil
}

// advance moves the positions over commits that changed nothing here, but not past
// queued changes.
func (s *feed) advance() error {
	for _, l := range s.all {
		if !l.partition.Assigned() {
			return query.ErrMoved
		}
		if next, ok := s.changes.Frontier(l.partition); ok {
			l.next = max(l.next, next)
		}
	}
	return nil
}

// fresh returns the queued changes that were not reported yet. One event may have
// changed several aggregates: a feed cannot continue behind the event before all of
// them are reported.
func (l *followed) fresh(t changes.Committed) query.Changes {
	c := query.Changes{At: t.At}
	reported := l.next
	for _, a := range t.Aggregates {
		switch before, twice := l.sent[a.ID]; {
		case !a.OutOfOrder && a.Next <= reported, a.OutOfOrder && a.Next < l.base:
			continue
		case a.OutOfOrder && twice && before == (sentState{a.Version, a.Status}):
			delete(l.sent, a.ID)
			continue
		}
		l.next = max(l.next, a.Next)
		if n := len(c.Next); n > 0 && c.Next[n-1] == l.next {
			c.Next[n-1] = max(reported, l.next-1)
		}
		c.Aggregates, c.Next = append(c.Aggregates, a.Aggregate), append(c.Next, l.next)
	}
	l.next = max(l.next, t.At.Offset)
	c.At.Offset = l.next
	return c
}
