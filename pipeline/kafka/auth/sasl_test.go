package auth

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// tokenEndpoint is an OpenID provider that issues numbered tokens.
type tokenEndpoint struct {
	mu     sync.Mutex
	issued int
	last   *http.Request // with the form parsed
	reply  func(n int, w http.ResponseWriter)
}

func (e *tokenEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e.issued++
	e.last = r
	e.reply(e.issued, w)
}

func TestTokensAreFetchedBeforeTheyExpire(t *testing.T) {
	e := &tokenEndpoint{reply: func(n int, w http.ResponseWriter) {
		fmt.Fprintf(w, `{"access_token": "token-%d", "token_type": "Bearer", "expires_in": 100}`, n)
	}}
	srv := httptest.NewTLSServer(e)
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}

	now := time.Unix(0, 0)
	source := &tokenSource{
		cfg: OAuth{
			TokenURL: srv.URL, ClientID: "a b", ClientSecret: NewSecret("canary%+"), Scope: "kafka other",
			Extensions: map[string]string{"pool": "p"}, CAFile: ca,
		},
		now: func() time.Time { return now },
	}
	for _, step := range []struct {
		after time.Duration
		want  string
	}{{0, "token-1"}, {79 * time.Second, "token-1"}, {time.Second, "token-2"}, {time.Second, "token-2"}, {time.Hour, "token-3"}} {
		now = now.Add(step.after)
		auth, err := source.auth(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if auth.Token != step.want || auth.Extensions["pool"] != "p" {
			t.Errorf("%v later: got %+v, want %s", step.after, auth, step.want)
		}
	}
	user, password, _ := e.last.BasicAuth()
	if user != "a+b" || password != "canary%25%2B" {
		t.Errorf("client %q with secret %q, but both must be form-encoded (RFC 6749, 2.3.1)", user, password)
	}
	if e.last.Form.Get("grant_type") != "client_credentials" || e.last.Form.Get("scope") != "kafka other" {
		t.Errorf("form %v", e.last.Form)
	}
}

func TestFaultsOfATokenEndpointAreExplained(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply func(n int, w http.ResponseWriter)
		want  string
	}{
		{"wrong secret", func(_ int, w http.ResponseWriter) {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"error": "invalid_client", "error_description": "no such client"}`)
		}, "401 Unauthorized: invalid_client: no such client; check " + OAuthKeyID},
		{"an HTML page", func(_ int, w http.ResponseWriter) { fmt.Fprint(w, "<html>canary") }, "not the JSON of a token endpoint"},
		{"no token", func(_ int, w http.ResponseWriter) { fmt.Fprint(w, "{}") }, "no access_token"},
		{"a redirect", func(_ int, w http.ResponseWriter) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, "307 Temporary Redirect"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &tokenEndpoint{reply: tt.reply}
			srv := httptest.NewServer(e)
			defer srv.Close()
			source := &tokenSource{cfg: OAuth{TokenURL: srv.URL, ClientID: "c", ClientSecret: NewSecret("canary")}, now: time.Now}
			_, err := source.auth(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "canary") {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
			if e.issued != 1 {
				t.Errorf("asked %d times", e.issued)
			}
		})
	}
}
