package projection

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
)

// feeds is who follows changes. A change is told when the transaction with its
// snapshot has committed, by the session, who waits for nobody: a follower has a
// queue, and one whose queue is full is dropped.
type feeds struct {
	mu      sync.Mutex
	of      map[*Lane][]*follower
	waiting chan struct{} // closed at the next change; nil if nobody waits
}

// feedQueue is how many aggregates may wait for a follower.
const feedQueue = 1 << 14

// feedTick is how often a follower looks whether it is still at the right place,
// and tells how far it is.
const feedTick = 500 * time.Millisecond

// follower is one who follows lanes of a projection.
type follower struct {
	id    string // of one aggregate; "" means all
	ready chan struct{}

	mu     sync.Mutex
	queue  []toldBatch
	queued int // aggregates
	slow   bool
}

// toldBatch is what a follower is told of a lane, in order of next.
type toldBatch struct {
	aggregates []toldAggregate
	at         query.Position
}

// toldAggregate is an aggregate and from where to go on after it. belated says that it
// changed otherwise than by the event at which it stands: see [lane.changedBelatedly].
type toldAggregate struct {
	query.Aggregate
	next    int64
	belated bool
}

// changed wakes those who wait for anything new.
func (f *feeds) changed() {
	f.mu.Lock()
	if f.waiting != nil {
		close(f.waiting)
		f.waiting = nil
	}
	f.mu.Unlock()
}

// wait returns a channel that is closed at the next change.
func (f *feeds) wait() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting == nil {
		f.waiting = make(chan struct{})
	}
	return f.waiting
}

// tell gives what is due of a lane, and is committed now, to those who follow it.
// next is how far that reaches. The lane's lock is held.
func (f *feeds) tell(l *Lane, next int64) {
	if l.states == nil {
		return // nothing was sent, and the partition was given up
	}
	l.states.settle()
	if next < l.next || len(l.states.due) == 0 {
		// After a batch that was rolled back, states are ahead of what is
		// committed. They stay due until that has come as far.
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	followers := f.of[l]
	if len(followers) > 0 {
		all := l.toldNow(query.Position{Partition: l.Source.Partition, Offset: next})
		for _, w := range followers {
			w.add(all)
		}
	}
	if len(l.belated) > 0 {
		l.states.eachDue(func(id []byte, _ *aggregate) {
			delete(l.belated, string(id))
		})
	}
}

// toldNow returns what is due.
func (l *Lane) toldNow(at query.Position) toldBatch {
	out := toldBatch{at: at}
	l.states.eachDue(func(id []byte, a *aggregate) {
		if a.Version == 0 {
			return // it is gone, or was blocked before anything happened to it
		}
		name := string(id)
		one := toldAggregate{Aggregate: l.told(name, &a.Aggregate, at), next: a.Offset + 1}
		one.State = slices.Clone(one.State)
		if !a.Deleted && l.own.blocked[name] != nil {
			one.Status = fold.Blocked // the store may not have that yet
		}
		if next, ok := l.belated[name]; ok {
			one.next, one.belated = next, true
		}
		out.aggregates = append(out.aggregates, one)
	})
	slices.SortFunc(out.aggregates, func(a, b toldAggregate) int { return cmp.Compare(a.next, b.next) })
	return out
}

// changedBelatedly notes that an aggregate changed otherwise than by the event that is
// being read: by one that had waited, or by being blocked. Where it stands does
// not tell whoever goes on from a later offset, but what is noted here does.
func (l *Lane) changedBelatedly(id string) { l.belated[id], l.belatedNow[id] = l.next, l.next }

func (w *follower) add(t toldBatch) {
	if w.id != "" {
		i := slices.IndexFunc(t.aggregates, func(a toldAggregate) bool { return a.ID == w.id })
		if i < 0 {
			return
		}
		t.aggregates = t.aggregates[i : i+1]
	}
	if len(t.aggregates) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queued > 0 && w.queued+len(t.aggregates) > feedQueue {
		w.slow, w.queue = true, nil
	}
	if !w.slow {
		w.queue = append(w.queue, t)
		w.queued += len(t.aggregates)
	}
	select {
	case w.ready <- struct{}{}:
	default: // it knows
	}
}

// take returns what is in the queue, and empties it.
func (w *follower) take() (all []toldBatch, slow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all, w.queue, w.queued = w.queue, nil, 0
	return all, w.slow
}

func (f *feeds) join(l *Lane, w *follower) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		f.of = map[*Lane][]*follower{}
	}
	f.of[l] = append(f.of[l], w)
}

