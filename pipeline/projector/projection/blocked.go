package projection

import (
	"encoding/json"
	"fmt"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/home"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
)

// blocked is an aggregate with an event that cannot be folded, or with a gap. Its later
// events stay in the log until the aggregate is released; the other aggregates of the
// partition are not affected.
//
// The record is kept in the store and, under blockedKeys, on the snapshots topic, so it
// survives the loss of either. A release folds the missed events again, which it reads
// from the log. The offsets that a release skipped are kept too (skippedKey), so every
// replay of the log makes the same decisions.
type blocked struct {
	ID     string          `json:"id"`
	Offset int64           `json:"offset"` // of the event; of the snapshot, if that is lost
	Since  int64           `json:"since"`  // events from here on wait
	Reason pipeline.Reason `json:"reason"`
	Error  string          `json:"error"`
	Time   pipeline.Time   `json:"time"`            // of the event's record
	Clock  *int64          `json:"clock,omitempty"` // of the track at that time; nil if there was none
	Held   []int64         `json:"held,omitempty"`  // offsets of events before Since that wait as well
	Queue  []int64         `json:"queue,omitempty"` // offsets of events that wait, the first maxQueue
	Queued int64           `json:"queued"`          // number of events that wait
	Last   int64           `json:"last,omitempty"`  // offset of the last of them
	Lost   []string        `json:"lost,omitempty"`  // keys of snapshots that cannot be read: see lost.go
}

// maxQueue bounds the offsets that are kept per aggregate. The log has the others.
const maxQueue = 1000

// maxBlocked bounds the blocked aggregates of a partition. More than that have a common
// cause, and are not released one by one.
const maxBlocked = 100_000

// maxBlockedError bounds the length of the error text that is kept.
const maxBlockedError = 1000

func (q *blocked) encode() ([]byte, error) { return json.Marshal(q) }

// decodeBlocked decodes the record of the aggregate id.
func decodeBlocked(id string, value []byte) (*blocked, error) {
	q := &blocked{}
	if err := json.Unmarshal(value, q); err != nil {
		return nil, err
	}
	if q.ID != id || fold.CheckID([]byte(id)) != nil || min(q.Offset, q.Since, q.Queued, q.Last) < 0 {
		return nil, fmt.Errorf("it is not the record of the blocked aggregate %q", id)
	}
	return q, nil
}

// first returns the offset of the first event that is not folded.
func (q *blocked) first() int64 {
	first := q.Offset
	if q.lost() {
		first = q.Since
	}
	for _, offset := range q.Held {
		first = min(first, offset)
	}
	return first
}

// clone returns a deep copy.
func (q *blocked) clone() blocked {
	c := *q
	c.Queue, c.Held, c.Lost = slices.Clone(q.Queue), slices.Clone(q.Held), slices.Clone(q.Lost)
	return c
}

// rewind removes what happened at an offset and after it, which will be folded again.
// It returns false if nothing is left.
func (q *blocked) rewind(next int64) bool {
	if q.Since > next {
		return false
	}
	kept := slices.DeleteFunc(q.Queue, func(offset int64) bool { return offset >= next })
	if q.Last >= next {
		q.Queue, q.Queued, q.Last = kept, int64(len(kept)+len(q.Held)), next-1
	}
	return true
}

// item returns the aggregate for an answer.
func (q *blocked) item(partition int32) query.BlockedAggregate {
	return query.BlockedAggregate{ID: q.ID, Partition: partition, Offset: q.Offset, Time: q.Time, Reason: string(q.Reason), Error: q.Error, Queued: q.Queued, Last: q.Last}
}

// block blocks an aggregate at an event. Its events from the offset since on wait.
func (t *track) block(id string, in *pipeline.Record, since int64, err error) error {
	if len(t.blocked) >= maxBlocked {
		return fmt.Errorf("%d aggregates in partition %d of %s are blocked, which is the limit: the cause is not single events. The last one is %q: %w", len(t.blocked), in.Partition, in.Topic, id, err)
	}
	text := err.Error()
	q := &blocked{ID: id, Offset: in.Offset, Since: since, Reason: pipeline.ReasonOf(err), Error: text[:min(len(text), maxBlockedError)], Time: pipeline.Time(in.Time)}
	if t.clock != noTime {
		clock := t.clock
		q.Clock = &clock
	}
	waiting := slices.Clone(t.heldOf[id])
	t.unhold(waiting...)
	for _, h := range waiting {
		if h.offset() != in.Offset {
			q.Held = append(q.Held, h.offset())
			q.Queued++
		}
	}
	t.blocked[id], t.blocks[id] = q, true
	result := isBlocked
	if q.Reason == home.Mispartitioned {
		result = isMispartitioned
	}
	t.count(in, result)
	t.complain(in, err, "event cannot be folded; its aggregate is blocked")
	t.markDue(id)
	return nil
}

// unblock removes a blocked aggregate.
func (t *track) unblock(id string) {
	delete(t.blocked, id)
	t.blocks[id] = true
}

// queue adds an event of a blocked aggregate to the events that wait.
func (t *track) queue(q *blocked, in *pipeline.Record) {
	if in.Offset < max(q.Since, q.Last+1) {
		return // it was decided before
	}
	if len(q.Queue) < maxQueue {
		q.Queue = append(q.Queue, in.Offset)
	}
	q.Queued++
	q.Last = in.Offset
	t.blocks[q.ID] = true
	t.count(in, isQueued)
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
		value, err := q.encode()
		if err != nil {
			return err
		}
		b.Put(t.part, t.families.blocked, []byte(id), value)
	}
	return nil
}
