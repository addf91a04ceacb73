package server

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline/access"
)

// run starts a server and returns its base URL. The server ends with the test.
func run(t *testing.T, cfg Config, mount func(*Server)) (s *Server, url string) {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Conns == 0 {
		cfg.Conns = 100
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if mount != nil {
		mount(s)
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
	scheme := "http://"
	if cfg.TLS.Enabled() {
		scheme = "https://"
	}
	return s, scheme + s.Addr()
}

// ok answers every request.
var ok = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, "the caller is ", CallerOf(r.Context()).Name)
})

// token is the token of the caller with a role only.
func token(r access.Role) string { return "token-of-" + string(r) + "-0123456789" }

// accessFile writes a list with one caller for each role.
func accessFile(t *testing.T) string {
	t.Helper()
	text := "tokens:\n"
	for _, r := range access.Roles() {
		text += fmt.Sprintf("- {name: %s, roles: [%s], token: %s}\n", r, r, token(r))
	}
	path := filepath.Join(t.TempDir(), "callers.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// answer is an answer without its body.
type answer struct {
	Status     string
	StatusCode int
	Proto      string
	ProtoMajor int
	Header     http.Header
	TLS        *tls.ConnectionState
}

// ask sends a request and returns the answer and its body.
func ask(t *testing.T, c *http.Client, method, url string, body io.Reader, header ...string) (answer, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.Status, resp.StatusCode, resp.Proto, resp.ProtoMajor, resp.Header, resp.TLS}, string(text)
}

// wantProblem checks that an answer is a problem of RFC 9457.
func wantProblem(t *testing.T, what string, resp answer, body string, status int, detail string) {
	t.Helper()
	var p Problem
	if err := json.Unmarshal([]byte(body), &p); err != nil || resp.StatusCode != status || p.Status != status ||
		resp.Header.Get("Content-Type") != ProblemType || !strings.Contains(p.Detail, detail) {
		t.Errorf("%s: the answer is %s, %s, %s; want the problem %d with %q", what, resp.Status, resp.Header.Get("Content-Type"), body, status, detail)
	}
}

func TestEveryRouteLetsOnlyItsRolePass(t *testing.T) {
	for _, program := range []string{access.Processor, access.Projector, access.Producer} {
		table := access.NewTable(program)
		h := (&guard{table: table, list: mustParse(t)}).protect(ok)
		for _, pattern := range table.Patterns() {
			method, path, _ := strings.Cut(pattern, " ")
			path = strings.NewReplacer("{name}", "user", "{id}", "u-1", "{version}", "1", "{partition}", "0").Replace(path)
			needs, known := table.Needs(httptest.NewRequest(method, path, nil))
			if !known {
				t.Errorf("%s: the table does not know %s %s", program, method, path)
			}
			for _, have := range append(access.Roles(), access.Public) {
				r := httptest.NewRequest(method, path, nil)
				if have != access.Public {
					r.Header.Set("Authorization", "Bearer "+token(have))
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				want := http.StatusForbidden
				switch {
				case needs == access.Public, have == needs, have == access.Admin, have == access.Worker && needs == access.Read:
					want = http.StatusOK
				case have == access.Public:
					want = http.StatusUnauthorized
				}
				if w.Code != want {
					t.Errorf("%s: %s with the role %q gets %d, want %d", program, pattern, have, w.Code, want)
				}
				if (w.Code == http.StatusUnauthorized) != (w.Header().Get("WWW-Authenticate") != "") {
					t.Errorf("%s: %d comes with WWW-Authenticate %q", pattern, w.Code, w.Header().Get("WWW-Authenticate"))
				}
			}
		}
	}
}

func mustParse(t *testing.T) func() *access.List {
	t.Helper()
	text, err := os.ReadFile(accessFile(t))
	if err != nil {
		t.Fatal(err)
	}
	l, err := access.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return func() *access.List { return l }
}

func TestRequestsThatNameNoCallerWellAreRefused(t *testing.T) {
	_, url := run(t, Config{Program: access.Projector, Access: accessFile(t)}, func(s *Server) { s.Handle("GET /v1/projections", ok) })
	for _, test := range []struct {
		header []string
		status int
		detail string
	}{
		{nil, 401, "the request names no caller"},
		{[]string{"Authorization", "Basic " + token(access.Read)}, 401, "must be one, of the form Bearer TOKEN"},
		{[]string{"Authorization", "Bearer " + token(access.Read), "Authorization", "Bearer x"}, 401, "must be one"},
		{[]string{"Authorization", "Bearer"}, 401, "the token is not valid"},
		{[]string{"Authorization", "Bearer " + token(access.Read)[1:]}, 401, "the token is not valid"},
		{[]string{"Authorization", "Bearer " + token(access.Write)}, 403, "write lacks the role read, which GET /v1/projections needs"},
	} {
		resp, body := ask(t, http.DefaultClient, "GET", url+"/v1/projections", nil, test.header...)
		wantProblem(t, fmt.Sprint(test.header), resp, body, test.status, test.detail)
		if strings.Contains(body, token(access.Read)[1:]) {
			t.Errorf("the answer contains the token: %s", body)
		}
	}
	if resp, body := ask(t, http.DefaultClient, "GET", url+"/v1/projections", nil, "Authorization", "bearer "+token(access.Read)); resp.StatusCode != 200 || body != "the caller is read" {
		t.Errorf("the answer to a good token is %s %s", resp.Status, body)
	}
	resp, body := ask(t, http.DefaultClient, "GET", url+"/nothing", nil)
	wantProblem(t, "an unknown path without a token", resp, body, 401, "names no caller")
	resp, body = ask(t, http.DefaultClient, "GET", url+"/nothing", nil, "Authorization", "Bearer "+token(access.Write))
	wantProblem(t, "an unknown path", resp, body, 404, "GET /nothing does not exist")
}

func TestWithoutCallersOnlyThisMachineIsAnswered(t *testing.T) {
	_, err := New(Config{Program: access.Projector, Listen: "0.0.0.0:0", Conns: 1})
	if err == nil || !strings.Contains(err.Error(), "--listen 0.0.0.0:0: other machines could read and change everything; give --auth-file") {
		t.Errorf("the error of an open address is %v", err)
	}
	_, url := run(t, Config{Program: access.Projector}, func(s *Server) { s.Handle("GET /v1/projections", ok) })
	if resp, body := ask(t, http.DefaultClient, "GET", url+"/v1/projections", nil); resp.StatusCode != 200 {
		t.Errorf("a caller on this machine gets %s %s", resp.Status, body)
	}
	for _, open := range []bool{false, true} {
		h := (&guard{table: access.NewTable(access.Projector), open: open}).protect(ok)
		r := httptest.NewRequest("GET", "/v1/projections", nil)
		r.RemoteAddr = "192.0.2.7:4711"
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); (w.Code == 200) != open {
			t.Errorf("another machine gets %d with --insecure-http %v", w.Code, open)
		}
	}
}

func TestOtherSitesAreRefused(t *testing.T) {
	_, url := run(t, Config{Program: access.Projector, Hosts: []string{"Events.shop.example"}}, func(s *Server) {
		s.Handle("GET /v1/projections", ok)
		s.Handle("POST /v1/blocked/{name}/{id}/release", ok)
	})
	for host, allowed := range map[string]bool{
		"localhost:1": true, "127.0.0.1": true, "[::1]:80": true, "203.0.113.1:9102": true, "events.shop.example:443": true, "events.shop.example.": true,
		"evil.example": false, "evil.example:9102": false, "events.shop.example.evil.example": false, "127.0.0.1.evil.example": false,
	} {
		resp, body := ask(t, http.DefaultClient, "GET", url+"/v1/projections", nil, "Host", host)
		if allowed && resp.StatusCode != 200 {
			t.Errorf("the host %q gets %s %s", host, resp.Status, body)
		}
		if !allowed {
			wantProblem(t, host, resp, body, 421, "--allow-host")
		}
	}
	_, known := run(t, Config{Program: access.Projector, Access: accessFile(t)}, func(s *Server) { s.Handle("GET /v1/projections", ok) })
	if resp, body := ask(t, http.DefaultClient, "GET", known+"/v1/projections", nil, "Host", "projector.shop.svc", "Authorization", "Bearer "+token(access.Read)); resp.StatusCode != 200 {
		t.Errorf("with a list of callers, another host gets %s %s", resp.Status, body)
	}
	release := url + "/v1/blocked/user/u-1/release"
	resp, body := ask(t, http.DefaultClient, "POST", release, nil, "Origin", "https://evil.example")
	wantProblem(t, "a page of another site", resp, body, 403, "a page of another site must not send POST")
	resp, body = ask(t, http.DefaultClient, "POST", release, nil, "Sec-Fetch-Site", "cross-site")
	wantProblem(t, "a page of another site, by Sec-Fetch-Site", resp, body, 403, "a page of another site")
	for _, own := range [][]string{nil, {"Sec-Fetch-Site", "same-origin"}, {"Origin", url}} {
		if resp, body := ask(t, http.DefaultClient, "POST", release, nil, own...); resp.StatusCode != 200 {
			t.Errorf("a request with %v gets %s %s", own, resp.Status, body)
		}
	}
}

func TestBodiesAreLimited(t *testing.T) {
	read := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, " ", err)
	})
	_, url := run(t, Config{Program: access.Producer, MaxBody: func(r *http.Request) int64 {
		if r.Method == "POST" {
			return 1000
		}
		return 0
	}}, func(s *Server) {
		s.Handle("POST /v1/events", read)
		s.main.mux.Handle("GET /v1/events", read)
	})
	chunked := func(n int) io.Reader { return io.MultiReader(strings.NewReader(strings.Repeat("x", n))) }
	if _, body := ask(t, http.DefaultClient, "POST", url+"/v1/events", chunked(1000)); body != "1000 <nil>" {
		t.Errorf("a body of the largest size is read as %s", body)
	}
	if _, body := ask(t, http.DefaultClient, "POST", url+"/v1/events", chunked(1001)); body != "1000 http: request body too large" {
		t.Errorf("a body that is too large is read as %s", body)
	}
	resp, body := ask(t, http.DefaultClient, "POST", url+"/v1/events", strings.NewReader(strings.Repeat("x", 1001)))
	wantProblem(t, "a body with a length", resp, body, 413, "takes a body of at most 1000 bytes")
	resp, body = ask(t, http.DefaultClient, "POST", url+"/v1/events", strings.NewReader("x"), "Content-Encoding", "gzip")
	wantProblem(t, "a compressed body", resp, body, 415, `the body has the encoding "gzip"`)
	resp, body = ask(t, http.DefaultClient, "GET", url+"/v1/events", strings.NewReader("x"))
	wantProblem(t, "a body of GET", resp, body, 413, "at most 0 bytes")
	resp, _ = ask(t, http.DefaultClient, "GET", url+"/v1/events", nil, "X-Long", strings.Repeat("x", 2*maxHeader))
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a large header gets %s", resp.Status)
	}
}