func (f *feeds) leave(l *Lane, w *follower) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.of[l] = slices.DeleteFunc(f.of[l], func(o *follower) bool { return o == w })
	if len(f.of[l]) == 0 {
		delete(f.of, l)
	}
}

// Changed implements [query.Projection].
func (r *Reader) Changed() <-chan struct{} { return r.feeds.wait() }

// Follow implements [query.Projection]: of the partitions that this worker has now.
func (r *Reader) Follow(ctx context.Context, start query.Start, f func(query.Changes) error) error {
	if err := r.Reaches(start); err != nil {
		return err
	}
	lanes, _ := r.assigned()
	all := make([]int32, len(lanes))
	for i, l := range lanes {
		all[i] = l.Source.Partition
	}
	return r.FollowPartitions(ctx, start, all, f)
}

// Reaches returns an error if a start has partitions that there are not.
func (r *Reader) Reaches(start query.Start) error {
	for n := range start.From {
		if int(n) >= r.NumPartitions {
			return fmt.Errorf("it has partition %d, but %s has %d: %w", n, r.Topic, r.NumPartitions, query.ErrAhead)
		}
	}
	return nil
}

// following is a lane that is followed.
type following struct {
	*Lane
	unit   *Unit
	joined int64 // what is in the queue of before came from the store, if it is wanted
	base   int64 // what was told before, here or by another worker
	next   int64 // everything below was told
	whole  bool  // the history has all from its first event on
	// Of those that changed belatedly, what came from the store: the queue may have
	// it again.
	seen map[string]seen
}

// seen is what was told of an aggregate.
type seen struct {
	version int64
	status  string
}

// FollowPartitions calls f with the changes of some partitions, first with from where on each
// is followed, until they are not here any more.
//
// A lane is joined while nobody folds and after all that was folded went to the
// store: what changed before comes from there, if it is wanted, and all that
// follows from the queue.
func (r *Reader) FollowPartitions(ctx context.Context, start query.Start, partitions []int32, f func(query.Changes) error) error {
	w := &follower{id: start.ID, ready: make(chan struct{}, 1)}
	var all []*following
	for _, n := range partitions {
		l, err := r.join(n, w)
		if err != nil {
			return err
		}
		defer r.feeds.leave(l.Lane, w)
		all = append(all, l)
		offset, wanted := start.From[n]
		switch {
		case start.Beginning, !wanted && len(start.From) > 0:
			offset = 0
		case !wanted:
			offset = l.joined
		case offset > max(l.joined, r.End(r.Topic, n)):
			return fmt.Errorf("it goes on from offset %d of partition %d of %s, which ends at %d; follow without an id: %w", offset, n, r.Topic, max(l.joined, r.End(r.Topic, n)), query.ErrAhead)
		}
		l.base, l.next = max(offset, l.joined), offset
	}
	of := map[int32]*following{}
	for _, l := range all {
		of[l.Source.Partition] = l
		if err := f(query.Changes{At: r.at(l.Lane, l.next)}); err != nil {
			return err
		}
	}
	for _, l := range all {
		if l.next < l.joined {
			if err := r.replay(ctx, l, start.ID, f); err != nil {
				return err
			}
		}
		l.next = l.base
	}
	quiet := func() error {
		for _, l := range all {
			if err := f(query.Changes{At: r.at(l.Lane, l.next), Quiet: true}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := quiet(); err != nil {
		return err
	}
	tick := time.NewTicker(feedTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ready:
			queue, slow := w.take()
			for _, t := range queue {
				if c := of[t.at.Partition].fresh(t); len(c.Aggregates) > 0 {
					if err := f(c); err != nil {
						return err
					}
				}
			}
			if slow {
				return query.ErrSlow
			}
		case <-tick.C:
			for _, l := range all {
				if !r.still(l.unit) {
					return query.ErrMoved
				}
				// What was committed and changed nothing here moves the frontier,
				// too; but not past what waits in the queue.
				l.unit.mu.Lock()
				published := l.frontier()
				empty := w.empty()
				l.unit.mu.Unlock()
				if empty {
					l.next = max(l.next, published)
				}
			}
			if err := quiet(); err != nil {
				return err
			}
		}
	}
}

// fresh returns of what the queue had what was not told. Several aggregates may have
// changed by one event: nobody can go on behind it before all of them are told.
func (l *following) fresh(t toldBatch) query.Changes {
	c := query.Changes{At: t.at}
	told := l.next
	for _, a := range t.aggregates {
		switch before, twice := l.seen[a.ID]; {
		case !a.belated && a.next <= told, a.belated && a.next < l.base:
			continue
		case a.belated && twice && before == (seen{a.Version, a.Status}):
			delete(l.seen, a.ID)
			continue
		}
		l.next = max(l.next, a.next)
		if n := len(c.Next); n > 0 && c.Next[n-1] == l.next {
			c.Next[n-1] = max(told, l.next-1)
		}
		c.Aggregates, c.Next = append(c.Aggregates, a.Aggregate), append(c.Next, l.next)
	}
	l.next = max(l.next, t.at.Offset)
	c.At.Offset = l.next
	return c
}

// still reports whether a partition is assigned, by the same assignment.
func (r *Reader) still(u *Unit) bool {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	return r.Units[u.Key] == u
}

func (w *follower) empty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.queue) == 0 && !w.slow
}

