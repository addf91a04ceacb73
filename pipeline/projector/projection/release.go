package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/missed"
	"millrace/pipeline/projector/query"
)

// ErrNotBlocked is the error of a release of an aggregate that is not blocked in this
// worker.
var ErrNotBlocked = errors.New("is not blocked")

// ErrBusy is the error of a release that could not keep up with the events that come.
var ErrBusy = errors.New("events come faster than they are read; try again")

// ErrBehind is the error of a release in a partition that was just taken over.
var ErrBehind = errors.New("the partition moved to this worker, which does not have everything yet that was published of it; try again")

// ErrUnpublished is the error of a release that another owner of the partition may not know.
var ErrUnpublished = errors.New("it is released here, but that is not published yet; check whether it is still blocked, and release it again if so")

// publishTimeout is how long a release waits until it is published.
const publishTimeout = 15 * time.Second

// errReadEnough ends a read of the log.
var errReadEnough = errors.New("enough")

// releaseTries is the number of times that the log is read because more events came
// during the read.
const releaseTries = 10

// Released is the result of a release.
type Released struct {
	Events  int                     // number of events that were folded, or skipped
	Blocked *query.BlockedAggregate // if the aggregate is blocked again
}

// Release folds the missed events of a blocked aggregate: from the event that blocked it
// on, or, with skip, from the event after it. The aggregate may be blocked again. It
// returns when the result is published, so that the next owner of the partition knows it.
// It fails with ErrNotBlocked, ErrBusy, ErrBehind or ErrUnpublished, or with
// [query.ErrFilling] while the history is being filled after a restore.
func (s *Set) Release(ctx context.Context, p *Projection, id string, skip bool) (Released, error) {
	out, u, err := s.release(ctx, p, id, skip, s.NewDecoder(p))
	if err == nil {
		err = s.awaitPublished(ctx, u, u.lane(p), id)
	}
	return out, err
}

// awaitPublished waits until the snapshot of an aggregate is in a committed transaction.
// Without a session, nothing is published.
func (s *Set) awaitPublished(ctx context.Context, u *unit, l *lane, id string) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	for {
		changed := s.Changed()
		due, revoked := u.isUnpublished(l, id)
		switch {
		case !due:
			return nil
		case revoked:
			return fmt.Errorf("%q: %w: the partition moved", id, ErrUnpublished)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%q: %w: %w", id, ErrUnpublished, ctx.Err())
		case <-changed:
		}
	}
}

// isUnpublished reports whether the session has still to publish an aggregate.
func (u *unit) isUnpublished(l *lane, id string) (due, revoked bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.handler == nil || !u.handler.hasSession {
		return false, false
	}
	return l.marks.Has(id), u.revoked
}

// release is Release with a decoder that no other goroutine uses. It does not wait.
func (s *Set) release(ctx context.Context, p *Projection, id string, skip bool, dec *event.Decoder) (out Released, u *unit, err error) {
	for range releaseTries {
		u, l, q, found := s.findBlocked(p, id)
		if !found {
			return Released{}, nil, fmt.Errorf("%q %w, or is with another worker", id, ErrNotBlocked)
		}
		if err := u.canRelease(l); err != nil {
			return Released{}, nil, fmt.Errorf("%q waits: %w", id, err)
		}
		r := &release{id: id, skip: skip, found: q}
		if err := r.checkLog(ctx, s, l, u.knownTo(l, id)); err != nil {
			return Released{}, nil, err
		}
		if err := readMissed(ctx, s, l, []*release{r}, dec); err != nil {
			return Released{}, nil, err
		}
		out, done, err := r.fold(s, u, l)
		if done || err != nil {
			return out, u, err
		}
	}
	return Released{}, nil, fmt.Errorf("%q: %w", id, ErrBusy)
}

// findBlocked returns a blocked aggregate, as a copy, and its lane.
func (s *Set) findBlocked(p *Projection, id string) (*unit, *lane, internalrecord.Blocked, bool) {
	for _, u := range s.assignedUnits() {
		if l, q, ok := u.findBlocked(p, id); ok {
			return u, l, q, true
		}
	}
	return nil, nil, internalrecord.Blocked{}, false
}

// findBlocked returns a blocked aggregate, as a copy, and its lane. A revoked unit has
// none, because its lanes are freed.
func (u *unit) findBlocked(p *Projection, id string) (*lane, internalrecord.Blocked, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return nil, internalrecord.Blocked{}, false
	}
	for _, l := range u.lanes {
		if q := l.own.blocked[id]; q != nil && l.projection == p {
			return l, q.Clone(), true
		}
	}
	return nil, internalrecord.Blocked{}, false
}

