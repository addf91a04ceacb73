package reader

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline/access"
	"millrace/pipeline/harness"
	"millrace/pipeline/openapi/openapitest"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
)

// openAPIRequest is a request in a test of the OpenAPI document. "{id}" in a path is an
// aggregate, or an event.
type openAPIRequest struct {
	path    string
	args    string
	status  int
	headers []string
}

// openAPIRequests returns requests of every kind. listCursor and eventCursor continue
// lists.
func openAPIRequests(listCursor, eventCursor string) []openAPIRequest {
	return []openAPIRequest{
		{"/v1/openapi.json", "", 200, nil},
		{"/v1/projections", "", 200, nil},
		{"/v1/projections/{name}", "filter=true&sort=version&limit=1", 200, nil},
		{"/v1/projections/{name}", "cursor=" + listCursor, 200, nil},
		{"/v1/projections/{name}", "after_event=" + projectiontest.FoldedID(0) + "&wait=1s&after_position=0:0", 200, nil},
		{"/v1/projections/{name}", "after_event=none", 504, nil},
		{"/v1/projections/{name}", "after_event=" + projectiontest.FoldedID(3), 409, nil},
		{"/v1/projections/{name}", "filter=1", 400, nil},
		{"/v1/projections/{name}", "wait=", 400, nil},
		{"/v1/projections/{name}", "limit=", 400, nil},
		{"/v1/projections/{name}/{id}", "min_version=", 400, nil},
		{"/v1/projections/{name}/{id}", "at_time=", 400, nil},
		{"/v1/projections/{name}/feed", "from=now&filter=true&id=u", 200, []string{"Last-Event-ID", "0-0"}},
		{"/v1/projections/{name}/{id}", "", 200, nil},
		{"/v1/projections/{name}/{id}", "", 304, []string{"If-None-Match", "*"}},
		{"/v1/projections/{name}/{id}", "at_version=1", 200, nil},
		{"/v1/projections/{name}/{id}", "at_time=2030-01-01T00:00:00Z", 200, nil},
		{"/v1/projections/{name}/{id}", "at_recorded_time=2030-01-01T00:00:00Z", 200, nil},
		{"/v1/projections/{name}/{id}", "min_version=2&after_event=" + projectiontest.FoldedID(0) + "&wait=1s&after_position=0:0", 200, nil},
		{"/v1/projections/{name}/{id}", "min_version=9", 504, nil},
		{"/v1/projections/{name}/{id}", "after_event=" + projectiontest.FoldedID(3), 409, nil},
		{"/v1/projections/{name}/{id}/history", "limit=1&before=3", 200, nil},
		{"/v1/projections/{name}/{id}/why", "", 200, nil},
		{"/v1/projections/{name}/{id}/diff", "from=1&to=2", 200, nil},
		{"/v1/projections/{name}/{id}/diff", "from=0&to=1", 200, nil},
		{"/v1/events", "type=UserUpdated&limit=1&cursor=" + eventCursor, 200, nil},
		{"/v1/events", "type=UserCreated", 200, nil},
		{"/v1/events/{id}", "", 200, nil},
		{"/v1/events/{id}", "aggregate=u", 200, nil},
		{"/v1/blocked/{name}", "limit=1", 200, nil},
		{"/v1/blocked/{name}", "cursor=" + eventCursor, 200, nil},
		{"/v1/blocked/{name}/v/release", "", 200, nil},
		{"/v1/blocked/{name}/v/release", "skip=true", 200, nil},
		{"/v1/blocked/{name}/v/release", "skip=perhaps", 400, nil},
		{"/v1/blocked/{name}/v/release", "", 409, nil},
		{"/v1/blocked/{name}/nobody/release", "", 404, nil},
	}
}

// openAPITest compares answers with the OpenAPI document.
type openAPITest struct {
	t    *testing.T
	doc  *openapitest.Document
	seen map[string]bool // path, then a parameter or a header
}

// send sends a request and checks the answer.
func (o *openAPITest) send(api http.Handler, c openAPIRequest) {
	o.t.Helper()
	id := "u"
	if strings.HasPrefix(c.path, "/v1/events/") {
		id = projectiontest.FoldedID(0)
	}
	method := http.MethodGet
	if strings.HasSuffix(c.path, "/feed") {
		method = http.MethodHead // its body is a stream
	}
	if of, ok := strings.CutPrefix(c.path, "/v1/blocked/{name}/"); ok {
		method = http.MethodPost
		id, _, _ = strings.Cut(of, "/")
		c.path = "/v1/blocked/{name}/{id}/release"
	}
	r := httptest.NewRequest(method, strings.NewReplacer("{name}", "user", "{id}", id).Replace(c.path)+"?"+c.args, nil)
	for i := 0; i < len(c.headers); i += 2 {
		r.Header.Set(c.headers[i], c.headers[i+1])
		o.seen[c.path+" "+c.headers[i]] = true
	}
	out := httptest.NewRecorder()
	api.ServeHTTP(out, r)
	if out.Code != c.status {
		o.t.Errorf("%s: status %d, want %d: %s", r.URL, out.Code, c.status, out.Body)
		return
	}
	for name := range r.URL.Query() {
		o.seen[c.path+" "+name] = true
	}
	o.doc.Check(r.URL.String(), method, c.path, out.Code, out.Header(), out.Body.Bytes())
}

// complete checks that everything in the document was requested.
func (o *openAPITest) complete() {
	o.t.Helper()
	for _, op := range o.doc.Operations() {
		params, _ := openapitest.Member(op.Object, "parameters").([]any)
		for _, p := range params {
			if name := openapitest.Member(p, "name").(string); openapitest.Member(p, "in") != "path" && !o.seen[op.Path+" "+name] {
				o.t.Errorf("%s: no request with %s", op.Path, name)
			}
		}
		for _, status := range o.doc.Unseen(op) {
			switch {
			case slices.Contains([]string{"401", "403", "413", "415", "421"}, status): // of the server: see package openapi
			case status == "422", status == "504" && op.Method == http.MethodPost: // another worker does not answer
			default:
				o.t.Errorf("%s: no answer with status %s", op.Path, status)
			}
		}
	}
}

// The OpenAPI document is generated from the routes. This test compares it, and its copy,
// with the answers to requests of every kind.
func TestAnswersMatchTheOpenAPIDocument(t *testing.T) {
	o := &openAPITest{t, openapitest.Open(t, harness.RepoFile("docs", "openapi.json"), query.OpenAPI()), map[string]bool{}}
	o.doc.CheckRoutes(access.Projector)
	w := newWorld(t)
	w.add(projectiontest.UserCreated, "u")
	w.add(projectiontest.UserUpdated, "u")
	w.add(projectiontest.UserDeleted, "u")
	w.add(projectiontest.UserUpdated, "u")
	w.add(projectiontest.UserCreated, "v")
	w.poison("v")
	fw := w.start()
	fw.run()
	api := fw.api()
	list := projectiontest.Ask(t, api, "/v1/projections/user?limit=1&filter=true&sort=-version").JSON["next_cursor"].(string)
	event := projectiontest.Ask(t, api, "/v1/events?type=UserUpdated&limit=1").JSON["next_cursor"].(string)
	for _, c := range openAPIRequests(list, event) {
		o.send(api, c)
	}
	o.complete()
	fw.stop()
}
