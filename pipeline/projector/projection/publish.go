package projection

import (
	"maps"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/rows"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
)

// publication is the state of the publishing of a lane: its offset, and the due records
// that are not snapshots. The aggregates themselves are marked as due. Records that
// become due while a transaction is open are deferred to the next one.
type publication struct {
	policy    topology.Publish
	published int64         // everything below is in committed snapshots
	saved     int64         // published as the store has it
	floor     int64         // no checkpoint is written below it: another worker may have written that
	sentAt    time.Time     // last time when snapshots were published
	cost      time.Duration // of folding a record, on average

	urgent      bool                       // a release is due: the policy does not delay it
	blocked     map[string]bool            // ids of aggregates whose blocked record is due
	transaction internalrecord.Transaction // the open one, or the last
	sending     bool                       // the open transaction contains the due records
	deferred    []string                   // ids for blocked, after the open transaction
}

func newPublication(policy topology.Publish, now time.Time) publication {
	return publication{policy: policy, saved: -1, blocked: map[string]bool{}, sentAt: now}
}

// addCost takes the duration of folding one record into the average.
func (p *publication) addCost(d time.Duration) {
	if p.cost == 0 {
		p.cost = d
	}
	p.cost += (d - p.cost) / 16
}

// setDue marks an aggregate whose snapshot is due.
func (p *publication) setDue(a *states.Aggregate) {
	if p.sending {
		a.Later = true
		return
	}
	a.Due = true
}

// setBlockedDue marks an aggregate whose blocked record is due.
func (p *publication) setBlockedDue(id string) {
	if p.sending {
		p.deferred = append(p.deferred, id)
		return
	}
	p.blocked[id] = true
}

func (p *publication) write(b *store.Batch, part *store.Part) {
	if p.published != p.saved {
		states.PutLongs(b, part, familyMark, markPublished, p.published)
	}
}

func (p *publication) written() { p.saved = p.published }

// isDue reports whether something is to be published now, when the batch has read up to
// an offset.
func (l *lane) isDue(read int64) bool {
	if !l.hasDue(read) {
		return false
	}
	p := &l.publication
	switch policy := p.policy; {
	case p.urgent:
		return true
	case policy.Events > 0:
		return read-p.published >= policy.Events
	case policy.Every > 0:
		return l.now().Sub(p.sentAt) >= policy.Every
	case policy.Recovery > 0:
		return time.Duration(read-p.published)*p.cost >= policy.Recovery
	}
	return true
}

// hasDue reports whether there is something to publish. After an aborted batch, the
// states are ahead of the offset that the next batch reads, and must not be published
// with it.
func (l *lane) hasDue(read int64) bool {
	l.states.Settle()
	return (l.states.Due() > 0 || len(l.publication.blocked) > 0 || l.skips.Due || l.unread.Due || l.heard.due) && !l.heard.todo.Waits() && read >= l.next && read >= l.publication.floor
}

// dueAt returns the time at which something is to be published even if no more records
// are read. ok is false if there is nothing to publish, or if that depends on more
// records.
func (l *lane) dueAt(read int64) (at time.Time, ok bool) {
	if p := &l.publication; p.policy.Every > 0 && !p.urgent && l.hasDue(read) {
		return p.sentAt.Add(p.policy.Every), true
	}
	return l.now(), l.isDue(read)
}

// publish emits the batch's dead letters and, if it is time, the due records and a
// checkpoint, which states that the snapshots contain everything below read, the next
// offset of the batch. A dead letter is truncated to the limit of its topic. A
// snapshot is bounded by max_state alone, because a fold must not depend on a topic.
func (l *lane) publish(out pipeline.Emitter, read int64, mem *rows.Arena, limits kafka.Limits) error {
	l.emitLetters(out, read, limits)
	if !l.isDue(read) {
		return nil
	}
	l.publication.sending = true
	l.publication.transaction.Next(l.projection.Spec.Internal != "")
	l.marks.Send()
	if err := l.states.Publishing(func(id []byte, a *states.Aggregate) error {
		l.emitSnapshot(out, id, a, mem)
		return nil
	}); err != nil {
		return err
	}
	if err := l.emitBlocked(out); err != nil {
		return err
	}
	if err := l.emitSkips(out); err != nil {
		return err
	}
	value, err := l.checkpoint(max(read, l.publication.published))
	if err == nil {
		out.Emit(l.reserved(internalrecord.CheckpointKey, value))
	}
	return err
}

func (l *lane) emitSnapshot(out pipeline.Emitter, id []byte, a *states.Aggregate, mem *rows.Arena) {
	if a.Version == 0 && !a.Gone {
		return // it was blocked before an event was applied
	}
	key := mem.Keep(append(mem.Grow(len(id)), id...))
	r := pipeline.Record{Topic: l.projection.Spec.Snapshots, Partition: l.source.Partition, Key: key, Time: snapshotTime(a.EventTime, l.now()), Headers: l.publication.transaction.Headers}
	if a.Gone || l.isSettled(id, a) {
		r.Time = l.now()
	} else {
		value := codec.AppendFrame(mem.Grow(5+512+len(a.State)), l.projection.Spec.SnapshotID)
		if l.own.blocked[string(id)] != nil {
			value = l.fold.AppendBlocked(value, id, &a.Aggregate)
		} else {
			value = l.fold.AppendSnapshot(value, id, &a.Aggregate)
		}
		r.Value = mem.Keep(value)
		if a.Tombstone {
			r.Headers = l.publication.transaction.Tombstones
		}
	}
	out.Emit(&r)
}

