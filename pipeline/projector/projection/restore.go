package projection

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/store"
)

// restoreBatch is how many snapshots go into the store at a time, and how often
// progress is told.
const restoreBatch = 1 << 16

// Open brings up the lanes of a partition: from the store, else from the
// snapshots and the log's tail, else from the log.
func (h *Handler) Open(ctx context.Context, at kafka.Partition) (*Unit, error) {
	topic := h.Topics[at.Topic]
	u := &Unit{Key: Key{at.Topic, at.Partition}, entries: h.store.NewBatch(), flushed: h.now()}
	source := fold.Source{Topic: topic.Name, TopicID: topic.id, Partition: at.Partition}
	for _, p := range topic.Projections {
		l, err := h.openLane(ctx, p, source, at)
		if err != nil {
			return nil, fmt.Errorf("projection %s, partition %d: %w", p.Label(), at.Partition, err)
		}
		u.Lanes = append(u.Lanes, l)
	}
	return u, nil
}

func (h *Handler) openLane(ctx context.Context, p *Projection, source fold.Source, at kafka.Partition) (*Lane, error) {
	part, err := h.store.Part(p.Label(), at.Partition, p.Identity+h.layout())
	if err != nil {
		return nil, err
	}
	l := h.newLane(p, source, part, at)
	next, ok, err := part.Position()
	if err != nil {
		return nil, err
	}
	log := h.log.With("projection", p.Label(), "partition", at.Partition)
	if ok && next >= at.Start && next <= at.End {
		l.next, l.position, l.counted = next, next, next
		l.floor = min(at.Committed, at.End)
		if err := l.resume(at, h.decodeWith(ctx, at.Topic)); err != nil {
			return nil, err
		}
		batch := h.store.NewBatch()
		l.writeSent(batch)
		if err := batch.Commit(); err != nil {
			return nil, err
		}
		log.Info("restored from the store", "next", next, "tail", at.End-next)
		return l, nil
	}
	if ok {
		log.Warn("the store does not fit the log; making this partition anew", "position", next, "log_start", at.Start, "log_end", at.End)
	}
	if part, err = h.store.Reset(part); err != nil {
		return nil, err
	}
	l = h.newLane(p, source, part, at)
	began := time.Now()
	n, from, until, err := h.load(ctx, l)
	next = from.Next
	if err == nil && h.Ends != nil {
		// The owner goes on while its snapshots are read.
		at.End, err = h.Ends(ctx, at.Topic, at.Partition)
	}
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	switch {
	case next < 0:
		if at.Start > 0 {
			log.Warn("no usable snapshots, and the log does not begin at its beginning: states lack the events that are gone", "log_start", at.Start)
		}
		// What a load may have written before it found no checkpoint goes.
		if part, err = h.store.Reset(part); err != nil {
			return nil, err
		}
		skips, sent, follow := l.skips, l.sentBelow, l.Follow // which are about the log, whoever folds it
		l = h.newLane(p, source, part, at)
		l.sentBelow, l.Follow = sent, follow
		if l.skips = skips; len(skips) > 0 {
			l.skipped, l.dueSkips = true, true
		}
		batch := h.store.NewBatch()
		l.writeSent(batch)
		l.addHeard(batch)
		batch.SetPosition(part, at.Start)
		if err := batch.Commit(); err != nil {
			return nil, err
		}
		l.next, l.position, l.published, l.counted = at.Start, at.Start, at.Start, at.Start
		log.Info("folding from the log's start", "next", l.next, "tail", at.End-l.next)
		return l, nil
	case from.Redo < at.Start:
		return nil, pipeline.Fatal("the snapshots on %s reach up to offset %d, but %s now starts at %d: events in between are gone. Bring them back, or delete %s to start over from what is left",
			p.Snapshots, from.Redo, at.Topic, at.Start, p.Snapshots)
	case next > at.End:
		return nil, pipeline.Fatal("the snapshots on %s reach up to offset %d, but %s ends at %d: it was truncated. Delete %s to start over from what is left",
			p.Snapshots, next, at.Topic, at.End, p.Snapshots)
	}
	l.next, l.position, l.published, l.kept, l.counted = from.Redo, from.Redo, next, next, next
	if err := l.own.load(h.decodeWith(ctx, at.Topic)); err != nil {
		return nil, err
	}
	l.setStuck()
	l.loaded = until
	if l.index != nil {
		l.index.behind(at.Start, until)
	}
	log.Info("restored from snapshots", "aggregates", n, "took", took, "rate", int(float64(n)/took.Seconds()), "next", next, "tail", at.End-next)
	return l, nil
}

// newLane returns a lane that is empty.
func (h *Handler) newLane(p *Projection, source fold.Source, part *store.Part, at kafka.Partition) *Lane {
	l := newLane(p, source, part, h.KeepHistory)
	l.log, l.now, l.sentAt = h.log, h.now, h.now()
	if at.Committed <= at.End { // else it is of a topic that there was before
		l.sentBelow = max(0, at.Committed)
	}
	if h.Follows {
		l.Follow = newFollowed()
	}
	return l
}

