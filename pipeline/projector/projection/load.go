package projection

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// restoreBatch is the number of snapshots per write to the store and per log line.
const restoreBatch = 1 << 16

// loaded describes the snapshots of a partition.
type loaded struct {
	usable     bool // there is a checkpoint, and it is of this fold
	aggregates int
	from       checkpoint
	until      int64 // every snapshot ends before; some may reach beyond from.Next
}

// loader fills a lane's part of the store from snapshots.
type loader struct {
	lane     *lane
	batch    *store.Batch
	progress func(aggregates int)

	found   loaded
	blocked map[string]*blocked
	a       fold.Aggregate // scratch
	value   []byte         // scratch
}

// load fills a lane's part of the store from the snapshots on Kafka. If they are not
// usable, the part must be reset.
func (o *opening) load(ctx context.Context, l *lane) (loaded, error) {
	s, key := o.set, Key{o.at.Topic, o.at.Partition}
	s.setProgress(key, "restoring %s, partition %d, from snapshots", o.projection.Label(), key.Partition)
	defer s.clearProgress(key)
	r := &loader{lane: l, batch: s.cfg.Store.NewBatch(), blocked: map[string]*blocked{}}
	r.progress = func(aggregates int) {
		s.setProgress(key, "restoring %s, partition %d, from snapshots: %d so far", o.projection.Label(), key.Partition, aggregates)
		o.log.Info("restoring from snapshots", "aggregates", aggregates)
	}
	end, err := s.cfg.Restore(ctx, o.projection.Spec.Snapshots, key.Partition, r.take)
	if l.follow != nil {
		l.follow.heard, l.follow.published = end, 0
		if r.found.usable {
			l.follow.published = max(0, r.found.from.Next)
		}
	}
	if err != nil || !r.found.usable {
		return loaded{}, err
	}
	return r.found, r.finish(end)
}

// take takes a record of the snapshots topic.
func (r *loader) take(in *pipeline.Record) error {
	l, key := r.lane, string(in.Key)
	id, isBlocked := strings.CutPrefix(key, blockedKeys)
	switch {
	case key == string(checkpointKey):
		return r.takeCheckpoint(in)
	case key == string(sentKey):
		sent, err := strconv.ParseInt(string(in.Value), 10, 64)
		l.letters.sentBelow = max(l.letters.sentBelow, sent)
		return err
	case key == string(skippedKey) && in.Value != nil:
		// Skips are about the log, and so apply to every fold of it.
		return l.skips.decode(in.Value)
	case isBlocked:
		return r.takeBlocked(id, in)
	case strings.HasPrefix(key, fold.ReservedKeys):
		return nil // written by a later version of the program
	case in.Value == nil:
		r.batch.Delete(l.part, states.FamilyState, in.Key)
		return nil
	}
	return r.takeSnapshot(in)
}

func (r *loader) takeCheckpoint(in *pipeline.Record) error {
	var c checkpoint
	if err := json.Unmarshal(in.Value, &c); err != nil {
		return fmt.Errorf("checkpoint at offset %d of %s: %w", in.Offset, in.Topic, err)
	}
	r.found.from, r.found.usable = c, r.lane.continues(&c) && c.Next >= 0
	return nil
}

func (r *loader) takeBlocked(id string, in *pipeline.Record) error {
	delete(r.blocked, id)
	if in.Value == nil {
		return nil
	}
	q, err := decodeBlocked(in.Value)
	if err != nil {
		return fmt.Errorf("the blocked record of %q at offset %d of %s: %w", id, in.Offset, in.Topic, err)
	}
	r.blocked[id] = q
	return nil
}

func (r *loader) takeSnapshot(in *pipeline.Record) error {
	l, a := r.lane, &r.a
	_, body, err := codec.Unframe(in)
	if err == nil {
		err = l.fold.ReadSnapshot(body, a)
	}
	switch {
	case errors.Is(err, fold.ErrOtherFold):
		return nil
	case err != nil:
		return fmt.Errorf("snapshot at offset %d of %s: %w", in.Offset, in.Topic, err)
	case a.TopicID != l.source.TopicID:
		return nil
	}
	r.found.until = max(r.found.until, a.Offset+1)
	r.value = fold.AppendAggregate(r.value[:0], a)
	r.batch.Put(l.part, states.FamilyState, in.Key, r.value)
	if l.fold.Window().Size > 0 {
		if start, ok := fold.WindowStart(string(in.Key)); ok {
			r.batch.Put(l.part, familyWindow, windowKey(start, string(in.Key)), nil)
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

// finish stores everything that comes with the snapshots, and the position. end is the
// end of the snapshots topic.
func (r *loader) finish(end int64) error {
	l, b, from := r.lane, r.batch, &r.found.from
	r.found.until = max(r.found.until, from.Next)
	putMark(b, l.part, markHeard, end, from.Next)
	putMark(b, l.part, markPublished, from.Next)
	if from.Clock != 0 {
		putMark(b, l.part, ownFamilies.clock, from.Clock)
	}
	putMark(b, l.part, markLoaded, r.found.until)
	for id, q := range r.blocked {
		if !q.rewind(from.Next) {
			continue // it was blocked later
		}
		value, err := q.encode()
		if err != nil {
			return err
		}
		b.Put(l.part, familyBlocked, []byte(id), value)
	}
	if len(l.skips.offsets) > 0 {
		value, err := l.skips.encode()
		if err != nil {
			return err
		}
		b.Put(l.part, familyMark, markSkipped, value)
	}
	if l.index != nil {
		// The states are valid only together with what the index has to catch up.
		putMark(b, l.part, markBackfill, 0, r.found.until)
	}
	l.writeSent(b)
	b.SetPosition(l.part, from.Redo)
	return b.Commit()
}
