package projection

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/store"
)

// Whoever follows a partition folds its events by the same code as its owner, and
// publishes nothing. What the log of events does not tell, it hears on the owner's
// snapshots topic: how far the owner has published (the checkpoints), below which
// offset late events are dead letters, and what people said about blocked aggregates.
// So at any time the store is one that an owner could have left behind, and whoever
// is assigned the partition goes on from it.

// followed is what a lane is told by its owner, if that is somebody else.
type followed struct {
	Heard     int64 // offset in the snapshots' partition: what is below was taken in
	published int64 // the owner has published everything below, which may be more than is folded here
	kept      int64 // what the store has of heard
	done      int64 // everything below is told to those who follow changes

	// What is due in snapshots without an event that tells (lane.owed) is no longer
	// so once the owner's checkpoint is past owedAt. Of a null, the owner decides
	// when: either both have it, in whatever order, or it stays due.
	owedAt map[string]int64
	buried map[string]bool // nulls on the topic of what is not gone here yet

	freed map[string]bool // ids that the owner says are blocked no longer, since its last checkpoint
	other bool            // it was said that the owner's snapshots are by another fold
}

// markHeard is what the store keeps of it: heard, published.
var markHeard = []byte("heard")

func newFollowed() *followed {
	return &followed{kept: -1, owedAt: map[string]int64{}, buried: map[string]bool{}, freed: map[string]bool{}}
}

// followFrom returns the offset from which a lane is followed. What was not
// published is not read again: that is for the owner.
func (l *Lane) followFrom() int64 {
	if l.index != nil && l.index.shadow != nil {
		return min(l.next, l.index.next)
	}
	return l.next
}

// followFrom returns the offset to read from.
func (u *Unit) followFrom() int64 {
	from := u.Lanes[0].followFrom()
	for _, l := range u.Lanes {
		from = min(from, l.followFrom())
	}
	return from
}

// frontier returns up to where all changes were told to those who follow them: of an
// owner, what is committed.
func (l *Lane) frontier() int64 {
	if l.Follow != nil {
		return l.Follow.done
	}
	return l.published
}

// followHandler folds what a follower reads. It is a [kafka.FollowHandler].
type followHandler struct {
	*Handler
	snapshots map[string]*Projection // by topic
}

var _ kafka.FollowHandler = (*followHandler)(nil)

func (ps *Set) NewFollowHandler(registry event.Schemas) *followHandler {
	h := &followHandler{Handler: ps.NewHandler(registry), snapshots: map[string]*Projection{}}
	for _, t := range ps.Topics {
		for _, p := range t.Projections {
			h.snapshots[p.Snapshots] = p
		}
	}
	return h
}

// Handle implements [kafka.FollowHandler].
func (h *followHandler) Handle(ctx context.Context, in *pipeline.Record) error {
	p := h.snapshots[in.Topic]
	if p == nil {
		return h.Handler.Handle(ctx, in, nil)
	}
	u, l := h.find(p, in.Partition)
	if u == nil {
		return errRevoked
	}
	free, err := h.hear(u, l, in)
	if err != nil {
		return fmt.Errorf("what the owner of partition %d says: %w", in.Partition, err)
	}
	for _, id := range free {
		if err := h.free(ctx, u, l, id); err != nil {
			return fmt.Errorf("releasing %q as its owner did: %w", id, err)
		}
	}
	return nil
}

// find returns the lane of a projection's partition.
func (h *followHandler) find(p *Projection, partition int32) (*Unit, *Lane) {
	h.Mu.Lock()
	defer h.Mu.Unlock()
	for key, u := range h.Units {
		if key.Partition != partition {
			continue
		}
		for _, l := range u.Lanes {
			if l.Projection == p {
				return u, l
			}
		}
	}
	return nil, nil
}

