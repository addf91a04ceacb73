package query

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// scanned is a projection whose scans last until leave is closed.
type scanned struct {
	broken
	entered chan struct{}
	leave   chan struct{}
}

func (s scanned) Scan(context.Context, string, func(Aggregate) bool) ([]Position, error) {
	s.entered <- struct{}{}
	<-s.leave
	return nil, s.err
}

func listRequest(ctx context.Context) *http.Request {
	return httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/projections/p", nil)
}

func TestLargeAnswersAreMadeAFewAtATime(t *testing.T) {
	t.Parallel()
	const more = 3
	p := scanned{broken{errors.New("no")}, make(chan struct{}, maxTurns()+more), make(chan struct{})}
	h := Handler(slog.New(slog.DiscardHandler), 1, p)
	var asking sync.WaitGroup
	for range maxTurns() {
		asking.Go(func() { h.ServeHTTP(httptest.NewRecorder(), listRequest(t.Context())) })
	}
	for range maxTurns() {
		<-p.entered
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	h.ServeHTTP(httptest.NewRecorder(), listRequest(gone)) // does not wait
	if len(p.entered) > 0 {
		t.Error("a request of a client that is gone was answered")
	}
	for range more {
		asking.Go(func() { h.ServeHTTP(httptest.NewRecorder(), listRequest(t.Context())) })
	}
	close(p.leave)
	asking.Wait()
	if len(p.entered) != more {
		t.Errorf("%d of %d requests that waited were answered", len(p.entered), more)
	}
}

// unreadWriter is the writer of an answer that nobody reads.
type unreadWriter struct {
	*httptest.ResponseRecorder
	writes chan struct{}
	read   chan struct{}
}

func (u unreadWriter) Write(b []byte) (int, error) {
	u.writes <- struct{}{}
	<-u.read
	return u.ResponseRecorder.Write(b)
}

func TestAClientThatDoesNotReadHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	h := Handler(slog.New(slog.DiscardHandler), 1, broken{errors.New("no")})
	writes, read := make(chan struct{}), make(chan struct{})
	var asking sync.WaitGroup
	for range 2 * maxTurns() {
		asking.Go(func() {
			h.ServeHTTP(unreadWriter{httptest.NewRecorder(), writes, read}, listRequest(t.Context()))
		})
		<-writes
	}
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, listRequest(t.Context()))
	if answer.Body.Len() == 0 {
		t.Error("no answer")
	}
	close(read)
	asking.Wait()
}
