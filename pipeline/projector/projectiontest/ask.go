package projectiontest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Answer is an HTTP answer.
type Answer struct {
	T      testing.TB
	Status int
	Header http.Header
	Body   string
	JSON   map[string]any
}

// Ask sends a GET request to a handler. The answer must be empty or JSON.
func Ask(t testing.TB, h http.Handler, path string, headers ...string) Answer {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	a := Answer{T: t, Status: w.Code, Header: w.Header(), Body: w.Body.String()}
	if len(a.Body) > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &a.JSON); err != nil {
			t.Fatalf("%s: %v: %s", path, err, a.Body)
		}
	}
	return a
}

// Is checks the status, and that the body contains some texts.
func (a Answer) Is(status int, has ...string) {
	a.T.Helper()
	if a.Status != status {
		a.T.Fatalf("status %d, want %d: %s", a.Status, status, a.Body)
	}
	for _, text := range has {
		if !strings.Contains(a.Body, text) {
			a.T.Errorf("no %s in %s", text, a.Body)
		}
	}
	if status >= 400 && (a.Header.Get("Content-Type") != "application/problem+json" || a.JSON["status"] != float64(status)) {
		a.T.Errorf("not a problem of RFC 9457: %s: %s", a.Header.Get("Content-Type"), a.Body)
	}
}

// Items returns one field of each item of a list.
func (a Answer) Items(field string) (out []string) {
	a.T.Helper()
	list, ok := a.JSON["items"].([]any)
	if !ok {
		a.T.Fatalf("no items: %s", a.Body)
	}
	for _, it := range list {
		out = append(out, fmt.Sprint(it.(map[string]any)[field]))
	}
	return out
}