// hear takes in a record of the snapshots topic. It returns which aggregates are
// blocked here and released there.
func (h *followHandler) hear(u *Unit, l *Lane, in *pipeline.Record) (free []string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked || in.Offset < l.Follow.Heard {
		return nil, nil
	}
	key := string(in.Key)
	id, isBlocked := strings.CutPrefix(key, blockedKeys)
	switch {
	case key == string(checkpointKey):
		var c checkpoint
		if err := json.Unmarshal(in.Value, &c); err != nil {
			return nil, fmt.Errorf("checkpoint at offset %d of %s: %w", in.Offset, in.Topic, err)
		}
		return l.checked(&c, in.Offset)
	case key == string(sentKey):
		sent, err := strconv.ParseInt(string(in.Value), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q at offset %d of %s: %w", in.Key, in.Offset, in.Topic, err)
		}
		l.sentUpTo(sent)
	case key == string(skippedKey):
		if in.Value == nil {
			return nil, nil
		}
		l.skipped = true
		return nil, l.decodeSkips(in.Value)
	case isBlocked:
		if delete(l.Follow.freed, id); in.Value == nil {
			l.Follow.freed[id] = true
		}
	case strings.HasPrefix(key, fold.ReservedKeys):
		// a later version's
	case in.Value == nil && l.Fold.Window().Size > 0:
		a, err := l.states.get(in.Key)
		if err != nil {
			return nil, err
		}
		if a.Version > 0 || l.owed[key] {
			l.Follow.buried[key] = true
		}
	case in.Value == nil && l.owed[key]:
		l.Follow.buried[key] = true
	case in.Value != nil && l.Fold.Window().Size > 0:
		return nil, l.unburied(key)
	}
	return nil, nil
}

// unburied is about a window that the owner has published. One that is gone here may
// have come back there, with an owner that was behind: then its null is due anew.
func (l *Lane) unburied(id string) error {
	delete(l.Follow.buried, id)
	limit, ok := l.Fold.Window().KeptFrom(l.own.clock)
	start, isWindow := fold.WindowStart(id)
	if !ok || !isWindow || l.own.clock == noTime || start >= limit {
		return nil
	}
	a, err := l.states.get([]byte(id))
	if err != nil || a.Version > 0 {
		return err
	}
	a.gone = true
	l.own.owe(id)
	return nil
}

// checked takes in the owner's checkpoint: what it wrote before it is complete up to
// there.
func (l *Lane) checked(c *checkpoint, at int64) (free []string, err error) {
	f := l.Follow
	f.Heard = at + 1
	if c.Fold != l.Fold.Hash() || c.TopicID != l.Source.TopicID || c.Dedupe != l.dedupe() {
		if !f.other {
			f.other = true
			l.log.Warn("the owner's snapshots are not of this fold, or it finds duplicates in another way (--no-history): states may differ, and a hand-over begins with the log",
				"projection", l.Label(), "partition", l.Source.Partition, "fold", c.Fold, "dedupe", c.Dedupe)
		}
		clear(f.freed)
		return nil, nil
	}
	f.other = false
	f.published = max(f.published, c.Next)
	l.keepPublished()
	for id, q := range l.own.blocked {
		// What the owner has not read when it said so, it said of an event before.
		if l.skips[q.Offset] || f.freed[id] && max(q.Offset, q.Since-1) < c.Next {
			free = append(free, id)
		}
	}
	clear(f.freed)
	slices.Sort(free)
	return free, l.settle(l.next)
}

// keepPublished notes how much of what is folded here the owner has published. It is
// never more: a store that says so says that its states came from snapshots.
func (l *Lane) keepPublished() {
	l.published = max(l.published, min(l.Follow.published, l.next))
}

// sentUpTo says that dead letters of events below an offset are in committed
// transactions.
func (l *Lane) sentUpTo(offset int64) {
	l.sentBelow = max(l.sentBelow, offset)
	for of := range l.letters {
		if of < l.sentBelow {
			delete(l.letters, of)
			l.lettersNow[of] = true
		}
	}
}

