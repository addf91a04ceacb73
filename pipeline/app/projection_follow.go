package app

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
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
	heard     int64 // offset in the snapshots' partition: what is below was taken in
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
func (l *lane) followFrom() int64 {
	if l.index != nil && l.index.shadow != nil {
		return min(l.next, l.index.next)
	}
	return l.next
}

// followFrom returns the offset to read from.
func (u *unit) followFrom() int64 {
	from := u.lanes[0].followFrom()
	for _, l := range u.lanes {
		from = min(from, l.followFrom())
	}
	return from
}

// frontier returns up to where all changes were told to those who follow them: of an
// owner, what is committed.
func (l *lane) frontier() int64 {
	if l.follow != nil {
		return l.follow.done
	}
	return l.published
}

// followHandler folds what a follower reads. It is a [kafka.FollowHandler].
type followHandler struct {
	*foldHandler
	snapshots map[string]*projection // by topic
}

var _ kafka.FollowHandler = (*followHandler)(nil)

func (ps *projections) newFollowHandler(registry schemaSource) *followHandler {
	h := &followHandler{foldHandler: ps.newHandler(registry), snapshots: map[string]*projection{}}
	for _, t := range ps.topics {
		for _, p := range t.projections {
			h.snapshots[p.snapshots] = p
		}
	}
	return h
}

// Handle implements [kafka.FollowHandler].
func (h *followHandler) Handle(ctx context.Context, in *pipeline.Record) error {
	p := h.snapshots[in.Topic]
	if p == nil {
		return h.foldHandler.Handle(ctx, in, nil)
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
func (h *followHandler) find(p *projection, partition int32) (*unit, *lane) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, u := range h.units {
		if key.partition != partition {
			continue
		}
		for _, l := range u.lanes {
			if l.projection == p {
				return u, l
			}
		}
	}
	return nil, nil
}

// hear takes in a record of the snapshots topic. It returns which aggregates are
// blocked here and released there.
func (h *followHandler) hear(u *unit, l *lane, in *pipeline.Record) (free []string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked || in.Offset < l.follow.heard {
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
		if delete(l.follow.freed, id); in.Value == nil {
			l.follow.freed[id] = true
		}
	case strings.HasPrefix(key, reservedKeys):
		// a later version's
	case in.Value == nil && l.fold.Window().Size > 0:
		a, err := l.states.get(in.Key)
		if err != nil {
			return nil, err
		}
		if a.Version > 0 || l.owed[key] {
			l.follow.buried[key] = true
		}
	case in.Value == nil && l.owed[key]:
		l.follow.buried[key] = true
	case in.Value != nil && l.fold.Window().Size > 0:
		return nil, l.unburied(key)
	}
	return nil, nil
}

// unburied is about a window that the owner has published. One that is gone here may
// have come back there, with an owner that was behind: then its null is due anew.
func (l *lane) unburied(id string) error {
	delete(l.follow.buried, id)
	limit, ok := l.fold.Window().KeptFrom(l.own.clock)
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
func (l *lane) checked(c *checkpoint, at int64) (free []string, err error) {
	f := l.follow
	f.heard = at + 1
	if c.Fold != l.fold.Hash() || c.TopicID != l.source.TopicID || c.Dedupe != l.dedupe() {
		if !f.other {
			f.other = true
			l.log.Warn("the owner's snapshots are not of this fold, or it finds duplicates in another way (--no-history): states may differ, and a hand-over begins with the log",
				"projection", l.label(), "partition", l.source.Partition, "fold", c.Fold, "dedupe", c.Dedupe)
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
func (l *lane) keepPublished() {
	l.published = max(l.published, min(l.follow.published, l.next))
}

// sentUpTo says that dead letters of events below an offset are in committed
// transactions.
func (l *lane) sentUpTo(offset int64) {
	l.sentBelow = max(l.sentBelow, offset)
	for of := range l.letters {
		if of < l.sentBelow {
			delete(l.letters, of)
			l.lettersNow[of] = true
		}
	}
}

// free releases an aggregate that its owner has released.
func (h *followHandler) free(ctx context.Context, u *unit, l *lane, id string) error {
	u.mu.Lock()
	q := l.own.blocked[id]
	skip := q != nil && l.skips[q.Offset]
	u.mu.Unlock()
	if q == nil {
		return nil // it was released before
	}
	out, err := h.projections.release(ctx, l.projection, id, skip, h.decoders[u.topic])
	if err != nil {
		return err
	}
	h.log.Info("an aggregate that its owner has released is released here, too", "projection", l.label(), "partition", u.partition, "id", id, "skip", skip, "events", out.Events, "blocked_again", out.Blocked != nil)
	return nil
}

// settle forgets what is due and was published by the owner. Everything below an
// offset has been read.
func (l *lane) settle(read int64) error {
	f := l.follow
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

func (h *followHandler) endBatch(u *unit) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return nil
	}
	for _, l := range u.lanes {
		l.keepPublished()
	}
	if err := h.saveIfDue(u); err != nil {
		return err
	}
	for _, l := range u.lanes {
		h.feeds.tell(l, u.read)
		l.dropDue()
		l.follow.done = max(l.follow.done, u.read)
		if err := l.settle(u.read); err != nil {
			return err
		}
	}
	return nil
}

// addHeard adds to what is written how far the owner was heard.
func (l *lane) addHeard(b *store.Batch) {
	if l.follow != nil && l.follow.heard != l.follow.kept {
		b.Put(l.part, familyMark, markHeard, codec.AppendLong(codec.AppendLong(nil, l.follow.heard), l.follow.published))
	}
}

// follow makes a partition one that is followed, once open brought up its lanes.
func (ps *projections) follow(u *unit) (from int64) {
	u.read = u.followFrom()
	for _, l := range u.lanes {
		l.follow.done = l.next
	}
	ps.mu.Lock()
	ps.units[u.unitKey] = u
	delete(ps.left, u.unitKey)
	ps.mu.Unlock()
	ps.lanes.Add(int64(len(u.lanes)))
	return u.read
}

// twin returns the same projections for another use of them, which counts nothing.
func (ps *projections) twin(restore restoreFunc) *projections {
	out := newProjections(ps.store, ps.log, restore)
	out.tail, out.history, out.memory, out.policy, out.now = ps.tail, ps.history, ps.memory, ps.policy, ps.now
	for name, t := range ps.topics {
		other := &foldTopic{name: t.name, id: t.id, types: t.types}
		for _, p := range t.projections {
			other.projections = append(other.projections, p.twin())
		}
		out.topics[name] = other
	}
	return out
}

// twin returns the same projection, which counts nothing.
func (p *projection) twin() *projection {
	out := &projection{fold: p.fold, partitions: p.partitions, version: p.version, identity: p.identity, snapshots: p.snapshots, snapshotID: p.snapshotID, late: p.late, publish: p.publish}
	uncounted().of(out)
	return out
}
