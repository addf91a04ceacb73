package projection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// open opens the lanes of a partition: from the store, else from the snapshots and the
// log's tail, else from the log. last are the last checkpoints. Only the caller uses the
// unit until it is assigned.
func (s *Set) open(ctx context.Context, at kafka.Partition, dec *event.Decoder, last checkpoints) (*unit, error) {
	t := s.topics[at.Topic]
	u := &unit{key: Key{at.Topic, at.Partition}, entries: s.cfg.Store.NewBatch(), flushed: s.cfg.Now()}
	for _, p := range t.projections {
		o := &opening{
			set: s, projection: p, at: at, last: last, source: fold.Source{Topic: t.name, TopicID: t.id, Partition: at.Partition},
			decode: func(in *pipeline.Record) (event.Decoded, error) { return dec.DecodeWithKey(ctx, in, nil) },
			log:    s.cfg.Log.With("projection", p.Label(), "partition", at.Partition),
		}
		l, err := o.open(ctx)
		if err != nil {
			return nil, fmt.Errorf("projection %s, partition %d: %w", p.Label(), at.Partition, err)
		}
		u.lanes = append(u.lanes, l)
	}
	return u, s.reconcile(ctx, u, dec)
}

// opening is the opening of a lane.
type opening struct {
	set        *Set
	projection *Projection
	at         kafka.Partition
	last       checkpoints
	source     fold.Source
	decode     decodeFunc // of the topic's events
	log        *slog.Logger
}

func (o *opening) open(ctx context.Context) (*lane, error) {
	kept := o.set.cfg.Store
	part, err := kept.Part(o.projection.Label(), o.at.Partition, o.projection.Spec.Identity+o.set.layout())
	if err != nil {
		return nil, err
	}
	next, ok, err := part.Position()
	if err != nil {
		return nil, err
	}
	if ok && next >= o.at.Start && next <= o.at.End {
		if l, err := o.fromStore(ctx, part, next); l != nil || err != nil {
			return l, err
		}
	}
	if ok && next < o.at.Start && o.acceptsLoss() {
		if l, err := o.jump(ctx, part, next); l != nil || err != nil {
			return l, err
		}
	}
	if ok {
		o.log.Warn("the store does not fit the log; restoring this partition again", "position", next, "log_start", o.at.Start, "log_end", o.at.End)
	}
	if part, err = kept.Reset(part); err != nil {
		return nil, err
	}
	l := o.newLane(part)
	began := time.Now()
	found, err := o.load(ctx, l)
	if err == nil && o.set.cfg.Ends != nil {
		// The owner continues while its snapshots are read.
		o.at.End, err = o.set.cfg.Ends(ctx, o.at.Topic, o.at.Partition)
	}
	if err != nil {
		return nil, err
	}
	if !found.usable {
		return o.fromLog(l, found)
	}
	return o.fromSnapshots(l, found, time.Since(began))
}

// newLane returns a lane that is empty.
func (o *opening) newLane(part *store.Part) *lane {
	l := newLane(o.projection, o.source, part, &o.set.cfg)
	if o.at.Committed <= o.at.End { // otherwise the offset is of an earlier topic of that name
		l.letters.Sent(max(0, o.at.Committed))
	}
	return l
}

// fromStore continues in the store, whose position is next. It returns nil if the snapshots
// have releases that cannot be folded from the store.
func (o *opening) fromStore(ctx context.Context, part *store.Part, next int64) (*lane, error) {
	l := o.newLane(part)
	l.next, l.position, l.counted = next, next, next
	l.publication.floor = min(o.at.Committed, o.at.End)
	if err := o.resume(l); err != nil {
		return nil, err
	}
	if ok, err := o.hear(ctx, l); !ok {
		l.projection.metrics.Blocked.Sub(float64(l.stuck.Load()))
		return nil, err
	}
	o.clampToLog(l)
	batch := o.set.cfg.Store.NewBatch()
	l.writeSent(batch)
	if err := batch.Commit(); err != nil {
		return nil, err
	}
	o.log.Info("restored from the store", "next", next, "tail", o.at.End-next)
	return l, nil
}

// fromLog starts at the log's start. before is the lane after a load that found no usable
// snapshots.
func (o *opening) fromLog(before *lane, found loaded) (*lane, error) {
	at := o.at
	// The load may have written states before it found no usable checkpoint.
	part, err := o.set.cfg.Store.Reset(before.part)
	if err != nil {
		return nil, err
	}
	l := o.newLane(part)
	// These facts are about the log, whichever fold reads it.
	l.letters.Sent(before.letters.SentBelow())
	l.follow = before.follow
	for offset := range before.skips.Offsets.All() {
		l.skips.Add(offset, false)
	}
	batch := o.set.cfg.Store.NewBatch()
	l.writeSent(batch)
	l.follow.write(batch, l)
	// The records of aggregates that were blocked in other states are replaced.
	for _, id := range found.stale {
		l.own.markDue(id)
		l.pack()
	}
	l.marks.Write(batch, part)
	batch.SetPosition(part, at.Start)
	if at.Start > 0 {
		l.addUnread(0, at.Start)
	}
	if err := errors.Join(l.unread.Write(batch, part), batch.Commit()); err != nil {
		return nil, err
	}
	l.next, l.position, l.counted, l.publication.published = at.Start, at.Start, at.Start, at.Start
	o.log.Info("folding from the log's start", "next", l.next, "tail", at.End-l.next)
	return l, nil
}

