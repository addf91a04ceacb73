package projection

import (
	"context"
	"encoding/json"
	"slices"
	"sync/atomic"

	"millrace/pipeline"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// unread are the ranges of offsets that the log deleted before a lane read them, in
// order. They are in the store and in every checkpoint, so answers show them as long as
// the states exist.
type unread struct {
	ranges  atomic.Pointer[[]query.Unread] // readers take no lock; nobody changes the slice
	due     bool                           // no committed checkpoint has the last range
	unsaved bool                           // the store lacks some
}

// all returns the ranges. It needs no lock.
func (u *unread) all() []query.Unread {
	if all := u.ranges.Load(); all != nil {
		return *all
	}
	return nil
}

// total returns the number of offsets.
func (u *unread) total() (n int64) {
	for _, r := range u.all() {
		n += r.To - r.From
	}
	return n
}

// below returns the end of the last range; 0 if there is none.
func (u *unread) below() int64 {
	if all := u.all(); len(all) > 0 {
		return all[len(all)-1].To
	}
	return 0
}

func (u *unread) set(ranges []query.Unread) {
	if len(ranges) > 0 {
		u.ranges.Store(&ranges)
	}
}

func (u *unread) load(part *store.Part) error {
	value, ok, err := part.Get(nil, familyMark, markUnread)
	if !ok || err != nil {
		return err
	}
	var ranges []query.Unread
	if err := json.Unmarshal(value, &ranges); err != nil {
		return states.Damaged(markUnread, err)
	}
	u.set(ranges)
	return nil
}

func (u *unread) write(b *store.Batch, part *store.Part) error {
	if !u.unsaved {
		return nil
	}
	value, err := json.Marshal(u.all())
	if err == nil {
		b.Put(part, familyMark, markUnread, value)
	}
	return err
}

// addUnread notes that the log deleted the offsets up to its start before the lane read
// them. The next checkpoint has the range.
func (l *lane) addUnread(from, to int64) {
	l.unread.set(append(slices.Clone(l.unread.all()), query.Unread{From: from, To: to, Noticed: pipeline.Time(l.now().UTC())}))
	l.unread.due, l.unread.unsaved = true, true
	l.log.Warn("the log deleted events before this projection read them: its states lack them",
		"projection", l.projection.Label(), "topic", l.source.Topic, "partition", l.source.Partition, "from", from, "to", to, "offsets", to-from)
}

// hearUnread takes in what the owner of a followed partition has not read.
func (l *lane) hearUnread(ranges []query.Unread) {
	own := l.unread.all()
	if len(ranges) <= len(own) {
		return
	}
	l.log.Warn("the log deleted events before their owner read them; states here may have them and differ from those of the owner",
		"projection", l.projection.Label(), "partition", l.source.Partition, "ranges", len(ranges))
	before := l.unread.total()
	l.unread.set(ranges)
	l.unread.unsaved = true
	l.projection.unreadNow.Add(float64(l.unread.total() - before))
}

// acceptsLoss reports whether the partition continues without events that are deleted. A
// follower continues with what the owner has.
func (o *opening) acceptsLoss() bool { return o.set.cfg.AcceptLoss && !o.set.cfg.Follows }

// jump makes the store continue at the log's start, if it has everything that an owner
// has published, although the log lacks the events after its position.
func (o *opening) jump(ctx context.Context, part *store.Part, next int64) (*lane, error) {
	l := o.newLane(part)
	published, err := o.published(ctx, l)
	if err != nil || next < published {
		return nil, err // the snapshots have more
	}
	if err := l.unread.load(part); err != nil {
		return nil, err
	}
	l.addUnread(next, o.at.Start)
	if err := o.saveJump(l); err != nil {
		return nil, err
	}
	return o.fromStore(part, o.at.Start)
}

// saveJump stores that a lane continues at the log's start.
func (o *opening) saveJump(l *lane) error {
	batch := o.set.cfg.Store.NewBatch()
	batch.SetPosition(l.part, o.at.Start)
	if err := l.unread.write(batch, l.part); err != nil {
		return err
	}
	return batch.Commit()
}

// published returns the offset that the last checkpoint claims; 0 if the lane can continue
// no checkpoint.
func (o *opening) published(ctx context.Context, l *lane) (next int64, err error) {
	_, err = o.set.cfg.Restore(ctx, o.projection.Spec.internal(), o.at.Partition, func(in *pipeline.Record) error {
		if string(in.Key) == internalrecord.CheckpointKey {
			if c, err := internalrecord.DecodeCheckpoint(in.Value); err == nil && l.continues(&c) {
				next = c.Next
			}
		}
		return nil
	})
	return next, err
}

// clampToLog drops what needs records that the log has deleted: the index continues at
// the log's start, and no dead letter is written for a late event that is gone.
func (o *opening) clampToLog(l *lane) {
	dropped := 0
	for offset := range l.letters.due {
		if offset < o.at.Start {
			delete(l.letters.due, offset)
			l.letters.unsaved[offset] = true
			dropped++
		}
	}
	if dropped > 0 {
		o.log.Error("late events were deleted from the log before their dead letters were written", "events", dropped, "log_start", o.at.Start)
	}
}