// decodeWith returns what decodes the events of a topic.
func (h *Handler) decodeWith(ctx context.Context, topic string) func(*pipeline.Record) (event.Decoded, error) {
	return func(in *pipeline.Record) (event.Decoded, error) { return h.decoders[topic].Decode(ctx, in, nil) }
}

// writeSent notes below which offset dead letters were sent: a group that is away for
// long is forgotten by the brokers, with its offset.
func (l *Lane) writeSent(b *store.Batch) {
	if l.Late != "" {
		b.Put(l.Part, familyMark, markSent, codec.AppendLong(nil, l.sentBelow))
	}
}

// resume takes up what the store has of a lane.
func (l *Lane) resume(at kafka.Partition, decode func(*pipeline.Record) (event.Decoded, error)) error {
	value, ok, err := l.Part.Get(nil, familyMark, markPublished)
	if err != nil {
		return err
	}
	if ok {
		if l.kept, _, err = codec.ReadLong(value); err != nil {
			return damaged(markPublished, err)
		}
	}
	l.published = max(l.kept, at.Start)
	l.counted = max(l.next, l.kept) // from snapshots, if that was cut short
	if value, ok, err = l.Part.Get(nil, familyMark, markHeard); err != nil {
		return err
	}
	if ok {
		r := fields{rest: value}
		heard, published := r.long(), r.long()
		if r.err != nil {
			return damaged(markHeard, r.err)
		}
		if l.Follow != nil {
			l.Follow.Heard, l.Follow.kept, l.Follow.published = heard, heard, published
		}
		// What this worker heard when it followed may be more than is committed, if
		// the group's offset has gone back since.
		l.floor = max(l.floor, min(published, at.End))
	}
	if value, ok, err = l.Part.Get(nil, familyMark, markLoaded); err != nil {
		return err
	}
	if ok {
		if l.loaded, _, err = codec.ReadLong(value); err != nil {
			return damaged(markLoaded, err)
		}
	}
	if value, ok, err = l.Part.Get(nil, familyMark, markSkipped); err != nil {
		return err
	}
	if ok {
		if err := l.decodeSkips(value); err != nil {
			return damaged(markSkipped, err)
		}
	}
	if err := l.own.load(decode); err != nil {
		return err
	}
	l.setStuck()
	if value, ok, err = l.Part.Get(nil, familyMark, markSent); err != nil {
		return err
	}
	if ok {
		sent, _, err := codec.ReadLong(value)
		if err != nil {
			return damaged(markSent, err)
		}
		l.sentBelow = max(l.sentBelow, sent)
	}
	v := l.Part.View()
	defer v.Close() //nolint:errcheck // only read
	var bad error
	if err := v.Scan(familyLetter, nil, nil, false, func(key, value []byte) bool {
		offset := int64(binary.BigEndian.Uint64(key))
		if offset < l.sentBelow {
			l.lettersNow[offset] = true // it was committed
			return true
		}
		missed := []int64{}
		for r := (fields{rest: value}); len(r.rest) > 0; {
			missed = append(missed, r.long())
			if bad = r.err; bad != nil {
				return false
			}
		}
		l.letters[offset] = missed
		return true
	}); err != nil || bad != nil {
		return errors.Join(err, bad)
	}
	var owed []string
	if err := v.Scan(familyOwed, nil, nil, false, func(key, _ []byte) bool {
		owed = append(owed, string(key))
		return true
	}); err != nil {
		return err
	}
	for _, id := range owed {
		a, err := l.states.get([]byte(id))
		if err != nil {
			return err
		}
		a.gone = a.Version == 0 && l.own.blocked[id] == nil
		l.own.owe(id)
		l.pack()
		l.dueSkips = l.dueSkips || len(l.skips) > 0
	}
	if l.index == nil {
		return nil
	}
	return l.index.resume(decode)
}

