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
	"sync"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// Why an http stage rejects an event.
const (
	ReasonHTTPRequest     pipeline.Reason = "http_request"     // it makes no request
	ReasonHTTPStatus      pipeline.Reason = "http_status"      // the service refused it
	ReasonHTTPResponse    pipeline.Reason = "http_response"    // the answer is not what was declared
	ReasonHTTPUnavailable pipeline.Reason = "http_unavailable" // the service did not answer
)

// maxResponse bounds the bytes of an answer.
const maxResponse = 1 << 20

// A Waiter is a stage that mostly waits. Several of its clones may be at work at
// the same time, as long as events of one key go through in order.
type Waiter interface {
	// Concurrency returns how many of them there should be at most.
	Concurrency() int
}

// An Asker is a stage that asks services.
type Asker interface {
	// AskThrough sends its requests through another transport, and forgets the
	// answers that it keeps. It is called before Clone.
	AskThrough(http.RoundTripper)
}

// HTTP is the stage that asks a service.
func HTTP() Kind {
	add := addFromRow()
	add.Doc = "From the path of a field that is not there to its type and value, as in enrich."
	return Kind{
		Name: "http",
		Doc: "Asks a service over HTTP and sets fields from its answer, which is JSON. " +
			"A batch that is rolled back asks again, so a request must do no harm when it is repeated. " +
			"What hinders the service, which is no answer in time or the status 408, 429 or 5xx, is tried again; any other status but 2xx rejects the event.",
		Params: []Param{
			{Name: "url", Form: Expression, Required: true, Doc: "Where to ask. It is taken as it is: give what comes from the event as query, unless it is sure to be made of letters and digits."},
			{Name: "query", Form: Assignments, Doc: "From the names of query parameters to their values, which are texts and are escaped."},
			{Name: "method", Form: Word, Default: http.MethodGet, Values: []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodHead}, Doc: "The request's method."},
			{Name: "headers", Form: Assignments, Doc: "From the names of headers to their values, which are texts."},
			{Name: "body", Form: Expression, Doc: "What to send, a text."},
			{Name: "response", Form: Word, Doc: "The record that the answer is, in the schemas directory. Its fields are response.body.PATH; fields of the answer that it lacks are left out. Without it there is only response.status."},
			{Name: "set", Form: Assignments, Doc: "From the path of a field that is there, or of an entry of a map (metadata.KEY), to its new value."},
			add,
			{Name: "missing", Form: Word, Default: missingDeadLetter, Values: []string{missingKeep, missingDrop, missingDeadLetter},
				Doc: "What to do with an event whose answer has the status 404 or 410: keep it as it is; drop it, as a filter does; or reject it."},
			{Name: "timeout", Form: Duration, Default: "2s", Doc: "How long one request may take."},
			{Name: "retries", Form: Number, Default: "3", Min: 0, Max: 10, Doc: "How often to try again before the service counts as unavailable, waiting 100 ms, 200 ms, 400 ms and so on, or as long as the service says, but no longer than timeout."},
			{Name: "unavailable", Form: Word, Default: "abort", Values: []string{"abort", missingDeadLetter},
				Doc: "What to do then: roll the batch back and try again with backoff, or reject the event."},
			{Name: "cache", Form: Group, Doc: "Answers are kept for requests that are the same, and used again for some time.", Params: []Param{
				{Name: "for", Form: Duration, Default: "1m", Doc: "How long an answer is good."},
				{Name: "entries", Form: Number, Default: "10000", Min: 0, Max: 10_000_000, Doc: "How many are kept at most; 0 keeps none."},
			}},
			{Name: "concurrency", Form: Number, Default: "16", Min: 1, Max: 1024, Doc: "How many requests may be under way in a session."},
		},
		Example: `on: [OrderCreated]
url: "'http://scores.internal/users/' + data.user_id"
add: {data.status: {type: int, value: response.status}}`,
		Grows: true,
		New:   newHTTP,
	}
}

