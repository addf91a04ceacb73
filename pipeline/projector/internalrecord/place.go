package internalrecord

import (
	"fmt"
	"hash/fnv"
	"iter"
)

// Place is the place of the event that blocks an aggregate, or of its snapshot if that is
// lost.
type Place struct {
	Offset int64
	Lost   bool
	Rank   int64 // of what blocks an aggregate, one after the other: higher
}

// Nowhere is the place of an aggregate that is not blocked.
var Nowhere = Place{Offset: -1}

// Place returns the place.
func (q *Blocked) Place() Place {
	// What waited before the event at an offset is decided before that event.
	rank := 2 * q.Since
	if q.Reason != ReasonGap && q.Offset == q.Since-1 {
		rank = 2*q.Offset + 1
	}
	return Place{q.Offset, q.IsLost(), rank}
}

// Same reports whether the same event blocks an aggregate at two workers.
func (p Place) Same(other Place) bool { return p.Offset == other.Offset && p.Lost == other.Lost }

// DecidedBelow reports whether the aggregate is blocked by events below an offset.
func (q *Blocked) DecidedBelow(next int64) bool {
	return q.Place().Rank/2 < next
}

// SumBlocked identifies the aggregates that are blocked by events below an offset, and
// where.
func SumBlocked(all map[string]*Blocked, below int64) string {
	sum, n := uint64(0), 0
	for id, q := range all {
		if !q.DecidedBelow(below) {
			continue
		}
		h := fnv.New64a()
		fmt.Fprintf(h, "%d %v %s", q.Offset, q.IsLost(), id)
		sum ^= h.Sum64()
		n++
	}
	return fmt.Sprintf("%d-%016x", n, sum)
}

// PlaceOf returns where the record of the aggregate id says that it is blocked.
func PlaceOf(id string, value []byte) (Place, error) {
	if value == nil {
		return Nowhere, nil
	}
	q, err := DecodeBlocked(id, value)
	if err != nil {
		return Place{}, err
	}
	return q.Place(), nil
}

// LostIn returns the ids of the aggregates whose snapshot is lost, by its offset.
func LostIn(all map[string]*Blocked) map[int64]string {
	lost := map[int64]string{}
	for _, q := range all {
		if q.IsLost() {
			lost[q.Offset] = q.ID
		}
	}
	return lost
}

// InLog reports whether the events of all aggregates are in a log that starts at an offset.
func InLog(all iter.Seq[*Blocked], start int64) bool {
	for q := range all {
		if q.IsLost() || q.First() < start {
			return false
		}
	}
	return true
}
