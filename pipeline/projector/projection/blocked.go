package projection

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
)

// blocked is an aggregate with an event that cannot be folded, or with a gap. Its
// later events stay in the log until it is released; the other aggregates of the
// partition go on.
//
// It is kept in the store and, under blockedKey, among the snapshots, so that it
// survives both. Releasing it folds again what it missed, reading the log; what
// was skipped by that is kept too (skippedKey), so that whoever folds the log
// anew decides the same.
type blocked struct {
	ID     string          `json:"id"`
	Offset int64           `json:"offset"` // of the event
	Since  int64           `json:"since"`  // its events from here on wait
	Reason pipeline.Reason `json:"reason"`
	Error  string          `json:"error"`
	Time   time.Time       `json:"time"`            // of the event's record
	Clock  int64           `json:"clock,omitempty"` // of the track, when that was
	Held   []int64         `json:"held,omitempty"`  // offsets of events before Since that wait as well
	Queue  []int64         `json:"queue,omitempty"` // offsets of those that wait, the first maxQueue
	Queued int64           `json:"queued"`          // how many wait
	Last   int64           `json:"last,omitempty"`  // offset of the last of them
}

// maxQueue bounds the offsets that are kept of an aggregate; what is more is found
// in the log.
const maxQueue = 1000

// maxBlocked is how many aggregates of a partition may be blocked. More are not
// bad events but something that is wrong with all, and made good elsewhere.
const maxBlocked = 100_000

// maxBlockedError bounds what is kept of an error's text.
const maxBlockedError = 1000

func (q *blocked) encode() ([]byte, error) { return json.Marshal(q) }

func decodeBlocked(value []byte) (*blocked, error) {
	q := &blocked{}
	return q, json.Unmarshal(value, q)
}

// upTo takes back what happened at an offset and after it, which is going to be
// folded again. It returns false if that is all.
func (q *blocked) upTo(next int64) bool {
	if q.Since > next {
		return false
	}
	kept := slices.DeleteFunc(q.Queue, func(offset int64) bool { return offset >= next })
	if q.Last >= next {
		q.Queue, q.Queued, q.Last = kept, int64(len(kept)+len(q.Held)), next-1
	}
	return true
}

const blockedKeys = fold.ReservedKeys + "blocked\x00"

// skippedKey is the key of the record that says which offsets were skipped, in
// JSON.
var skippedKey = []byte("\x00skipped")

// sentKey is the key of the record that says below which offset all late events
// are dead letters, in decimal digits, as the group's offset does: that is forgotten
// when the group is away for long.
var sentKey = []byte("\x00sent")

// block blocks an aggregate at an event. Those that come from an offset on wait.
func (t *track) block(id string, in *pipeline.Record, since int64, err error) error {
	if len(t.blocked) >= maxBlocked {
		return fmt.Errorf("%d aggregates in partition %d of %s are blocked: what is wrong is not with single events. The last is %q: %w", len(t.blocked), in.Partition, in.Topic, id, err)
	}
	text := err.Error()
	q := &blocked{ID: id, Offset: in.Offset, Since: since, Reason: pipeline.ReasonOf(err), Error: text[:min(len(text), maxBlockedError)], Time: in.Time.UTC()}
	if t.clock != noTime {
		q.Clock = t.clock
	}
	waiting := slices.Clone(t.heldOf[id])
	t.unhold(waiting...)
	for _, h := range waiting {
		if h.offset() != in.Offset {
			q.Held = append(q.Held, h.offset())
			q.Queued++
		}
	}
	t.blocked[id], t.blocks[id] = q, true
	result := isBlocked
	if q.Reason == reasonMispartitioned {
		result = isMispartitioned
	}
	t.count(in, result)
	t.complain(in, err, "event cannot be folded; its aggregate is blocked")
	t.owe(id)
	return nil
}

// isBlocked reports whether the store has an aggregate as blocked. Anybody may
// ask.
func (l *Lane) isBlocked(id string) bool {
	if l.stuck.Load() == 0 {
		return false
	}
	_, ok, err := l.Part.Get(nil, familyBlocked, []byte(id))
	return ok && err == nil // who reads the state hears of the error, too
}

// queue adds an event of a blocked aggregate to those that wait.
func (t *track) queue(q *blocked, in *pipeline.Record) {
	if in.Offset < max(q.Since, q.Last+1) {
		return // it was decided before
	}
	if len(q.Queue) < maxQueue {
		q.Queue = append(q.Queue, in.Offset)
	}
	q.Queued++
	q.Last = in.Offset
	t.blocks[q.ID] = true
	t.count(in, isQueued)
	if !t.isShadow() {
		t.publishBlocked(q.ID)
	}
}

// complain logs what is wrong with an event, once.
func (t *track) complain(in *pipeline.Record, err error, what string) {
	if t.isShadow() || in.Offset < t.counted {
		return
	}
	t.log.Error(what, "projection", t.Label(), "topic", in.Topic, "partition", in.Partition, "offset", in.Offset,
		"key", string(in.Key), "reason", string(pipeline.ReasonOf(err)), "err", err)
}