// assigned returns the projection's lanes that this worker folds, without those
// that it gave up.
func (r *Reader) assigned() (lanes []*Lane, units []*Unit) {
	r.Mu.Lock()
	defer r.Mu.Unlock()
	for _, u := range r.Units {
		if u.Topic == r.Topic {
			units = append(units, u)
		}
	}
	slices.SortFunc(units, func(a, b *Unit) int { return int(a.Partition - b.Partition) })
	for _, u := range units {
		i := slices.IndexFunc(u.Lanes, func(l *Lane) bool { return l.Projection == r.Projection })
		lanes = append(lanes, u.Lanes[i])
	}
	return lanes, units
}

// join makes a follower one of a partition's.
func (r *Reader) join(partition int32, w *follower) (*following, error) {
	lanes, units := r.assigned()
	i := slices.IndexFunc(lanes, func(l *Lane) bool { return l.Source.Partition == partition })
	if i < 0 || r.Hidden != nil && r.Hidden(units[i].Key, false) {
		return nil, fmt.Errorf("partition %d of %s is not with this worker, or is being caught up with: %w", partition, r.Topic, query.ErrElsewhere)
	}
	l, u := &following{Lane: lanes[i], unit: units[i], seen: map[string]seen{}}, units[i]
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return nil, query.ErrMoved
	}
	if u.events > 0 {
		if err := r.save(u); err != nil {
			return nil, err
		}
	}
	r.feeds.join(l.Lane, w)
	l.joined = l.Lane.next
	window := l.Fold.Window()
	l.whole = l.index != nil && l.index.shadow == nil && window.Every >= window.Size
	return l, nil
}

// replayChunk is how many aggregates of the store are told at a time.
const replayChunk = 256

// replay tells the aggregates that changed from where the lane is followed on up to
// where it was joined, from the store. What has changed again since comes from
// the queue.
func (r *Reader) replay(ctx context.Context, l *following, id string, f func(query.Changes) error) error {
	p := &replaying{following: l, ctx: ctx, view: l.Part.View(), at: r.at(l.Lane, l.joined), f: f}
	err := p.all(id)
	if err = errors.Join(err, p.failed, p.view.Close()); err != nil {
		return err
	}
	p.flush(false) // whoever reads it may be slow; the view is not kept for that
	return p.failed
}

// all tells all there is, but for the last of it, which is in the chunk.
func (p *replaying) all(id string) error {
	if err := p.findBelated(id); err != nil {
		return err
	}
	first := int64(-1)
	if p.whole && p.next > 0 {
		if err := p.view.Scan(familyHistory, nil, nil, false, func(key, _ []byte) bool {
			first = offsetOf(key)
			return false
		}); err != nil {
			return err
		}
	}
	var err error
	switch {
	case id != "":
		if a := p.get([]byte(id)); a != nil {
			p.usual(id, a, a.Offset+1)
		}
	case first >= 0 && first <= p.next:
		err = p.inOrder()
	default:
		err = p.byOffset(maxSorted)
	}
	p.belatedUpTo(math.MaxInt64)
	return err
}

// replaying is a replay at work.
type replaying struct {
	*following
	ctx    context.Context
	view   *store.View
	at     query.Position
	f      func(query.Changes) error
	failed error

	changed map[string]int64 // belatedly: when
	left    []string         // of those, the ones that are still to be told, in order
	ordered bool
	chunk   query.Changes
}

