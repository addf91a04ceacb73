package query

import (
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// statusBlocked is the Status of an aggregate that takes no more events for now.
const statusBlocked = "blocked"

// freshness is what an answer about now has to contain.
type freshness struct {
	event      Sought // this event, applied
	minVersion int64
	wait       time.Duration
}

func (f *freshness) asked() bool { return f.event.ID != "" || f.minVersion > 0 }

// freshness reads what a request says of it.
func (a *api) freshness(w http.ResponseWriter, r *http.Request) (f freshness, ok bool) {
	f = freshness{event: Sought{ID: r.FormValue("after_event")}}
	if text := r.FormValue("min_version"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			a.problem(w, http.StatusBadRequest, "min_version=%s: want a number of 1 or more", text)
			return f, false
		}
		f.minVersion = n
	}
	if text := r.FormValue("wait"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d > maxWait {
			a.problem(w, http.StatusBadRequest, "wait=%s: want a time such as 2s or 500ms, at most %s", text, maxWait)
			return f, false
		}
		f.wait = d
	}
	if text := r.FormValue("after_position"); text != "" {
		partition, offset, found := strings.Cut(text, ":")
		p, err := strconv.ParseInt(partition, 10, 32)
		o, err2 := strconv.ParseInt(offset, 10, 64)
		if !found || err != nil || err2 != nil || p < 0 || o < 0 || o == math.MaxInt64 {
			a.problem(w, http.StatusBadRequest, "after_position=%s: want partition and offset of the event, as 3:1234", text)
			return f, false
		}
		f.event.Partition, f.event.Next = int32(p), o+1
	}
	switch {
	case f.event.Next > 0 && f.event.ID == "":
		a.problem(w, http.StatusBadRequest, "after_position says where the event of after_event stands: give both")
		return f, false
	case f.wait > 0 && !f.asked():
		a.problem(w, http.StatusBadRequest, "wait: give after_event or min_version to say what to wait for")
		return f, false
	}
	return f, true
}

// await returns the aggregate of a request's path once it is as fresh as is
// wanted. If it is not in time, or never will be, it answers with that and
// returns false:
//
//	504  it may be so later; outcome says pending
//	409  the event will never be in the state; outcome says why
func (a *api) await(w http.ResponseWriter, r *http.Request, p Projection, f freshness) (g Aggregate, ok bool, err error) {
	if !f.asked() {
		g, err = p.Get(r.Context(), r.PathValue("id"))
		return g, true, err
	}
	id := r.PathValue("id")
	done := a.until(w, r, p, f.wait, func() (bool, *problemAnswer) {
		if f.event.ID != "" {
			// It is waited for where the aggregate is: whoever has that also knows whether
			// it is blocked.
			if g, err = p.Get(r.Context(), id); errors.Is(err, ErrElsewhere) {
				return true, nil
			}
			out, err := p.Outcome(r.Context(), f.event)
			if err == nil && out.State == Pending && g.Status == statusBlocked {
				return true, &problemAnswer{Status: http.StatusConflict, Outcome: Blocked, Detail: "an event of " + strconv.Quote(id) +
					" cannot be folded, and those after it wait until it is released: 'projector blocked' shows why"}
			}
			if problem := notApplied(out, err); problem != nil {
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
			" is not there (yet); it is at version " + strconv.FormatInt(g.Version, 10)}
	})
	return g, done, err
}

// arrived waits until an event was applied, wherever it belongs. If it is not in time,
// or never will be, it answers with that as await does, and returns false.
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

// notApplied says what is known of an event if that is not that it was applied.
func notApplied(out Outcome, err error) *problemAnswer {
	status := http.StatusConflict
	switch {
	case errors.Is(err, ErrNoHistory):
		return &problemAnswer{Status: http.StatusNotFound, Detail: err.Error()}
	case err != nil:
		return &problemAnswer{Status: http.StatusInternalServerError, Detail: err.Error()}
	case out.State == Applied:
		return nil
	case out.State == Pending:
		status = http.StatusGatewayTimeout
	}
	return &problemAnswer{Status: status, Outcome: out.State, Detail: out.Detail, Pipeline: out.Pipeline, Stage: out.Stage, Reason: out.Reason}
}

// late answers with why something is not there, or not yet.
func (a *api) late(w http.ResponseWriter, problem *problemAnswer) {
	if problem.Status == http.StatusGatewayTimeout {
		w.Header().Set("Retry-After", "1")
	}
	a.writeProblem(w, *problem)
}

// mayWait takes a token of waiting, or says that there is none.
func (a *api) mayWait(w http.ResponseWriter) bool {
	select {
	case a.waiting <- struct{}{}:
		return true
	default:
	}
	w.Header().Set("Retry-After", "1")
	a.problem(w, http.StatusServiceUnavailable, "%d requests are waiting already, and no more may", maxWaiting)
	return false
}

// until asks again whenever something has changed, until it is done or the wait
// is over; then it answers with the last problem and returns false.
func (a *api) until(w http.ResponseWriter, r *http.Request, p Projection, wait time.Duration, ask func() (done bool, problem *problemAnswer)) bool {
	// What is in memory only, of a partition that has become quiet, is seen when it
	// is asked for again.
	const again = 50 * time.Millisecond
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	waits := false
	for last := wait == 0; ; {
		changed := p.Changed()
		done, problem := ask()
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
		soon := time.NewTimer(again)
		select {
		case <-changed:
		case <-soon.C:
		case <-deadline.C:
			last = true
		case <-r.Context().Done():
			a.fail(w, r, r.Context().Err())
			return false
		}
		soon.Stop()
	}
}
