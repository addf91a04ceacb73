package reader

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
)

// past is an aggregate's history at one moment of its partition. It must be closed.
type past struct {
	fold      *fold.Fold
	partition *projection.Partition
	view      *states.View
	id        []byte
	latest    fold.Aggregate
	next      int64 // the view's position
	decoder   *event.Decoder
}

// past finds the partition that has the aggregate.
func (r *Reader) past(id string) (*past, error) {
	if !r.set.KeepsHistory() {
		return nil, query.ErrNoHistory
	}
	ps, home := r.partitionsFor(id)
	for _, one := range ps {
		filling := one.Complete() // before the view
		p := r.pastIn(one, one.View(), id)
		ok, err := p.view.State(p.id, &p.latest)
		if ok && err == nil && filling != nil {
			err = r.indexed(p, filling)
		}
		if err == nil {
			p.next, _, err = p.view.Position()
		}
		if ok && err == nil {
			return p, nil
		}
		if err = errors.Join(err, p.view.Close()); err != nil {
			return nil, err
		}
	}
	return nil, r.notFound(id, ps, home)
}

// indexed returns nil if the history has all events of an aggregate although it is being
// filled, else filling. It gets events in the order of the log, so it has all if it has the
// last one.
func (r *Reader) indexed(p *past, filling error) error {
	if !r.indexesEach() {
		return filling
	}
	e, ok, err := p.view.Event(p.latest.Offset)
	if err == nil && !(ok && e.Version == p.latest.Version && string(e.Aggregate) == string(p.id)) {
		err = filling
	}
	return err
}

// complete returns an error if the history of some partition is being filled. Views have to
// be made afterwards.
func complete(ps []*projection.Partition) error {
	for _, p := range ps {
		if err := p.Complete(); err != nil {
			return err
		}
	}
	return nil
}

// pastIn returns the history of an aggregate in a view, without its latest state.
func (r *Reader) pastIn(p *projection.Partition, v *states.View, id string) *past {
	return &past{fold: r.fold, partition: p, view: v, id: []byte(id), latest: fold.Aggregate{Source: v.Source()}, decoder: r.set.NewDecoder(r.projection)}
}

func (p *past) close() error { return p.view.Close() }

// describe returns a state of the aggregate for an answer.
func (p *past) describe(a *fold.Aggregate) query.Aggregate {
	return p.partition.Describe(string(p.id), a, p.partition.At(p.next))
}

// events calls f with the events that made the versions from from to to, in order or in
// reverse, until it returns false.
func (p *past) events(from, to int64, reverse bool, f func(e states.Event) bool) error {
	return p.view.Events(p.id, &p.latest, from, to, reverse, f)
}

// at returns the aggregate at a version: the last keyframe before it, with the events
// after that applied.
func (p *past) at(ctx context.Context, version int64) (fold.Aggregate, error) {
	a := fold.Aggregate{Source: p.view.Source()}
	if version > p.latest.Version || version < 1 {
		return a, fmt.Errorf("version %d of %q, which is at version %d: %w", version, p.id, p.latest.Version, query.ErrNoVersion)
	}
	if err := p.view.Keyframe(p.id, version, &a); err != nil {
		return a, err
	}
	return a, p.forward(ctx, &a, version, nil)
}

// forward applies events to an aggregate up to a version. each, if not nil, is called
// after each event.
func (p *past) forward(ctx context.Context, a *fold.Aggregate, version int64, each func(before, after *fold.Aggregate, e states.Event) error) error {
	folder := p.fold.NewFolder()
	var failed error
	err := p.events(a.Version+1, version, false, func(e states.Event) bool {
		if e.Version != a.Version+1 {
			failed = p.incomplete(a.Version + 1)
			return false
		}
		before := *a
		if failed = p.apply(ctx, folder, a, &e); failed == nil && each != nil {
			failed = each(&before, a, e)
		}
		return failed == nil
	})
	if err = errors.Join(failed, err); err == nil && a.Version != version {
		err = p.incomplete(a.Version + 1)
	}
	return err
}

// incomplete returns the error for a version that the history does not have (yet).
func (p *past) incomplete(version int64) error {
	return fmt.Errorf("version %d of %q is not in the history: the log no longer has it, or is still being indexed: %w", version, p.id, query.ErrNoVersion)
}

func (p *past) apply(ctx context.Context, folder *fold.Folder, a *fold.Aggregate, e *states.Event) error {
	d, err := decode(ctx, p.decoder, p.view, e)
	if err == nil {
		_, err = folder.Read(d.Type, d.Body, e.Origin())
	}
	if err == nil {
		_, err = folder.Apply(a)
	}
	if e.ID != nil {
		a.EventID = slices.Clone(e.ID)
	}
	a.Offset = e.Offset
	return err
}