// free releases an aggregate that its owner has released.
func (h *followHandler) free(ctx context.Context, u *Unit, l *Lane, id string) error {
	u.mu.Lock()
	q := l.own.blocked[id]
	skip := q != nil && l.skips[q.Offset]
	u.mu.Unlock()
	if q == nil {
		return nil // it was released before
	}
	out, err := h.Set.release(ctx, l.Projection, id, skip, h.decoders[u.Topic])
	if err != nil {
		return err
	}
	h.log.Info("an aggregate that its owner has released is released here, too", "projection", l.Label(), "partition", u.Partition, "id", id, "skip", skip, "events", out.Events, "blocked_again", out.Blocked != nil)
	return nil
}

// settle forgets what is due and was published by the owner. Everything below an
// offset has been read.
func (l *Lane) settle(read int64) error {
	f := l.Follow
	for id, is := range l.owed {
		if !is {
			continue
		}
		a, err := l.states.get([]byte(id))
		if err != nil {
			return err
		}
		if _, ok := f.owedAt[id]; !ok {
			f.owedAt[id] = read
		}
		if f.buried[id] || !a.gone && f.published >= f.owedAt[id] {
			l.owed[id], l.owedNow[id] = false, true
			delete(f.owedAt, id)
			delete(f.buried, id)
		}
		l.states.settle()
	}
	return nil
}

// EndBatch implements [kafka.FollowHandler].
func (h *followHandler) EndBatch(context.Context) error {
	for _, u := range h.batch {
		if err := h.endBatch(u); err != nil {
			return pipeline.Fatal("%w", err) // of the store
		}
	}
	h.feeds.changed()
	clear(h.batch)
	h.batch = h.batch[:0]
	h.epoch++
	return nil
}

func (h *followHandler) endBatch(u *Unit) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return nil
	}
	for _, l := range u.Lanes {
		l.keepPublished()
	}
	if err := h.saveIfDue(u); err != nil {
		return err
	}
	for _, l := range u.Lanes {
		h.feeds.tell(l, u.Read)
		l.dropDue()
		l.Follow.done = max(l.Follow.done, u.Read)
		if err := l.settle(u.Read); err != nil {
			return err
		}
	}
	return nil
}

// addHeard adds to what is written how far the owner was heard.
func (l *Lane) addHeard(b *store.Batch) {
	if l.Follow != nil && l.Follow.Heard != l.Follow.kept {
		b.Put(l.Part, familyMark, markHeard, codec.AppendLong(codec.AppendLong(nil, l.Follow.Heard), l.Follow.published))
	}
}

// Follow makes a partition one that is followed, once open brought up its lanes.
func (ps *Set) Follow(u *Unit) (from int64) {
	u.Read = u.followFrom()
	for _, l := range u.Lanes {
		l.Follow.done = l.next
	}
	ps.Mu.Lock()
	ps.Units[u.Key] = u
	delete(ps.left, u.Key)
	ps.Mu.Unlock()
	ps.lanes.Add(int64(len(u.Lanes)))
	return u.Read
}

// Twin returns the same projections for another use of them, which counts nothing.
func (ps *Set) Twin(restore RestoreFunc) *Set {
	out := New(ps.store, ps.log, restore)
	out.Tail, out.KeepHistory, out.Memory, out.policy, out.now = ps.Tail, ps.KeepHistory, ps.Memory, ps.policy, ps.now
	for name, t := range ps.Topics {
		other := &foldTopic{Name: t.Name, id: t.id, types: t.types}
		for _, p := range t.Projections {
			other.Projections = append(other.Projections, p.twin())
		}
		out.Topics[name] = other
	}
	return out
}

// twin returns the same projection, which counts nothing.
func (p *Projection) twin() *Projection {
	out := &Projection{Fold: p.Fold, Partitions: p.Partitions, Version: p.Version, Identity: p.Identity, Snapshots: p.Snapshots, SnapshotID: p.SnapshotID, Late: p.Late, Publish: p.Publish}
	PrivateMetrics().Of(out)
	return out
}
