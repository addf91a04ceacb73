package stage_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/stage"
)

// service is an HTTP server that responds according to the page of a visit and counts
// the requests.
type service struct {
	*httptest.Server
	requests atomic.Int32
	broken   atomic.Int32 // number of further requests with the response 503
	begun    chan struct{}
	once     sync.Once // closes begun at the first request
}

func newService(t testing.TB) *service {
	s := &service{begun: make(chan struct{})}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.once.Do(func() { close(s.begun) })
		if s.broken.Add(-1) >= 0 {
			http.Error(w, "overloaded", http.StatusServiceUnavailable)
			return
		}
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/member":
			fmt.Fprintf(w, `{"id": %q, "name": %q, "address": {"city": null, "zip": 7}, "more": [1]}`, r.URL.Query().Get("user"), r.Method+" "+string(body)+r.Header.Get("X-Who"))
		case "/wrong":
			fmt.Fprint(w, `{"id": 7}`)
		case "/trailing":
			fmt.Fprint(w, `{} {}`)
		case "/surrogate":
			fmt.Fprint(w, `{"id": "j-\ud800"}`)
		case "/large":
			fmt.Fprint(w, strings.Repeat(" ", 1<<20), `{}`)
		case "/forbidden":
			http.Error(w, "no permission", http.StatusForbidden)
		case "/moved":
			http.Redirect(w, r, "/member", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *service) stage(more string) string {
	return `http: {on: [Visit], url: "'` + s.URL + `' + data.page", query: {user: "data.user == null ? '' : data.user"}, response: Member, set: {metadata.name: response.body.name}` + more + `}`
}

func TestHTTPSetsFieldsFromTheResponse(t *testing.T) {
	s := newService(t)
	for _, tc := range []struct{ more, page, want, fault string }{
		{``, "/member", `"name":"GET "`, ""},
		{`, method: POST, body: "data.page + '!'", headers: {X-Who: id}`, "/member", `"name":"POST /member!1"`, ""},
		{`, add: {data.status: {type: int, value: response.status}}`, "/member", `"status":200`, ""},
		{``, "/gone", "", "http_status: GET " + s.URL + "/gone: not found (status 404 or 410)"},
		{`, missing: keep`, "/gone", `"metadata":{}`, ""},
		{`, missing: drop`, "/gone", "", ""},
		{``, "/forbidden", "", "http_status: GET " + s.URL + "/forbidden?user=u%26+1: status 403 Forbidden: no permission\n"},
		{``, "/moved", "", "http_status: GET " + s.URL + "/moved?user=u%26+1: status 302 Found"},
		{``, "/wrong", "", "body.id: expected string, found number 7"},
		{``, "/trailing", "", "unexpected data after the JSON value"},
		{``, "/surrogate", "", `column 11: not Unicode: \ud800 is half of a surrogate pair`},
		{``, "/large", "", "the response is larger than 1048576 bytes"},
		{`, headers: {X-Who: "'a\\nb'"}`, "/member", "", "http_request: the value of header X-Who contains a control character"},
	} {
		t.Run(tc.page+tc.more, func(t *testing.T) {
			got, err := newRun(t, nil, s.stage(tc.more)).process(fmt.Sprintf(`{"id": "1", "data": {"page": %q, "user": "u& 1"}}`, tc.page))
			if tc.fault == "" && (err != nil || !strings.Contains(got, tc.want) || (got == "") != (tc.want == "")) {
				t.Errorf("got %s, %v\nwant %s", got, err, tc.want)
			}
			if tc.fault != "" && (err == nil || !strings.Contains(err.Error(), tc.fault) || pipeline.ClassOf(err) != pipeline.ClassReject) {
				t.Errorf("got %v\nwant %s", err, tc.fault)
			}
		})
	}
}

func TestHTTPRetriesTemporaryFailures(t *testing.T) {
	s := newService(t)
	const event = `{"id": "1", "data": {"page": "/member"}}`
	for _, tc := range []struct {
		name, more string
		broken     int32
		requests   int32
		class      pipeline.Class
		reason     pipeline.Reason
	}{
		{"the service recovers", "", 2, 3, 0, ""},
		{"the batch is aborted", ", retries: 1", 9, 2, pipeline.ClassAbort, ""},
		{"the event is rejected", ", retries: 1, unavailable: dead_letter", 9, 2, pipeline.ClassReject, stage.ReasonHTTPUnavailable},
		{"no retries", ", retries: 0", 9, 1, pipeline.ClassAbort, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.requests.Store(0)
			s.broken.Store(tc.broken)
			got, err := newRun(t, nil, s.stage(tc.more)).process(event)
			switch {
			case tc.broken == 2 && (err != nil || got == ""):
				t.Errorf("got %s, %v", got, err)
			case tc.broken != 2 && (err == nil || pipeline.ClassOf(err) != tc.class || pipeline.ReasonOf(err) != tc.reason):
				t.Errorf("got %v", err)
			}
			if n := s.requests.Load(); n != tc.requests {
				t.Errorf("%d requests, want %d", n, tc.requests)
			}
		})
	}
}