// call asks a service. Its clones share the connections and the cache.
type call struct {
	enrich
	urls, bodies []*expr.Program   // by type; nil where the stage is not for it
	named        [][]*expr.Program // by type: the values of headers, then those of query parameters
	headers      []string
	query        []string
	method       string
	schema       *codec.Schema   // of the answer: its status and its body
	body         *codec.Node     // nil if nobody wants it
	views        []*codec.Layout // of the answer, by type of the event
	missing      string
	timeout      time.Duration
	retries      int
	abort        bool
	concurrency  int
	client       *http.Client
	cache        *answers

	// What follows belongs to a clone.
	missed  int
	view    pipeline.View
	request []byte // scratch: what makes two requests the same
	parts   [][]byte
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
		faults = append(faults, fault(arg("timeout").Value, "a transaction is open meanwhile", "a request may take more than nothing and at most %v", maxWait))
	}
	faults = append(faults, s.answer(in, arg("response"))...)
	if s.schema == nil {
		return s, faults
	}
	for _, given := range arg("headers").Entries {
		if !isHeaderName(given.Key.Text) {
			faults = append(faults, fault(given.Key, "letters, digits and hyphens", "%q is no name of a header", given.Key.Text))
		}
		s.headers = append(s.headers, given.Key.Text)
	}
	for _, given := range arg("query").Entries {
		s.query = append(s.query, given.Key.Text)
	}
	for i, t := range in.Types {
		if t.On {
			faults = append(faults, s.compile(i, t, in.Args)...)
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
	s.cache = &answers{keep: keep, most: int(entries+1) / 2}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost, transport.MaxIdleConns = s.concurrency, 4*s.concurrency
	transport.MaxResponseHeaderBytes = 64 << 10
	s.client = &http.Client{
		Transport: transport,
		// A service that has moved is for a person to look at: an event's data
		// goes nowhere that the topology does not name.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, faults
}

// answer finds the schema of the answer.
func (s *call) answer(in Input, response Arg) []expr.Fault {
	fields := `{"name": "status", "type": "int"}`
	if name := response.Value.Text; name != "" {
		body, err := in.Schema(name)
		if err != nil {
			return expr.Faults(response.Value, "", err)
		}
		s.body = body.Root()
		fields += `, {"name": "body", "type": ` + body.String() + `}`
	}
	var err error
	s.schema, err = codec.ParseSchema(`{"type": "record", "name": "HTTPResponse", "fields": [` + fields + `]}`)
	return expr.Faults(response.Value, "", err)
}

// compile compiles everything for one type.
func (s *call) compile(typ int, t Type, args Args) (faults []expr.Fault) {
	text := func(src expr.Source, what string) *expr.Program {
		p, err := t.Env.Compile(src.Text, expr.Value(&codec.Node{Kind: codec.String}, what, t.Name))
		faults = append(faults, expr.Faults(src, t.Name, err)...)
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
		return append(faults, expr.Faults(address.Key, t.Name, err)...)
	}
	set, _ := args.Find("set")
	for _, given := range set.Entries {
		faults = append(faults, s.assign(typ, t, given)...)
	}
	add, _ := args.Find("add")
	for _, given := range add.Items {
		faults = append(faults, s.add(typ, t, given)...)
	}
	if s.views[typ], err = codec.NewLayout(s.schema, s.paths(typ, 1)); err != nil {
		faults = append(faults, expr.Faults(address.Key, t.Name, err)...)
	}
	return faults
}

func (s *call) Reads(typ int) [][]string {
	paths := appendPaths(s.paths(typ, 0), s.urls[typ], s.bodies[typ])
	return appendPaths(paths, s.named[typ]...)
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
	c.missed, c.view, c.request, c.parts = 0, pipeline.View{}, nil, nil
	return &c
}

// Concurrency implements [Waiter].
func (s *call) Concurrency() int { return s.concurrency }

// Missed implements [Misser].
func (s *call) Missed() int {
	n := s.missed
	s.missed = 0
	return n
}

// Holds implements [Holder]. Where a service that does not answer makes dead
// letters, the transaction has to outlast all tries for an event and the waits
// between them, or none would ever be written. Where it rolls the batch back, a
// transaction that ends before is the same.
func (s *call) Holds() time.Duration {
	if s.abort {
		return 0
	}
	return time.Duration(2*s.retries+1) * s.timeout
}

// AskThrough implements [Asker].
func (s *call) AskThrough(transport http.RoundTripper) {
	s.client.Transport = transport
	s.cache = &answers{keep: s.cache.keep, most: s.cache.most}
}

func (s *call) Process(ctx context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if s.urls[e.Type] == nil {
		return pipeline.Pass, nil
	}
	s.scope.Reset(e.Taken, &e.View)
	if err := s.prepare(e); err != nil {
		return pipeline.Drop, err
	}
	answer, ok := s.cache.get(s.request)
	if !ok {
		var err error
		if answer, err = s.ask(ctx); err != nil {
			return pipeline.Drop, err
		}
		s.cache.put(s.request, answer)
	}
	if len(answer) == 0 { // missing
		switch s.missing {
		case missingKeep:
			s.missed++
			return pipeline.Pass, nil
		case missingDrop:
			return pipeline.Drop, nil
		}
		return pipeline.Drop, pipeline.Reject(ReasonHTTPStatus, "%s %s: the service says that there is no such thing (404 or 410)", s.method, s.parts[0])
	}
	if err := s.views[e.Type].Walk(answer, &s.view); err != nil {
		return pipeline.Drop, err
	}
	s.scope.Reset(e.Taken, &e.View, &s.view)
	return pipeline.Pass, s.apply(e)
}

// prepare evaluates what the request is made of: the URL, the body, headers and
// query.
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
		s.request = append(s.request, enc...) // with its length: no two requests run together
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

// ask asks until there is an answer, which it returns as Avro; it is empty if
// the service has no such thing.
func (s *call) ask(ctx context.Context) ([]byte, error) {
	u, err := url.Parse(string(s.parts[0]))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, pipeline.Reject(ReasonHTTPRequest, "%.200q is no URL of http or https", s.parts[0])
	}
	if len(s.query) > 0 {
		query := u.Query()
		for i, name := range s.query {
			query.Set(name, string(s.parts[2+len(s.headers)+i]))
		}
		u.RawQuery = query.Encode()
	}
	for try := 0; ; try++ {
		answer, after, err := s.try(ctx, u)
		if err == nil || pipeline.ClassOf(err) == pipeline.ClassReject {
			return answer, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if try == s.retries {
			err = fmt.Errorf("%s %s, tried %d times: %w", s.method, u.Redacted(), try+1, err)
			if s.abort {
				return nil, err
			}
			return nil, &pipeline.RejectError{Reason: ReasonHTTPUnavailable, Err: err}
		}
		wait := 100 * time.Millisecond << try
		wait += rand.N(wait / 2) // not all at once
		timer := time.NewTimer(min(max(wait, after), s.timeout))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

// try asks once. An error that is no rejection is the service's trouble; it may
// say how long to wait.
func (s *call) try(ctx context.Context, u *url.URL) (answer []byte, after time.Duration, err error) {
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
			return nil, 0, pipeline.Reject(ReasonHTTPRequest, "the value of the header %s has a control character", name)
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
		return nil, 0, pipeline.Reject(ReasonHTTPResponse, "%s %s: an answer of more than %d bytes", s.method, u.Redacted(), maxResponse)
	}
	answer, err = s.encode(resp.StatusCode, text)
	if err != nil {
		return nil, 0, pipeline.Reject(ReasonHTTPResponse, "%s %s: the answer: %w", s.method, u.Redacted(), err)
	}
	return answer, 0, nil
}

func isHeaderName(name string) bool {
	return name != "" && strings.Trim(name, "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") == ""
}

// encode makes Avro of an answer.
func (s *call) encode(status int, text []byte) ([]byte, error) {
	fields := map[string]any{"status": json.Number(strconv.Itoa(status))}
	if s.body != nil {
		var v any
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return nil, errors.New("something follows the JSON value")
		}
		prune(s.body, v)
		fields["body"] = v
	}
	return codec.EncodeJSON(s.schema, fields)
}

// prune takes out of a JSON value what its schema has no field for: a service may
// say more than we asked.
func prune(n *codec.Node, v any) {
	if other, _, _, ok := n.Nullable(); ok {
		n = other
	}
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

// answers are those of the service that are still good. When as many are young as
// fit, they become old, and the old ones are forgotten.
type answers struct {
	keep time.Duration
	most int // in a generation

	mu         sync.Mutex
	young, old map[string]answer
}

type answer struct {
	body  []byte // empty if there is no such thing
	until time.Time
}

func (c *answers) get(request []byte) ([]byte, bool) {
	c.mu.Lock()
	a, ok := c.young[string(request)]
	if !ok {
		a, ok = c.old[string(request)]
	}
	c.mu.Unlock()
	if !ok || !time.Now().Before(a.until) {
		return nil, false
	}
	return a.body, true
}

func (c *answers) put(request, body []byte) {
	if c.most == 0 || c.keep <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= c.most || c.young == nil {
		c.old, c.young = c.young, map[string]answer{}
	}
	c.young[string(request)] = answer{body, time.Now().Add(c.keep)}
}