// fromSnapshots continues after the snapshots that were loaded into a lane.
func (o *opening) fromSnapshots(l *lane, found loaded, took time.Duration) (*lane, error) {
	at, from := o.at, found.from
	snapshots := o.projection.Spec.Snapshots
	switch {
	case from.Redo < at.Start && !o.acceptsLoss():
		return nil, pipeline.Fatal("the snapshots on %s reach up to offset %d, but %s now starts at %d: events in between are gone. Bring them back, or continue without them with --accept-loss",
			snapshots, from.Redo, at.Topic, at.Start)
	case from.Next > at.End:
		return nil, pipeline.Fatal("the snapshots on %s reach up to offset %d, but %s ends at %d: it was truncated. Delete %s to start over from what is left",
			snapshots, from.Next, at.Topic, at.End, snapshots)
	}
	l.next, l.position, l.counted = from.Redo, from.Redo, from.Next
	l.publication.published, l.publication.saved = from.Next, from.Next
	l.publication.floor = from.Next // until the events that wait are read again, no checkpoint has them
	if from.Redo < at.Start {
		l.addUnread(from.Redo, at.Start)
		l.next, l.position = at.Start, at.Start
		l.counted, l.publication.published = max(from.Next, at.Start), max(from.Next, at.Start)
		if err := o.saveJump(l); err != nil {
			return nil, err
		}
	}
	if err := l.own.load(o.decode); err != nil {
		return nil, err
	}
	l.countBlocked()
	l.loaded = found.until
	if l.index != nil && l.catchUp(at.Start, found.until) {
		l.startFill(o.set)
	}
	o.log.Info("restored from snapshots", "aggregates", found.aggregates, "took", took, "rate", int(float64(found.aggregates)/took.Seconds()), "next", from.Next, "tail", at.End-from.Next)
	return l, nil
}

// writeSent stores the offset below which dead letters were sent: the brokers forget the
// offset of a group that is away for long.
func (l *lane) writeSent(b *store.Batch) {
	if l.projection.Spec.Late != "" {
		states.PutLongs(b, l.part, familyMark, markSent, l.letters.SentBelow())
	}
}

// resume reads what the store has of a lane.
func (o *opening) resume(l *lane) error {
	if err := o.resumeMarks(l); err != nil {
		return err
	}
	if err := l.skips.Load(l.part, familyMark, markSkipped); err != nil {
		return err
	}
	if err := l.unread.Load(l.part); err != nil {
		return err
	}
	l.unread.Due = l.unread.Below() > l.publication.saved
	if err := l.own.load(o.decode); err != nil {
		return err
	}
	l.countBlocked()
	if err := o.resumeDue(l); err != nil {
		return err
	}
	if l.index == nil {
		return nil
	}
	return o.resumeIndex(l)
}

// resumeMarks reads the numbers that the store has of a lane.
func (o *opening) resumeMarks(l *lane) error {
	p := &l.publication
	if _, err := states.ReadLongs(l.part, familyMark, markPublished, &p.saved); err != nil {
		return err
	}
	p.published = max(p.saved, o.at.Start)
	l.counted = max(l.next, p.saved) // after a restore from snapshots, next may be the lower checkpoint.Redo
	var sent int64
	heard, published, ok, err := loadHeard(l)
	if err != nil {
		return err
	}
	if ok {
		if f := l.follow; f != nil {
			f.heard, f.saved, f.snapshots, f.published = heard.Internal, heard.Internal, heard.Snapshots, published
		}
		// What this worker heard when it followed may be more than is committed, if the
		// group's offset was reset since.
		p.floor = max(p.floor, min(published, o.at.End))
	}
	if _, err := states.ReadLongs(l.part, familyMark, markLoaded, &l.loaded); err != nil {
		return err
	}
	_, err = states.ReadLongs(l.part, familyMark, markSent, &sent)
	l.letters.Sent(sent)
	return err
}

// resumeDue reads which dead letters and snapshots are due.
func (o *opening) resumeDue(l *lane) error {
	v := l.part.View()
	defer v.Close() //nolint:errcheck // only read
	if err := l.letters.Load(v); err != nil {
		return err
	}
	var ids []string
	if err := v.Scan(familyDue, nil, nil, false, func(key, _ []byte) bool {
		ids = append(ids, string(key))
		return true
	}); err != nil {
		return err
	}
	for _, id := range ids {
		if l.fold.CheckStateID([]byte(id)) != nil {
			l.marks.Set(id, false) // of an older release, which took any key
			continue
		}
		a, err := l.states.Get([]byte(id))
		if err != nil {
			return err
		}
		a.Gone = a.Version == 0 && l.own.blocked[id] == nil
		l.own.markDue(id)
		l.pack()
		l.skips.Due = l.skips.Due || l.skips.Offsets.Len() > 0
	}
	return nil
}

// resumeIndex opens the index and continues a catch-up that was interrupted.
func (o *opening) resumeIndex(l *lane) error {
	var next, until int64
	ok, err := states.ReadLongs(l.part, familyMark, markBackfill, &next, &until)
	if err != nil {
		return err
	}
	if !ok || !l.catchUp(max(next, o.at.Start), until) {
		return l.index.Load(l.next, -1)
	}
	if l.startFill(o.set) {
		err = l.index.Load(besideSession, next)
	} else {
		err = l.index.Load(l.next, next)
	}
	if err != nil {
		return err
	}
	return l.shadow.load(o.decode)
}
