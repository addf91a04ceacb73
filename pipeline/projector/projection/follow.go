package projection

import (
	"context"
	"fmt"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// A follower of a partition folds its events with the same code as the owner, and
// publishes nothing. The log of events does not contain everything that the owner
// knows; the follower reads the rest from the owner's snapshots topic: how far the
// owner has published (checkpoints), below which offset late events are dead letters,
// and releases of blocked aggregates. So the store of a follower is at any time one that
// an owner could have left behind, and a worker that is assigned the partition
// continues from it.

// followed is what a lane knows of its owner, if that is another worker. The lock of
// the unit guards it. Methods accept nil: nothing is followed.
type followed struct {
	heard     int64 // offset of the internal records: everything below was taken in
	snapshots int64 // the same for snapshots, if they are on another topic
	read      int64 // next offset of that topic
	published int64 // the owner has published everything below, which may be ahead of this lane
	saved     int64 // heard as the store has it
	done      int64 // changes below were sent to feeds

	// A due mark of lane.marks ends when the owner's checkpoint is past the offset in
	// marked. For a deletion, the owner decides when: either both workers have the
	// null, in whatever order, or it stays due.
	marked  map[string]int64
	deleted map[string]bool // nulls on the topic, of aggregates that exist here

	blocked map[string]internalrecord.Place // where the owner's records since its last checkpoint say that aggregates are blocked
	foreign bool                            // the owner's snapshots were reported to be by another fold
}

func newFollowed() *followed {
	return &followed{saved: -1, marked: map[string]int64{}, deleted: map[string]bool{}, blocked: map[string]internalrecord.Place{}}
}

func (f *followed) write(b *store.Batch, l *lane) {
	if f != nil && f.heard != f.saved {
		putHeard(b, l, internalrecord.Ends{Internal: f.heard, Snapshots: f.snapshots}, f.published)
	}
}

// putHeard stores what was heard of the owner of a lane.
func putHeard(b *store.Batch, l *lane, heard internalrecord.Ends, published int64) {
	numbers := []int64{heard.Internal, published}
	if l.projection.Spec.Internal != "" {
		numbers = append(numbers, heard.Snapshots)
	}
	states.PutLongs(b, l.part, familyMark, markHeard, numbers...)
}

// loadHeard reads what putHeard has stored.
func loadHeard(l *lane) (heard internalrecord.Ends, published int64, ok bool, err error) {
	into := []*int64{&heard.Internal, &published}
	if l.projection.Spec.Internal != "" {
		into = append(into, &heard.Snapshots)
	}
	ok, err = states.ReadLongs(l.part, familyMark, markHeard, into...)
	return heard, published, ok, err
}

func (f *followed) written() {
	if f != nil {
		f.saved = f.heard
	}
}

// followFrom returns the offset from which a lane is followed. Events that are folded
// and not published are not read again: the owner publishes them.
func (l *lane) followFrom() int64 {
	return min(l.next, l.indexFrom())
}

// frontier returns the offset below which all changes were sent to feeds: for an owner,
// the committed offset.
func (l *lane) frontier() int64 {
	if l.follow != nil {
		return l.follow.done
	}
	return l.publication.published
}

// Followed describes a partition that is followed.
type Followed struct {
	From      int64            // next offset of the events to read
	Handled   int64            // everything below is folded
	Snapshots map[string]int64 // next offset to read of each topic that owners publish on
}

// OpenFollowed opens a partition to follow it. start returns the first offset of the
// same partition of a topic that owners publish on.
func (s *Set) OpenFollowed(ctx context.Context, at kafka.Partition, start func(ctx context.Context, topic string) (int64, error)) (Followed, error) {
	last, err := s.lastOf(ctx, []kafka.Partition{at})
	if err != nil {
		return Followed{}, err
	}
	u, err := s.open(ctx, at, s.NewDecoder(s.topics[at.Topic].projections[0]), last)
	if err != nil {
		return Followed{}, err
	}
	out := Followed{From: u.lanes[0].followFrom(), Snapshots: map[string]int64{}}
	for _, l := range u.lanes {
		hear := func(topic string, from *int64) error {
			first, err := start(ctx, topic)
			*from = max(*from, first)
			out.Snapshots[topic] = *from
			return err
		}
		if err := hear(l.projection.Spec.internal(), &l.follow.heard); err != nil {
			return Followed{}, err
		}
		if l.projection.Spec.Internal != "" {
			if err := hear(l.projection.Spec.Snapshots, &l.follow.snapshots); err != nil {
				return Followed{}, err
			}
		}
		l.follow.done = l.next
		out.From = min(out.From, l.followFrom())
	}
	u.assigned(at, out.From, s.cfg.Now())
	out.Handled = u.folded()
	s.assign(u)
	return out, nil
}

// Follower folds what a follower reads, for one session. It is a
// [kafka.FollowHandler].
type Follower struct {
	handler   *Handler
	published map[string]*Projection // by topic
}

var _ kafka.FollowHandler = (*Follower)(nil)

// NewFollower returns a follower for one session.
func (s *Set) NewFollower() *Follower {
	f := &Follower{handler: s.NewHandler(), published: map[string]*Projection{}}
	for _, t := range s.topics {
		for _, p := range t.projections {
			f.published[p.Spec.Snapshots], f.published[p.Spec.internal()] = p, p
		}
	}
	return f
}

// Handle implements [kafka.FollowHandler].
func (f *Follower) Handle(ctx context.Context, in *pipeline.Record) error {
	p := f.published[in.Topic]
	if p == nil {
		return f.handler.Handle(ctx, in, nil)
	}
	u, l := f.find(p, in.Partition)
	if u == nil {
		return errRevoked
	}
	checkpoint, err := u.hear(l, in)
	if err != nil {
		return fmt.Errorf("reading what the owner of partition %d published: %w", in.Partition, err)
	}
	if !checkpoint {
		return nil
	}
	return f.reconcile(ctx, u)
}

// find returns the lane of a projection's partition.
func (f *Follower) find(p *Projection, partition int32) (*unit, *lane) {
	s := f.handler.set
	s.mu.Lock()
	u := s.units[Key{p.Spec.Events.Name, partition}]
	s.mu.Unlock()
	if u == nil {
		return nil, nil
	}
	return u, u.lane(p)
}

// lane returns the lane of a projection.
func (u *unit) lane(p *Projection) *lane {
	return u.lanes[slices.IndexFunc(u.lanes, func(l *lane) bool { return l.projection == p })]
}

// reconcile releases what the owner of a unit has released.
func (f *Follower) reconcile(ctx context.Context, u *unit) error {
	return f.handler.set.reconcile(ctx, u, f.handler.decoders[u.key.Topic])
}

// hear takes in a record that the owner published. It returns whether that is a
// checkpoint.
func (u *unit) hear(l *lane, in *pipeline.Record) (isCheckpoint bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return false, nil
	}
	if in.Topic != l.projection.Spec.internal() {
		if in.Offset < l.follow.snapshots {
			return false, nil
		}
		l.follow.read = in.Offset + 1
		return false, l.hearSnapshot(in)
	}
	if in.Offset < l.follow.heard {
		return false, nil
	}
	switch kind, id := internalrecord.KindOf(in.Key); kind {
	case internalrecord.OfCheckpoint:
		c, err := internalrecord.DecodeCheckpoint(in.Value)
		if err != nil {
			l.skipUnreadable(in, err, effectIgnored)
			return false, nil
		}
		return true, l.hearCheckpoint(&c, in.Offset)
	case internalrecord.OfSent:
		sent, err := internalrecord.DecodeSent(in.Value)
		if err != nil {
			l.skipUnreadable(in, err, effectIgnored)
		}
		l.letters.Sent(sent)
	case internalrecord.OfSkipped:
		if err := l.skips.Offsets.Decode(in.Value); err != nil {
			l.skipUnreadable(in, err, effectIgnored)
		}
		l.skips.Unsaved = true
	case internalrecord.OfBlocked:
		if at, err := internalrecord.PlaceOf(id, in.Value); err == nil { // the owner has reported the others
			l.follow.blocked[id] = at
		}
	case internalrecord.OfLater:
	case internalrecord.Other:
		if in.Topic == l.projection.Spec.Snapshots {
			return false, l.hearSnapshot(in)
		}
	}
	return false, nil
}

