package reader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"millrace/pipeline/fold"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
)

// Outcome implements [query.Projection].
func (r *Reader) Outcome(_ context.Context, e query.EventRef) (query.Outcome, error) {
	var err error
	if e.ID, err = r.eventID(e.ID); err != nil {
		return query.Outcome{}, err
	}
	ps := r.fresh()
	// The position first: what happens after it is seen.
	passed := slices.ContainsFunc(ps, func(p *projection.Partition) bool {
		next, ok, err := p.Position()
		return err == nil && ok && e.Next > 0 && p.Number() == e.Partition && next >= e.Next
	})
	history := r.set.KeepsHistory()
	if history {
		// The history before the refusals: a refused event may have been released and
		// applied since.
		filling := complete(ps)
		out, ok, err := r.applied(ps, e)
		if err == nil && !ok {
			err = filling // else a part of the history would look like all of it
		}
		if ok || err != nil {
			return out, err
		}
	}
	for _, p := range ps {
		if out, ok := p.Refused(e.ID, e.Aggregate); ok {
			return out, nil
		}
	}
	if out, ok := r.cfg.Upstream.Outcome(e.ID); ok {
		return out, nil
	}
	switch {
	case !history:
		return query.Outcome{}, query.ErrNoHistory
	case passed:
		return query.Outcome{State: query.Passed, Detail: fmt.Sprintf("the projection is past offset %d of partition %d and did not apply the event: it does not fold the type of the event, it refused the event before this worker kept a record of it, or the event is elsewhere", e.Next-1, e.Partition)}, nil
	}
	return query.Outcome{State: query.Pending, Detail: r.Unseen(e.ID, "by the partitions that this worker has: it may be on its way, or with another worker")}, nil
}

// eventID returns the id of an event as the history has it, from the id that a client
// gives.
func (r *Reader) eventID(text string) (string, error) {
	id := r.fold.Identity()
	b, err := id.Parse(text)
	if err != nil {
		return "", fmt.Errorf("%w: %w", query.ErrEventID, err)
	}
	return id.Text(b), nil
}

// keyOf returns the key of an aggregate, nil for any.
func (r *Reader) keyOf(aggregate string) []byte {
	if aggregate == "" {
		return nil
	}
	if r.fold.Window().Size > 0 {
		if key, _, ok := fold.ParseWindowID(aggregate); ok {
			aggregate = key
		}
	}
	return []byte(aggregate)
}

// applied returns the outcome of an event if the history of some partition has it, as
// applied or in conflict.
func (r *Reader) applied(ps []*projection.Partition, e query.EventRef) (out query.Outcome, known bool, err error) {
	for _, p := range ps {
		v := p.View()
		event, ok, err := v.EventByID(r.keyOf(e.Aggregate), []byte(e.ID))
		if err = errors.Join(err, v.Close()); err != nil {
			return query.Outcome{}, false, err
		}
		if ok {
			return query.Outcome{State: query.Applied, Aggregate: string(event.Aggregate), Version: event.Version}, true, nil
		}
	}
	for i := 0; e.Aggregate != "" && !known && err == nil && i < len(ps); i++ {
		out, known, err = r.conflict(ps[i], e)
	}
	return out, known, err
}

// conflict returns the outcome of an event if it is in conflict with another one.
func (r *Reader) conflict(one *projection.Partition, e query.EventRef) (_ query.Outcome, known bool, err error) {
	p := r.pastIn(one, one.View(), e.Aggregate)
	defer func() { err = errors.Join(err, p.close()) }()
	number, ok, err := p.view.Conflict(p.id, []byte(e.ID))
	if !ok || err != nil {
		return query.Outcome{}, false, err
	}
	winner := ""
	if ok, err := p.view.State(p.id, &p.latest); ok && err == nil {
		if winner, err = r.numbered(p, number); err != nil {
			return query.Outcome{}, false, err
		}
	} else if err != nil {
		return query.Outcome{}, false, err
	}
	return query.Outcome{State: query.Conflict, Aggregate: e.Aggregate, Sequence: number, Winner: winner, Detail: query.ConflictDetail(number, winner)}, true, nil
}

// numbered returns the id of the event of an aggregate with a sequence number, "" if the
// last events do not have it. Numbers grow with the versions.
func (r *Reader) numbered(p *past, number int64) (id string, err error) {
	var failed error
	read := 0
	err = p.events(1, p.latest.Version, true, func(e states.Event) bool {
		var ev query.Event
		ev, failed = r.describeEvent(context.Background(), p.decoder, p.view, &e)
		if read++; failed == nil && ev.Sequence == number {
			id = ev.ID
		}
		return failed == nil && id == "" && (ev.Sequence == 0 || ev.Sequence > number) && read < maxWhyFolded
	})
	return id, errors.Join(failed, err)
}

// Unseen describes what may have happened to an event that was not seen.
func (r *Reader) Unseen(eventID, where string) string {
	text := "event " + eventID + " was not applied " + where
	if before := r.cfg.Upstream.Possible(eventID); before != "" {
		text += "; " + before
	}
	return text
}

// awaitAgain is how soon a wait for an event looks again: in a partition that has become
// quiet, the next question stores the folded events.
const awaitAgain = 50 * time.Millisecond

// Await implements [query.Projection], for what this worker knows.
func (r *Reader) Await(ctx context.Context, e query.EventRef, wait time.Duration) (query.Outcome, error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	for last := wait <= 0; ; {
		changed := r.Changed()
		out, err := r.Outcome(ctx, e)
		if err != nil || out.Final() || last {
			return out, err
		}
		again := time.NewTimer(awaitAgain)
		select {
		case <-changed:
		case <-again.C:
		case <-over.C:
			last = true
		case <-ctx.Done():
			again.Stop()
			return out, ctx.Err()
		}
		again.Stop()
	}
}
