package projection

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
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
// It fails with ErrNotBlocked, ErrBusy, ErrBehind or ErrUnpublished.
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
		if u.isBehind(l) {
			return Released{}, nil, fmt.Errorf("%q: %w", id, ErrBehind)
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
	events []missedEvent
}

// missedEvent is an event that waited for a release.
type missedEvent struct {
	in    pipeline.Record
	d     event.Decoded
	bad   error
	clock int64
}

// readMissed reads the missed events of some releases from the log, in one pass. It takes
// no lock. dec is a decoder that no other goroutine uses.
func readMissed(ctx context.Context, s *Set, l *lane, rs []*release, dec *event.Decoder) error {
	m := missed{ctx: ctx, lane: l, dec: dec, folder: l.fold.NewFolder(), byID: map[string]*release{}, byOffset: map[int64]*release{}, clock: noTime, last: -1}
	from := int64(math.MaxInt64)
	for _, r := range rs {
		q := &r.found
		from, m.last = min(from, q.First()), max(m.last, q.LastOffset())
		m.byID[q.ID] = r
		if !q.IsLost() {
			m.byOffset[q.Offset] = r
		}
		for _, offset := range q.Held {
			m.byOffset[offset] = r
		}
	}
	if len(rs) == 0 {
		return nil
	}
	if err := s.cfg.Tail(ctx, l.source.Topic, l.source.Partition, from, m.read); err != nil && !errors.Is(err, errReadEnough) {
		return fmt.Errorf("reading the events that %q missed: %w", rs[0].id, err)
	}
	return nil
}

// missed reads the events that releases missed.
type missed struct {
	ctx      context.Context
	lane     *lane
	dec      *event.Decoder
	folder   *fold.Folder
	byID     map[string]*release
	byOffset map[int64]*release // of an event that is missed whatever its aggregate seems to be
	last     int64              // last offset to read
	clock    int64              // latest event time
}

func (m *missed) read(in *pipeline.Record) error {
	l := m.lane
	if in.Offset > m.last {
		return errReadEnough
	}
	if deadletter.IsTaken(in, l.source.TopicID) {
		return nil
	}
	d, bad := m.dec.DecodeWithKey(m.ctx, in, l.fold.Folds)
	if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	d, bad = asTombstone(l.fold, in, d, bad)
	if bad == nil && !l.fold.Folds(d.Type) {
		return nil
	}
	id := l.fold.RecordID(in, d.Key)
	if bad == nil {
		if id, bad = m.folder.Read(d.Type, d.Body, fold.OriginOf(in, d.Key)); bad != nil {
			id = l.fold.RecordID(in, d.Key)
		} else if l.fold.Window().Size > 0 {
			m.clock = max(m.clock, m.folder.Time())
		}
	}
	r := m.byOffset[in.Offset]
	if r == nil {
		if r = m.byID[string(id)]; r == nil || in.Offset < r.found.Since || in.Offset > r.found.LastOffset() {
			return nil
		}
	}
	e := missedEvent{in: in.Clone(), d: d, bad: bad, clock: m.clock}
	if clock := r.found.Clock; clock != nil {
		e.clock = max(e.clock, *clock)
	}
	e.d.Body, e.d.Key = slices.Clone(d.Body), d.Key.Clone()
	r.events = append(r.events, e)
	return nil
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
		l.skips.add(q.Offset, l.publication.sending)
	}
	t.unblock(q.ID)
	for i := range r.events {
		if err := r.foldOne(t, &r.events[i], u); err != nil {
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
func (r *release) foldOne(t *track, e *missedEvent, u *unit) error {
	q := &r.found
	if err := t.expire(e.in.Offset, u.entries); err != nil {
		return err
	}
	if again := t.blocked[q.ID]; again != nil {
		t.queue(again, &e.in)
		return nil
	}
	if r.skip && e.in.Offset == q.Offset && q.Reason != internalrecord.ReasonGap && !q.IsLost() {
		t.count(&e.in, isSkipped)
		return nil
	}
	bad := e.bad
	id := []byte(q.ID)
	if bad == nil {
		if id, bad = t.folder.Read(e.d.Type, e.d.Body, fold.OriginOf(&e.in, e.d.Key)); bad == nil {
			bad = t.misplaced(id, e.d.Key, e.in.Partition)
		}
	}
	waited := slices.Contains(q.Held, e.in.Offset) || q.Reason == internalrecord.ReasonGap && e.in.Offset == q.Offset
	if bad == nil {
		bad = t.attempt(id, &e.in, foldEvent{e.d.Type, e.d.Body, e.d.Key, e.clock, true, waited}, u.entries)
	}
	switch {
	case bad == nil:
		return nil
	case pipeline.ClassOf(bad) != pipeline.ClassReject:
		return bad
	case t.skips.offsets.Has(e.in.Offset):
		t.count(&e.in, isSkipped)
		return nil
	}
	return t.block(q.ID, &e.in, e.in.Offset+1, bad)
}
