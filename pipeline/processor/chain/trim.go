package chain

import (
	"context"
	"time"

	"millrace/pipeline/kafka"
)

// The interval of the deletion of records from a state topic, and its timeout. The
// session waits for the deletion.
const (
	trimEvery   = time.Minute
	trimTimeout = 2 * time.Second
)

// A mark relates a state topic to the source: the records of a partition of the state
// topic before the offset end contain only events up to the offset newest.
type mark struct{ end, newest int64 }

// trim deletes the records of a state topic that contain only events which are no longer
// in the state. A record can be deleted when its events are older than the oldest event
// in the state; marks relate the two offsets.
func (k *keepers) trim(s *keptStage) error {
	ctx, cancel := context.WithTimeout(context.Background(), trimTimeout)
	defer cancel()
	if s.wrote {
		if err := k.mark(ctx, s); err != nil {
			return err
		}
		s.wrote = false
	}
	before := map[int32]int64{}
	for _, p := range k.partitions() {
		oldest, _ := s.keeper.Range(p)
		marks := s.marks[p]
		for len(marks) > 0 && marks[0].newest < oldest {
			before[p] = marks[0].end
			marks = marks[1:]
		}
		s.marks[p] = marks
	}
	if len(before) == 0 {
		return nil
	}
	return kafka.DeleteBefore(ctx, k.client, s.topic, before)
}

// mark adds a mark for the current end of each partition that grew.
func (k *keepers) mark(ctx context.Context, s *keptStage) error {
	ends, err := kafka.LastStableOffsets(ctx, k.client, s.topic)
	if err != nil {
		return err
	}
	for _, p := range k.partitions() {
		_, newest := s.keeper.Range(p)
		if marks := s.marks[p]; len(marks) == 0 || marks[len(marks)-1].end < ends[p] {
			s.marks[p] = append(marks, mark{ends[p], newest})
		}
	}
	return nil
}
