package query

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// statusBlocked is the Status of an aggregate that takes no more events for now.
const statusBlocked = "blocked"

// freshness is the minimum freshness of an answer about the current state.
type freshness struct {
	event      EventRef // event that must be applied; no event if its ID is ""
	minVersion int64    // 0 means any
	wait       time.Duration
}

func (f *freshness) required() bool { return f.event.ID != "" || f.minVersion > 0 }

// freshness reads the freshness parameters of a request, or writes the problem.
func (a *api) freshness(w http.ResponseWriter, r *http.Request) (f freshness, ok bool) {
	f = freshness{event: EventRef{ID: r.URL.Query().Get("after_event")}}
	if text := r.URL.Query().Get("min_version"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			a.problem(w, http.StatusBadRequest, "min_version=%s: want a number of 1 or more", text)
			return f, false
		}
		f.minVersion = n
	}
	if text := r.URL.Query().Get("wait"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > maxWait {
			a.problem(w, http.StatusBadRequest, "wait=%s: want a duration such as 2s or 500ms, at most %s", text, maxWait)
			return f, false
		}
		f.wait = d
	}
	if text := r.URL.Query().Get("after_position"); text != "" {
		partition, offset, found := strings.Cut(text, ":")
		p, err := strconv.ParseInt(partition, 10, 32)
		o, err2 := strconv.ParseInt(offset, 10, 64)
		if !found || err != nil || err2 != nil || p < 0 || o < 0 || o == math.MaxInt64 {
			a.problem(w, http.StatusBadRequest, "after_position=%s: want the partition and offset of the event, such as 3:1234", text)
			return f, false
		}
		f.event.Partition, f.event.Next = int32(p), o+1
	}
	switch {
	case f.event.Next > 0 && f.event.ID == "":
		a.problem(w, http.StatusBadRequest, "after_position is the position of the event in after_event: give both parameters")
		return f, false
	case f.wait > 0 && !f.required():
		a.problem(w, http.StatusBadRequest, "wait needs after_event or min_version")
		return f, false
	}
	return f, true
}

// await returns the aggregate in the request's path once it is fresh enough. If it is
// not fresh in time, or can never be, await writes the problem and returns false:
//
//	504  the event or version may still arrive; outcome is pending
//	409  the state will never include the event; outcome holds the reason
func (a *api) await(w http.ResponseWriter, r *http.Request, p Projection, f freshness) (g Aggregate, ok bool, err error) {
	if !f.required() {
		g, err = p.Get(r.Context(), r.PathValue("id"))
		return g, true, err
	}
	id := r.PathValue("id")
	f.event.Aggregate = id
	done := a.until(w, r, p, f.wait, func() (bool, *problemAnswer) {
		if f.event.ID != "" {
			// Only the owner of the aggregate knows whether it is blocked, so another worker
			// must not answer.
			if g, err = p.Get(r.Context(), id); errors.Is(err, ErrElsewhere) {
				return true, nil
			}
			out, err := p.Outcome(r.Context(), f.event)
			if err == nil && out.State == Pending && g.Status == statusBlocked {
				return true, &problemAnswer{Status: http.StatusConflict, Outcome: Blocked, Detail: "an event of " + strconv.Quote(id) +
					" cannot be folded, and later events wait until the aggregate is released: 'projector blocked' shows the reason"}
			}
			if problem := notApplied(out, err); problem != nil {
				if out.State == Conflict {
					problem.Current = current(p.Describe(), g)
				}
				return err != nil || out.Final(), problem
			}
		}
		if g, err = p.Get(r.Context(), id); err != nil && !errors.Is(err, ErrNotFound) {
			return true, nil
		}
		if g.Version >= f.minVersion {
			return true, nil
		}
		return false, &problemAnswer{Status: http.StatusGatewayTimeout, Outcome: Pending, Detail: "version " + strconv.FormatInt(f.minVersion, 10) + " of " + strconv.Quote(id) +
			" does not exist yet; the aggregate is at version " + strconv.FormatInt(g.Version, 10)}
	})
	return g, done, err
}

