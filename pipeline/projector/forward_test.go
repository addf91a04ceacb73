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