// load fills a part of the store from the snapshots on Kafka. It returns their
// checkpoint, whose Next is -1 if they cannot be used: there is none, or another
// fold made them. Some may reach further, all end before until.
func (h *Handler) load(ctx context.Context, l *Lane) (n int, from checkpoint, until int64, err error) {
	from.Next = -1
	stuck := map[string]*blocked{}
	key := Key{l.Source.Topic, l.Source.Partition}
	h.say(key, "restoring %s, partition %d, from snapshots", l.Label(), l.Source.Partition)
	defer h.say(key, "")
	batch := h.store.NewBatch()
	a := fold.Aggregate{}
	var value []byte
	end, err := h.restore(ctx, l.Snapshots, l.Source.Partition, func(r *pipeline.Record) error {
		if string(r.Key) == string(checkpointKey) {
			var c checkpoint
			if err := json.Unmarshal(r.Value, &c); err != nil {
				return fmt.Errorf("checkpoint at offset %d of %s: %w", r.Offset, r.Topic, err)
			}
			if from = c; c.Fold != l.Fold.Hash() || c.TopicID != l.Source.TopicID || c.Dedupe != l.dedupe() {
				from.Next = -1
			}
			return nil
		}
		if string(r.Key) == string(sentKey) {
			sent, err := strconv.ParseInt(string(r.Value), 10, 64)
			l.sentBelow = max(l.sentBelow, sent)
			return err
		}
		if string(r.Key) == string(skippedKey) && r.Value != nil {
			// About the log, and so for every fold of it.
			return l.decodeSkips(r.Value)
		}
		if id, ok := strings.CutPrefix(string(r.Key), blockedKeys); ok {
			delete(stuck, id)
			if r.Value != nil {
				q, err := decodeBlocked(r.Value)
				if err != nil {
					return fmt.Errorf("what is said of the blocked %q at offset %d of %s: %w", id, r.Offset, r.Topic, err)
				}
				stuck[id] = q
			}
			return nil
		}
		if strings.HasPrefix(string(r.Key), fold.ReservedKeys) {
			return nil // a later version's
		}
		if r.Value == nil {
			batch.Delete(l.Part, familyState, r.Key)
			return nil
		}
		_, body, err := codec.Unframe(r)
		if err == nil {
			err = l.Fold.ReadSnapshot(body, &a)
		}
		switch {
		case errors.Is(err, fold.ErrOtherFold):
			return nil
		case err != nil:
			return fmt.Errorf("snapshot at offset %d of %s: %w", r.Offset, r.Topic, err)
		case a.TopicID != l.Source.TopicID:
			return nil
		}
		until = max(until, a.Offset+1)
		value = fold.AppendAggregate(value[:0], &a)
		batch.Put(l.Part, familyState, r.Key, value)
		if l.Fold.Window().Size > 0 {
			if start, ok := fold.WindowStart(string(r.Key)); ok {
				batch.Put(l.Part, familyWindow, windowKey(start, string(r.Key)), nil)
			}
		}
		if n++; n%restoreBatch == 0 {
			// In pieces: a part without a position is not used when it is
			// opened next.
			h.say(key, "restoring %s, partition %d, from snapshots: %d so far", l.Label(), l.Source.Partition, n)
			h.log.Info("restoring from snapshots", "projection", l.Label(), "partition", l.Source.Partition, "aggregates", n)
			return batch.Commit()
		}
		return nil
	})
	if l.Follow != nil {
		l.Follow.Heard, l.Follow.published = end, max(0, from.Next)
	}
	if err != nil || from.Next < 0 {
		from.Next = -1
		return 0, from, 0, err
	}
	batch.Put(l.Part, familyMark, markHeard, codec.AppendLong(codec.AppendLong(nil, end), from.Next))
	until = max(until, from.Next)
	batch.Put(l.Part, familyMark, markPublished, codec.AppendLong(nil, from.Next))
	if from.Clock != 0 {
		batch.Put(l.Part, familyMark, ownFamilies.clock, codec.AppendLong(nil, from.Clock))
	}
	batch.Put(l.Part, familyMark, markLoaded, codec.AppendLong(nil, until))
	for id, q := range stuck {
		if !q.upTo(from.Next) {
			continue // it was not blocked yet
		}
		value, err := q.encode()
		if err != nil {
			return 0, from, 0, err
		}
		batch.Put(l.Part, familyBlocked, []byte(id), value)
	}
	if len(l.skips) > 0 {
		value, err := l.encodeSkips()
		if err != nil {
			return 0, from, 0, err
		}
		batch.Put(l.Part, familyMark, markSkipped, value)
	}
	if l.index != nil {
		// The states count only together with what the index has still to do.
		batch.Put(l.Part, familyMark, markBackfill, codec.AppendLong(codec.AppendLong(nil, 0), until))
	}
	l.writeSent(batch)
	batch.SetPosition(l.Part, from.Redo)
	return n, from, until, batch.Commit()
}

// say notes what a partition is waiting for, "" if for nothing.
func (ps *Set) say(key Key, format string, args ...any) {
	ps.Mu.Lock()
	defer ps.Mu.Unlock()
	if format == "" {
		delete(ps.why, key)
		return
	}
	ps.why[key] = fmt.Sprintf(format, args...)
}

// Ready returns nil if nothing is being restored.
func (ps *Set) Ready() error {
	ps.Mu.Lock()
	defer ps.Mu.Unlock()
	for _, why := range ps.why {
		return errors.New(why)
	}
	return nil
}

// layout says how the store's entries are laid out, as a part of their identity.
func (ps *Set) layout() string { return fmt.Sprintf(" layout 2 history %v", ps.KeepHistory) }

// Identity says what the store's part of a projection is made from and by.
func Identity(cluster string, events kafka.TopicInfo, snapshots kafka.TopicInfo, f *fold.Fold) string {
	id, err := json.Marshal(struct {
		Cluster    string `json:"cluster"`
		TopicID    string `json:"topic_id"`
		Partitions int    `json:"partitions"`
		Snapshots  string `json:"snapshots_id"`
		Fold       string `json:"fold"` // which covers the state's schema
	}{cluster, events.ID, events.Partitions, snapshots.ID, f.Hash()})
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(id)
}
