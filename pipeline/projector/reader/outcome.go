package reader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
)

// Outcome implements [query.Projection].
func (r *Reader) Outcome(_ context.Context, e query.EventRef) (query.Outcome, error) {
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
		if out, ok, err := applied(ps, e.ID); ok || err != nil {
			return out, err
		}
	}
	for _, p := range ps {
		if out, ok := p.Refused(e.ID); ok {
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

// applied returns the outcome of an event if the history of some partition has it.
func applied(ps []*projection.Partition, eventID string) (query.Outcome, bool, error) {
	for _, p := range ps {
		v := p.View()
		e, ok, err := v.EventByID([]byte(eventID))
		if err = errors.Join(err, v.Close()); err != nil {
			return query.Outcome{}, false, err
		}
		if ok {
			return query.Outcome{State: query.Applied, Aggregate: string(e.Aggregate), Version: e.Version}, true, nil
		}
	}
	return query.Outcome{}, false, nil
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
