package internalrecord

import (
	"context"
	"maps"

	"millrace/pipeline"
)

// Records are the last records of a partition.
type Records struct {
	Checkpoint Checkpoint
	Found      bool  // a checkpoint
	Sent       int64 // dead letters below are sent
	Skipped    Offsets
	Blocked    map[string]Place // Nowhere if a record says that it is not blocked
}

// Take takes a record; a snapshot is ignored. One that cannot be read is an error, and
// changes nothing.
func (r *Records) Take(key, value []byte) error {
	switch kind, id := KindOf(key); kind {
	case OfCheckpoint:
		c, err := DecodeCheckpoint(value)
		if err != nil {
			return err
		}
		r.Checkpoint, r.Found = c, true
	case OfSent:
		sent, err := DecodeSent(value)
		if err != nil {
			return err
		}
		r.Sent = max(r.Sent, sent)
	case OfSkipped:
		return r.Skipped.Decode(value)
	case OfBlocked:
		at, err := PlaceOf(id, value)
		if err != nil {
			return err
		}
		if r.Blocked == nil {
			r.Blocked = map[string]Place{}
		}
		r.Blocked[id] = at
	case OfLater, Other:
	}
	return nil
}

// ReadRecords reads the last records of a partition. A snapshot that is lost, by offset with
// the id of its aggregate, is still lost if it is on the snapshots topic. unreadable is called
// with what cannot be read, and is skipped. read reads a topic to its end.
func ReadRecords(read func(topic string, f func(*pipeline.Record) error) error, topics Topics, lost map[int64]string, unreadable func(*pipeline.Record, error)) (*Records, error) {
	r := &Records{Blocked: map[string]Place{}}
	still := map[string]Place{}
	take := func(in *pipeline.Record) error {
		if id, ok := lost[in.Offset]; ok && in.Topic == topics.Snapshots {
			still[id] = Place{Offset: in.Offset, Lost: true}
		}
		if err := r.Take(in.Key, in.Value); err != nil {
			unreadable(in, err)
		}
		return nil
	}
	err := read(topics.Internal, take)
	if err == nil && len(lost) > 0 && topics.Internal != topics.Snapshots {
		err = read(topics.Snapshots, take)
	}
	maps.Copy(r.Blocked, still)
	return r, err
}

// RecentFunc calls f with the newest n records of partitions of a topic, in order within a
// partition. Before, it waits until all transactions have ended that have written below the
// ends of the partitions at the time of the call.
type RecentFunc func(ctx context.Context, topic string, partitions []int32, n int64, f func(*pipeline.Record) error) error

// LastCheckpoints returns the last checkpoints of partitions of a topic, as far as they are
// among the newest n records.
func LastCheckpoints(ctx context.Context, recent RecentFunc, topic string, partitions []int32, n int64) (map[int32]Checkpoint, error) {
	found := map[int32]Checkpoint{}
	err := recent(ctx, topic, partitions, n, func(in *pipeline.Record) error {
		if kind, _ := KindOf(in.Key); kind == OfCheckpoint {
			// If it cannot be read, the one before may be behind the states.
			delete(found, in.Partition)
			if c, ok := checkpointIn(in); ok {
				found[in.Partition] = c
			}
		}
		return nil
	})
	return found, err
}
