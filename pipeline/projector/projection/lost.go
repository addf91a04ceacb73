package projection

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
)

// A record of the snapshots topic may be unreadable: another program wrote it, or an
// older release that checked less. Nothing else is affected by it:
//
//   - A snapshot, or the record of a blocked aggregate, is lost. Its aggregate is blocked
//     from the log's start on, with the reason internalrecord.ReasonBadSnapshot. A release folds all of
//     its events again, and so computes the state.
//   - The rest is skipped: a record with a key that no aggregate has, and facts that
//     other records have as well, such as a checkpoint, of which earlier ones exist.

// skipUnreadable counts and logs a record of the snapshots topic that cannot be read.
func (l *lane) skipUnreadable(in *pipeline.Record, why error, effect string) {
	l.projection.metrics.Unreadable.Inc()
	l.log.Error("a record of the snapshots topic cannot be read; "+effect, "projection", l.projection.Label(), "topic", in.Topic, "partition", in.Partition, "offset", in.Offset,
		"key", fmt.Sprintf("%.100q", in.Key), "err", why)
}

// Effects of an unreadable record, for the log.
const (
	effectBlocked = "its aggregate is blocked, and `projector release` folds its events again"
	effectSkipped = "it is skipped: no aggregate has this key. `projector rebuild` makes a topic without it"
	effectIgnored = "it is skipped, and other records take its place"
)

// lose notes that the record of the aggregate id cannot be read. An earlier or later
// record with the same key may replace it.
func (r *loader) lose(id string, in *pipeline.Record, why error) {
	l := r.lane
	if err := fold.CheckID([]byte(id)); err != nil {
		l.skipUnreadable(in, errors.Join(why, err), effectSkipped)
		return
	}
	l.skipUnreadable(in, why, effectBlocked)
	text := fmt.Sprintf("the record at offset %d of %s cannot be read: %s. A release folds the events of the aggregate again, from the start of %s", in.Offset, in.Topic, why, l.source.Topic)
	r.lost[string(in.Key)] = &internalrecord.Blocked{ID: id, Offset: in.Offset, Reason: internalrecord.ReasonBadSnapshot, Error: text[:min(len(text), internalrecord.MaxError)], Time: pipeline.Time(in.Time)}
}

// blockLost blocks the aggregates of which records are lost, when everything is read.
func (r *loader) blockLost() {
	for _, key := range slices.Sorted(maps.Keys(r.lost)) {
		q := r.lost[key]
		if r.lane.projection.Fence.Has([]byte(q.ID)) {
			continue
		}
		before := r.blocked[q.ID]
		if before != nil && before.IsLost() {
			q.Lost = before.Lost
		}
		q.Last = max(0, r.found.from.Next-1)
		if before != nil {
			q.Queue, q.Queued = before.Queue, before.Queued
		}
		if !slices.Contains(q.Lost, key) {
			q.Lost = append(q.Lost, key)
		}
		r.blocked[q.ID] = q
	}
}

// checkLog refuses to fold the events of a lost aggregate again if some of them are
// deleted, unless the state before them is known.
func (r *release) checkLog(ctx context.Context, s *Set, l *lane, known int64) error {
	if !r.found.IsLost() || r.skip || s.cfg.LogStart == nil {
		return nil
	}
	start, err := s.cfg.LogStart(ctx, l.source.Topic, l.source.Partition)
	if err == nil && start > known+1 {
		err = fmt.Errorf("the state of %q cannot be computed: partition %d of %s starts at offset %d, and the events before are deleted. Release with skip folds what is left", r.id, l.source.Partition, l.source.Topic, start)
	}
	return err
}

// replaceLost makes the records due that replace those that cannot be read: the snapshot
// that was computed, or a null if there is none.
func (r *release) replaceLost(t *track) error {
	for _, key := range r.found.Lost {
		if t.fold.CheckStateID([]byte(key)) != nil {
			continue // of the blocked aggregate
		}
		a, err := t.states.Get([]byte(key))
		if err != nil {
			return err
		}
		a.Gone = a.Version == 0
		t.markDue(key)
	}
	return nil
}
