package producer

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/access"
	"millrace/pipeline/event"
	"millrace/pipeline/harness"
	"millrace/pipeline/openapi/openapitest"
)

var openAPIFile = harness.RepoFile("docs", "openapi-producer.json")

// Every status of the document is one that a request gets, and its answer matches.
func TestAnswersMatchTheOpenAPIDocument(t *testing.T) {
	doc := openapitest.Open(t, openAPIFile, openAPI())
	doc.CheckRoutes(access.Producer)
	failing := recordWriterFunc(func(_ *pipeline.Record, done func(error)) { done(errors.New("away")) })
	busy := newIntake(t, &intakeWriter{})
	busy.slots = make(chan *event.Encoder)
	for _, test := range []struct {
		in     *intake
		body   string
		header string
		status int
	}{
		{newIntake(t, &intakeWriter{}), paidEvent, asJSON, 200},
		{newIntake(t, &intakeWriter{}), "[" + paidEvent + "]", asJSON, 200},
		{newIntake(t, &intakeWriter{}), "[1]", asJSON, 400},
		{newIntake(t, &intakeWriter{}), strings.Repeat(" ", 10_001), asJSON, 413},
		{newIntake(t, &intakeWriter{}), paidEvent, "Content-Type: text/plain", 415},
		{busy, paidEvent, asJSON, 429},
		{newIntake(t, failing), paidEvent, asJSON, 503},
	} {
		got := post(t, test.in, test.body, test.header)
		if got.Code != test.status {
			t.Errorf("%.40s: answer %d %s, want %d", test.body, got.Code, got.Body, test.status)
		}
		doc.Check(test.header, http.MethodPost, "/v1/events", got.Code, got.Header(), got.Body.Bytes())
	}
	w := httptest.NewRecorder()
	serveOpenAPI().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/openapi.json", nil))
	doc.Check("the document", http.MethodGet, "/v1/openapi.json", w.Code, w.Header(), w.Body.Bytes())
	if w.Body.String() != string(openAPI()) {
		t.Error("the served document differs")
	}
	for _, op := range doc.Operations() {
		for _, status := range doc.Unseen(op) {
			// Package openapi tests the answers of the server.
			if !slices.Contains([]string{"401", "403", "421"}, status) && op.Method != http.MethodGet {
				t.Errorf("%s %s: no answer with status %s", op.Method, op.Path, status)
			}
		}
	}
}

// The examples are requests that the shop accepts, and match the schemas.
func TestExamplesOfTheOpenAPIDocumentAreAccepted(t *testing.T) {
	doc := openapitest.Open(t, openAPIFile, nil)
	n := 0
	for _, op := range doc.Operations() {
		content, _ := openapitest.Member(op.Object, "requestBody", "content").(map[string]any)
		for kind, media := range content {
			body, err := json.Marshal(openapitest.Member(media, "examples", "shop", "value"))
			if err != nil {
				t.Fatal(err)
			}
			doc.CheckBody(kind, op.Method, op.Path, kind, body)
			if got := post(t, newIntake(t, &intakeWriter{}), string(body), "Content-Type: "+kind); got.Code != http.StatusOK {
				t.Errorf("the example of %s gets %d %s", kind, got.Code, got.Body)
			}
			n++
		}
	}
	if n != 3 {
		t.Errorf("the document has %d examples of bodies", n)
	}
}

// Whatever the document excludes, serve refuses.
func TestBodiesThatTheOpenAPIDocumentExcludesAreRefused(t *testing.T) {
	for _, test := range []struct{ body, header string }{
		{`7`, asJSON},
		{`[7]`, asJSON},
		{strings.Replace(cloudPaid, `"1.0"`, `"1"`, 1), asCloud},
		{strings.Replace(cloudPaid, `"source":"/shop"`, `"source":""`, 1), asCloud},
		{strings.Replace(cloudPaid, `"n":7`, `"n_n":7`, 1), asCloud},
		{strings.Replace(cloudPaid, `"n":7`, `"n":[]`, 1), asCloud},
		{strings.Replace(cloudPaid, `"n":7`, `"data_base64":"e30="`, 1), asCloud},
		{cloudPaid, asClouds},
	} {
		if got := post(t, newIntake(t, &intakeWriter{}), test.body, test.header); got.Code != http.StatusBadRequest {
			t.Errorf("%s gets %d %s", test.body, got.Code, got.Body)
		}
	}
}
