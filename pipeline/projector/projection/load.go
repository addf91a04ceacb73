package projection

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// restoreBatch is the number of snapshots per write to the store and per log line.
const restoreBatch = 1 << 16

// loaded describes the snapshots of a partition.
type loaded struct {
	usable     bool // there is a checkpoint, and it is of this fold
	aggregates int
	from       internalrecord.Checkpoint
	until      int64    // every snapshot ends before; some may reach beyond from.Next
	damaged    int64    // offset of the last checkpoint, if that cannot be read; otherwise -1
	stale      []string // ids of blocked records, if nothing is usable
}

// loader fills a lane's part of the store from snapshots.
type loader struct {
	lane     *lane
	batch    *store.Batch
	progress func(aggregates int)

	found   loaded
	blocked map[string]*internalrecord.Blocked
	lost    map[string]*internalrecord.Blocked // by the key of the record: see lost.go
	end     int64                              // of the log; 0 if it grows meanwhile
	a       fold.Aggregate                     // scratch
	value   []byte                             // scratch
}

// load fills a lane's part of the store from the snapshots on Kafka. If they are not
// usable, the part must be reset.
func (o *opening) load(ctx context.Context, l *lane) (loaded, error) {
	s, key := o.set, Key{o.at.Topic, o.at.Partition}
	s.setProgress(key, "restoring %s, partition %d, from snapshots", o.projection.Label(), key.Partition)
	defer s.clearProgress(key)
	r := &loader{lane: l, batch: s.cfg.Store.NewBatch(), blocked: map[string]*internalrecord.Blocked{}, lost: map[string]*internalrecord.Blocked{}, found: loaded{damaged: -1}}
	r.progress = func(aggregates int) {
		s.setProgress(key, "restoring %s, partition %d, from snapshots: %d so far", o.projection.Label(), key.Partition, aggregates)
		o.log.Info("restoring from snapshots", "aggregates", aggregates)
	}
	if s.cfg.Ends == nil {
		r.end = o.at.End
	}
	end, err := o.readLayout(ctx, r)
	if l.follow != nil {
		l.follow.heard, l.follow.snapshots, l.follow.published = end.Internal, end.Snapshots, 0
		if r.found.usable {
			l.follow.published = max(0, r.found.from.Next)
		}
	}
	if err == nil && r.found.usable && len(r.lost) > maxBlocked {
		o.log.Error("most snapshots cannot be read; folding the log again", "unreadable", len(r.lost), "topic", o.projection.Spec.Snapshots)
		r.found.usable = false
	}
	if err != nil {
		return loaded{}, err
	}
	if !r.found.usable {
		if err := o.checkInternal(r); err != nil {
			return loaded{}, err
		}
		if f := &r.found; f.damaged >= 0 && f.aggregates > 0 && o.at.Start > 0 {
			return loaded{}, pipeline.Fatal("the checkpoint at offset %d of %s, partition %d, cannot be read, and %s starts at %d: the states cannot be folded again from it. Delete %s to start over from what is left",
				f.damaged, o.projection.Spec.internal(), key.Partition, key.Topic, o.at.Start, o.projection.Spec.Snapshots)
		}
		return loaded{stale: slices.Sorted(maps.Keys(r.blocked))}, nil
	}
	r.blockLost()
	return r.found, r.finish(end)
}

// checkInternal refuses to fold events again that the log lacks if the snapshots have their
// states, and only the internal records are lost. A follower has no choice.
func (o *opening) checkInternal(r *loader) error {
	spec := &o.projection.Spec
	if spec.Internal == "" || r.found.from.Fold != "" || r.found.damaged >= 0 || r.found.aggregates == 0 || o.at.Start == 0 || r.lane.follow != nil {
		return nil
	}
	return pipeline.Fatal("%s, partition %d, has no checkpoint for the snapshots on %s, and %s starts at %d: the states cannot be folded again from it. Restore the records of %s, or delete %s to start over from what is left",
		spec.Internal, o.at.Partition, spec.Snapshots, o.at.Topic, o.at.Start, spec.Internal, spec.Snapshots)
}

// take takes a record of the snapshots topic or of the internal records. Its errors are those of the store.
func (r *loader) take(in *pipeline.Record) error {
	l := r.lane
	delete(r.lost, string(in.Key))
	switch kind, id := internalrecord.KindOf(in.Key); kind {
	case internalrecord.OfCheckpoint:
		r.takeCheckpoint(in)
	case internalrecord.OfSent:
		sent, err := internalrecord.DecodeSent(in.Value)
		if err != nil {
			l.skipUnreadable(in, err, effectIgnored)
		}
		l.letters.Sent(sent)
	case internalrecord.OfSkipped:
		// Skips are about the log, and so apply to every fold of it.
		if err := l.skips.Offsets.Decode(in.Value); err != nil {
			l.skipUnreadable(in, err, effectIgnored)
		}
	case internalrecord.OfBlocked:
		r.takeBlocked(id, in)
	case internalrecord.OfLater:
	case internalrecord.Other:
		if in.Value != nil {
			return r.takeSnapshot(in)
		}
		r.batch.Delete(l.part, states.FamilyState, in.Key)
	}
	return nil
}

