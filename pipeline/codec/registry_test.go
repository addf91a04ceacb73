package codec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"millrace/pipeline"
)

// fakeClock is a clock that only sleepers move.
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

// serve returns a client of a registry that answers so, and its clock.
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
	_ = json.NewEncoder(w).Encode(v) // the client will say so
}

const orderSchema = `{"type":"record","name":"shop.Order","fields":[{"name":"id","type":"string"}]}`

func TestSchemaIsAskedForOnce(t *testing.T) {
	var asked atomic.Int32
	arrived, release := make(chan struct{}), make(chan struct{})
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if asked.Add(1) == 1 {
			close(arrived)
		}
		<-release
		reply(w, 200, sr.Schema{Schema: orderSchema})
	})
	const callers = 20
	got := make(chan *Schema, callers)
	ask := func() {
		s, err := r.Schema(t.Context(), SchemaRef{ID: 7})
		if err != nil {
			t.Error(err)
		}
		got <- s
	}
	go ask()
	<-arrived
	for range callers - 1 {
		go ask()
	}
	close(release)
	first := <-got
	for range callers - 1 {
		if s := <-got; s != first {
			t.Error("two callers got two schemas")
		}
	}
	if again, err := r.Schema(t.Context(), SchemaRef{ID: 7}); again != first || err != nil {
		t.Errorf("asked again: %p, %v, expected the schema that is known", again, err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the registry was asked %d times", n)
	}
}

func TestCallerWhoGivesUpDoesNotFailTheOthers(t *testing.T) {
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
			reply(w, 200, sr.Schema{Schema: orderSchema})
		case <-req.Context().Done():
		}
	})
	hasty, giveUp := context.WithCancel(t.Context())
	results := make(chan error, 2)
	ask := func(ctx context.Context) {
		_, err := r.Schema(ctx, SchemaRef{ID: 7})
		results <- err
	}
	go ask(hasty)
	<-arrived
	go ask(t.Context())
	giveUp()
	if err := <-results; !errors.Is(err, context.Canceled) || pipeline.ClassOf(err) != pipeline.ClassAbort {
		t.Errorf("who gave up got %v", err)
	}
	<-arrived // the other asks for itself, however it had waited
	close(release)
	if err := <-results; err != nil {
		t.Errorf("who waited got %v", err)
	}
}

func TestUnknownSchemaIsRejectedAfterAskingAgain(t *testing.T) {
	asked, known := 0, false
	r, clock := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if asked++; known {
			reply(w, 200, sr.Schema{Schema: orderSchema})
			return
		}
		reply(w, 404, map[string]any{"error_code": 40403, "message": "Schema 7 not found"})
	})
	_, err := r.Schema(t.Context(), SchemaRef{ID: 7})
	if pipeline.ReasonOf(err) != pipeline.ReasonUnknownSchema || asked != unknownTries {
		t.Fatalf("asked %d times: %v", asked, err)
	}
	if !strings.Contains(err.Error(), "id 7") || !strings.Contains(err.Error(), "http://127.0.0.1") {
		t.Errorf("the error does not say what and where: %v", err)
	}
	if len(clock.slept) != unknownTries-1 {
		t.Errorf("waits between the questions: %v", clock.slept)
	}
	known = true
	if _, again := r.Schema(t.Context(), SchemaRef{ID: 7}); !errors.Is(again, err) || asked != unknownTries {
		t.Errorf("asked %d times: the no is not kept: %v", asked, again)
	}
	clock.time = clock.time.Add(unknownKept)
	if _, err := r.Schema(t.Context(), SchemaRef{ID: 7}); err != nil {
		t.Errorf("the no is kept for ever: %v", err)
	}
}

func TestSchemaThatComesLateIsFound(t *testing.T) {
	asked := 0
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		if asked++; asked < unknownTries {
			reply(w, 404, map[string]any{"error_code": 40403})
			return
		}
		reply(w, 200, sr.Schema{Schema: orderSchema})
	})
	if _, err := r.Schema(t.Context(), SchemaRef{ID: 7}); err != nil {
		t.Error(err)
	}
}

func TestUnknownSchemasDoNotPileUp(t *testing.T) {
	r, clock := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 404, map[string]any{"error_code": 40403})
	})
	for id := range 50 {
		if _, err := r.Schema(t.Context(), SchemaRef{ID: id}); pipeline.ClassOf(err) != pipeline.ClassReject {
			t.Fatal(err)
		}
		clock.time = clock.time.Add(unknownKept)
	}
	if n := len(r.unknown); n != 1 {
		t.Errorf("%d answers of no are kept, most of them run out", n)
	}
}

// Trouble with a registry says nothing about an event: it must never become a
// dead letter for that.
func TestTroubleIsNeverAReject(t *testing.T) {
	tests := map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"store error": {func(w http.ResponseWriter, _ *http.Request) {
			reply(w, 500, map[string]any{"error_code": 50001, "message": "no leader"})
		}, "answers 500: no leader; look at"},
		"overloaded":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "answers 503"},
		"too many requests": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, "asked too often"},
		"unauthorized": {func(w http.ResponseWriter, _ *http.Request) {
			reply(w, 401, map[string]any{"error_code": 401, "message": "Unauthorized"})
		}, "check user and password"},
		"forbidden":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, "may not do that"},
		"a proxy's 404": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>nothing here</html>", 404) }, "is the path of its URL complete?"},
		"no such request": {func(w http.ResponseWriter, _ *http.Request) {
			reply(w, 404, map[string]any{"error_code": 404, "message": "HTTP 404 Not Found"})
		}, "is the path of its URL complete?"},
		"no JSON":             {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>welcome</html>") }, "gives no answer"},
		"hangs up":            {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "gives no answer"},
		"answers without end": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte(" "), maxAnswer+1)) }, "more than 16 MiB"},
		"a page of an error":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, strings.Repeat("x", 100_000), 500) }, "xxx..."},
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
			var asked atomic.Int32
			r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
				asked.Add(1)
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
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			before := asked.Load()
			if _, err := r.Schema(t.Context(), SchemaRef{ID: 7}); err == nil || asked.Load() == before {
				t.Errorf("the trouble was kept as an answer: %v", err)
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

func TestSchemasThatWeCannotReadAreRejected(t *testing.T) {
	for name, schema := range map[string]sr.Schema{
		"another language": {Schema: `syntax = "proto3";`, Type: sr.TypeProtobuf},
		"no Avro":          {Schema: `{"type":"table"}`},
		"refers to itself": {Schema: orderSchema, References: []sr.SchemaReference{{Name: "shop.Item", Subject: "items", Version: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
				// The first is what is asked for; the references, if any, never end.
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

func TestReferencesArePutIn(t *testing.T) {
	asked := map[string]int{}
	r, _ := serve(t, func(w http.ResponseWriter, req *http.Request) {
		asked[req.URL.Path]++
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
		t.Errorf("its text does not stand alone: %v\n%s", err, s)
	}
	if n := asked["/subjects/price/versions/1"]; n != 1 {
		t.Errorf("a schema that two refer to was asked for %d times", n)
	}
}

func TestCredentials(t *testing.T) {
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
			t.Errorf("%+v is taken", cfg)
		}
	}
}

func TestCheckOnARegistryWithoutTheNewerRequest(t *testing.T) {
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
