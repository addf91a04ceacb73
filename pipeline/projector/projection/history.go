package projection

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
)

// past is an aggregate's history at one moment of its partition. It must be
// closed.
type past struct {
	r       *Reader
	lane    *Lane
	view    *store.View
	id      []byte
	latest  fold.Aggregate
	next    int64 // the view's position
	decoder *event.Decoder
}

// past finds the partition that has the aggregate.
func (r *Reader) past(id string) (*past, error) {
	if !r.KeepHistory {
		return nil, query.ErrNoHistory
	}
	lanes, home := r.lanesFor(id)
	for _, l := range lanes {
		p := &past{r: r, lane: l, view: l.Part.View(), id: []byte(id), latest: fold.Aggregate{Source: l.Source}, decoder: event.NewDecoder(r.Registry, r.EventTypes, nil)}
		value, ok, err := p.view.Get(nil, familyState, p.id)
		if ok && err == nil {
			err = fold.ReadAggregate(value, &p.latest)
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
	return nil, r.nowhere(id, lanes, home)
}

func (p *past) close() error { return p.view.Close() }

// events calls f with the events that made versions from up to to, in order or in
// reverse, until it returns false.
func (p *past) events(from, to int64, reverse bool, f func(version int64, e indexed) bool) error {
	return eventsOf(p.view, &p.latest, p.id, from, to, reverse, func(e indexed) bool { return f(e.version, e) })
}

// at returns the aggregate as of a version: the nearest keyframe before it, and
// the events from there on. each, if not nil, is called after each of them.
func (p *past) at(ctx context.Context, version int64, each func(before, after *fold.Aggregate, e indexed) error) (fold.Aggregate, error) {
	a := fold.Aggregate{Source: p.lane.Source}
	if version > p.latest.Version || version < 1 {
		return a, fmt.Errorf("version %d of %q, which is at version %d: %w", version, p.id, p.latest.Version, query.ErrNoVersion)
	}
	if err := p.keyframe(version, &a); err != nil {
		return a, err
	}
	return a, p.forward(ctx, &a, version, each)
}

// keyframe reads the last keyframe up to a version, if there is one.
func (p *past) keyframe(version int64, a *fold.Aggregate) error {
	var bad error
	err := p.view.Scan(familyKeyframe, versionKey(nil, p.id, 0), versionKey(nil, p.id, version+1), true, func(_, value []byte) bool {
		bad = fold.ReadAggregate(value, a)
		return false
	})
	return errors.Join(bad, err)
}

// forward takes an aggregate on to a version. each, if not nil, is called after
// each event.
func (p *past) forward(ctx context.Context, a *fold.Aggregate, version int64, each func(before, after *fold.Aggregate, e indexed) error) error {
	folder := p.r.Projection.Fold.NewFolder()
	var failed error
	err := p.events(a.Version+1, version, false, func(v int64, e indexed) bool {
		if v != a.Version+1 {
			failed = p.incomplete(a.Version + 1)
			return false
		}
		before := *a
		if failed = p.apply(ctx, folder, a, e); failed == nil && each != nil {
			failed = each(&before, a, e)
		}
		return failed == nil
	})
	if err = errors.Join(failed, err); err == nil && a.Version != version {
		err = p.incomplete(a.Version + 1)
	}
	return err
}

// incomplete says that the index does not have a version (yet).
func (p *past) incomplete(version int64) error {
	return fmt.Errorf("version %d of %q is not in the history: the log no longer has it, or is still being indexed: %w", version, p.id, query.ErrNoVersion)
}

func (p *past) apply(ctx context.Context, folder *fold.Folder, a *fold.Aggregate, e indexed) error {
	d, err := p.decoder.Decode(ctx, e.record(p.lane.Source), nil)
	if err == nil {
		_, err = folder.Read(d.Type, d.Body, e.origin())
	}
	if err == nil {
		_, err = folder.Apply(a)
	}
	a.Offset = e.offset
	return err
}

// versionAt returns the last version of the aggregate before the first event
// that is later than a time by the given clock, 0 if there is none. The clock
// tells the time of an event and the latest up to it, by which the keyframes are
// in order.
func (p *past) versionAt(micros int64, clock func(indexed) (at, latest int64)) (version int64, err error) {
	var bad error
	blocks := sort.Search(int(p.latest.Version/keyframeEvery), func(i int) bool {
		at := int64(i+1) * keyframeEvery
		later := true
		err := p.events(at, at, true, func(_ int64, e indexed) bool {
			_, latest := clock(e)
			later = latest > micros
			return false
		})
		bad = errors.Join(bad, err)
		return later
	})
	version = int64(blocks) * keyframeEvery
	err = p.events(version+1, p.latest.Version, false, func(v int64, e indexed) bool {
		if at, _ := clock(e); at > micros {
			return false
		}
		version = v
		return true
	})
	return version, errors.Join(bad, err)
}

// event returns an event of the index for an answer.
func (p *past) event(ctx context.Context, version int64, e indexed) (query.Event, error) {
	return p.r.event(ctx, p.decoder, p.lane, string(p.id), version, e)
}

func (r *Reader) event(ctx context.Context, dec *event.Decoder, l *Lane, id string, version int64, e indexed) (query.Event, error) {
	d, err := dec.Decode(ctx, e.record(l.Source), nil)
	if err != nil {
		return query.Event{}, err
	}
	folder := r.Projection.Fold.NewFolder()
	if _, err := folder.Read(d.Type, d.Body, e.origin()); err != nil {
		return query.Event{}, err
	}
	return query.Event{
		ID: string(folder.EventID()), Type: folder.Type(), Time: time.UnixMicro(e.eventTime), Recorded: time.UnixMilli(e.recorded),
		Topic: l.Source.Topic, Partition: l.Source.Partition, Offset: e.offset,
		Aggregate: id, Version: version, Body: slices.Clone(d.Body),
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
		version, err = p.versionAt(at.Time.UnixMicro(), func(e indexed) (at, latest int64) { return e.eventTime, e.latest })
	case !at.Recorded.IsZero():
		version, err = p.versionAt(at.Recorded.UnixMicro(), func(e indexed) (at, latest int64) { return e.recorded * 1000, e.latestRecorded * 1000 })
	}
	if err != nil {
		return query.Aggregate{}, err
	}
	if version == 0 && at.Version == 0 {
		return query.Aggregate{}, query.ErrNotFound // it was not there yet
	}
	a, err := p.at(ctx, version, nil)
	return r.answer(p.lane, id, &a, p.next), err
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
	err = p.events(1, before-1, true, func(version int64, e indexed) bool {
		var ev query.Event
		if ev, failed = p.event(ctx, version, e); failed == nil {
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
	a, b := fold.Aggregate{Source: p.lane.Source}, fold.Aggregate{}
	if from > 0 {
		if a, err = p.at(ctx, from, nil); err != nil {
			return before, after, nil, err
		}
	}
	if b, err = p.at(ctx, to, nil); err != nil {
		return before, after, nil, err
	}
	paths, err = r.Projection.Fold.NewDiffer().Changed(a.State, b.State)
	return r.answer(p.lane, id, &a, p.next), r.answer(p.lane, id, &b, p.next), paths, err
}

// Event implements [query.Projection].
func (r *Reader) Event(ctx context.Context, eventID string) (query.Event, error) {
	if !r.KeepHistory {
		return query.Event{}, query.ErrNoHistory
	}
	for _, l := range r.Fresh() {
		v := l.Part.View()
		ev, ok, err := r.find(ctx, l, v, []byte(eventID))
		if err = errors.Join(err, v.Close()); err != nil || ok {
			return ev, err
		}
	}
	return query.Event{}, query.ErrNotFound
}

func (r *Reader) find(ctx context.Context, l *Lane, v *store.View, eventID []byte) (query.Event, bool, error) {
	e, ok, err := eventByID(v, eventID)
	if !ok || err != nil {
		return query.Event{}, false, err
	}
	ev, err := r.event(ctx, event.NewDecoder(r.Registry, r.EventTypes, nil), l, string(e.id), e.version, e)
	return ev, err == nil, err
}

// look returns the event at an offset, which is in the index.
func (r *Reader) look(ctx context.Context, dec *event.Decoder, l *Lane, v *store.View, offset int64) (query.Event, error) {
	e, ok, err := eventAt(v, offset)
	if err == nil && !ok {
		err = pipeline.Fatal("the store has the event at offset %d in one index, but not in its history", offset)
	}
	if err != nil {
		return query.Event{}, err
	}
	return r.event(ctx, dec, l, string(e.id), e.version, e)
}

// Types implements [query.Projection].
func (r *Reader) Types() []*codec.Schema {
	var out []*codec.Schema
	for i, t := range r.EventTypes {
		if r.Projection.Fold.Folds(i) {
			out = append(out, t)
		}
	}
	return out
}

// Events implements [query.Projection]: it merges the partitions.
func (r *Reader) Events(ctx context.Context, typ string, before *query.EventCursor, limit int) (_ []query.Event, positions []query.Position, err error) {
	if !r.KeepHistory {
		return nil, nil, query.ErrNoHistory
	}
	type hit struct {
		lane *Lane
		at   query.EventCursor
	}
	var hits []hit
	positions = []query.Position{}
	views := map[*Lane]*store.View{}
	defer func() {
		for _, v := range views {
			err = errors.Join(err, v.Close())
		}
	}()
	from, to := typeKey(nil, typ, -1<<63, 0), typeKey(nil, typ, 1<<63-1, -1)
	if before != nil {
		to = typeKey(nil, typ, before.Time+1, 0) // what is not before it is left out below
	}
	for _, l := range r.Fresh() {
		v := l.Part.View()
		views[l] = v
		next, _, err := v.Position()
		if err != nil {
			return nil, nil, err
		}
		positions = append(positions, r.at(l, next))
		n := 0
		err = v.Scan(familyType, from, to, true, func(key, _ []byte) bool {
			c := cursorOf(key)
			c.Partition = l.Source.Partition
			if before != nil && c.Compare(*before) >= 0 {
				return true
			}
			hits = append(hits, hit{l, c})
			n++
			return n < limit && ctx.Err() == nil
		})
		if err := errors.Join(err, ctx.Err()); err != nil {
			return nil, nil, err
		}
	}
	slices.SortFunc(hits, func(a, b hit) int { return b.at.Compare(a.at) })
	dec := event.NewDecoder(r.Registry, r.EventTypes, nil)
	var out []query.Event
	for _, h := range hits[:min(limit, len(hits))] {
		ev, err := r.look(ctx, dec, h.lane, views[h.lane], h.at.Offset)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, ev)
	}
	return out, positions, nil
}

// before returns the aggregate as it was before the event at an offset; was is
// false if it was not there.
func (p *past) before(ctx context.Context, offset int64) (a fold.Aggregate, was bool, err error) {
	if !p.r.KeepHistory {
		return a, false, query.ErrNoHistory
	}
	version, seen := int64(0), false
	if err := p.events(1, p.latest.Version, true, func(v int64, e indexed) bool {
		seen = true
		if e.offset >= offset {
			return true
		}
		version = v
		return false
	}); err != nil {
		return a, false, err
	}
	if !seen {
		return a, false, p.incomplete(p.latest.Version)
	}
	if version == 0 {
		return a, false, nil
	}
	a, err = p.at(ctx, version, nil)
	return a, true, err
}
