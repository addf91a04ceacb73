package codec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"millrace/pipeline"
)

// fakeClock is a clock that advances only when someone sleeps.
type fakeClock struct {
	mu    sync.Mutex
	time  time.Time
	slept []time.Duration
}

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.time
}

func (c *fakeClock) sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.time = c.time.Add(d)
	c.slept = append(c.slept, d)
	return ctx.Err()
}

// serve returns a client of a registry with the given handler, and the client's clock.
func serve(t *testing.T, answer http.HandlerFunc) (*Registry, *fakeClock) {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return connect(t, RegistryConfig{URLs: []string{server.URL}})
}

func connect(t *testing.T, cfg RegistryConfig) (*Registry, *fakeClock) {
	t.Helper()
	r, err := NewRegistry(cfg)
	if err != nil {
		t.Fatal(err)
	}
	clock := &fakeClock{time: time.Unix(1_000_000, 0)}
	r.now, r.sleep = clock.now, clock.sleep
	return r, clock
}

func reply(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client will report it
}

const orderSchema = `{"type":"record","name":"shop.Order","fields":[{"name":"id","type":"string"}]}`

func TestConcurrentCallersShareOneRequest(t *testing.T) {
	var requests atomic.Int32
	arrived, release := make(chan struct{}), make(chan struct{})
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if requests.Add(1) == 1 {
			close(arrived)
		}
		<-release
		reply(w, 200, sr.Schema{Schema: orderSchema})
	})
	const callers = 20
	got := make(chan *Schema, callers)
	get := func() {
		s, err := r.Schema(t.Context(), SchemaRef{ID: 7})
		if err != nil {
			t.Error(err)
		}
		got <- s
	}
	go get()
	<-arrived
	for range callers - 1 {
		go get()
	}
	close(release)
	first := <-got
	for range callers - 1 {
		if s := <-got; s != first {
			t.Error("two callers got different schemas")
		}
	}
	if again, err := r.Schema(t.Context(), SchemaRef{ID: 7}); again != first || err != nil {
		t.Errorf("a later call: %p, %v, want the cached schema", again, err)
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

func TestACanceledCallerDoesNotFailTheWaiters(t *testing.T) {
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
			reply(w, 200, sr.Schema{Schema: orderSchema})
		case <-req.Context().Done():
		}
	})
	first, cancel := context.WithCancel(t.Context())
	results := make(chan error, 2)
	get := func(ctx context.Context) {
		_, err := r.Schema(ctx, SchemaRef{ID: 7})
		results <- err
	}
	go get(first)
	<-arrived
	go get(t.Context())
	cancel()
	if err := <-results; !errors.Is(err, context.Canceled) || pipeline.ClassOf(err) != pipeline.ClassAbort {
		t.Errorf("the canceled caller got %v", err)
	}
	<-arrived // the waiter sends a request of its own
	close(release)
	if err := <-results; err != nil {
		t.Errorf("the waiter got %v", err)
	}
}

func TestUnknownSchemaIsRejectedAfterRetries(t *testing.T) {
	requests, known := 0, false
	r, clock := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if requests++; known {
			reply(w, 200, sr.Schema{Schema: orderSchema})
			return
		}
		reply(w, 404, map[string]any{"error_code": 40403, "message": "Schema 7 not found"})
	})
	_, err := r.Schema(t.Context(), SchemaRef{ID: 7})
	if pipeline.ReasonOf(err) != pipeline.ReasonUnknownSchema || requests != unknownTries {
		t.Fatalf("%d requests: %v", requests, err)
	}
	if !strings.Contains(err.Error(), "id 7") || !strings.Contains(err.Error(), "http://127.0.0.1") {
		t.Errorf("the error lacks the id or the URL: %v", err)
	}
	if len(clock.slept) != unknownTries-1 {
		t.Errorf("waits between the requests: %v", clock.slept)
	}
	known = true
	if _, again := r.Schema(t.Context(), SchemaRef{ID: 7}); !errors.Is(again, err) || requests != unknownTries {
		t.Errorf("%d requests: the rejection is not cached: %v", requests, again)
	}
	clock.time = clock.time.Add(unknownKept)
	if _, err := r.Schema(t.Context(), SchemaRef{ID: 7}); err != nil {
		t.Errorf("the rejection does not expire: %v", err)
	}
}

func TestSchemaThatIsRegisteredLateIsFound(t *testing.T) {
	requests := 0
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if requests++; requests < unknownTries {
			reply(w, 404, map[string]any{"error_code": 40403})
			return
		}
		reply(w, 200, sr.Schema{Schema: orderSchema})
	})
	if _, err := r.Schema(t.Context(), SchemaRef{ID: 7}); err != nil {
		t.Error(err)
	}
}

func TestExpiredRejectionsAreEvicted(t *testing.T) {
	r, clock := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 404, map[string]any{"error_code": 40403})
	})
	for id := range 50 {
		if _, err := r.Schema(t.Context(), SchemaRef{ID: id}); pipeline.ClassOf(err) != pipeline.ClassReject {
			t.Fatal(err)
		}
		clock.time = clock.time.Add(unknownKept)
	}
	if n := len(r.rejected); n != 1 {
		t.Errorf("%d rejections are cached, want only the one that has not expired", n)
	}
}

