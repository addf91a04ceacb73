package reader

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"millrace/pipeline/harness"
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
	t        *testing.T
	doc      any
	compiler *jsonschema.Compiler
	seen     map[string]bool // path, then a parameter, a header or a status
}

// newOpenAPITest reads the document, and compares it with the one that is served.
func newOpenAPITest(t *testing.T) *openAPITest {
	t.Helper()
	file := harness.RepoFile("docs", "openapi.json")
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile(file, query.OpenAPI(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(kept) != string(query.OpenAPI()) {
		t.Errorf("%s differs from the document that the program serves: run this test with UPDATE_SCRIPTS=1", file)
	}
	o := &openAPITest{t: t, compiler: jsonschema.NewCompiler(), seen: map[string]bool{}}
	if o.doc, err = jsonschema.UnmarshalJSON(strings.NewReader(string(kept))); err != nil {
		t.Fatal(err)
	}
	o.compiler.DefaultDraft(jsonschema.Draft2020)
	o.compiler.AssertFormat()
	if err := o.compiler.AddResource("openapi.json", o.doc); err != nil {
		t.Fatal(err)
	}
	return o
}

// send sends a request and checks the answer.
func (o *openAPITest) send(api http.Handler, c openAPIRequest) {
	o.t.Helper()
	id := "u"
	if strings.HasPrefix(c.path, "/v1/events/") {
		id = projectiontest.FoldedID(0)
	}
	method, verb := http.MethodGet, "get"
	if strings.HasSuffix(c.path, "/feed") {
		method = http.MethodHead // its body is a stream
	}
	if of, ok := strings.CutPrefix(c.path, "/v1/blocked/{name}/"); ok {
		method, verb = http.MethodPost, "post"
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
	o.seen[fmt.Sprint(c.path, " ", c.status)] = true
	if method != http.MethodHead {
		o.validate(r.URL.String(), c.path, verb, out)
	}
}

// validate compares the body of an answer with its schema.
func (o *openAPITest) validate(url, path, verb string, out *httptest.ResponseRecorder) {
	o.t.Helper()
	// The schema is that of the status, else the default.
	status := fmt.Sprint(out.Code)
	op := member(o.doc, "paths", path, verb)
	if member(op, "responses", status) == nil {
		status = "default"
	}
	content, ok := member(op, "responses", status, "content").(map[string]any)
	if !ok {
		return
	}
	kind := out.Header().Get("Content-Type")
	if content[kind] == nil {
		o.t.Errorf("%s: the document has no answer of type %s", url, kind)
		return
	}
	escape := strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D")
	schema, err := o.compiler.Compile("openapi.json#/paths/" + escape.Replace(path) + "/" + verb + "/responses/" + status + "/content/" + escape.Replace(kind) + "/schema")
	if err != nil {
		o.t.Fatal(err)
	}
	body, err := jsonschema.UnmarshalJSON(out.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := schema.Validate(body); err != nil {
		o.t.Errorf("%s: %v", url, err)
	}
}

// complete checks that everything in the document was requested.
func (o *openAPITest) complete() {
	o.t.Helper()
	for path, item := range member(o.doc, "paths").(map[string]any) {
		op := member(item, "get")
		if op == nil {
			op = member(item, "post")
		}
		params, _ := member(op, "parameters").([]any)
		for _, p := range params {
			if name := member(p, "name").(string); member(p, "in") != "path" && !o.seen[path+" "+name] {
				o.t.Errorf("%s: no request with %s", path, name)
			}
		}
		for status := range member(op, "responses").(map[string]any) {
			// A release is answered with 504 only if another worker does not answer.
			if status != "default" && status != "422" && (status != "504" || member(item, "post") == nil) && !o.seen[path+" "+status] {
				o.t.Errorf("%s: no answer with status %s", path, status)
			}
		}
	}
}

// The OpenAPI document is generated from the routes. This test compares it, and its copy,
// with the answers to requests of every kind.
func TestAnswersMatchTheOpenAPIDocument(t *testing.T) {
	o := newOpenAPITest(t)
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

// member returns a value in nested JSON objects.
func member(v any, path ...string) any {
	for _, name := range path {
		o, _ := v.(map[string]any)
		v = o[name]
	}
	return v
}
