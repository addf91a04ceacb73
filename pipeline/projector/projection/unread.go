package projection

import (
	"context"

	"millrace/pipeline"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
)

// addUnread notes that the log deleted the offsets up to its start before the lane read
// them. The next checkpoint has the range.
func (l *lane) addUnread(from, to int64) {
	l.unread.Add(query.Unread{From: from, To: to, Noticed: pipeline.Time(l.now().UTC())})
	l.log.Warn("the log deleted events before this projection read them: its states lack them",
		"projection", l.projection.Label(), "topic", l.source.Topic, "partition", l.source.Partition, "from", from, "to", to, "offsets", to-from)
}

// hearUnread takes in what the owner of a followed partition has not read.
func (l *lane) hearUnread(ranges []query.Unread) {
	if len(ranges) <= len(l.unread.All()) {
		return
	}
	l.log.Warn("the log deleted events before their owner read them; states here may have them and differ from those of the owner",
		"projection", l.projection.Label(), "partition", l.source.Partition, "ranges", len(ranges))
	before := l.unread.Total()
	l.unread.Set(ranges)
	l.projection.metrics.Unread.Add(float64(l.unread.Total() - before))
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
	if err := l.unread.Load(part); err != nil {
		return nil, err
	}
	l.addUnread(next, o.at.Start)
	if err := o.saveJump(l); err != nil {
		return nil, err
	}
	return o.fromStore(ctx, part, o.at.Start)
}

// saveJump stores that a lane continues at the log's start.
func (o *opening) saveJump(l *lane) error {
	batch := o.set.cfg.Store.NewBatch()
	batch.SetPosition(l.part, o.at.Start)
	if err := l.unread.Write(batch, l.part); err != nil {
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
	if dropped := l.letters.Drop(o.at.Start); dropped > 0 {
		o.log.Error("late events were deleted from the log before their dead letters were written", "events", dropped, "log_start", o.at.Start)
	}
}