// decode decodes an event of the history, which may be a tombstone.
func decode(ctx context.Context, dec *event.Decoder, v *states.View, e *states.Event) (event.Decoded, error) {
	if e.IsTombstone() {
		return event.Decoded{Type: fold.Tombstone}, nil
	}
	return dec.Decode(ctx, v.Record(e), nil)
}

// versionAt returns the last version of the aggregate before the first event that is
// later than a time, 0 if there is none. clock returns the time of an event and the
// latest time up to it; keyframes are in the order of the latter.
func (p *past) versionAt(micros int64, clock func(*states.Event) (at, latest int64)) (version int64, err error) {
	var bad error
	const every = states.KeyframeEvery
	blocks := sort.Search(int(p.latest.Version/every), func(i int) bool {
		at := int64(i+1) * every
		later := true
		err := p.events(at, at, true, func(e states.Event) bool {
			_, latest := clock(&e)
			later = latest > micros
			return false
		})
		bad = errors.Join(bad, err)
		return later
	})
	version = int64(blocks) * every
	err = p.events(version+1, p.latest.Version, false, func(e states.Event) bool {
		if at, _ := clock(&e); at > micros {
			return false
		}
		version = e.Version
		return true
	})
	return version, errors.Join(bad, err)
}

// describeEvent returns an event of the history for an answer.
func (r *Reader) describeEvent(ctx context.Context, dec *event.Decoder, v *states.View, e *states.Event) (query.Event, error) {
	d, err := decode(ctx, dec, v, e)
	if err != nil {
		return query.Event{}, err
	}
	folder := r.fold.NewFolder()
	if _, err := folder.Read(d.Type, d.Body, e.Origin()); err != nil {
		return query.Event{}, err
	}
	id := e.ID
	if id == nil {
		id = folder.EventID()
	}
	number, _ := folder.Number()
	return query.Event{
		ID: string(id), Sequence: number, Type: folder.Type(), Time: pipeline.UnixMicro(e.EventTime), Recorded: pipeline.Time(time.UnixMilli(e.Recorded)),
		Topic: v.Source().Topic, Partition: v.Source().Partition, Offset: e.Offset,
		Aggregate: string(e.Aggregate), Version: e.Version, Body: slices.Clone(d.Body),
	}, nil
}