// errNotBlocked says that there is nothing to release.
var errNotBlocked = errors.New("is not blocked")

// errBusy says that more events come than are read.
var errBusy = errors.New("events come faster than they are read; try again")

// released says what a release came to.
type released struct {
	Events    int      // that were folded again, or skipped
	Blocked   *blocked // if it is blocked again
	partition int32
}

// logReader reads a partition of a topic from an offset to where it ends.
type logReader func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) error

// waiting is an event that waited for a release.
type waiting struct {
	in    pipeline.Record
	d     event.Decoded
	bad   error
	clock int64
}

// errReadEnough ends a reading of the log.
var errReadEnough = errors.New("enough")

// item is what is told of it.
func (q *blocked) item(partition int32) query.BlockedAggregate {
	return query.BlockedAggregate{ID: q.ID, Partition: partition, Offset: q.Offset, Time: q.Time, Reason: string(q.Reason), Error: q.Error, Queued: q.Queued, Last: q.Last}
}

// BlockedPage returns what is blocked after a place, the first of it, and of which
// partitions that is all.
func (r *Reader) BlockedPage(after *query.EventCursor, limit int) (items []query.BlockedAggregate, at []query.Position) {
	lanes, units := r.assigned()
	items, at = []query.BlockedAggregate{}, []query.Position{}
	for i, l := range lanes {
		u := units[i]
		if r.Hidden != nil && r.Hidden(u.Key, false) {
			continue
		}
		u.mu.Lock()
		if !u.revoked {
			at = append(at, r.at(l, l.next))
			for _, q := range l.own.blocked {
				if limit == 0 {
					break
				}
				if one := q.item(u.Partition); after == nil || one.Cursor().Compare(*after) > 0 {
					items = append(items, one)
				}
			}
		}
		u.mu.Unlock()
	}
	slices.SortFunc(items, func(a, b query.BlockedAggregate) int { return a.Cursor().Compare(b.Cursor()) })
	return items[:min(limit, len(items))], at
}

// Blocked implements [query.Projection]: of the partitions that this worker has.
func (r *Reader) Blocked(_ context.Context, after *query.EventCursor, limit int) ([]query.BlockedAggregate, error) {
	items, _ := r.BlockedPage(after, limit)
	return items, nil
}

// Release implements [query.Projection]: of the partitions that this worker has.
func (r *Reader) Release(ctx context.Context, id string, skip bool) (query.Released, error) {
	part, err := r.ReleasePart(ctx, id, skip)
	switch {
	case err != nil:
		return query.Released{}, err
	case part.Busy != "":
		return query.Released{}, fmt.Errorf("%s: %w", part.Busy, query.ErrBusy)
	case part.Released != nil:
		return *part.Released, nil
	case part.Known:
		return query.Released{}, query.ErrNotBlocked
	}
	return query.Released{}, query.ErrNotFound
}

// ReleasePart releases an aggregate if it is blocked here.
func (r *Reader) ReleasePart(ctx context.Context, id string, skip bool) (out ReleasedPart, err error) {
	_, out.At = r.BlockedPage(nil, 0)
	done, err := r.release(ctx, r.Projection, id, skip, event.NewDecoder(r.Registry, r.EventTypes, nil))
	switch {
	case errors.Is(err, errNotBlocked):
		_, err := r.Get(ctx, id)
		if out.Known = err == nil; errors.Is(err, query.ErrNotFound) || errors.Is(err, query.ErrElsewhere) {
			err = nil
		}
		return out, err
	case errors.Is(err, errBusy):
		out.Busy = err.Error()
		return out, nil
	case err != nil:
		return out, err
	}
	out.Released = &query.Released{Events: done.Events}
	if q := done.Blocked; q != nil {
		again := q.item(done.partition)
		out.Released.Blocked = &again
	}
	return out, nil
}

func (q *blocked) clone() blocked {
	c := *q
	c.Queue, c.Held = slices.Clone(q.Queue), slices.Clone(q.Held)
	return c
}

func (ps *Set) Assigned() (units []*Unit) {
	ps.Mu.Lock()
	defer ps.Mu.Unlock()
	for _, u := range ps.Units {
		units = append(units, u)
	}
	return units
}

// releaseTries is how often the log is read again because more events came while
// it was read.
const releaseTries = 10

// release folds again what a blocked aggregate missed, from the event on at which
// it was blocked, or, with skip, from the one after it. It may be blocked again.
// dec decodes events; only this call uses it.
func (ps *Set) release(ctx context.Context, p *Projection, id string, skip bool, dec *event.Decoder) (released, error) {
	for range releaseTries {
		u, l, q := ps.findBlocked(p, id)
		if u == nil {
			return released{}, fmt.Errorf("%q %w, or not with this worker", id, errNotBlocked)
		}
		events, err := ps.missed(ctx, l, &q, dec)
		if err != nil {
			return released{}, err
		}
		r, ok, err := ps.releaseNow(u, l, &q, events, skip)
		if ok || err != nil {
			return r, err
		}
	}
	return released{}, fmt.Errorf("%q: %w", id, errBusy)
}

