package projection

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/fill"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// The history of a lane that was restored from snapshots is filled by the goroutines of
// [Set.Fill], beside its session: see package fill. The shadow folds the past up to where the
// states are, also those events that the session folds meanwhile. A follower has no filler:
// its session reads the log from the start of what is missing.

// besideSession is the position in the head of the index's filter while the history is
// filled: the head does not depend on that of the states.
const besideSession = -2

// startFill makes a lane fill its history beside its session. It returns false if the session
// has to do that.
func (l *lane) startFill(s *Set) bool {
	if s.cfg.Follows || s.cfg.Tail == nil {
		return false
	}
	next, _ := l.index.Backfill()
	l.index.Extend(l.next)
	l.fill = fill.New(s.cfg.Store.NewBatch(), next, l.next-next, len(l.own.held.All()) > 0, &s.idMemory, s.cfg.Memory/2, s.cfg.Now())
	return true
}

func (l *lane) endFill() {
	if l.fill != nil {
		l.fill.Close()
		l.fill = nil
	}
}

// Complete returns nil if the store has the whole history of the partition's states, also
// in views that are made afterwards; else an error that wraps [query.ErrFilling].
func (p *Partition) Complete() error { return p.lane.complete() }

func (l *lane) complete() error {
	if next, until, left := l.filled.Left(); left {
		return fmt.Errorf("projection %s, partition %d: %w: it is at offset %d of %d", l.projection.Label(), l.source.Partition, query.ErrFilling, next, until)
	}
	return nil
}

// putBackfill stores how far the index is, and how far it must get.
func (l *lane) putBackfill(b *store.Batch) {
	states.PutLongs(b, l.part, familyMark, markBackfill, l.fill.Saved(), max(l.loaded, l.next))
}

// isFilled reports whether the index has caught up with the states.
func (l *lane) isFilled() bool {
	l.index.Extend(l.next)
	next, until := l.index.Backfill()
	return next >= until
}

// decide fails with fill.ErrUndecided if an event of the tail may be a duplicate. That is
// known before the event has any effect, such as the end of the wait of held events: the
// shadow does not see an event that waits.
func (l *lane) decide(in *pipeline.Record, d event.Decoded, bad error) error {
	if l.fill == nil || bad != nil || !l.fold.Folds(d.Type) || deadletter.IsTaken(in, l.source.TopicID) {
		return nil
	}
	id, err := l.folder.Read(d.Type, d.Body, fold.OriginOf(in, d.Key))
	if err != nil {
		return nil //nolint:nilerr // it is not folded
	}
	scope := l.fold.Scope(id)
	if known, err := l.index.Known(scope, l.folder.EventID(), in.Offset); known || err != nil {
		return err
	}
	return l.fill.Decide(scope, l.folder.EventID(), in.Offset)
}

// takePast takes an event of the past.
func (l *lane) takePast(in *pipeline.Record, d event.Decoded, bad error) error {
	l.pack()
	d, bad = asTombstone(l.fold, in, d, bad)
	l.index.Extend(l.next)
	if l.index.Lacks(in.Offset) {
		if err := l.shadow.take(in, d, bad, l.fill.Batch); err != nil {
			return err
		}
		l.fill.Took()
	}
	l.index.Passed(in.Offset + 1)
	return nil
}

// savePast writes what is filled to the store, if the lane is being filled. When the index
// has caught up with the states, the session's track continues it.
func (u *unit) savePast(s *Set, l *lane) error {
	if l.fill == nil {
		return nil
	}
	b, ended := l.fill.Batch, l.isFilled()
	next, _ := l.index.Backfill()
	position, backfill := int64(besideSession), next
	if ended {
		if err := u.save(s); err != nil { // the head of the filter has the position
			return err
		}
		position, backfill = l.position, -1
	}
	if err := errors.Join(l.index.Write(b, position, backfill), l.writeShadow(b)); err != nil {
		return err
	}
	if err := commit(b); err != nil {
		return err
	}
	l.fill.Written(next, s.cfg.Now())
	l.index.Written()
	if err := l.shadowWritten(s.memory()); err != nil {
		return pipeline.Fatal("writing to the store: %w", err)
	}
	if ended {
		l.log.Info("the history is complete", "projection", l.projection.Label(), "partition", l.source.Partition, "next", l.next)
	}
	return nil
}

// Paused implements [kafka.Pauser]: events of a partition whose ids cannot be decided are
// not read.
func (h *Handler) Paused(topic string, partition int32) bool {
	h.set.mu.Lock()
	u := h.set.units[Key{topic, partition}]
	h.set.mu.Unlock()
	if u == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.waits()
}

// waits reports whether the tail waits for what is filled. The caller has the lock.
func (u *unit) waits() bool {
	for _, l := range u.lanes {
		if l.fill != nil && l.fill.Waits() {
			return true
		}
	}
	return false
}

// FillProgress returns how far ids are read and histories are filled. End is where each ends.
func (s *Set) FillProgress() (ids, history []kafka.PartitionProgress) {
	for _, u := range s.assignedUnits() {
		at := kafka.PartitionProgress{Topic: u.key.Topic, Partition: u.key.Partition}
		if next, until, left := u.ids.Left(); left {
			at.Position, at.End = next, until
			ids = append(ids, at)
		}
		at.Position, at.End = math.MaxInt64, 0
		for _, l := range u.lanes {
			if next, until, left := l.filled.Left(); left {
				at.Position, at.End = min(at.Position, next), max(at.End, until)
			}
		}
		if at.End > 0 {
			history = append(history, at)
		}
	}
	return ids, history
}