// isSettled reports whether an aggregate is an expired window whose last state an earlier
// owner has published. Its snapshot must not exist again: that owner may have deleted it,
// and if it takes the partition over from this worker, it would not delete it again.
func (l *lane) isSettled(id []byte, a *states.Aggregate) bool {
	if l.fold.Window().Retention == 0 || a.Offset >= l.publication.floor || l.own.clock == noTime {
		return false
	}
	limit, _ := l.fold.Window().EarliestKept(l.own.clock)
	_, start, ok := fold.ParseWindowID(string(id))
	return ok && start < limit
}

// snapshotTime returns the time of a snapshot's record: the event time, which is in the
// snapshot as well, within what every broker and client accepts. Brokers refuse times that
// are ahead of their clock.
func snapshotTime(micros int64, now time.Time) time.Time {
	return time.UnixMicro(max(0, min(micros, now.UnixMicro())))
}

func (l *lane) emitBlocked(out pipeline.Emitter) error {
	for _, id := range slices.Sorted(maps.Keys(l.publication.blocked)) {
		var value []byte
		if q := l.own.blocked[id]; q != nil {
			var err error
			if value, err = q.Encode(); err != nil {
				return err
			}
		}
		out.Emit(l.reserved(internalrecord.BlockedKey(id), value))
	}
	return nil
}

func (l *lane) emitSkips(out pipeline.Emitter) error {
	if !l.skips.Due {
		return nil
	}
	value, err := l.skips.Offsets.Encode()
	if err == nil {
		out.Emit(l.reserved(internalrecord.SkippedKey, value))
	}
	return err
}

// reserved returns an internal record. A nil value deletes the record.
func (l *lane) reserved(key string, value []byte) *pipeline.Record {
	return &pipeline.Record{Topic: l.projection.Spec.internal(), Partition: l.source.Partition, Key: []byte(key), Value: value, Time: l.now()}
}

// ended notes the end of the transaction for which publish was called. Due
// records stay due until a transaction commits.
func (l *lane) ended(committed bool, read int64) {
	l.outbox = nil
	if l.states == nil {
		return // nothing was sent, and the partition was revoked
	}
	l.states.Settle()
	p := &l.publication
	sent := p.sending && committed
	if sent {
		l.projection.metrics.Published.Add(float64(l.states.Due()))
	}
	if p.sending {
		l.states.Published(sent)
		l.marks.Ended(sent)
	}
	p.sending = false
	if committed {
		l.letters.Sent(read)
	}
	if sent {
		clear(p.blocked)
		l.skips.Due, l.unread.Due, l.heard.due = false, false, false
		p.urgent = l.skips.Deferred || len(p.deferred) > 0
		p.sentAt = l.now()
	}
	if committed && l.states.Due() == 0 && len(p.blocked) == 0 && !l.skips.Due && !l.unread.Due && !l.heard.due {
		p.published = max(p.published, read)
	}
	l.states.CatchUp()
	for _, id := range p.deferred {
		p.setBlockedDue(id)
	}
	p.deferred = p.deferred[:0]
	if l.skips.Deferred {
		l.skips.Due, l.skips.Deferred = true, false
	}
}

// dropDue forgets the due records of a partition that is followed, because its owner
// publishes them. A later owner of this store finds the rest in the log.
func (l *lane) dropDue() {
	l.states.DropDue()
	clear(l.publication.blocked)
	l.skips.Due, l.unread.Due, l.heard.due, l.outbox = false, false, false, nil
}

// With an index, an event is a duplicate if its id was applied at any time; without, if
// it has the id of the event before. Snapshots made one way cannot be continued the
// other way.
const (
	dedupeIndex = "index"
	dedupeLast  = "last"
)

func (l *lane) dedupe() string {
	if l.index != nil {
		return dedupeIndex
	}
	return dedupeLast
}

// continues reports whether the snapshots of a checkpoint can be continued here.
func (l *lane) continues(c *internalrecord.Checkpoint) bool {
	return c.Fold == l.fold.Hash() && c.TopicID == l.source.TopicID && c.Dedupe == l.dedupe() && c.SnapshotsID == l.projection.Spec.SnapshotsTopicID
}

func (l *lane) checkpoint(next int64) ([]byte, error) {
	c := internalrecord.Checkpoint{Fold: l.fold.Hash(), TopicID: l.source.TopicID, Dedupe: l.dedupe(), Next: next, Redo: next, Skipped: l.skips.Offsets.Sum(), Blocked: l.own.blockedSum(), Unread: l.unread.All(),
		SnapshotsID: l.projection.Spec.SnapshotsTopicID, Transaction: l.publication.transaction.Name}
	if held := l.own.held.All(); len(held) > 0 {
		c.Redo = min(next, held[0].Offset())
	}
	if l.own.clock != noTime {
		c.Clock = &l.own.clock
	}
	return c.Encode()
}
