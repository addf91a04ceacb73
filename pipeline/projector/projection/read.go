package projection

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/receipt"
	"millrace/pipeline/store"
)

// Reader answers questions about a projection from the store. It is a
// [query.Projection].
type Reader struct {
	*Set
	Projection    *Projection
	Registry      event.Schemas
	EventTypes    []*codec.Schema
	Topic         string
	NumPartitions int    // of the topic
	Group         string // of the consumers
	Upstream      *receipt.Upstream

	Show func(*codec.Schema, []byte) (query.Shown, error) // nil if nothing is encrypted
}

// idle is how long a partition must have been left alone for a question to write
// what is in memory to the store: while it is being folded, that costs more than
// it is worth, and happens soon anyway.
const idle = 50 * time.Millisecond

// handOver is how long questions about a partition that was given up are answered
// from here, with how far it came: it may be on its way to another session of this
// process, which takes seconds.
const handOver = 10 * time.Second

// Fresh returns the projection's lanes in this worker, by partition, after the
// store got what was in memory, where that is cheap.
func (r *Reader) Fresh() []*Lane {
	lanes, units := r.Lanes()
	for _, u := range units {
		r.freshen(u)
	}
	return lanes
}

// Lanes returns the projection's lanes in this worker, by partition, and whose
// they are.
func (r *Reader) Lanes() (lanes []*Lane, units []*Unit) {
	units, left := r.unitsOf(r.Topic)
	if r.Hidden != nil {
		units = slices.DeleteFunc(units, func(u *Unit) bool { return r.Hidden(u.Key, false) })
		left = slices.DeleteFunc(left, func(u *Unit) bool { return r.Hidden(u.Key, true) })
	}
	units = append(units, left...)
	slices.SortFunc(units, func(a, b *Unit) int { return int(a.Partition - b.Partition) })
	lanes = make([]*Lane, 0, len(units))
	for _, u := range units {
		for _, l := range u.Lanes {
			if l.Projection == r.Projection {
				lanes = append(lanes, l)
			}
		}
	}
	return lanes, units
}

// unitsOf returns the units of a topic that are assigned, and those that were given
// up a short time ago.
func (ps *Set) unitsOf(topic string) (assigned, left []*Unit) {
	ps.Mu.Lock()
	defer ps.Mu.Unlock()
	for _, u := range ps.Units {
		if u.Topic == topic {
			assigned = append(assigned, u)
		}
	}
	for _, u := range ps.left {
		if u.Topic == topic && ps.now().Sub(u.leftAt) < handOver {
			left = append(left, u)
		}
	}
	return assigned, left
}

// freshen writes what was folded to the store, unless the partition is at work:
// then that happens soon anyway. Many questions cost no more writes than few.
func (r *Reader) freshen(u *Unit) {
	if !u.mu.TryLock() {
		return // it is at work
	}
	defer u.mu.Unlock()
	now := r.now()
	if u.revoked || u.events == 0 || u.events > r.policy.little && now.Sub(u.handled) < idle || now.Sub(u.asked) < idle {
		return
	}
	u.asked = now
	if err := r.save(u); err != nil {
		// The next flush tries again, and fails where it matters.
		r.log.Error("writing to the store for a question failed", "topic", u.Topic, "partition", u.Partition, "err", err)
	}
}

// Describe implements [query.Projection].
func (r *Reader) Describe() query.Description {
	return query.Description{Name: r.Projection.Name(), Version: r.Projection.Fold.Hash(), Topic: r.Topic, Snapshots: r.Projection.Snapshots, State: r.Projection.Fold.State(), Show: r.Show}
}

// AllPartitions implements [query.Projection]: of the partitions that this worker has.
func (r *Reader) AllPartitions(context.Context) ([]query.Position, map[int32]string, error) {
	return r.Partitions(), nil, nil
}

// Partitions implements [query.Projection].
func (r *Reader) Partitions() []query.Position {
	out := []query.Position{}
	for _, l := range r.Fresh() {
		next, ok, err := l.Part.Position()
		if err == nil && ok {
			out = append(out, r.at(l, next))
		}
	}
	return out
}

// at returns how far a lane was when next was the next to be folded.
func (r *Reader) at(l *Lane, next int64) query.Position {
	p := query.Position{Partition: l.Source.Partition, Offset: next, Lag: max(0, r.End(r.Topic, l.Source.Partition)-next)}
	if p.Lag == 0 {
		p.Seconds = new(float64)
	} else if recorded := l.recorded.Load(); recorded > 0 {
		seconds := max(0, r.now().Sub(time.UnixMilli(recorded)).Seconds())
		p.Seconds = &seconds
	}
	return p
}

// lanesFor returns the lanes in which an aggregate may be, the likeliest first:
// it stands in the partition of its id if the events' keys are the ids, else
// anywhere.
func (r *Reader) lanesFor(id string) (lanes []*Lane, home int32) {
	home = kafka.PartitionOf([]byte(r.keyOf(id)), r.NumPartitions)
	lanes, units := r.Lanes()
	for _, u := range units {
		// If it is at home, the others need not be written.
		if u.Partition == home {
			r.freshen(u)
		}
	}
	i := slices.IndexFunc(lanes, func(l *Lane) bool { return l.Source.Partition == home })
	if i > 0 {
		lanes[0], lanes[i] = lanes[i], lanes[0]
	}
	return lanes, home
}