// A failure of the registry does not make an event bad, so it must not cause a dead
// letter.
func TestRegistryFailuresAreAbortsAndNotCached(t *testing.T) {
	tests := map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"store error": {func(w http.ResponseWriter, _ *http.Request) {
			reply(w, 500, map[string]any{"error_code": 50001, "message": "no leader"})
		}, "answers 500: no leader; check the registry's log"},
		"overloaded":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "answers 503"},
		"too many requests": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, "limits the rate"},
		"unauthorized": {func(w http.ResponseWriter, _ *http.Request) {
			reply(w, 401, map[string]any{"error_code": 401, "message": "Unauthorized"})
		}, "check user and password"},
		"forbidden":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, "lacks the permission"},
		"a proxy's 404": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>nothing here</html>", 404) }, "is the path of its URL complete?"},
		"no such request": {func(w http.ResponseWriter, _ *http.Request) {
			reply(w, 404, map[string]any{"error_code": 404, "message": "HTTP 404 Not Found"})
		}, "is the path of its URL complete?"},
		"no JSON":             {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>welcome</html>") }, "does not answer"},
		"hangs up":            {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "does not answer"},
		"an endless response": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte(" "), maxResponse+1)) }, "more than 16 MiB"},
		"a long error page":   {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat("x", 100_000), 500) }, "xxx..."},
		"reference missing": {func(w http.ResponseWriter, req *http.Request) {
			if strings.HasPrefix(req.URL.Path, "/schemas/") {
				reply(w, 200, sr.Schema{Schema: orderSchema, References: []sr.SchemaReference{{Name: "x", Subject: "items", Version: 3}}})
				return
			}
			w.WriteHeader(503)
		}, "its reference to items version 3"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int32
			r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
				requests.Add(1)
				test.answer(w, req)
			})
			_, err := r.Schema(t.Context(), SchemaRef{ID: 7})
			if err == nil || pipeline.ClassOf(err) != pipeline.ClassAbort {
				t.Fatalf("class %v: %v", pipeline.ClassOf(err), err)
			}
			for _, want := range []string{test.want, "schema id 7", r.where} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q: %v", want, err)
				}
			}
			if len(err.Error()) > maxMessage+500 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			before := requests.Load()
			if _, err := r.Schema(t.Context(), SchemaRef{ID: 7}); err == nil || requests.Load() == before {
				t.Errorf("the failure was cached: %v", err)
			}
		})
	}
}

func TestRegistryThatIsDown(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	down := server.URL
	server.Close()
	r, _ := connect(t, RegistryConfig{URLs: []string{down}})
	for what, err := range map[string]error{
		"schema":   func() error { _, err := r.Schema(t.Context(), SchemaRef{ID: 1}); return err }(),
		"ping":     r.Ping(t.Context()),
		"register": func() error { _, err := r.Register(t.Context(), "s", mustParse(t, orderSchema)); return err }(),
		"lookup":   func() error { _, err := r.Lookup(t.Context(), "s", mustParse(t, orderSchema)); return err }(),
		"check":    r.Compatible(t.Context(), "s", mustParse(t, orderSchema)),
		"level":    r.SetCompatibility(t.Context(), "s", "FULL"),
	} {
		if err == nil || pipeline.ClassOf(err) != pipeline.ClassAbort || !strings.Contains(err.Error(), down) ||
			errors.Is(err, ErrNotRegistered) || errors.Is(err, ErrIncompatible) {
			t.Errorf("%s: %v", what, err)
		}
	}

	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, sr.Schema{Schema: orderSchema})
	}))
	defer up.Close()
	r, _ = connect(t, RegistryConfig{URLs: []string{down, up.URL}})
	if _, err := r.Schema(t.Context(), SchemaRef{ID: 1}); err != nil {
		t.Errorf("the second URL was not tried: %v", err)
	}
}

func TestUnreadableSchemasAreRejected(t *testing.T) {
	for name, schema := range map[string]sr.Schema{
		"another language": {Schema: `syntax = "proto3";`, Type: sr.TypeProtobuf},
		"not Avro":         {Schema: `{"type":"table"}`},
		"refers to itself": {Schema: orderSchema, References: []sr.SchemaReference{{Name: "shop.Item", Subject: "items", Version: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
				// The requested schema; its chain of references, if any, is endless.
				if strings.HasPrefix(req.URL.Path, "/schemas/") {
					reply(w, 200, schema)
					return
				}
				var version int
				if _, err := fmt.Sscanf(req.URL.Path, "/subjects/items/versions/%d", &version); err != nil {
					t.Error(err)
				}
				reply(w, 200, sr.SubjectSchema{Schema: sr.Schema{Schema: `"int"`,
					References: []sr.SchemaReference{{Name: "shop.Item", Subject: "items", Version: version + 1}}}})
			})
			if _, err := r.Schema(t.Context(), SchemaRef{ID: 1}); pipeline.ReasonOf(err) != pipeline.ReasonBadSchema {
				t.Error(err)
			}
		})
	}
}