// Fill fills the histories of partitions that were restored from snapshots, until the context
// ends. Several goroutines may call it. It returns early only with an error of
// [pipeline.ClassFatal].
func (s *Set) Fill(ctx context.Context) error {
	return s.fills.Run(ctx, s.claimFill, func(err error, wait time.Duration) {
		s.cfg.Log.Warn("cannot fill the history; trying again", "err", err, "wait", wait)
	})
}

// claimFill reserves a unit for a filler, first one whose tail waits for its ids. It returns
// the work, nil if there is none.
func (s *Set) claimFill() func(context.Context) error {
	units := s.assignedUnits()
	for _, unread := range []bool{true, false} {
		for _, u := range units {
			if !u.claim(unread) {
				continue
			}
			return func(ctx context.Context) error {
				defer u.unclaim()
				return s.fill(ctx, u)
			}
		}
	}
	return nil
}

// claim reserves a unit for a filler; with unread, only if ids of its past are unread.
func (u *unit) claim(unread bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.filling || u.revoked {
		return false
	}
	for _, l := range u.lanes {
		if l.fill != nil && (l.fill.Unread() || !unread) {
			u.filling = true
		}
	}
	return u.filling
}

// unclaim ends the work of a filler. If nothing waits any more, the session reads the unit
// again, and releases what other owners have released.
func (u *unit) unclaim() {
	u.mu.Lock()
	u.filling = false
	resumes := u.handler != nil && !u.revoked && !u.waits()
	u.mu.Unlock()
	if resumes {
		u.handler.requestFlush(u)
	}
}

// fill reads the ids of a unit's past if they are unread, else it fills its history.
func (s *Set) fill(ctx context.Context, u *unit) error {
	dec, folds := s.NewDecoder(u.lanes[0].projection), u.folds
	decode := func(in *pipeline.Record) (event.Decoded, error) { return dec.DecodeWithKey(ctx, in, folds) }
	read := func(ctx context.Context, from int64, f func(*pipeline.Record) error) error {
		return s.cfg.Tail(ctx, u.key.Topic, u.key.Partition, from, f)
	}
	var err error
	if ids := u.unreadIDs(); len(ids) > 0 {
		err = s.readIDs(ctx, u, ids, read, decode)
	} else {
		err = s.readPast(ctx, u, read, decode)
	}
	if err != nil {
		return fmt.Errorf("partition %d of %s: %w", u.key.Partition, u.key.Topic, err)
	}
	return nil
}

// unreadIDs returns what reads the ids of a unit's past; nothing if they are read.
func (u *unit) unreadIDs() (all []*fill.IDs) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.lanes {
		if l.fill != nil && l.fill.Unread() {
			from, _ := l.index.Backfill()
			all = append(all, l.fill.NewIDs(fill.Source{Fold: l.fold, TopicID: l.source.TopicID, Prepare: asTombstone}, from, l.next))
		}
	}
	return all
}

// readIDs reads the ids of the past, and lets the session read the tail.
func (s *Set) readIDs(ctx context.Context, u *unit, ids []*fill.IDs, read fill.Read, decode decodeFunc) error {
	if err := fill.ReadIDs(ctx, ids, &u.ids, read, decode); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.lanes {
		if l.fill != nil {
			l.fill.IDsRead()
		}
	}
	return nil
}

// readPast fills the histories of a unit.
func (s *Set) readPast(ctx context.Context, u *unit, read fill.Read, decode decodeFunc) error {
	from, to, ok := u.past()
	if !ok {
		return nil
	}
	err := read(ctx, from, func(in *pipeline.Record) error {
		d, bad := decode(in)
		if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
			return bad
		}
		more, err := s.takePast(u, in.Offset+1, in, d, bad)
		if err == nil && !more {
			err = errReadEnough
		}
		return err
	})
	if errors.Is(err, errReadEnough) {
		return nil
	}
	if err == nil {
		// The log has no further records below what was folded when the read began.
		_, err = s.takePast(u, to, nil, event.Decoded{}, nil)
	}
	return err
}

// past returns what of a unit's history is to be filled. ok is false if nothing is.
func (u *unit) past() (from, to int64, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	from = math.MaxInt64
	for _, l := range u.lanes {
		if l.fill != nil && !u.revoked {
			next, _ := l.index.Backfill()
			from, to, ok = min(from, next), max(to, l.loaded, l.next), true
		}
	}
	return from, to, ok
}

// takePast takes an event of the past into the histories of a unit; in is nil at the end of
// the log. Everything below next was read. It writes what is due. more is false if nothing is
// left to be filled.
func (s *Set) takePast(u *unit, next int64, in *pipeline.Record, d event.Decoded, bad error) (more bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.lanes {
		if l.fill == nil || u.revoked {
			continue
		}
		if in == nil {
			l.index.Passed(next)
			l.fill.AtEnd()
		} else if err := l.takePast(in, d, bad); err != nil {
			return false, err
		}
		if l.isFilled() || l.fill.Due(s.cfg.Flush.Much, s.cfg.Flush.Bytes, s.cfg.Now) {
			if err := u.savePast(s, l); err != nil {
				return false, err
			}
		}
		more = more || l.fill != nil
	}
	return more, nil
}