// findBelated finds what changed belatedly since.
func (p *replaying) findBelated(id string) error {
	p.changed = map[string]int64{}
	var bad error
	err := p.view.Scan(familyBelated, nil, nil, false, func(key, value []byte) bool {
		var next int64
		if next, _, bad = codec.ReadLong(value); bad != nil {
			bad = damaged(key, bad)
			return false
		}
		if next >= p.next && next <= p.joined && (id == "" || id == string(key)) {
			p.changed[string(key)] = next
			p.left = append(p.left, string(key))
		}
		return true
	})
	slices.SortFunc(p.left, func(a, b string) int { return cmp.Compare(p.changed[a], p.changed[b]) })
	return errors.Join(bad, err)
}

// inOrder goes through the history: of each aggregate, it tells the event that it
// stands at.
func (p *replaying) inOrder() error {
	p.ordered = true
	return p.view.Scan(familyHistory, offsetKey(nil, p.next), offsetKey(nil, p.joined), false, func(key, enc []byte) bool {
		offset := offsetOf(key)
		e, err := readIndexed(offset, enc)
		if err != nil {
			p.failed = damaged(key, err)
			return false
		}
		p.belatedUpTo(offset)
		if a := p.get(e.id); a != nil && a.Offset == offset {
			p.usual(string(e.id), a, offset+1)
		}
		return p.failed == nil
	})
}

// maxSorted is how many states are put into the order of the log for a replay: their
// ids and offsets are in memory for that.
const maxSorted = 1 << 18

// byOffset goes through the states where there is no history to go by: in the
// order of the log, if there are at most so many to tell, else in that of their ids.
func (p *replaying) byOffset(most int) error {
	type place struct {
		offset int64
		id     string
	}
	var places []place
	var a fold.Aggregate
	err := p.view.Scan(familyState, nil, nil, false, func(key, value []byte) bool {
		if p.failed = fold.ViewAggregate(value, &a); p.failed != nil {
			p.failed = damaged(key, p.failed)
			return false
		}
		if a.Offset >= p.next && a.Offset < p.joined {
			places = append(places, place{a.Offset, string(key)})
		}
		return len(places) <= most
	})
	if err != nil || p.failed != nil {
		return err
	}
	if len(places) > most {
		return p.view.Scan(familyState, nil, nil, false, p.see)
	}
	p.ordered = true
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.offset, b.offset) })
	for i, at := range places {
		p.belatedUpTo(at.offset)
		next := at.offset + 1
		if i+1 < len(places) && places[i+1].offset == at.offset {
			next = at.offset // see fresh
		}
		if a := p.get([]byte(at.id)); a != nil {
			p.usual(at.id, a, next)
		}
		if p.failed != nil {
			break
		}
	}
	return nil
}

// see looks at a state, wherever it stands.
func (p *replaying) see(key, value []byte) bool {
	a := &fold.Aggregate{}
	if p.failed = fold.ReadAggregate(value, a); p.failed != nil {
		p.failed = damaged(key, p.failed)
		return false
	}
	p.usual(string(key), a, a.Offset+1)
	return p.failed == nil
}

// get returns a state, nil if there is none.
func (p *replaying) get(id []byte) *fold.Aggregate {
	value, ok, err := p.view.Get(nil, familyState, id)
	a := &fold.Aggregate{}
	if ok && err == nil {
		if err = fold.ReadAggregate(value, a); err != nil {
			err = damaged(id, err)
		}
	}
	if p.failed = errors.Join(p.failed, err); p.failed != nil || !ok {
		return nil
	}
	return a
}

// usual tells an aggregate that changed by the event that it stands at, and from
// where to go on after it.
func (p *replaying) usual(id string, a *fold.Aggregate, next int64) {
	changed, belated := p.changed[id]
	if a.Offset >= p.next && a.Offset < p.joined && !(belated && changed > a.Offset) {
		p.tell(id, a, next)
	}
}

// belatedUpTo tells what changed belatedly, up to an offset.
func (p *replaying) belatedUpTo(offset int64) {
	for len(p.left) > 0 && p.changed[p.left[0]] <= offset && p.failed == nil {
		id := p.left[0]
		p.left = p.left[1:]
		// One that has changed as usual since is told by that.
		if a := p.get([]byte(id)); a != nil && a.Offset < p.changed[id] {
			p.seen[id] = seen{a.Version, p.status(id, a)}
			p.tell(id, a, p.changed[id])
		}
	}
}

// tell tells an aggregate, and from where to go on after it.
func (p *replaying) tell(id string, a *fold.Aggregate, next int64) {
	if a.Version == 0 {
		return
	}
	p.chunk.Aggregates = append(p.chunk.Aggregates, p.told(id, a, p.at))
	if p.ordered {
		p.chunk.Next = append(p.chunk.Next, next)
	}
	if len(p.chunk.Aggregates) == replayChunk {
		p.flush(true)
	}
}