// hearSnapshot takes in a snapshot of the owner, or its deletion.
func (l *lane) hearSnapshot(in *pipeline.Record) error {
	switch {
	case l.fold.CheckStateID(in.Key) != nil:
		return nil // no aggregate has this key
	case in.Value == nil:
		return l.hearDeletion(string(in.Key))
	case l.fold.Window().Size > 0:
		return l.hearWindow(string(in.Key))
	}
	return nil
}

// hearDeletion takes in that the owner has deleted the snapshot of an aggregate.
func (l *lane) hearDeletion(id string) error {
	if l.marks.Has(id) {
		l.follow.deleted[id] = true
		return nil
	}
	if l.fold.Window().Size == 0 {
		return nil
	}
	a, err := l.states.Get([]byte(id))
	if err == nil && a.Version > 0 {
		l.follow.deleted[id] = true
	}
	return err
}

// hearWindow takes in that the owner has published a window. A window that is deleted
// here may exist again there, if a new owner was behind: then its deletion is due
// again.
func (l *lane) hearWindow(id string) error {
	delete(l.follow.deleted, id)
	limit, ok := l.fold.Window().EarliestKept(l.own.clock)
	_, start, isWindow := fold.ParseWindowID(id)
	if !ok || !isWindow || l.own.clock == noTime || start >= limit {
		return nil
	}
	a, err := l.states.Get([]byte(id))
	if err != nil || a.Version > 0 {
		return err
	}
	a.Gone = true
	l.own.markDue(id)
	return nil
}