func (ps *Set) findBlocked(p *Projection, id string) (*Unit, *Lane, blocked) {
	for _, u := range ps.Assigned() {
		if l, q, ok := u.findBlocked(p, id); ok {
			return u, l, q
		}
	}
	return nil, nil, blocked{}
}

// findBlocked returns the lane of a projection and a copy of what it knows of a
// blocked aggregate. A revoked unit has none: its lanes are freed.
func (u *Unit) findBlocked(p *Projection, id string) (*Lane, blocked, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return nil, blocked{}, false
	}
	for _, l := range u.Lanes {
		if q := l.own.blocked[id]; q != nil && l.Projection == p {
			return l, q.clone(), true
		}
	}
	return nil, blocked{}, false
}

// missed reads from the log what a blocked aggregate missed.
func (ps *Set) missed(ctx context.Context, l *Lane, q *blocked, dec *event.Decoder) (events []waiting, err error) {
	folder := l.Fold.NewFolder()
	clock := int64(noTime)
	if q.Clock != 0 {
		clock = q.Clock
	}
	from, last := q.Offset, max(q.Offset, q.Last)
	for _, offset := range q.Held {
		from, last = min(from, offset), max(last, offset)
	}
	read := func(in *pipeline.Record) error {
		if in.Offset > last {
			return errReadEnough
		}
		d, bad := dec.Decode(ctx, in, l.Fold.Folds)
		if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
			return bad
		}
		if bad == nil && !l.Fold.Folds(d.Type) {
			return nil
		}
		id := l.keyOf(in)
		if bad == nil {
			if id, bad = folder.Read(d.Type, d.Body, fold.OriginOf(in)); bad != nil {
				id = l.keyOf(in)
			} else if l.Fold.Window().Size > 0 {
				clock = max(clock, folder.Time())
			}
		}
		wanted := in.Offset == q.Offset || slices.Contains(q.Held, in.Offset) || in.Offset >= q.Since && string(id) == q.ID
		if !wanted {
			return nil
		}
		w := waiting{in: copied(in), d: d, bad: bad, clock: clock}
		w.d.Body = slices.Clone(d.Body)
		events = append(events, w)
		return nil
	}
	if err := ps.Tail(ctx, l.Source.Topic, l.Source.Partition, from, read); err != nil && !errors.Is(err, errReadEnough) {
		return nil, fmt.Errorf("reading what %q missed: %w", q.ID, err)
	}
	return events, nil
}

// releaseNow folds events of a blocked aggregate. It is not ok if it changed
// since q was found.
func (ps *Set) releaseNow(u *Unit, l *Lane, q *blocked, events []waiting, skip bool) (r released, ok bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	r.partition = u.Partition
	if u.revoked {
		return r, false, nil
	}
	t := l.own
	now := t.blocked[q.ID]
	if now == nil || now.Last != q.Last || now.Offset != q.Offset {
		return r, false, nil
	}
	if skip {
		l.skips[q.Offset], l.skipped = true, true
		if l.sending {
			l.laterSkips = true
		} else {
			l.dueSkips = true
		}
	}
	delete(t.blocked, q.ID)
	t.blocks[q.ID] = true
	for i := range events {
		w := &events[i]
		r.Events++
		if again := t.blocked[q.ID]; again != nil {
			t.queue(again, &w.in)
			continue
		}
		if skip && w.in.Offset == q.Offset && q.Reason != reasonGap {
			t.count(&w.in, isSkipped)
			continue
		}
		bad := w.bad
		id := []byte(q.ID)
		if bad == nil {
			if id, bad = t.folder.Read(w.d.Type, w.d.Body, fold.OriginOf(&w.in)); bad == nil {
				bad = t.misplaced(id, w.in.Partition)
			}
		}
		if bad == nil {
			bad = t.attempt(id, &w.in, foldEvent{w.d.Type, w.d.Body, w.clock, true}, u.entries)
		}
		switch {
		case bad == nil:
		case pipeline.ClassOf(bad) != pipeline.ClassReject:
			return r, false, bad
		case t.skips[w.in.Offset]:
			t.count(&w.in, isSkipped)
		default:
			if err := t.block(q.ID, &w.in, w.in.Offset+1, bad); err != nil {
				return r, false, err
			}
		}
	}
	if err := t.expire(l.next-1, u.entries); err != nil {
		return r, false, err
	}
	if again := t.blocked[q.ID]; again != nil {
		c := again.clone()
		r.Blocked = &c
	}
	t.owe(q.ID)
	err = ps.save(u)
	u.arm(ps, 0)
	return r, true, err
}