// current returns the aggregate for a problem, nil if it cannot be shown.
func current(d Description, g Aggregate) *getAnswer {
	it, err := newItem(d, g)
	if err != nil {
		return nil
	}
	return &getAnswer{made: made{d.Name, d.Version}, Position: g.At, item: it}
}

// arrived waits until an event is applied, on whichever worker. If it is not applied
// in time, or can never be, arrived writes the problem as await does and returns
// false.
func (a *api) arrived(w http.ResponseWriter, r *http.Request, p Projection, f freshness) bool {
	out, err := p.Await(r.Context(), f.event, 0)
	if err == nil && !out.Final() && f.wait > 0 {
		if !a.mayWait(w) {
			return false
		}
		defer func() { <-a.waiting }()
		out, err = p.Await(r.Context(), f.event, f.wait)
	}
	if r.Context().Err() != nil {
		a.fail(w, r, r.Context().Err())
		return false
	}
	problem := notApplied(out, err)
	if problem != nil {
		a.late(w, problem)
	}
	return problem == nil
}

// ConflictDetail describes a conflict. winner is "" if it is unknown.
func ConflictDetail(number int64, winner string) string {
	if winner == "" {
		return fmt.Sprintf("an event with a number above %d was applied before, or the history does not have the event with that number", number)
	}
	return fmt.Sprintf("event %s has the number %d, too, and is first in the log: read the state and send the event again with the next number", winner, number)
}

// notApplied returns the problem for an event that is not applied, and nil for an
// applied one.
func notApplied(out Outcome, err error) *problemAnswer {
	status := http.StatusConflict
	switch {
	case errors.Is(err, ErrNoHistory):
		return &problemAnswer{Status: http.StatusNotFound, Detail: err.Error()}
	case errors.Is(err, ErrEventID):
		return &problemAnswer{Status: http.StatusBadRequest, Detail: err.Error()}
	case err != nil:
		return &problemAnswer{Status: http.StatusInternalServerError, Detail: err.Error()}
	case out.State == Applied:
		return nil
	case out.State == Pending:
		status = http.StatusGatewayTimeout
	}
	return &problemAnswer{Status: status, Outcome: out.State, Detail: out.Detail, Pipeline: out.Pipeline, Stage: out.Stage, Reason: out.Reason, Sequence: out.Sequence, Winner: out.Winner}
}

// late writes the problem of an event or version that is missing.
func (a *api) late(w http.ResponseWriter, problem *problemAnswer) {
	if problem.Status == http.StatusGatewayTimeout {
		w.Header().Set("Retry-After", "1")
	}
	a.writeProblem(w, *problem)
}

// mayWait takes a token of a.waiting. If there is none left, it writes the problem and
// returns false.
func (a *api) mayWait(w http.ResponseWriter) bool {
	select {
	case a.waiting <- struct{}{}:
		return true
	default:
	}
	w.Header().Set("Retry-After", "1")
	a.problem(w, http.StatusServiceUnavailable, "%d requests are waiting already, which is the limit", maxWaiting)
	return false
}

// until calls check after every change until check is done or the wait is over. It
// returns true if check is done without a problem. Otherwise it writes the last
// problem and returns false.
func (a *api) until(w http.ResponseWriter, r *http.Request, p Projection, wait time.Duration, check func() (done bool, problem *problemAnswer)) bool {
	// States that are only in memory, of a partition that went quiet, are visible only
	// to a new read, without a signal on Changed. So poll as well.
	const pollInterval = 50 * time.Millisecond
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	waits := false
	for last := wait == 0; ; {
		changed := p.Changed()
		done, problem := check()
		if done && problem == nil {
			return true
		}
		if done || last {
			a.late(w, problem)
			return false
		}
		if !waits {
			if !a.mayWait(w) {
				return false
			}
			defer func() { <-a.waiting }()
			waits = true
		}
		poll := time.NewTimer(pollInterval)
		select {
		case <-changed:
		case <-poll.C:
		case <-deadline.C:
			last = true
		case <-r.Context().Done():
			a.fail(w, r, r.Context().Err())
			return false
		}
		poll.Stop()
	}
}
