package query

import (
	"errors"
	"net/http"
	"strconv"
)

type blockedAnswer struct {
	made
	Items []BlockedAggregate `json:"items" doc:"Ordered by the time of the event that cannot be folded."`
	Next  string             `json:"next_cursor,omitempty" doc:"Cursor of the next page; omitted on the last page."`
}

// blocked lists the aggregates that wait for a release. Its path is not below
// /v1/projections/{name}, because any word there is an aggregate's id.
func (a *api) blocked(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	limit, ok := a.limit(w, r)
	if !ok {
		return
	}
	after, ok := parseEventCursor(r.URL.Query().Get("cursor"))
	if !ok {
		a.problem(w, http.StatusBadRequest, "cursor: want the next_cursor of an answer, or none")
		return
	}
	w, end := a.turn(w, r)
	if end == nil {
		return
	}
	defer end()
	all, err := p.Blocked(r.Context(), after, limit)
	if err != nil {
		a.fail(w, r, err)
		return
	}
	d := p.Describe()
	out := blockedAnswer{made: made{d.Name, d.Version}, Items: append([]BlockedAggregate{}, all...)}
	if n := len(all); n == limit {
		out.Next = all[n-1].Cursor().text()
	}
	a.answer(w, r, out)
}

type releasedAnswer struct {
	made
	ID string `json:"id"`
	ReleaseResult
}

func (a *api) release(w http.ResponseWriter, r *http.Request) {
	p := a.projection(w, r)
	if p == nil {
		return
	}
	skip := false
	if text := r.URL.Query().Get("skip"); text != "" {
		var err error
		if skip, err = strconv.ParseBool(text); err != nil {
			a.problem(w, http.StatusBadRequest, "skip=%s: want true or false", text)
			return
		}
	}
	d, id := p.Describe(), r.PathValue("id")
	out, err := p.Release(r.Context(), id, skip)
	switch {
	case errors.Is(err, ErrNotFound):
		a.problem(w, http.StatusNotFound, "%s has no aggregate %q: 'projector blocked %[1]s' or /v1/blocked/%[1]s lists the blocked aggregates", d.Name, id)
	case errors.Is(err, ErrNotBlocked):
		a.problem(w, http.StatusConflict, "%q is not blocked: 'projector blocked %s' or /v1/blocked/%[2]s lists the blocked aggregates", id, d.Name)
	case err != nil:
		a.fail(w, r, err)
	default:
		a.log.Info("released a blocked aggregate", "projection", d.Name, "id", id, "skip", skip, "events", out.Events, "blocked_again", out.Blocked != nil)
		a.answer(w, r, releasedAnswer{made{d.Name, d.Version}, id, out})
	}
}
