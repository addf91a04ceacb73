package projector

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
)

func TestTheOwnersAnswerThatSomethingIsMissingIsPassedOn(t *testing.T) {
	p, a, b := split(t)
	a.announce(false)
	b.announce(false)
	p.workAll()
	f := &forwarder{peers: a.others, roster: a.roster, ready: func() error { return nil }}
	front := f.wrap(query.Handler(slog.New(slog.DiscardHandler), query.DefaultFeeds, a.reader))
	for _, path := range []string{"", "/history", "/why", "?at_version=1", "?min_version=1"} {
		path := "/v1/projections/user/" + p.id(3, 0) + path
		own := httptest.NewRecorder()
		b.server.Config.Handler.ServeHTTP(own, httptest.NewRequest(http.MethodGet, path, nil))
		got := projectiontest.Ask(t, front, path)
		if got.Status != own.Code || got.Body != own.Body.String() || got.Header.Get("Content-Type") != own.Header().Get("Content-Type") {
			t.Errorf("%s: %d %s, the owner says %d %s", path, got.Status, got.Body, own.Code, own.Body)
		}
	}
	projectiontest.Ask(t, front, "/v1/projections/user/"+p.id(3, 0)).Is(404, "has no aggregate")
	projectiontest.Ask(t, front, "/v1/projections/user/"+p.id(0, 0)).Is(404, "has no aggregate")
}

// During an upgrade, a worker follows partitions of workers of the earlier release, and may
// be behind them. A client that asks one after the other must not see a state go back.
func TestAWorkerThatFollowsDuringAnUpgradeAsksTheOwnerFirst(t *testing.T) {
	p, a, b := split(t)
	id := p.id(3, 0)
	p.add(projectiontest.UserCreated, id, false)
	p.workAll()
	a.assign(3) // it follows from here
	p.add(projectiontest.UserUpdated, id, false)
	b.work()
	a.announce(true)
	b.announce(false)
	local := a.reader.local
	a.roster.setLive(map[string]liveVersion{"user": {local, 1, true}})
	f := &forwarder{peers: a.others, roster: a.roster, ready: func() error { return nil }}
	front := f.wrap(query.Handler(slog.New(slog.DiscardHandler), query.DefaultFeeds, a.reader))

	projectiontest.Ask(t, front, "/v1/projections/user/"+id).Is(200, `"version":2`)
	projectiontest.Ask(t, front, "/v1/projections/user/"+p.id(3, 1)).Is(404, "has no aggregate")
	projectiontest.Ask(t, front, "/v1/projections/user/"+id, forwardedBy, "b").Is(200, `"version":1`)

	// A replica answers from what it has, and so does a worker whose owner is gone.
	a.others.replica = true
	projectiontest.Ask(t, front, "/v1/projections/user/"+id).Is(200, `"version":1`)
	a.others.replica = false
	b.kill()
	projectiontest.Ask(t, front, "/v1/projections/user/"+id).Is(200, `"version":1`)
}