// GetAt implements [query.Projection].
func (r *Reader) GetAt(ctx context.Context, id string, at query.At) (_ query.Aggregate, err error) {
	p, err := r.past(id)
	if err != nil {
		return query.Aggregate{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	version := at.Version
	switch {
	case !at.Time.IsZero():
		version, err = p.versionAt(at.Time.UnixMicro(), func(e *states.Event) (at, latest int64) { return e.EventTime, e.LatestEventTime })
	case !at.Recorded.IsZero():
		version, err = p.versionAt(at.Recorded.UnixMicro(), func(e *states.Event) (at, latest int64) { return e.Recorded * 1000, e.LatestRecorded * 1000 })
	}
	if err != nil {
		return query.Aggregate{}, err
	}
	if version == 0 && at.Version == 0 {
		return query.Aggregate{}, query.ErrNotFound // it did not exist yet
	}
	a, err := p.at(ctx, version)
	return p.describe(&a), err
}

// History implements [query.Projection].
func (r *Reader) History(ctx context.Context, id string, before int64, limit int) (_ []query.Event, err error) {
	p, err := r.past(id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if before <= 0 || before > p.latest.Version+1 {
		before = p.latest.Version + 1
	}
	var out []query.Event
	var failed error
	err = p.events(1, before-1, true, func(e states.Event) bool {
		var ev query.Event
		if ev, failed = r.describeEvent(ctx, p.decoder, p.view, &e); failed == nil {
			out = append(out, ev)
		}
		return failed == nil && len(out) < limit
	})
	return out, errors.Join(failed, err)
}

// Diff implements [query.Projection].
func (r *Reader) Diff(ctx context.Context, id string, from, to int64) (before, after query.Aggregate, paths []string, err error) {
	p, err := r.past(id)
	if err != nil {
		return before, after, nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if to == 0 {
		to = p.latest.Version
	}
	if from < 0 {
		from = to - 1
	}
	a, b := fold.Aggregate{Source: p.view.Source()}, fold.Aggregate{}
	if from > 0 {
		if a, err = p.at(ctx, from); err != nil {
			return before, after, nil, err
		}
	}
	if b, err = p.at(ctx, to); err != nil {
		return before, after, nil, err
	}
	paths, err = r.fold.NewDiffer().Changed(a.State, b.State)
	return p.describe(&a), p.describe(&b), paths, err
}

// Types implements [query.Projection].
func (r *Reader) Types() []*codec.Schema {
	var out []*codec.Schema
	for i, t := range r.EventTypes() {
		if r.fold.Folds(i) {
			out = append(out, t)
		}
	}
	return out
}

// Event implements [query.Projection].
func (r *Reader) Event(ctx context.Context, eventID, aggregate string) (query.Event, error) {
	if !r.set.KeepsHistory() {
		return query.Event{}, query.ErrNoHistory
	}
	eventID, err := r.eventID(eventID)
	if err != nil {
		return query.Event{}, err
	}
	ps := r.fresh()
	filling := complete(ps)
	for _, p := range ps {
		v := p.View()
		e, ok, err := v.EventByID(r.keyOf(aggregate), []byte(eventID))
		var out query.Event
		if ok && err == nil {
			out, err = r.describeEvent(ctx, r.set.NewDecoder(r.projection), v, &e)
		}
		if err = errors.Join(err, v.Close()); err != nil || ok {
			return out, err
		}
	}
	if filling != nil {
		return query.Event{}, filling
	}
	return query.Event{}, query.ErrNotFound
}

// typeHit is the place of an event of a type.
type typeHit struct {
	view *states.View
	at   query.EventCursor
}

// Events implements [query.Projection]: it merges the partitions.
func (r *Reader) Events(ctx context.Context, typ string, before *query.EventCursor, limit int) (out []query.Event, positions []query.Position, err error) {
	if !r.set.KeepsHistory() {
		return nil, nil, query.ErrNoHistory
	}
	var hits []typeHit
	var views []*states.View
	positions = []query.Position{}
	defer func() {
		for _, v := range views {
			err = errors.Join(err, v.Close())
		}
	}()
	ps := r.fresh()
	if err := complete(ps); err != nil {
		return nil, nil, err
	}
	for _, p := range ps {
		v := p.View()
		views = append(views, v)
		next, _, err := v.Position()
		if err != nil {
			return nil, nil, err
		}
		positions = append(positions, p.At(next))
		some, err := hitsIn(ctx, v, typ, before, limit)
		if err != nil {
			return nil, nil, err
		}
		hits = append(hits, some...)
	}
	slices.SortFunc(hits, func(a, b typeHit) int { return b.at.Compare(a.at) })
	dec := r.set.NewDecoder(r.projection)
	for _, h := range hits[:min(limit, len(hits))] {
		e, ok, err := h.view.Event(h.at.Offset)
		if err == nil && !ok {
			err = pipeline.Fatal("the store has the event at offset %d in one index, but not in its history", h.at.Offset)
		}
		var ev query.Event
		if err == nil {
			ev, err = r.describeEvent(ctx, dec, h.view, &e)
		}
		if err != nil {
			return nil, nil, err
		}
		out = append(out, ev)
	}
	return out, positions, nil
}

// hitsIn returns at most limit events of a type in a partition, latest event time
// first.
func hitsIn(ctx context.Context, v *states.View, typ string, before *query.EventCursor, limit int) (hits []typeHit, err error) {
	latest := int64(math.MaxInt64)
	if before != nil {
		latest = before.Time
	}
	err = v.EventsOfType(typ, latest, func(micros, offset int64) bool {
		at := query.EventCursor{Time: micros, Partition: v.Source().Partition, Offset: offset}
		if before != nil && at.Compare(*before) >= 0 {
			return true
		}
		hits = append(hits, typeHit{v, at})
		return len(hits) < limit && ctx.Err() == nil
	})
	return hits, errors.Join(err, ctx.Err())
}

// before returns the aggregate before the event at an offset. existed is false if there
// was none.
func (p *past) before(ctx context.Context, offset int64) (a fold.Aggregate, existed bool, err error) {
	version, indexed := int64(0), false
	if err := p.events(1, p.latest.Version, true, func(e states.Event) bool {
		indexed = true
		if e.Offset >= offset {
			return true
		}
		version = e.Version
		return false
	}); err != nil {
		return a, false, err
	}
	if !indexed {
		return a, false, p.incomplete(p.latest.Version)
	}
	if version == 0 {
		return a, false, nil
	}
	a, err = p.at(ctx, version)
	return a, true, err
}
