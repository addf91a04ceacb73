// Package missed reads the events from the log that blocked aggregates missed, for their
// release.
package missed

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
)

// Event is an event that waited for a release. Bad is set if it is no valid event. Clock is
// the latest event time when it was read first.
type Event struct {
	In    pipeline.Record
	Event event.Decoded
	Bad   error
	Clock int64
}

// Aggregate is a blocked aggregate, and the events that it missed.
type Aggregate struct {
	Blocked *internalrecord.Blocked
	Events  []Event
}

// Source describes the events of a projection.
type Source struct {
	Fold    *fold.Fold
	TopicID string
	// Decode decodes an event. It makes a record without a value an event, if the fold takes
	// it as one.
	Decode func(*pipeline.Record) (event.Decoded, error)
	// Read reads the log from an offset to its end.
	Read func(ctx context.Context, from int64, f func(*pipeline.Record) error) error
}

// errEnough ends a read of the log.
var errEnough = errors.New("enough")

// Read reads the events that some aggregates missed, in one pass.
func Read(ctx context.Context, source Source, all []*Aggregate) error {
	if len(all) == 0 {
		return nil
	}
	m := reader{source: source, folder: source.Fold.NewFolder(), byID: map[string]*Aggregate{}, byOffset: map[int64]*Aggregate{}, clock: math.MinInt64, last: -1}
	from := int64(math.MaxInt64)
	for _, a := range all {
		q := a.Blocked
		from, m.last = min(from, q.First()), max(m.last, q.LastOffset())
		m.byID[q.ID] = a
		if !q.IsLost() {
			m.byOffset[q.Offset] = a
		}
		for _, offset := range q.Held {
			m.byOffset[offset] = a
		}
	}
	if err := source.Read(ctx, from, m.take); err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("reading the events that %q missed: %w", all[0].Blocked.ID, err)
	}
	return nil
}

// reader reads the events that aggregates missed.
type reader struct {
	source   Source
	folder   *fold.Folder
	byID     map[string]*Aggregate
	byOffset map[int64]*Aggregate // of an event that is missed whatever its aggregate seems to be
	last     int64                // last offset to read
	clock    int64                // latest event time
}

func (m *reader) take(in *pipeline.Record) error {
	f := m.source.Fold
	if in.Offset > m.last {
		return errEnough
	}
	if deadletter.IsTaken(in, m.source.TopicID) {
		return nil
	}
	d, bad := m.source.Decode(in)
	if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	if bad == nil && !f.Folds(d.Type) {
		return nil
	}
	id := f.RecordID(in, d.Key)
	if bad == nil {
		if id, bad = m.folder.Read(d.Type, d.Body, fold.OriginOf(in, d.Key)); bad != nil {
			id = f.RecordID(in, d.Key)
		} else if f.Window().Size > 0 {
			m.clock = max(m.clock, m.folder.Time())
		}
	}
	a := m.byOffset[in.Offset]
	if a == nil {
		if a = m.byID[string(id)]; a == nil || in.Offset < a.Blocked.Since || in.Offset > a.Blocked.LastOffset() {
			return nil
		}
	}
	e := Event{In: in.Clone(), Event: d, Bad: bad, Clock: m.clock}
	if clock := a.Blocked.Clock; clock != nil {
		e.Clock = max(e.Clock, *clock)
	}
	e.Event.Body, e.Event.Key = slices.Clone(d.Body), d.Key.Clone()
	a.Events = append(a.Events, e)
	return nil
}