// keyOf returns the key by which an aggregate has its partition.
func (r *Reader) keyOf(id string) string {
	if r.Projection.Fold.Window().Size > 0 {
		return fold.WindowKey(id)
	}
	return id
}

// nowhere is the error when none of the lanes has the aggregate.
func (r *Reader) nowhere(id string, lanes []*Lane, home int32) error {
	if len(lanes) == 0 || lanes[0].Source.Partition != home {
		return fmt.Errorf("partition %d of %s, where %q belongs, is not with this worker, or not ready: %w", home, r.Topic, id, query.ErrElsewhere)
	}
	return query.ErrNotFound
}

// Get implements [query.Projection].
func (r *Reader) Get(_ context.Context, id string) (query.Aggregate, error) {
	lanes, home := r.lanesFor(id)
	for i, l := range lanes {
		if i == 1 {
			r.Fresh() // it is not at home: the events' keys are not the ids
		}
		v := l.Part.View()
		value, ok, err := v.Get(nil, familyState, []byte(id))
		next, _, err2 := v.Position()
		if err = errors.Join(err, err2, v.Close()); err != nil {
			return query.Aggregate{}, err
		}
		if ok {
			return r.aggregate(l, id, value, next)
		}
	}
	return query.Aggregate{}, r.nowhere(id, lanes, home)
}

func (r *Reader) aggregate(l *Lane, id string, value []byte, next int64) (query.Aggregate, error) {
	var a fold.Aggregate
	if err := fold.ReadAggregate(value, &a); err != nil {
		return query.Aggregate{}, damaged([]byte(id), err)
	}
	return r.answer(l, id, &a, next), nil
}

func (r *Reader) answer(l *Lane, id string, a *fold.Aggregate, next int64) query.Aggregate {
	return l.told(id, a, r.at(l, next))
}

// Scan implements [query.Projection]: it merges the partitions.
func (r *Reader) Scan(ctx context.Context, after string, f func(query.Aggregate) bool) (at []query.Position, err error) {
	var runs []*run
	defer func() {
		for _, u := range runs {
			u.stop()
			err = errors.Join(err, u.err, u.view.Close())
		}
	}()
	at = []query.Position{}
	for _, l := range r.Fresh() {
		u := &run{lane: l, view: l.Part.View()}
		runs = append(runs, u)
		u.start(after)
		next, _, err := u.view.Position()
		if err != nil {
			return nil, err
		}
		u.at = r.at(l, next)
		at = append(at, u.at)
	}
	var a fold.Aggregate
	for n := 0; ; n++ {
		var first *run
		for _, u := range runs {
			if u.ok && (first == nil || u.id < first.id) {
				first = u
			}
		}
		if first == nil {
			return at, nil
		}
		if err := fold.ReadAggregate(first.value, &a); err != nil {
			return nil, damaged([]byte(first.id), err)
		}
		if !f(first.lane.told(first.id, &a, first.at)) {
			return at, nil
		}
		if n%256 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		first.next()
	}
}

// status returns what there is to say of an aggregate that is not deleted.
func (l *Lane) status(id string, a *fold.Aggregate) string {
	switch {
	case a.Deleted:
	case l.isBlocked(id):
		return fold.Blocked
	case a.Missing > 0:
		return fold.Gap
	}
	return ""
}

// told returns an aggregate as it is told.
func (l *Lane) told(id string, a *fold.Aggregate, at query.Position) query.Aggregate {
	return query.Aggregate{
		ID: id, Version: a.Version, Deleted: a.Deleted, Status: l.status(id, a), EventID: string(a.EventID), EventTime: time.UnixMicro(a.EventTime),
		Offset: a.Offset, State: a.State, At: at,
	}
}

// run is the aggregates of one partition, in order.
type run struct {
	lane  *Lane
	view  *store.View
	at    query.Position
	id    string
	value []byte
	ok    bool
	err   error
	pull  func() (string, []byte, bool)
	stop  func()
}

func (u *run) start(after string) {
	u.pull, u.stop = iter.Pull2(func(yield func(string, []byte) bool) {
		from := append([]byte(after), 0) // the least id after it
		if after == "" {
			from = nil
		}
		u.err = u.view.Scan(familyState, from, nil, false, func(key, value []byte) bool { return yield(string(key), value) })
	})
	u.next()
}

func (u *run) next() { u.id, u.value, u.ok = u.pull() }

// Here returns the partitions that are assigned to this worker.
func (r *Reader) Here() map[int32]bool {
	out := map[int32]bool{}
	r.Mu.Lock()
	defer r.Mu.Unlock()
	for key := range r.Units {
		if key.Topic == r.Topic {
			out[key.Partition] = true
		}
	}
	return out
}