func TestHTTPAbortsTheBatchAfterTimeouts(t *testing.T) {
	quit := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-quit }))
	defer server.Close()
	defer close(quit)
	r := newRun(t, nil, `http: {on: [Visit], url: "'`+server.URL+`'", timeout: 20ms, retries: 1}`)
	_, err := r.process(`{"id": "1", "data": {"page": "/"}}`)
	if err == nil || pipeline.ClassOf(err) != pipeline.ClassAbort || !strings.Contains(err.Error(), "failed 2 times") {
		t.Errorf("got %v", err)
	}
}

// Identical requests of all clones are sent only once, and a cached response costs no
// allocation.
func TestHTTPCachesResponses(t *testing.T) {
	s := newService(t)
	r := newRun(t, nil, s.stage(`, cache: {for: 1h, entries: 100}`))
	const event = `{"id": "1", "data": {"page": "/member", "user": "u1"}}`
	if _, err := r.process(event); err != nil {
		t.Fatal(err)
	}
	var clones sync.WaitGroup
	for range 4 {
		clones.Go(func() {
			clone := &run{t: t, pipeline: r.pipeline, chain: r.pipeline.Chain()}
			for range 50 {
				if got, err := clone.process(event); err != nil || !strings.Contains(got, "GET") {
					t.Errorf("got %s, %v", got, err)
				}
			}
		})
	}
	clones.Wait()
	if n := s.requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	body := encode(t, r.pipeline.Types[0], event)
	record := &pipeline.Record{}
	out := func(*pipeline.Event) error { return nil }
	if n := testing.AllocsPerRun(100, func() {
		if err := r.processBody(body, record, out); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a cached response, want 0", n)
	}
	// A different request is sent. Without a cache, every request is sent.
	if _, err := r.process(`{"id": "1", "data": {"page": "/member", "user": "u2"}}`); err != nil || s.requests.Load() != 2 {
		t.Errorf("%d requests, want 2; error %v", s.requests.Load(), err)
	}
	r = newRun(t, nil, s.stage(`, cache: {entries: 0}`))
	for range 3 {
		if _, err := r.process(event); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.requests.Load(); n != 5 {
		t.Errorf("%d requests, want 5", n)
	}
}

func TestHTTPStopsRetriesWhenTheBatchIsCanceled(t *testing.T) {
	s := newService(t)
	s.broken.Store(1000)
	r := newRun(t, nil, s.stage(`, retries: 10`))
	e := &r.event
	e.Record = &pipeline.Record{}
	if err := r.pipeline.Layouts[0].Walk(encode(t, r.pipeline.Types[0], `{"id": "1", "data": {"page": "/member"}}`), &e.View); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.chain.Process(ctx, e, func(*pipeline.Event) error { return nil }) }()
	<-s.begun
	cancel()
	if err := <-done; pipeline.ClassOf(err) != pipeline.ClassAbort {
		t.Errorf("got %v", err)
	}
}

func TestHTTPFaults(t *testing.T) {
	for _, tc := range []struct{ stage, want string }{
		{`http: {on: [Visit], url: data.user}`, "can be null"},
		{`http: {on: [Visit], url: data.page, response: Membr}`, "Membr"},
		{`http: {on: [Visit], url: data.page, response: Member, set: {metadata.a: response.body.nam}}`, "response.body.nam"},
		{`http: {on: [Visit], url: data.page, set: {metadata.a: response.body.name}}`, "response.body"},
		{`http: {on: [Visit], url: data.page, headers: {"X Who": id}}`, "is not a valid header name"},
		{`http: {on: [Visit], url: data.page, timeout: 5m}`, "at most 1m"},
		{`http: {on: [Visit], url: data.page, method: DELETE}`, "DELETE"},
	} {
		if _, err := loadVisits(tc.stage); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s:\n%v\ndoes not contain %s", tc.stage, err, tc.want)
		}
	}
}

// The transaction must outlast all retries only if an unavailable service leads to dead
// letters.
func TestHTTPHoldsABatchForAllRetries(t *testing.T) {
	for more, want := range map[string]time.Duration{
		"": 0,
		", unavailable: dead_letter, timeout: 2s, retries: 3": 14 * time.Second,
		", unavailable: dead_letter, timeout: 1s, retries: 0": time.Second,
	} {
		r := newRun(t, nil, newService(t).stage(more))
		holder, ok := r.pipeline.Stages[0].Built.(stage.Delayer)
		if !ok || holder.MaxDelay() != want {
			t.Errorf("parameters %q: the stage holds a batch for %v, want %v", more, holder.MaxDelay(), want)
		}
	}
}