func TestReferencesAreInlined(t *testing.T) {
	requests := map[string]int{}
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		requests[req.URL.Path]++
		price := sr.SchemaReference{Name: "shop.Price", Subject: "price", Version: 1}
		switch req.URL.Path {
		case "/schemas/ids/3":
			reply(w, 200, sr.Schema{
				Schema:     `{"type":"record","name":"shop.Cart","fields":[{"name":"item","type":"shop.Item"},{"name":"total","type":"shop.Price"}]}`,
				References: []sr.SchemaReference{{Name: "shop.Item", Subject: "item", Version: 2}, price},
			})
		case "/subjects/item/versions/2":
			reply(w, 200, sr.Schema{Schema: `{"type":"record","name":"shop.Item","fields":[{"name":"price","type":"shop.Price"}]}`, References: []sr.SchemaReference{price}})
		case "/subjects/price/versions/1":
			reply(w, 200, sr.Schema{Schema: `{"type":"record","name":"shop.Price","fields":[{"name":"cents","type":"long"}]}`})
		}
	})
	s, err := r.Schema(t.Context(), SchemaRef{ID: 3})
	if err != nil {
		t.Fatal(err)
	}
	price := s.Root().Field("total").Type
	if s.Root().Field("item").Type.Field("price").Type != price || price.Field("cents").Type.Kind != Long {
		t.Errorf("the schema is %s", s)
	}
	if again, err := ParseSchema(s.String()); err != nil || !SameBytes(s, again) {
		t.Errorf("its text is not complete: %v\n%s", err, s)
	}
	if n := requests["/subjects/price/versions/1"]; n != 1 {
		t.Errorf("%d requests for a schema with two references to it, want 1", n)
	}
}

// A union of references is several event types in one subject. The references have
// references of their own.
func TestUnionOfReferencesIsInlined(t *testing.T) {
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		ref := func(name string) sr.SchemaReference {
			return sr.SchemaReference{Name: "shop." + name, Subject: name, Version: 1}
		}
		switch req.URL.Path {
		case "/schemas/ids/3":
			reply(w, 200, sr.Schema{Schema: `["shop.Cart","shop.Item"]`, References: []sr.SchemaReference{ref("Item"), ref("Cart")}})
		case "/subjects/Cart/versions/1":
			reply(w, 200, sr.Schema{Schema: `{"type":"record","name":"Cart","namespace":"shop","fields":[{"name":"item","type":["null","Item"]}]}`, References: []sr.SchemaReference{ref("Item")}})
		case "/subjects/Item/versions/1":
			reply(w, 200, sr.Schema{Schema: `{"type":"record","name":"shop.Item","fields":[{"name":"cents","type":"long"}]}`})
		}
	})
	s, err := r.Schema(t.Context(), SchemaRef{ID: 3})
	if err != nil {
		t.Fatal(err)
	}
	if s.Name() != "shop.Cart or shop.Item" || s.Root().Branches[0].Field("item").Type.Branches[1] != s.Root().Branches[1] {
		t.Errorf("the schema is %s", s)
	}
}

func TestRequestsCarryCredentialsAndUserAgent(t *testing.T) {
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		got = req.Header
		reply(w, 200, []string{"AVRO"})
	}))
	defer server.Close()
	for _, test := range []struct {
		cfg  RegistryConfig
		want string
	}{
		{RegistryConfig{}, ""},
		{RegistryConfig{User: "ann", Password: "pw"}, "Basic YW5uOnB3"},
		{RegistryConfig{Token: "t0ken"}, "Bearer t0ken"},
	} {
		test.cfg.URLs, test.cfg.UserAgent = []string{server.URL}, "millrace/test"
		r, _ := connect(t, test.cfg)
		if err := r.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got.Get("Authorization") != test.want || got.Get("User-Agent") != "millrace/test" {
			t.Errorf("headers %v, expected authorization %q", got, test.want)
		}
	}
	for _, cfg := range []RegistryConfig{{}, {URLs: []string{server.URL}, User: "ann", Token: "t"}} {
		if _, err := NewRegistry(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

func TestCompatibleFallsBackToTheLatestVersion(t *testing.T) {
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if !strings.HasSuffix(req.URL.Path, "/versions/latest") {
			reply(w, 404, map[string]any{"error_code": 404, "message": "not found"})
			return
		}
		reply(w, 200, map[string]any{"is_compatible": false})
	})
	if err := r.Compatible(t.Context(), "s", mustParse(t, orderSchema)); !errors.Is(err, ErrIncompatible) {
		t.Error(err)
	}
}

// An error of a registry that cannot be reached has its address once.
func TestAnUnreachableRegistryIsNamedOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	where := "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := NewRegistry(RegistryConfig{URLs: []string{where}})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Ping(t.Context())
	if err == nil || strings.Count(err.Error(), where) != 1 || !strings.Contains(err.Error(), "connection refused") || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the error is %v", err)
	}
}