// At the limit, a new connection replaces the one that waits the longest for its client,
// whether for a request, its header, its body or the reading of an answer. One whose
// request is being answered stays.
func TestConnectionsThatWaitForTheirClientMakeRoom(t *testing.T) {
	entered, leave := make(chan string, 10), make(chan struct{})
	metrics := prometheus.NewRegistry()
	s, _ := run(t, Config{Program: access.Producer, Conns: 3, Metrics: metrics, MaxBody: func(*http.Request) int64 { return 1 << 20 }}, func(s *Server) {
		s.main.mux.Handle("GET /v1/hold", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			entered <- r.URL.RawQuery
			<-leave
			fmt.Fprint(w, "held")
		}))
		s.Handle("POST /v1/events", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			entered <- "body"
			_, _ = io.Copy(io.Discard, r.Body)
		}))
		s.main.mux.Handle("GET /v1/stream", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			entered <- "stream"
			_, _ = w.Write(make([]byte, 256<<20)) // more than all buffers on the way
		}))
	})
	dial := func(send string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, send); err != nil {
			t.Fatal(err)
		}
		return c
	}
	closed := func(what string, c net.Conn) {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && os.IsTimeout(err) {
			t.Errorf("the connection with %s is open", what)
		}
	}
	hold := dial("GET /v1/hold?1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-entered
	slowBody := dial("POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx")
	<-entered
	stuck := dial("GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
	<-entered
	for s.waiting() < 2 { // until the write has begun
		runtime.Gosched()
	}
	silent := dial("")
	closed("a slow body", slowBody)
	header := dial("GET /v1/hold?2 HTTP/1.1\r\nHo")
	closed("an answer that is not read", stuck)
	second := dial("GET /v1/hold?3 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	closed("no request", silent)
	if got := <-entered; got != "3" {
		t.Fatalf("the request %q is handled, want 3", got)
	}
	third := dial("GET /v1/hold?4 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	closed("half of a header", header)
	if got := <-entered; got != "4" {
		t.Fatalf("the request %q is handled, want 4", got)
	}
	closed("a request while all others are answered", dial("GET /v1/hold?5 HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	close(leave)
	for _, c := range []net.Conn{hold, second, third} {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); string(body) != "held" || err != nil {
			t.Errorf("the answer is %q, %v", body, err)
		}
		_ = resp.Body.Close()
	}
}

// A client that sends requests on one connection keeps it, however many connections others
// open meanwhile.
func TestAFloodOfConnectionsDoesNotCloseThoseAtWork(t *testing.T) {
	s, url := run(t, Config{Program: access.Producer, Conns: 8}, func(*Server) {})
	var used []string
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	request := func() {
		t.Helper()
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { used = append(used, i.Conn.LocalAddr().String()) }})
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/version", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	request()
	for range 50 {
		flood, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = flood.Close() })
	}
	for s.main.conns.count() < 8 {
		runtime.Gosched()
	}
	request()
	if used[0] != used[1] {
		t.Errorf("the client had to connect again: %v", used)
	}
}

// Answers that are not read take memory, so only a few may be: the one that is unread the
// longest is closed.
func TestAnswersThatAreNotReadMakeRoom(t *testing.T) {
	entered := make(chan struct{}, 1)
	s, url := run(t, Config{Program: access.Producer, Conns: 2 * perWrite}, func(s *Server) {
		s.main.mux.Handle("GET /v1/stream", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			entered <- struct{}{}
			_, _ = w.Write(make([]byte, 256<<20)) // more than all buffers on the way
		}))
	})
	var stuck []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, "GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-entered
		for s.writing() <= len(stuck) {
			runtime.Gosched()
		}
		stuck = append(stuck, c)
	}
	if resp, _ := ask(t, http.DefaultClient, "GET", url+"/version", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("beside answers that are not read: %s", resp.Status)
	}
	if err := stuck[0].SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, stuck[0]); err != nil && os.IsTimeout(err) || n > 128<<20 {
		t.Errorf("the first answer went on: %d bytes, %v", n, err)
	}
	if n := s.writing(); n != 1 {
		t.Errorf("%d answers are being written, want the second one", n)
	}
}

