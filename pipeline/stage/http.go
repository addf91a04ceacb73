package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage/responses"
)

// The reasons of rejections by an http stage.
const (
	ReasonHTTPRequest     pipeline.Reason = "http_request"     // the request is invalid
	ReasonHTTPStatus      pipeline.Reason = "http_status"      // the service refused the request
	ReasonHTTPResponse    pipeline.Reason = "http_response"    // the response does not match its schema
	ReasonHTTPUnavailable pipeline.Reason = "http_unavailable" // the service did not respond
)

// maxResponse is the maximum size of a response in bytes.
const maxResponse = 1 << 20

// A Waiter is a stage that spends most of its time waiting. Several of its clones may
// run concurrently if events with the same key stay in order.
type Waiter interface {
	// Concurrency returns the maximum number of concurrent clones.
	Concurrency() int
}

// An Requester is a stage that sends requests to services.
type Requester interface {
	// SetTransport replaces the transport of the requests and clears the cache of
	// responses. It is called before Clone.
	SetTransport(http.RoundTripper)

	// SpareService makes this clone pass all events unchanged, as it does for a missing
	// row with missing: keep. It calls spared for each of them, and sends no request.
	SpareService(spared func())
}

// HTTP is the stage that sends a request to a service.
func HTTP() Kind {
	add := addFromRow()
	add.Doc = addDoc + " See add of enrich."
	return Kind{
		Name: "http",
		Doc: "Sends an HTTP request to a service and sets fields from the JSON response. " +
			"The request is sent again when a batch is aborted and retried, so it must be safe to repeat. " +
			"The request is retried after a timeout, a connection error, or the status 408, 429 or 5xx. Any other status outside 2xx rejects the event.",
		Params: []Param{
			{Name: "url", Form: Expression, Required: true, Doc: "The URL. It is not escaped, so pass values from the event in query, unless they contain only letters and digits."},
			{Name: "query", Form: Assignments, Doc: "Maps the names of query parameters to their values (strings). The values are escaped."},
			{Name: "method", Form: Word, Default: http.MethodGet, Values: []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodHead}, Doc: "The method of the request."},
			{Name: "headers", Form: Assignments, Doc: "Maps the names of headers to their values (strings)."},
			{Name: "body", Form: Expression, Doc: "The body of the request (a string)."},
			{Name: "response", Form: Word, Doc: "The record schema of the response body, from the schemas directory. Its fields are response.body.PATH. Fields of the response that are not in the schema are ignored. Without this parameter, only response.status is available."},
			{Name: "set", Form: Assignments, Doc: setDoc},
			add,
			{Name: "missing", Form: Word, Default: missingDeadLetter, Values: []string{missingKeep, missingDrop, missingDeadLetter},
				Doc: "The handling of an event if the status is 404 or 410: keep passes it unchanged; drop filters it; dead_letter rejects it."},
			{Name: "timeout", Form: Duration, Default: "2s", Doc: "The timeout of one request."},
			{Name: "retries", Form: Number, Default: "3", Min: 0, Max: 10, Doc: "The number of retries before the service counts as unavailable. The backoff is 100 ms, 200 ms, 400 ms and so on, or longer if the response has a Retry-After header, but at most timeout."},
			{Name: "unavailable", Form: Word, Default: "abort", Values: []string{"abort", missingDeadLetter},
				Doc: "The handling of an event if the service is unavailable: abort aborts the batch and retries it with backoff; dead_letter rejects the event."},
			{Name: "cache", Form: Group, Doc: "Responses are cached and reused for identical requests.", Params: []Param{
				{Name: "for", Form: Duration, Default: "1m", Doc: "The lifetime of a cached response."},
				{Name: "entries", Form: Number, Default: "10000", Min: 0, Max: 10_000_000, Doc: "The maximum number of cached responses; 0 turns the cache off."},
			}},
			{Name: "concurrency", Form: Number, Default: "16", Min: 1, Max: 1024, Doc: "The maximum number of requests in flight per session."},
		},
		Example: `on: [OrderCreated]
url: "'http://scores.internal/users/' + data.user_id"
add: {data.status: {type: int, value: response.status}}`,
		AddsFields: true,
		New:        newHTTP,
	}
}

