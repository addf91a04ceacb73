package internalrecord

import (
	"encoding/json"
	"fmt"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/fold"
)

// Blocked is an aggregate with an event that cannot be folded, or with a gap. Its later
// events stay in the log until the aggregate is released; the other aggregates of the
// partition are not affected. Its record is JSON.
type Blocked struct {
	ID     string          `json:"id"`
	Offset int64           `json:"offset"` // of the event; of the snapshot, if that is lost
	Since  int64           `json:"since"`  // events from here on wait
	Reason pipeline.Reason `json:"reason"`
	Error  string          `json:"error"`
	Time   pipeline.Time   `json:"time"`            // of the event's record
	Clock  *int64          `json:"clock,omitempty"` // of the track at that time; nil if there was none
	Held   []int64         `json:"held,omitempty"`  // offsets of events before Since that wait as well
	Queue  []int64         `json:"queue,omitempty"` // offsets of the first events that wait
	Queued int64           `json:"queued"`          // number of events that wait
	Last   int64           `json:"last,omitempty"`  // offset of the last of them
	Lost   []string        `json:"lost,omitempty"`  // keys of snapshots that cannot be read
}

const (
	// ReasonBadSnapshot is the reason code of an aggregate whose snapshot cannot be read.
	ReasonBadSnapshot pipeline.Reason = "bad_snapshot"
	// ReasonGap is the reason code of an aggregate that is blocked because an event is
	// missing.
	ReasonGap pipeline.Reason = "gap"
)

// IsLost reports whether the aggregate is blocked because its snapshot cannot be read.
func (q *Blocked) IsLost() bool { return q.Reason == ReasonBadSnapshot }

// Bounds of what an owner keeps of a blocked aggregate. The log has the other offsets.
const (
	MaxQueue = 1000 // offsets in Queue
	MaxError = 1000 // bytes of Error
)

// Encode returns the value of the record.
func (q *Blocked) Encode() ([]byte, error) { return json.Marshal(q) }

// DecodeBlocked reads the value of the record of the aggregate id.
func DecodeBlocked(id string, value []byte) (*Blocked, error) {
	q := &Blocked{}
	if err := json.Unmarshal(value, q); err != nil {
		return nil, err
	}
	if q.ID != id || fold.CheckID([]byte(id)) != nil || min(q.Offset, q.Since, q.Queued, q.Last) < 0 {
		return nil, fmt.Errorf("it is not the record of the blocked aggregate %q", id)
	}
	return q, nil
}

// First returns the offset of the first event that is not folded.
func (q *Blocked) First() int64 {
	first := q.Offset
	if q.IsLost() {
		first = q.Since
	}
	for _, offset := range q.Held {
		first = min(first, offset)
	}
	return first
}

// LastOffset returns the offset of the last event that waits.
func (q *Blocked) LastOffset() int64 {
	last := q.Last
	if !q.IsLost() {
		last = max(last, q.Offset)
	}
	for _, offset := range q.Held {
		last = max(last, offset)
	}
	return last
}

// Clone returns a deep copy.
func (q *Blocked) Clone() Blocked {
	c := *q
	c.Queue, c.Held, c.Lost = slices.Clone(q.Queue), slices.Clone(q.Held), slices.Clone(q.Lost)
	return c
}

// Rewind removes what happened at an offset and after it, which will be folded again. It
// returns false if nothing is left.
func (q *Blocked) Rewind(next int64) bool {
	if q.Since > next {
		return false
	}
	kept := slices.DeleteFunc(q.Queue, func(offset int64) bool { return offset >= next })
	if q.Last >= next {
		q.Queue, q.Queued, q.Last = kept, int64(len(kept)+len(q.Held)), next-1
	}
	return true
}