// takeCheckpoint takes a checkpoint. If it cannot be read, the one before is valid: it
// claims less.
func (r *loader) takeCheckpoint(in *pipeline.Record) {
	c, err := internalrecord.DecodeCheckpoint(in.Value)
	if err != nil {
		r.lane.skipUnreadable(in, err, effectIgnored)
		r.found.damaged = in.Offset
		return
	}
	r.found.from, r.found.usable, r.found.damaged = c, r.lane.continues(&c), -1
}

func (r *loader) takeBlocked(id string, in *pipeline.Record) {
	delete(r.blocked, id)
	if in.Value == nil {
		return
	}
	q, err := internalrecord.DecodeBlocked(id, in.Value)
	if err != nil {
		r.lose(id, in, err)
		return
	}
	r.blocked[id] = q
}

func (r *loader) takeSnapshot(in *pipeline.Record) error {
	l, a := r.lane, &r.a
	err := l.fold.CheckStateID(in.Key)
	if err != nil {
		l.skipUnreadable(in, err, effectSkipped)
		return nil
	}
	_, body, err := codec.Unframe(in)
	if err == nil {
		err = l.fold.ReadSnapshot(body, in.Key, a)
		_, a.Tombstone = in.Header(internalrecord.TombstoneHeader)
		a.Tombstone = a.Tombstone && a.Deleted
	}
	switch {
	case errors.Is(err, fold.ErrOtherFold):
		return nil
	case err == nil && a.TopicID != l.source.TopicID:
		return nil
	case err == nil && r.end > 0 && a.Offset >= r.end:
		err = fmt.Errorf("it contains the event at offset %d, and %s ends at %d", a.Offset, l.source.Topic, r.end)
	}
	if err != nil {
		id := string(in.Key)
		if key, _, ok := fold.ParseWindowID(id); ok && l.fold.Window().Size > 0 {
			id = key
		}
		r.lose(id, in, err)
		return nil
	}
	r.found.until = max(r.found.until, a.Offset+1)
	r.value = fold.AppendAggregate(r.value[:0], a)
	r.batch.Put(l.part, states.FamilyState, in.Key, r.value)
	if l.fold.Window().Size > 0 {
		if _, start, ok := fold.ParseWindowID(string(in.Key)); ok {
			r.batch.Put(l.part, familyWindow, states.WindowKey(start, string(in.Key)), nil)
		}
	}
	if r.found.aggregates++; r.found.aggregates%restoreBatch != 0 {
		return nil
	}
	// A part without a position is not used when it is opened the next time, so the
	// snapshots can be written in pieces.
	r.progress(r.found.aggregates)
	return r.batch.Commit()
}

// finish stores everything that comes with the snapshots, and the position. The topics were
// read up to end.
func (r *loader) finish(end internalrecord.Ends) error {
	l, b, from := r.lane, r.batch, &r.found.from
	r.found.until = max(r.found.until, from.Next)
	putHeard(b, l, end, from.Next)
	states.PutLongs(b, l.part, familyMark, markPublished, from.Next)
	if from.Clock != nil {
		states.PutLongs(b, l.part, familyMark, ownFamilies.clock, *from.Clock)
	}
	states.PutLongs(b, l.part, familyMark, markLoaded, r.found.until)
	for id, q := range r.blocked {
		if !q.IsLost() && !q.Rewind(from.Next) {
			continue // it was blocked later
		}
		value, err := q.Encode()
		if err != nil {
			return err
		}
		b.Put(l.part, familyBlocked, []byte(id), value)
	}
	if l.skips.Offsets.Len() > 0 {
		value, err := l.skips.Offsets.Encode()
		if err != nil {
			return err
		}
		b.Put(l.part, familyMark, markSkipped, value)
	}
	if l.index != nil {
		// The states are valid only together with what the index has to catch up.
		states.PutLongs(b, l.part, familyMark, markBackfill, 0, r.found.until)
	}
	l.writeSent(b)
	l.unread.Set(from.Unread)
	if err := l.unread.Write(b, l.part); err != nil {
		return err
	}
	b.SetPosition(l.part, from.Redo)
	return b.Commit()
}
