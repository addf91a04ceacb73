package projection

import (
	"fmt"

	"millrace/pipeline"
	"millrace/pipeline/projector/home"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
)

// A blocked aggregate is kept in the store and in an internal record, so it survives the
// loss of either. A release folds the missed events again, which it reads from the log.
// The offsets that a release skipped are kept too, so every replay of the log makes the
// same decisions.

// maxBlocked bounds the blocked aggregates of a partition. More than that have a common
// cause, and are not released one by one.
const maxBlocked = 100_000

// blockedItem returns a blocked aggregate for an answer.
func blockedItem(q *internalrecord.Blocked, partition int32) query.BlockedAggregate {
	return query.BlockedAggregate{ID: q.ID, Partition: partition, Offset: q.Offset, Time: q.Time, Reason: string(q.Reason), Error: q.Error, Queued: q.Queued, Last: q.Last}
}

// block blocks an aggregate at an event. Its events from the offset since on wait.
func (t *track) block(id string, in *pipeline.Record, since int64, err error) error {
	if len(t.blocked) >= maxBlocked {
		return fmt.Errorf("%d aggregates in partition %d of %s are blocked, which is the limit: the cause is not single events. The last one is %q: %w", len(t.blocked), in.Partition, in.Topic, id, err)
	}
	text := err.Error()
	q := &internalrecord.Blocked{ID: id, Offset: in.Offset, Since: since, Reason: pipeline.ReasonOf(err), Error: text[:min(len(text), internalrecord.MaxError)], Time: pipeline.Time(in.Time)}
	if t.clock != noTime {
		clock := t.clock
		q.Clock = &clock
	}
	waiting := t.held.Of(id)
	t.held.Remove(waiting...)
	for _, h := range waiting {
		if h.Offset() != in.Offset {
			q.Held = append(q.Held, h.Offset())
			q.Queued++
		}
	}
	t.blocked[id], t.blocks[id], t.sum = q, true, ""
	result := measure.Blocked
	if q.Reason == home.Mispartitioned {
		result = measure.Mispartitioned
	}
	t.count(in, result)
	t.complain(in, err, "event cannot be folded; its aggregate is blocked")
	t.markDue(id)
	return nil
}

// unblock removes a blocked aggregate.
func (t *track) unblock(id string) {
	delete(t.blocked, id)
	t.blocks[id], t.sum = true, ""
}

// queue adds an event of a blocked aggregate to the events that wait.
func (t *track) queue(q *internalrecord.Blocked, in *pipeline.Record) {
	if in.Offset < max(q.Since, q.Last+1) {
		return // it was decided before
	}
	if len(q.Queue) < internalrecord.MaxQueue {
		q.Queue = append(q.Queue, in.Offset)
	}
	q.Queued++
	q.Last = in.Offset
	t.blocks[q.ID] = true
	t.count(in, measure.Queued)
	if !t.isShadow() {
		t.lane.publication.setBlockedDue(q.ID)
	}
}

func (t *track) writeBlocked(b *store.Batch) error {
	for id := range t.blocks {
		q := t.blocked[id]
		if q == nil {
			b.Delete(t.part, t.families.blocked, []byte(id))
			continue
		}
		value, err := q.Encode()
		if err != nil {
			return err
		}
		b.Put(t.part, t.families.blocked, []byte(id), value)
	}
	return nil
}