func (p *replaying) flush(more bool) {
	p.chunk.At, p.chunk.More = p.at, more
	p.failed = errors.Join(p.failed, p.f(p.chunk), p.ctx.Err())
	p.chunk = query.Changes{}
}

// refused is which events of a lane were not applied, of late, so that whoever
// waits for one is told. What was refused before the worker started is not in it.
type refused struct {
	mu    sync.Mutex
	known map[string]query.Outcome
	order []string // ids, the oldest first
}

// maxRefused bounds what a lane remembers.
const maxRefused = 1 << 10

func (r *refused) add(eventID []byte, out query.Outcome) {
	if len(eventID) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[string]query.Outcome{}
	}
	id := string(bytes.Clone(eventID))
	if _, twice := r.known[id]; !twice {
		r.order = append(r.order, id)
	}
	r.known[id] = out
	if len(r.order) > maxRefused {
		delete(r.known, r.order[0])
		r.order = r.order[1:]
	}
}

func (r *refused) late(eventID []byte, a *aggregate) {
	r.add(eventID, query.Outcome{State: query.Late, Aggregate: a.id, Detail: "its aggregate was deleted before, and nothing brings it back"})
}

func (r *refused) rejected(eventID []byte, a *aggregate, err error) {
	if pipeline.ClassOf(err) == pipeline.ClassReject {
		r.add(eventID, query.Outcome{State: query.Rejected, Aggregate: a.id, Detail: err.Error()})
	}
}

func (r *refused) get(eventID string) (query.Outcome, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out, ok := r.known[eventID]
	return out, ok
}

// Outcome implements [query.Projection].
func (r *Reader) Outcome(_ context.Context, e query.Sought) (query.Outcome, error) {
	lanes := r.Fresh()
	// The position first: what happens in between is seen.
	passed := slices.ContainsFunc(lanes, func(l *Lane) bool {
		next, ok, err := l.Part.Position()
		return err == nil && ok && e.Next > 0 && l.Source.Partition == e.Partition && next >= e.Next
	})
	// What was refused may have been released and applied since.
	for _, l := range lanes {
		if !r.KeepHistory {
			break
		}
		v := l.Part.View()
		found, ok, err := eventByID(v, []byte(e.ID))
		if err = errors.Join(err, v.Close()); err != nil {
			return query.Outcome{}, err
		}
		if ok {
			return query.Outcome{State: query.Applied, Aggregate: string(found.id), Version: found.version}, nil
		}
	}
	for _, l := range lanes {
		if out, ok := l.refused.get(e.ID); ok {
			return out, nil
		}
	}
	if out, ok := r.Upstream.Outcome(e.ID); ok {
		return out, nil
	}
	switch {
	case !r.KeepHistory:
		return query.Outcome{}, query.ErrNoHistory
	case passed:
		return query.Outcome{State: query.Passed, Detail: fmt.Sprintf("the projection is past %d of partition %d and did not apply the event: it is of a type that the projection does nothing with, or was refused before this worker kept count, or stands elsewhere", e.Next-1, e.Partition)}, nil
	}
	return query.Outcome{State: query.Pending, Detail: r.Unseen(e.ID, "by the partitions that this worker has: it may be on its way, or stand with another worker")}, nil
}

// Unseen says what may have become of an event that was not seen.
func (r *Reader) Unseen(eventID, where string) string {
	text := "event " + eventID + " was not applied " + where
	if before := r.Upstream.Unheard(eventID); before != "" {
		text += "; " + before
	}
	return text
}

// awaitAgain is how soon it is looked again for an event: what is in memory only, of a
// partition that has become quiet, is seen when it is asked for again.
const awaitAgain = 50 * time.Millisecond

// Await implements [query.Projection]: of what this worker knows.
func (r *Reader) Await(ctx context.Context, e query.Sought, wait time.Duration) (query.Outcome, error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	for last := wait <= 0; ; {
		changed := r.Changed()
		out, err := r.Outcome(ctx, e)
		if err != nil || out.Final() || last {
			return out, err
		}
		again := time.NewTimer(awaitAgain)
		select {
		case <-changed:
		case <-again.C:
		case <-over.C:
			last = true
		case <-ctx.Done():
			again.Stop()
			return out, ctx.Err()
		}
		again.Stop()
	}
}