// hearCheckpoint takes in the owner's checkpoint: the records before it are complete up
// to there.
func (l *lane) hearCheckpoint(c *internalrecord.Checkpoint, at int64) error {
	f := l.follow
	f.heard, f.snapshots = at+1, max(f.snapshots, f.read)
	if !l.continues(c) {
		if !f.foreign {
			f.foreign = true
			l.log.Warn("the owner's snapshots are of another fold, or the owner finds duplicates in another way (--no-history): states may differ, and a hand-over starts from the log",
				"projection", l.projection.Label(), "partition", l.source.Partition, "fold", c.Fold, "dedupe", c.Dedupe)
		}
		clear(f.blocked)
		return nil
	}
	f.foreign = false
	l.hearUnread(c.Unread)
	f.published = max(f.published, c.Next)
	l.followPublished()
	for id, at := range f.blocked {
		l.heard.todo.Hear(id, at, c.Next)
	}
	clear(f.blocked)
	return l.clearPublishedMarks(l.next)
}

// followPublished sets published to what the owner has published, as far as it is
// folded here: a store with a higher offset would claim that its states came from
// snapshots.
func (l *lane) followPublished() {
	p := &l.publication
	p.published = max(p.published, min(l.follow.published, l.next))
}

// clearPublishedMarks ends the due marks of what the owner has published. Everything
// below read has been read.
func (l *lane) clearPublishedMarks(read int64) error {
	f := l.follow
	for id := range l.marks.All() {
		a, err := l.states.Get([]byte(id))
		if err != nil {
			return err
		}
		if _, ok := f.marked[id]; !ok {
			f.marked[id] = read
		}
		if f.deleted[id] || !a.Gone && f.published >= f.marked[id] {
			l.marks.Set(id, false)
			delete(f.marked, id)
			delete(f.deleted, id)
		}
		l.states.Settle()
	}
	return nil
}

// EndBatch implements [kafka.FollowHandler].
func (f *Follower) EndBatch(ctx context.Context) error {
	h := f.handler
	for _, u := range h.batch {
		if err := f.reconcile(ctx, u); err != nil {
			return err
		}
		if err := u.endFollowed(h.set); err != nil {
			return pipeline.Fatal("%w", err) // of the store
		}
		if err := f.reconcile(ctx, u); err != nil { // the history may be complete now
			return err
		}
	}
	h.set.feeds.Wake()
	clear(h.batch)
	h.batch = h.batch[:0]
	h.epoch++
	return nil
}

// endFollowed ends a batch of a unit that is followed.
func (u *unit) endFollowed(s *Set) error {
	save := u.mustSave(s)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return nil
	}
	u.settle()
	for _, l := range u.lanes {
		l.followPublished()
	}
	if save {
		if err := u.save(s); err != nil {
			return err
		}
	}
	for _, l := range u.lanes {
		s.send(l, u.read)
		l.dropDue()
		l.follow.done = max(l.follow.done, u.read)
		if err := l.clearPublishedMarks(u.read); err != nil {
			return err
		}
	}
	return nil
}
