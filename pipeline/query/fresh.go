package query

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// statusBlocked is the Status of an aggregate that takes no more events for now.
const statusBlocked = "blocked"

// freshness is what an answer about now has to contain.
type freshness struct {
	event      string // this event, applied
	partition  int32  // where it stands, if that was given
	offset     int64  // -1 if not
	minVersion int64
	wait       time.Duration
}

func (f *freshness) asked() bool { return f.event != "" || f.minVersion > 0 }

// freshness reads what a request says of it.
func (a *api) freshness(w http.ResponseWriter, r *http.Request) (f freshness, ok bool) {
	f = freshness{event: r.FormValue("after_event"), offset: -1}
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
		if !found || err != nil || err2 != nil || p < 0 || o < 0 {
			a.problem(w, http.StatusBadRequest, "after_position=%s: want partition and offset of the event, as 3:1234", text)
			return f, false
		}
		f.partition, f.offset = int32(p), o
	}
	switch {
	case f.offset >= 0 && f.event == "":
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
		if f.event != "" {
			known, problem := a.outcome(r, p, f)
			if problem != nil && problem.Outcome == Pending {
				if g, err := p.Get(r.Context(), id); err == nil && g.Status == statusBlocked {
					return true, &problemAnswer{Status: http.StatusConflict, Outcome: Blocked, Detail: "an event of " + strconv.Quote(id) +
						" cannot be folded, and those after it wait until it is released: 'projector blocked' shows why"}
				}
			}
			if problem != nil || !known {
				return known, problem
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

// outcome reports whether the event was applied. If that is not so, the problem
// says what is known; it is final if known is set.
func (a *api) outcome(r *http.Request, p Projection, f freshness) (known bool, problem *problemAnswer) {
	// The position first: what happens in between is seen.
	passed := false
	if f.offset >= 0 {
		for _, at := range p.Partitions() {
			passed = passed || at.Partition == f.partition && at.Offset > f.offset
		}
	}
	out, err := p.Outcome(r.Context(), f.event)
	switch {
	case err != nil:
		status := http.StatusInternalServerError
		if errors.Is(err, ErrNoHistory) {
			status = http.StatusNotFound
		}
		return true, &problemAnswer{Status: status, Detail: err.Error()}
	case out.State == Applied:
		return true, nil
	case out.State != Pending:
		return !out.Open, &problemAnswer{Status: http.StatusConflict, Outcome: out.State, Detail: out.Detail, Pipeline: out.Pipeline, Stage: out.Stage, Reason: out.Reason}
	case passed:
		return true, &problemAnswer{Status: http.StatusConflict, Outcome: Passed, Detail: "the projection is past " + strconv.FormatInt(f.offset, 10) +
			" of partition " + strconv.Itoa(int(f.partition)) + " and did not apply the event: it is of a type that the projection does nothing with, or was refused before this worker kept count, or stands elsewhere"}
	}
	return false, &problemAnswer{Status: http.StatusGatewayTimeout, Outcome: Pending, Detail: out.Detail}
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
			if problem.Status == http.StatusGatewayTimeout {
				w.Header().Set("Retry-After", "1")
			}
			a.writeProblem(w, *problem)
			return false
		}
		if !waits {
			select {
			case a.waiting <- struct{}{}:
				defer func() { <-a.waiting }()
				waits = true
			default:
				w.Header().Set("Retry-After", "1")
				a.problem(w, http.StatusServiceUnavailable, "%d requests are waiting already, and no more may", maxWaiting)
				return false
			}
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
