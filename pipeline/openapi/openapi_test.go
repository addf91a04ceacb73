package openapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/pipeline/access"
	"millrace/pipeline/harness"
	"millrace/pipeline/openapi/openapitest"
	"millrace/pipeline/server"
)

// documents are the documents by program.
var documents = map[string]string{access.Projector: "openapi.json", access.Producer: "openapi-producer.json"}

// serve runs a server of a program that mounts all operations of a document.
func serve(t *testing.T, cfg server.Config, doc *openapitest.Document) (url string) {
	t.Helper()
	cfg.Listen, cfg.Conns = "127.0.0.1:0", 100
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range doc.Operations() {
		s.Handle(op.Method+" "+op.Path, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			t.Errorf("%s %s reached its handler", r.Method, r.URL)
		}))
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "http://" + s.Addr()
}

// The answers of the server, which no handler gives, match the document for every route.
func TestAnswersOfTheServerMatchTheDocuments(t *testing.T) {
	callers := filepath.Join(t.TempDir(), "callers.yaml")
	if err := os.WriteFile(callers, []byte("tokens: [{name: all, roles: [admin], token: token-of-admin-0123456789}, {name: read, roles: [read], token: token-of-read-0123456789}, {name: write, roles: [write], token: token-of-write-0123456789}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	for program, file := range documents {
		doc := openapitest.Open(t, harness.RepoFile("docs", file), nil)
		doc.CheckRoutes(program)
		guarded := serve(t, server.Config{Program: program, Access: callers}, doc)
		open := serve(t, server.Config{Program: program}, doc)
		for _, op := range doc.Operations() {
			path := strings.NewReplacer("{name}", "user", "{id}", "u-1").Replace(op.Path)
			wrong := "write"
			if op.Method == http.MethodPost {
				wrong = "read"
			}
			for _, test := range []struct {
				status int
				url    string
				host   string
				header string
				body   string
			}{
				{401, guarded, "", "", ""},
				{401, guarded, "", "Authorization: Bearer unknown", ""},
				{403, guarded, "", "Authorization: Bearer token-of-" + wrong + "-0123456789", ""},
				{413, open, "", "", strings.Repeat("x", 10)},
				{415, open, "", "Content-Encoding: gzip", "x"},
				{421, open, "rebound.example", "", ""},
			} {
				what := fmt.Sprintf("%s: %s %s for %d", program, op.Method, path, test.status)
				r, err := http.NewRequestWithContext(t.Context(), op.Method, test.url+path, strings.NewReader(test.body))
				if err != nil {
					t.Fatal(err)
				}
				if test.host != "" {
					r.Host = test.host
				}
				if name, value, ok := strings.Cut(test.header, ": "); ok {
					r.Header.Set(name, value)
				}
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != test.status {
					t.Errorf("%s: %s %s %v", what, resp.Status, body, err)
				}
				doc.Check(what, op.Method, op.Path, resp.StatusCode, resp.Header, body)
			}
		}
	}
}
