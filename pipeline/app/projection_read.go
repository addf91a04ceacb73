package app

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/query"
	"millrace/pipeline/store"
)

// projectionReader answers questions about a projection from the store. It is a
// [query.Projection].
type projectionReader struct {
	*projections
	p          *projection
	registry   schemaSource
	types      []*codec.Schema
	topic      string
	partitions int    // of the topic
	group      string // of the consumers
	upstream   *upstream

	show func(*codec.Schema, []byte) (query.Shown, error) // nil if nothing is encrypted
}

// idle is how long a partition must have been left alone for a question to write
// what is in memory to the store: while it is being folded, that costs more than
// it is worth, and happens soon anyway.
const idle = 50 * time.Millisecond

// handOver is how long questions about a partition that was given up are answered
// from here, with how far it came: it may be on its way to another session of this
// process, which takes seconds.
const handOver = 10 * time.Second

// fresh returns the projection's lanes in this worker, by partition, after the
// store got what was in memory, where that is cheap.
func (r *projectionReader) fresh() []*lane {
	lanes, units := r.lanes()
	for _, u := range units {
		r.freshen(u)
	}
	return lanes
}

// lanes returns the projection's lanes in this worker, by partition, and whose
// they are.
func (r *projectionReader) lanes() (lanes []*lane, units []*unit) {
	r.mu.Lock()
	for _, u := range r.units {
		if u.topic == r.topic && (r.hidden == nil || !r.hidden(u.unitKey, false)) {
			units = append(units, u)
		}
	}
	for _, u := range r.left {
		if u.topic == r.topic && r.now().Sub(u.leftAt) < handOver && (r.hidden == nil || !r.hidden(u.unitKey, true)) {
			units = append(units, u)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(units, func(a, b *unit) int { return int(a.partition - b.partition) })
	lanes = make([]*lane, 0, len(units))
	for _, u := range units {
		for _, l := range u.lanes {
			if l.projection == r.p {
				lanes = append(lanes, l)
			}
		}
	}
	return lanes, units
}

// freshen writes what was folded to the store, unless the partition is at work:
// then that happens soon anyway. Many questions cost no more writes than few.
func (r *projectionReader) freshen(u *unit) {
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
		r.log.Error("writing to the store for a question failed", "topic", u.topic, "partition", u.partition, "err", err)
	}
}

// Describe implements [query.Projection].
func (r *projectionReader) Describe() query.Description {
	return query.Description{Name: r.p.name(), Version: r.p.fold.Hash(), Topic: r.topic, Snapshots: r.p.snapshots, State: r.p.fold.State(), Show: r.show}
}

// AllPartitions implements [query.Projection]: of the partitions that this worker has.
func (r *projectionReader) AllPartitions(context.Context) ([]query.Position, map[int32]string, error) {
	return r.Partitions(), nil, nil
}

// Partitions implements [query.Projection].
func (r *projectionReader) Partitions() []query.Position {
	out := []query.Position{}
	for _, l := range r.fresh() {
		next, ok, err := l.part.Position()
		if err == nil && ok {
			out = append(out, r.at(l, next))
		}
	}
	return out
}

// at returns how far a lane was when next was the next to be folded.
func (r *projectionReader) at(l *lane, next int64) query.Position {
	p := query.Position{Partition: l.source.Partition, Offset: next, Lag: max(0, r.end(r.topic, l.source.Partition)-next)}
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
func (r *projectionReader) lanesFor(id string) (lanes []*lane, home int32) {
	home = kafka.PartitionOf([]byte(r.keyOf(id)), r.partitions)
	lanes, units := r.lanes()
	for _, u := range units {
		// If it is at home, the others need not be written.
		if u.partition == home {
			r.freshen(u)
		}
	}
	i := slices.IndexFunc(lanes, func(l *lane) bool { return l.source.Partition == home })
	if i > 0 {
		lanes[0], lanes[i] = lanes[i], lanes[0]
	}
	return lanes, home
}

// keyOf returns the key by which an aggregate has its partition.
func (r *projectionReader) keyOf(id string) string {
	if r.p.fold.Window().Size > 0 {
		return fold.WindowKey(id)
	}
	return id
}

// nowhere is the error when none of the lanes has the aggregate.
func (r *projectionReader) nowhere(id string, lanes []*lane, home int32) error {
	if len(lanes) == 0 || lanes[0].source.Partition != home {
		return fmt.Errorf("partition %d of %s, where %q belongs, is not with this worker, or not ready: %w", home, r.topic, id, query.ErrElsewhere)
	}
	return query.ErrNotFound
}

// Get implements [query.Projection].
func (r *projectionReader) Get(_ context.Context, id string) (query.Aggregate, error) {
	lanes, home := r.lanesFor(id)
	for i, l := range lanes {
		if i == 1 {
			r.fresh() // it is not at home: the events' keys are not the ids
		}
		v := l.part.View()
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

func (r *projectionReader) aggregate(l *lane, id string, value []byte, next int64) (query.Aggregate, error) {
	var a fold.Aggregate
	if err := fold.ReadAggregate(value, &a); err != nil {
		return query.Aggregate{}, damaged([]byte(id), err)
	}
	return r.answer(l, id, &a, next), nil
}

func (r *projectionReader) answer(l *lane, id string, a *fold.Aggregate, next int64) query.Aggregate {
	return l.told(id, a, r.at(l, next))
}

// Scan implements [query.Projection]: it merges the partitions.
func (r *projectionReader) Scan(ctx context.Context, after string, f func(query.Aggregate) bool) (at []query.Position, err error) {
	var runs []*run
	defer func() {
		for _, u := range runs {
			u.stop()
			err = errors.Join(err, u.err, u.view.Close())
		}
	}()
	at = []query.Position{}
	for _, l := range r.fresh() {
		u := &run{lane: l, view: l.part.View()}
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
func (l *lane) status(id string, a *fold.Aggregate) string {
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
func (l *lane) told(id string, a *fold.Aggregate, at query.Position) query.Aggregate {
	return query.Aggregate{
		ID: id, Version: a.Version, Deleted: a.Deleted, Status: l.status(id, a), EventID: string(a.EventID), EventTime: time.UnixMicro(a.EventTime),
		Offset: a.Offset, State: a.State, At: at,
	}
}

// run is the aggregates of one partition, in order.
type run struct {
	lane  *lane
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