// canRelease returns an error if another owner may have released what is blocked here, or
// while the history is being filled, because a release has to recognize duplicates.
func (u *unit) canRelease(l *lane) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case l.heard.todo.Waits():
		return ErrBehind
	case u.revoked || l.shadow == nil:
		return nil
	}
	return l.complete()
}

// knownTo returns the offset of the last event in the state of an aggregate, -1 if there
// is none.
func (u *unit) knownTo(l *lane, id string) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked || l.fold.Window().Size > 0 {
		return -1
	}
	l.pack()
	a, err := l.states.Get([]byte(id))
	if err != nil {
		return -1
	}
	return a.LastOffset()
}

// release is a release that runs.
type release struct {
	id     string
	skip   bool
	found  internalrecord.Blocked // the aggregate when the release began
	missed missed.Aggregate
}

// readMissed reads the missed events of some releases from the log, in one pass. It takes
// no lock. dec is a decoder that no other goroutine uses.
func readMissed(ctx context.Context, s *Set, l *lane, rs []*release, dec *event.Decoder) error {
	var all []*missed.Aggregate
	for _, r := range rs {
		r.missed.Blocked = &r.found
		all = append(all, &r.missed)
	}
	return missed.Read(ctx, missed.Source{
		Fold: l.fold, TopicID: l.source.TopicID,
		Decode: func(in *pipeline.Record) (event.Decoded, error) {
			d, bad := dec.DecodeWithKey(ctx, in, l.fold.Folds)
			return asTombstone(l.fold, in, d, bad)
		},
		Read: func(ctx context.Context, from int64, f func(*pipeline.Record) error) error {
			return s.cfg.Tail(ctx, l.source.Topic, l.source.Partition, from, f)
		},
	}, all)
}

// fold folds the missed events and stores the result. done is false if the aggregate
// changed, or the partition was revoked, since the aggregate was found.
func (r *release) fold(s *Set, u *unit, l *lane) (out Released, done bool, err error) {
	out, done, due, err := r.foldLocked(s, u, l)
	if due {
		u.handler.requestFlush(u)
	}
	return out, done, err
}

// foldLocked is fold under the unit's lock. due reports that the unit is to be flushed
// now.
func (r *release) foldLocked(s *Set, u *unit, l *lane) (out Released, done, due bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return out, false, false, nil
	}
	t, q := l.own, &r.found
	if now := t.blocked[q.ID]; now == nil || now.Last != q.Last || now.Offset != q.Offset {
		return out, false, false, nil
	}
	if r.skip && !q.IsLost() {
		l.skips.Add(q.Offset, l.publication.sending)
	}
	t.unblock(q.ID)
	for i := range r.missed.Events {
		if err := r.foldOne(t, &r.missed.Events[i], u); err != nil {
			return out, false, false, err
		}
		if t.blocked[q.ID] == nil {
			out.Events++
		}
	}
	if err := t.expire(l.next-1, u.entries); err != nil {
		return out, false, false, err
	}
	if err := r.replaceLost(t); err != nil {
		return out, false, false, err
	}
	if again := t.blocked[q.ID]; again != nil {
		item := blockedItem(again, l.source.Partition)
		out.Blocked = &item
	}
	t.markDue(q.ID)
	l.publication.urgent = true
	err = u.save(s)
	return out, true, u.arm(s, 0), err
}

// foldOne folds a missed event, or queues it if the aggregate is blocked again.
func (r *release) foldOne(t *track, e *missed.Event, u *unit) error {
	q := &r.found
	if err := t.expire(e.In.Offset, u.entries); err != nil {
		return err
	}
	if again := t.blocked[q.ID]; again != nil {
		t.queue(again, &e.In)
		return nil
	}
	if r.skip && e.In.Offset == q.Offset && q.Reason != internalrecord.ReasonGap && !q.IsLost() {
		t.count(&e.In, measure.Skipped)
		return nil
	}
	bad := e.Bad
	id := []byte(q.ID)
	if bad == nil {
		if id, bad = t.folder.Read(e.Event.Type, e.Event.Body, fold.OriginOf(&e.In, e.Event.Key)); bad == nil {
			bad = t.misplaced(id, e.Event.Key, e.In.Partition)
		}
	}
	waited := slices.Contains(q.Held, e.In.Offset) || q.Reason == internalrecord.ReasonGap && e.In.Offset == q.Offset
	if bad == nil {
		bad = t.attempt(id, &e.In, foldEvent{e.Event.Type, e.Event.Body, e.Event.Key, e.Clock, true, waited}, u.entries)
	}
	switch {
	case bad == nil:
		return nil
	case pipeline.ClassOf(bad) != pipeline.ClassReject:
		return bad
	case t.skips.Offsets.Has(e.In.Offset):
		t.count(&e.In, measure.Skipped)
		return nil
	}
	return t.block(q.ID, &e.In, e.In.Offset+1, bad)
}