// writing returns the number of answers that are being written.
func (s *Server) writing() int {
	s.main.conns.mu.Lock()
	defer s.main.conns.mu.Unlock()
	return s.main.conns.write.Len()
}

func TestProbesHaveAnAddressOfTheirOwn(t *testing.T) {
	s, url := run(t, Config{Program: access.Projector, Access: accessFile(t), Probes: "127.0.0.1:0", Metrics: prometheus.NewRegistry()}, func(s *Server) { s.Handle("GET /v1/projections", ok) })
	probes := "http://" + s.ProbeAddr()
	for _, path := range []string{"/livez", "/readyz", "/startupz", "/metrics"} {
		if resp, body := ask(t, http.DefaultClient, "GET", probes+path, nil); resp.StatusCode != 200 {
			t.Errorf("%s on the address for probes: %s %s", path, resp.Status, body)
		}
		resp, body := ask(t, http.DefaultClient, "GET", url+path, nil, "Authorization", "Bearer "+token(access.Read))
		wantProblem(t, path+" on the other address", resp, body, 404, "does not exist")
	}
	for _, path := range []string{"/v1/projections", "/version", "/debug/pprof/"} {
		if resp, _ := ask(t, http.DefaultClient, "GET", probes+path, nil); resp.StatusCode != 404 {
			t.Errorf("%s on the address for probes: %s", path, resp.Status)
		}
	}
}