// call is the http stage. All clones share the HTTP client and the cache, which are
// safe for concurrent use.
type call struct {
	enrich                         // the assignments; the response is view 1
	urls, bodies []*expr.Program   // by type; urls is nil if the stage does not handle the type, bodies if there is no body
	named        [][]*expr.Program // by type: the values of the headers, then of the query parameters
	headers      []string
	query        []string
	method       string
	schema       *codec.Schema   // of the response: its status and its body
	body         *codec.Node     // schema of the body; nil if the body is not read
	views        []*codec.Layout // of the response, by event type
	missing      string          // the value of the parameter missing
	timeout      time.Duration
	retries      int
	abort        bool // abort the batch if the service is unavailable, else reject the event
	concurrency  int
	client       *http.Client
	cache        *responses.Cache

	// Owned by the clone.
	missed  int
	spared  func() // called instead of the service; nil: requests are sent
	view    pipeline.View
	request []byte   // cache key of the current request
	parts   [][]byte // of the current request: URL, body, headers, query parameters
}

func newHTTP(in Input) (Built, []expr.Fault) {
	arg := func(name string) Arg { a, _ := in.Args.Find(name); return a }
	s := &call{
		enrich: enrich{sets: make([][]assignment, len(in.Types)), grown: make([]*codec.Schema, len(in.Types))},
		urls:   make([]*expr.Program, len(in.Types)), bodies: make([]*expr.Program, len(in.Types)),
		named: make([][]*expr.Program, len(in.Types)), views: make([]*codec.Layout, len(in.Types)),
		method: arg("method").Value.Text, missing: arg("missing").Value.Text, timeout: arg("timeout").Duration,
		retries: int(arg("retries").Number), abort: arg("unavailable").Value.Text == "abort", concurrency: int(arg("concurrency").Number),
	}
	var faults []expr.Fault
	if s.timeout <= 0 || s.timeout > maxWait {
		faults = append(faults, fault(arg("timeout").Value, "a transaction is open during the request", "the timeout of a request must be greater than 0 and at most %v", maxWait))
	}
	faults = append(faults, s.parseResponse(in, arg("response"))...)
	if s.schema == nil {
		return s, faults
	}
	for _, given := range arg("headers").Entries {
		if !isHeaderName(given.Key.Text) {
			faults = append(faults, fault(given.Key, "use letters, digits and hyphens", "%q is not a valid header name", given.Key.Text))
		}
		s.headers = append(s.headers, given.Key.Text)
	}
	for _, given := range arg("query").Entries {
		s.query = append(s.query, given.Key.Text)
	}
	for i, t := range in.Types {
		if t.On {
			more := s.exchange(i, t, in.Args)
			if len(more) == 0 {
				again, ok, gaps := s.rebuilt(i, t, in.At)
				if more = gaps; ok {
					more = append(more, s.exchange(i, again, in.Args)...)
				}
			}
			faults = append(faults, more...)
		}
	}
	keep, entries := time.Minute, int64(10_000)
	if group := arg("cache"); len(group.Items) == 1 {
		if a, ok := group.Items[0].Args.Find("for"); ok {
			keep = a.Duration
		}
		if a, ok := group.Items[0].Args.Find("entries"); ok {
			entries = a.Number
		}
	}
	s.cache = responses.New(keep, entries)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost, transport.MaxIdleConns = s.concurrency, 4*s.concurrency
	transport.MaxResponseHeaderBytes = 64 << 10
	s.client = &http.Client{
		Transport: transport,
		// Redirects are not followed: event data is only sent to URLs from the
		// topology. An operator has to update the URL.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, faults
}

// parseResponse sets the schema of the response.
func (s *call) parseResponse(in Input, response Arg) []expr.Fault {
	fields := `{"name": "status", "type": "int"}`
	if name := response.Value.Text; name != "" {
		body, err := in.Schema(name)
		if err != nil {
			return expr.PlaceErrors(response.Value, "", err)
		}
		s.body = body.Root()
		fields += `, {"name": "body", "type": ` + body.String() + `}`
	}
	var err error
	s.schema, err = codec.ParseSchema(`{"type": "record", "name": "HTTPResponse", "fields": [` + fields + `]}`)
	return expr.PlaceErrors(response.Value, "", err)
}

// exchange compiles the expressions of the request and the response for one type.
func (s *call) exchange(typ int, t Type, args Args) (faults []expr.Fault) {
	s.named[typ] = nil
	text := func(src expr.Source, what string) *expr.Program {
		p, more := t.Env.CompileAt(src, t.Name, expr.Value(&codec.Node{Kind: codec.String}, what, t.Name))
		faults = append(faults, more...)
		return p
	}
	address, _ := args.Find("url")
	s.urls[typ] = text(address.Value, "the URL")
	if body, ok := args.Find("body"); ok {
		s.bodies[typ] = text(body.Value, "the body")
	}
	headers, _ := args.Find("headers")
	for _, given := range headers.Entries {
		s.named[typ] = append(s.named[typ], text(given.Value, "the header"))
	}
	query, _ := args.Find("query")
	for _, given := range query.Entries {
		s.named[typ] = append(s.named[typ], text(given.Value, "the parameter"))
	}
	var err error
	if t.Env, err = t.With(expr.Root{Name: "response", Schema: s.schema, View: 1}); err != nil {
		return append(faults, expr.PlaceErrors(address.Key, t.Name, err)...)
	}
	set, _ := args.Find("set")
	add, _ := args.Find("add")
	faults = append(faults, s.compile(typ, t, set, add)...)
	if s.views[typ], err = codec.NewLayout(s.schema, s.paths(typ, 1)); err != nil {
		faults = append(faults, expr.PlaceErrors(address.Key, t.Name, err)...)
	}
	return faults
}

func (s *call) Reads(typ int) [][]string {
	paths := appendPaths(s.paths(typ, 0), s.urls[typ], s.bodies[typ])
	return appendPaths(paths, s.named[typ]...)
}

// Volatile implements [Built]: all effects depend on the responses of the service.
func (s *call) Volatile(typ int) (fields [][]string, fate bool) {
	return s.Sets(typ), s.urls[typ] != nil
}

func (s *call) Bind(layouts []*codec.Layout) error {
	for typ, p := range s.urls {
		if p == nil {
			continue
		}
		for _, p := range append([]*expr.Program{p, s.bodies[typ]}, s.named[typ]...) {
			if p != nil {
				if err := p.Bind(layouts[typ]); err != nil {
					return err
				}
			}
		}
		if err := s.bind(typ, layouts[typ], s.views[typ]); err != nil {
			return err
		}
	}
	return nil
}

func (s *call) Clone() Built {
	c := *s
	c.enrich = *s.enrich.clone()
	c.missed, c.spared, c.view, c.request, c.parts = 0, nil, pipeline.View{}, nil, nil
	return &c
}

// Concurrency implements [Waiter].
func (s *call) Concurrency() int { return s.concurrency }

// Misses implements [MissCounter].
func (s *call) Misses() int {
	n := s.missed
	s.missed = 0
	return n
}

// MaxDelay implements [Delayer]. If an unavailable service leads to dead letters, the
// transaction must stay open for all retries of an event and the waits between them;
// otherwise it would time out each time, and no dead letter would be written. If an
// unavailable service aborts the batch, a transaction timeout has the same effect, so
// no extra time is needed.
func (s *call) MaxDelay() time.Duration {
	if s.abort {
		return 0
	}
	return time.Duration(2*s.retries+1) * s.timeout
}

var (
	_ Requester   = (*call)(nil)
	_ Delayer     = (*call)(nil)
	_ MissCounter = (*call)(nil)
)

// SetTransport implements [Requester].
func (s *call) SetTransport(transport http.RoundTripper) {
	s.client.Transport = transport
	s.cache = s.cache.Cleared()
}

// SpareService implements [Requester].
func (s *call) SpareService(spared func()) { s.spared = spared }

func (s *call) Process(ctx context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if s.urls[e.Type] == nil {
		return pipeline.Pass, nil
	}
	if s.rebuilds != nil {
		if err := s.rebuild(e); err != nil {
			return pipeline.Drop, err
		}
	}
	if s.spared != nil {
		s.spared()
		return pipeline.Pass, nil
	}
	s.scope.Reset(e.Started, &e.View)
	if err := s.prepare(e); err != nil {
		return pipeline.Drop, err
	}
	response, ok := s.cache.Get(s.request)
	if !ok {
		var err error
		if response, err = s.send(ctx); err != nil {
			return pipeline.Drop, err
		}
		s.cache.Put(s.request, response)
	}
	if len(response) == 0 { // missing
		switch s.missing {
		case missingKeep:
			s.missed++
			return pipeline.Pass, nil
		case missingDrop:
			return pipeline.Drop, nil
		}
		return pipeline.Drop, pipeline.Reject(ReasonHTTPStatus, "%s %s: not found (status 404 or 410)", s.method, s.parts[0])
	}
	if err := s.views[e.Type].Walk(response, &s.view); err != nil {
		return pipeline.Drop, err
	}
	s.scope.Reset(e.Started, &e.View, &s.view)
	return pipeline.Pass, s.apply(e)
}

// prepare evaluates the parts of the request (URL, body, headers, query parameters)
// and the cache key.
func (s *call) prepare(e *pipeline.Event) error {
	s.request, s.parts = s.request[:0], s.parts[:0]
	add := func(p *expr.Program) error {
		if p == nil {
			s.parts = append(s.parts, nil)
			return nil
		}
		enc, err := appendIn(&s.scope, e, p)
		if err != nil {
			return err
		}
		s.request = append(s.request, enc...) // enc starts with its length, so different parts give different keys
		text, _, err := codec.ReadText(enc)
		s.parts = append(s.parts, text)
		return err
	}
	if err := add(s.urls[e.Type]); err != nil {
		return err
	}
	if err := add(s.bodies[e.Type]); err != nil {
		return err
	}
	for _, p := range s.named[e.Type] {
		if err := add(p); err != nil {
			return err
		}
	}
	return nil
}

// send sends the request, with retries, and returns the response as Avro. The
// response is empty if the status is 404 or 410.
func (s *call) send(ctx context.Context) ([]byte, error) {
	u, err := url.Parse(string(s.parts[0]))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, pipeline.Reject(ReasonHTTPRequest, "%.200q is not an http or https URL", s.parts[0])
	}
	if len(s.query) > 0 {
		query := u.Query()
		for i, name := range s.query {
			query.Set(name, string(s.parts[2+len(s.headers)+i]))
		}
		u.RawQuery = query.Encode()
	}
	for try := 0; ; try++ {
		response, after, err := s.try(ctx, u)
		if err == nil || pipeline.ClassOf(err) == pipeline.ClassReject {
			return response, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if try == s.retries {
			err = fmt.Errorf("%s %s: failed %d times: %w", s.method, u.Redacted(), try+1, err)
			if s.abort {
				return nil, err
			}
			return nil, &pipeline.RejectError{Reason: ReasonHTTPUnavailable, Err: err}
		}
		wait := 100 * time.Millisecond << try
		wait += rand.N(wait / 2) // jitter: workers must not retry at the same time
		timer := time.NewTimer(min(max(wait, after), s.timeout))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

// try sends the request once. An error that is not a rejection is a failure of the
// service and can be retried; after is the delay that the service requested.
func (s *call) try(ctx context.Context, u *url.URL) (response []byte, after time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	var body io.Reader
	if s.parts[1] != nil {
		body = bytes.NewReader(s.parts[1])
	}
	req, err := http.NewRequestWithContext(ctx, s.method, u.String(), body)
	if err != nil {
		return nil, 0, pipeline.Reject(ReasonHTTPRequest, "%w", err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i, name := range s.headers {
		value := s.parts[2+i]
		if bytes.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return nil, 0, pipeline.Reject(ReasonHTTPRequest, "the value of header %s contains a control character", name)
		}
		req.Header.Set(name, string(value))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	if err != nil {
		return nil, 0, err
	}
	switch status := resp.StatusCode; {
	case status == http.StatusNotFound || status == http.StatusGone:
		return nil, 0, nil
	case status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return nil, time.Duration(seconds) * time.Second, fmt.Errorf("status %s: %.200s", resp.Status, text)
	case status < 200 || status > 299:
		return nil, 0, pipeline.Reject(ReasonHTTPStatus, "%s %s: status %s: %.200s", s.method, u.Redacted(), resp.Status, text)
	case len(text) > maxResponse:
		return nil, 0, pipeline.Reject(ReasonHTTPResponse, "%s %s: the response is larger than %d bytes", s.method, u.Redacted(), maxResponse)
	}
	response, err = s.encode(resp.StatusCode, text)
	if err != nil {
		return nil, 0, pipeline.Reject(ReasonHTTPResponse, "%s %s: decode the response: %w", s.method, u.Redacted(), err)
	}
	return response, 0, nil
}

func isHeaderName(name string) bool {
	return name != "" && strings.Trim(name, "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

// encode returns the response as Avro.
func (s *call) encode(status int, text []byte) ([]byte, error) {
	fields := map[string]any{"status": json.Number(strconv.Itoa(status))}
	if s.body != nil {
		if err := codec.CheckJSON(text); err != nil {
			return nil, err
		}
		var v any
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return nil, errors.New("unexpected data after the JSON value")
		}
		prune(s.body, v)
		fields["body"] = v
	}
	return codec.EncodeJSON(s.schema, fields)
}

// prune removes the fields that are not in the schema from a JSON value, because a
// service may add fields at any time.
func prune(n *codec.Node, v any) {
	n = n.NotNull()
	switch v := v.(type) {
	case map[string]any:
		for name, inner := range v {
			if n.Kind == codec.Map {
				prune(n.Elem, inner)
			} else if n.Kind == codec.Record {
				if f := n.Field(name); f != nil {
					prune(f.Type, inner)
				} else {
					delete(v, name)
				}
			}
		}
	case []any:
		if n.Kind == codec.Array {
			for _, item := range v {
				prune(n.Elem, item)
			}
		}
	}
}