// waiting returns the number of connections that wait for their client.
func (s *Server) waiting() int {
	s.main.conns.mu.Lock()
	defer s.main.conns.mu.Unlock()
	return s.main.conns.fresh.Len() + s.main.conns.known.Len()
}

// authority makes certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
	last int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.make("authority", nil)
	return a
}

// make makes a certificate, and writes it and its key to NAME.pem and NAME.key.
func (a *authority) make(name string, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.last++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: parent == nil, BasicConstraintsValid: true,
	}
	by, with := parent, a.key
	if parent == nil {
		by, with = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, &key.PublicKey, with)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: pkcs}} {
		if err := os.WriteFile(a.path(name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out, key
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// client returns a client that trusts the authority, with a certificate if name is not
// empty.
func (a *authority) client(name string) *http.Client {
	a.t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	c := &tls.Config{RootCAs: pool}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(a.path(name+".pem"), a.path(name+".key"))
		if err != nil {
			a.t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	a.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestCertificatesNameCallersAndAreReplacedWhileTheServerRuns(t *testing.T) {
	a := newAuthority(t)
	a.make("server", a.cert)
	a.make("ops", a.cert)
	a.make("stranger", a.cert)
	list := a.path("callers.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("certificates: [{name: operators, roles: [read], subject: CN=ops}]")
	s, url := run(t, Config{
		Program: access.Projector, Access: list,
		TLS: TLSFiles{Certificate: a.path("server.pem"), Key: a.path("server.key"), ClientCA: a.path("authority.pem")},
	}, func(s *Server) { s.Handle("GET /v1/projections", ok) })

	resp, body := ask(t, a.client("ops"), "GET", url+"/v1/projections", nil)
	if resp.StatusCode != 200 || body != "the caller is operators" || resp.ProtoMajor != 2 {
		t.Errorf("a caller with a certificate gets %s %s %s", resp.Proto, resp.Status, body)
	}
	resp, body = ask(t, a.client("stranger"), "GET", url+"/v1/projections", nil)
	wantProblem(t, "a certificate of a stranger", resp, body, 401, "not of a caller on the list")
	resp, body = ask(t, a.client(""), "GET", url+"/v1/projections", nil)
	wantProblem(t, "no certificate", resp, body, 401, "names no caller")

	write("certificates: [{name: operators, roles: [write], subject: CN=ops}]")
	s.callers.Check()
	resp, body = ask(t, a.client("ops"), "GET", url+"/v1/projections", nil)
	wantProblem(t, "a caller that lost a role", resp, body, 403, "operators lacks the role read")

	serial := resp.TLS.PeerCertificates[0].SerialNumber
	a.make("server", a.cert)
	s.certificates.Check()
	resp, _ = ask(t, a.client("ops"), "GET", url+"/v1/projections", nil)
	if now := resp.TLS.PeerCertificates[0].SerialNumber; now.Cmp(serial) == 0 {
		t.Errorf("the certificate is still number %v", now)
	}
}

func TestFaultsOfFlagsOfTheServer(t *testing.T) {
	a := newAuthority(t)
	a.make("server", a.cert)
	if err := os.WriteFile(a.path("empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		cfg  Config
		want string
	}{
		{Config{TLS: TLSFiles{Certificate: a.path("server.pem")}}, "TLS needs both --tls-cert and --tls-key"},
		{Config{TLS: TLSFiles{ClientCA: a.path("server.pem")}}, "TLS needs both --tls-cert and --tls-key"},
		{Config{TLS: TLSFiles{Certificate: a.path("none.pem"), Key: a.path("server.key")}}, "none.pem: no such file"},
		{Config{TLS: TLSFiles{Certificate: a.path("server.pem"), Key: a.path("authority.key")}}, "private key does not match"},
		{Config{TLS: TLSFiles{Certificate: a.path("server.pem"), Key: a.path("server.key"), ClientCA: a.path("empty")}}, "has no certificate in PEM"},
		{Config{Access: a.path("none.yaml")}, "--auth-file: "},
		{Config{Access: a.path("empty")}, "it names no caller"},
		{Config{Listen: "nowhere"}, "--listen: "},
	} {
		test.cfg.Conns = 1
		if test.cfg.Listen == "" {
			test.cfg.Listen = "127.0.0.1:0"
		}
		s, err := New(test.cfg)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("the error is %v, want one with %q", err, test.want)
		}
	}
}
