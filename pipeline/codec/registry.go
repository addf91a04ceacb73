package codec

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"

	"millrace/pipeline"
)

// What a registry may answer that is no trouble of its own.
var (
	// ErrNotRegistered: there is no such schema under the subject.
	ErrNotRegistered = errors.New("schema is not registered")

	// ErrIncompatible: the schema is incompatible with what is registered under
	// the subject. Asking again does not help.
	ErrIncompatible = errors.New("schema is incompatible")
)

// Bounds of the talk with a registry.
const (
	requestTimeout  = 5 * time.Second // one request to one URL
	maxAnswer       = 16 << 20        // bytes of an answer
	maxMessage      = 2 << 10         // bytes of it in an error
	unknownTries    = 3               // questions before an unknown id is believed
	unknownWait     = 100 * time.Millisecond
	unknownKept     = 5 * time.Second // an id may be registered later
	maxReferences   = 64              // schemas that one refers to, in all
	maxReferenceWay = 16              // from one to the next
)

// RegistryConfig says how to reach a schema registry.
type RegistryConfig struct {
	URLs           []string // of one registry; tried in order
	User, Password string
	Token          string      // instead of a user
	TLS            *tls.Config // nil: as the system has it
	UserAgent      string
}

// A Registry is a client of a schema registry that speaks Confluent's REST API.
// It is safe for concurrent use.
//
// Its errors are of pipeline.ClassAbort, for a registry that is down says
// nothing about an event. The one exception is a schema that the registry
// itself says it does not have.
type Registry struct {
	client *sr.Client
	where  string // its URLs, for messages

	// Tests put their own clock here.
	now   func() time.Time
	sleep func(context.Context, time.Duration) error

	mu      sync.Mutex
	known   map[SchemaRef]*Schema // for ever: a registry never changes a schema
	unknown map[SchemaRef]unknown
	asking  map[SchemaRef]*question
}

// unknown is the answer that there is no such schema, believed for a while.
type unknown struct {
	err   error
	until time.Time
}

// question is one that the registry has not answered yet. The fields are set
// before done is closed, and not changed after.
type question struct {
	done      chan struct{}
	schema    *Schema
	err       error
	withdrawn bool // who asked gave up; somebody else has to ask again
}

// NewRegistry returns a client. It does not connect: see [Registry.Ping].
func NewRegistry(cfg RegistryConfig) (*Registry, error) {
	if len(cfg.URLs) == 0 {
		return nil, errors.New("schema registry: no URL")
	}
	if cfg.Token != "" && cfg.User != "" {
		return nil, errors.New("schema registry: a token and a user; give one")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = cfg.TLS
	opts := []sr.ClientOpt{
		sr.URLs(cfg.URLs...),
		sr.HTTPClient(&http.Client{Timeout: requestTimeout, Transport: bounded{transport}}),
	}
	if cfg.UserAgent != "" {
		opts = append(opts, sr.UserAgent(cfg.UserAgent))
	}
	switch {
	case cfg.Token != "":
		opts = append(opts, sr.BearerToken(cfg.Token))
	case cfg.User != "":
		opts = append(opts, sr.BasicAuth(cfg.User, cfg.Password))
	}
	client, err := sr.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("schema registry: %w", err)
	}
	return &Registry{
		client:  client,
		where:   strings.Join(cfg.URLs, ","),
		now:     time.Now,
		sleep:   sleep,
		known:   map[SchemaRef]*Schema{},
		unknown: map[SchemaRef]unknown{},
		asking:  map[SchemaRef]*question{},
	}, nil
}

// bounded is a transport whose answers are not read without end.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if resp != nil && resp.Body != nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{&boundedReader{resp.Body, maxAnswer}, resp.Body}
	}
	return resp, err
}

type boundedReader struct {
	r    io.Reader
	left int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("an answer of more than %d MiB", maxAnswer>>20)
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Schema returns the schema that ref names. Each is asked for once, however many
// callers wait for it, and kept for ever.
//
// An error is of pipeline.ClassReject if the registry says, more than once, that
// it has no such schema, or if what it has is no schema that we can read.
// Registries replicate, so the first no may be early; and the id may come to be,
// so the no is kept for a few seconds only.
func (r *Registry) Schema(ctx context.Context, ref SchemaRef) (*Schema, error) {
	for {
		q, mine, schema, err := r.ask(ref)
		if q == nil {
			return schema, err
		}
		if mine {
			r.answer(ctx, ref, q)
			return q.schema, q.err
		}
		select {
		case <-q.done:
			if !q.withdrawn {
				return q.schema, q.err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("schema %s: waiting for the registry at %s: %w", ref, r.where, ctx.Err())
		}
	}
}

// ask returns what is known of ref, or else the question to the registry, and
// whether it is the caller who has to ask it.
func (r *Registry) ask(ref SchemaRef) (q *question, mine bool, s *Schema, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.known[ref]; ok {
		return nil, false, s, nil
	}
	if u, ok := r.unknown[ref]; ok {
		if r.now().Before(u.until) {
			return nil, false, nil, u.err
		}
		delete(r.unknown, ref)
	}
	if q, ok := r.asking[ref]; ok {
		return q, false, nil, nil
	}
	q = &question{done: make(chan struct{})}
	r.asking[ref] = q
	return q, true, nil, nil
}

// answer gets the answer and tells all who wait for it.
func (r *Registry) answer(ctx context.Context, ref SchemaRef, q *question) {
	q.schema, q.err = r.fetch(ctx, ref)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case q.err == nil:
		r.known[ref] = q.schema
	case pipeline.ClassOf(q.err) == pipeline.ClassReject:
		r.forget()
		r.unknown[ref] = unknown{q.err, r.now().Add(unknownKept)}
	default:
		q.withdrawn = ctx.Err() != nil
	}
	delete(r.asking, ref)
	close(q.done)
}

// forget drops the answers of no that have run out, so that garbage on a topic
// does not fill the memory.
func (r *Registry) forget() {
	now := r.now()
	for ref, u := range r.unknown {
		if !now.Before(u.until) {
			delete(r.unknown, ref)
		}
	}
}

func (r *Registry) fetch(ctx context.Context, ref SchemaRef) (*Schema, error) {
	var got sr.Schema
	for try := 1; ; try++ {
		var err error
		if got, err = r.get(ctx, ref); err == nil {
			break
		}
		if code(err) != sr.ErrSchemaNotFound.Code {
			return nil, r.explain("schema "+ref.String(), err)
		}
		if try == unknownTries {
			return nil, pipeline.Reject(pipeline.ReasonUnknownSchema,
				"the registry at %s has no schema %s (asked %d times); was the event written with another registry?", r.where, ref, try)
		}
		if err := r.sleep(ctx, unknownWait<<(2*(try-1))); err != nil {
			return nil, fmt.Errorf("schema %s: asking the registry at %s: %w", ref, r.where, err)
		}
	}
	text, err := r.resolve(ctx, got)
	if err != nil {
		return nil, fmt.Errorf("schema %s: %w", ref, err)
	}
	s, err := ParseSchema(text)
	if err != nil {
		return nil, pipeline.Reject(pipeline.ReasonBadSchema, "schema %s of the registry at %s: %w", ref, r.where, err)
	}
	return s, nil
}

func (r *Registry) get(ctx context.Context, ref SchemaRef) (sr.Schema, error) {
	if !ref.ByGUID {
		return r.client.SchemaByID(ctx, ref.ID)
	}
	s, err := r.client.SchemaByGUID(ctx, strings.TrimPrefix(ref.String(), "guid "))
	return s.Schema, err
}

// resolve returns the text of a schema with the schemas that it refers to put
// in. A schema of another language than Avro is of pipeline.ClassReject.
func (r *Registry) resolve(ctx context.Context, s sr.Schema) (string, error) {
	if s.Type != sr.TypeAvro {
		return "", pipeline.Reject(pipeline.ReasonBadSchema, "it is %s, expected AVRO", s.Type)
	}
	if len(s.References) == 0 {
		return s.Schema, nil
	}
	refs := references{registry: r, seen: map[sr.SchemaReference]bool{}}
	return refs.text(ctx, s, 0)
}

// references collects the schemas that one refers to.
type references struct {
	registry *Registry
	cache    avro.SchemaCache
	seen     map[sr.SchemaReference]bool
}

func (c *references) text(ctx context.Context, s sr.Schema, depth int) (string, error) {
	if depth > maxReferenceWay {
		return "", pipeline.Reject(pipeline.ReasonBadSchema, "its references lead over more than %d schemas; a circle?", maxReferenceWay)
	}
	for _, ref := range s.References {
		key := sr.SchemaReference{Subject: ref.Subject, Version: ref.Version}
		if c.seen[key] {
			continue
		}
		if c.seen[key] = true; len(c.seen) > maxReferences {
			return "", pipeline.Reject(pipeline.ReasonBadSchema, "it refers to more than %d schemas", maxReferences)
		}
		what := fmt.Sprintf("its reference to %s version %d", ref.Subject, ref.Version)
		// A referenced version may be deleted softly and is needed all the same.
		next, err := c.registry.client.SchemaByVersion(sr.WithParams(ctx, sr.ShowDeleted), ref.Subject, ref.Version)
		if err != nil {
			return "", c.registry.explain(what, err)
		}
		if _, err := c.text(ctx, next.Schema, depth+1); err != nil {
			return "", err
		}
	}
	parsed, err := c.cache.Parse(s.Schema)
	if err != nil {
		return "", pipeline.Reject(pipeline.ReasonBadSchema, "with its references: %w", err)
	}
	return parsed.String(), nil
}

// Register puts the schema under the subject, if it is not there, and returns
// its id. The error wraps [ErrIncompatible] if the registry refuses the schema
// for that.
func (r *Registry) Register(ctx context.Context, subject string, s *Schema) (int, error) {
	id, err := r.client.RegisterSchema(ctx, subject, sr.Schema{Schema: s.String()}, -1, -1)
	if code(err) == sr.ErrIncompatibleSchema.Code {
		return 0, r.incompatible(subject, s, shorten(err.Error()))
	}
	if err != nil {
		return 0, r.explain("registering "+s.Name()+" under subject "+subject, err)
	}
	return id, nil
}

// Lookup returns the id of a schema that is registered under the subject. The
// error wraps [ErrNotRegistered] if it is not.
func (r *Registry) Lookup(ctx context.Context, subject string, s *Schema) (int, error) {
	got, err := r.client.LookupSchema(ctx, subject, sr.Schema{Schema: s.String()})
	switch {
	case err == nil:
		return got.ID, nil
	case code(err) == sr.ErrSubjectNotFound.Code || code(err) == sr.ErrSchemaNotFound.Code:
		return 0, fmt.Errorf("%w: %s under subject %s of the registry at %s: %s", ErrNotRegistered, s.Name(), subject, r.where, shorten(err.Error()))
	}
	return 0, r.explain("looking up "+s.Name()+" under subject "+subject, err)
}

// SetCompatibility sets what the registry demands of new schemas of the subject:
// BACKWARD_TRANSITIVE and the like.
func (r *Registry) SetCompatibility(ctx context.Context, subject, level string) error {
	var l sr.CompatibilityLevel
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return fmt.Errorf("compatibility of subject %s: %w", subject, err)
	}
	if err := r.client.SetCompatibility(ctx, sr.SetCompatibility{Level: l}, subject)[0].Err; err != nil {
		return r.explain("setting the compatibility of subject "+subject, err)
	}
	return nil
}

// Compatible checks the schema against what is registered under the subject, at
// the level that the registry has for it. The error wraps [ErrIncompatible] if
// it is not, and says why. A subject that does not exist is compatible with
// everything.
func (r *Registry) Compatible(ctx context.Context, subject string, s *Schema) error {
	ctx = sr.WithParams(ctx, sr.Verbose)
	text := sr.Schema{Schema: s.String()}
	const latest, all = -1, -2
	result, err := r.client.CheckCompatibility(ctx, subject, all, text)
	if err != nil && unknownRequest(err) {
		// Not every registry has that request. Of the others it is the latest
		// that is asked about; Register has the last word.
		result, err = r.client.CheckCompatibility(ctx, subject, latest, text)
	}
	switch {
	case code(err) == sr.ErrSubjectNotFound.Code || code(err) == sr.ErrVersionNotFound.Code:
		return nil
	case err != nil:
		return r.explain("checking "+s.Name()+" against subject "+subject, err)
	case !result.Is:
		why := strings.Join(result.Messages, "; ")
		if why == "" {
			why = "the registry does not say why"
		}
		return r.incompatible(subject, s, why)
	}
	return nil
}

func (r *Registry) incompatible(subject string, s *Schema, why string) error {
	return fmt.Errorf("%w: %s with what the registry at %s has under subject %s: %s; keep the old fields, and give new ones defaults",
		ErrIncompatible, s.Name(), r.where, subject, why)
}

// Ping asks the registry for something small.
func (r *Registry) Ping(ctx context.Context) error {
	if _, err := r.client.SupportedTypes(ctx); err != nil {
		return r.explain("asking whether it is there", err)
	}
	return nil
}

// Subject returns the subject of a topic's schema: one for each event type
// (Confluent's TopicRecordNameStrategy).
func Subject(topic string, s *Schema) string { return topic + "-" + s.Name() }

// code returns the registry's own code for an error, 0 if there is none: then it
// is not the registry that answered, or not about what was asked.
func code(err error) int {
	var answer *sr.ResponseError
	if !errors.As(err, &answer) {
		return 0
	}
	return answer.ErrorCode
}

// unknownRequest reports whether whoever answered does not know the request.
func unknownRequest(err error) bool {
	var answer *sr.ResponseError
	return errors.As(err, &answer) && answer.ErrorCode < 1000 &&
		(answer.StatusCode == http.StatusNotFound || answer.StatusCode == http.StatusMethodNotAllowed)
}

// explain says what was asked, of whom, and what to do.
func (r *Registry) explain(what string, err error) error {
	var answer *sr.ResponseError
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: asking the schema registry at %s: %w", what, r.where, err)
	case !errors.As(err, &answer):
		return fmt.Errorf("%s: the schema registry at %s gives no answer: %w; is it up, and is that its address?", what, r.where, err)
	}
	hint := ""
	switch s := answer.StatusCode; {
	case s == http.StatusUnauthorized:
		hint = "; check user and password, or the token, of the registry"
	case s == http.StatusForbidden:
		hint = "; this user may not do that: ask who runs the registry"
	case unknownRequest(err):
		hint = "; is that a schema registry, and is the path of its URL complete?"
	case s == http.StatusTooManyRequests:
		hint = "; it is asked too often"
	case s >= http.StatusInternalServerError:
		hint = "; look at the registry's log"
	}
	return fmt.Errorf("%s: the schema registry at %s answers %d: %s%s", what, r.where, answer.StatusCode, shorten(answer.Error()), hint)
}

// shorten keeps the page of a proxy that answered out of a message.
func shorten(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return strings.ToValidUTF8(text[:maxMessage], "") + "..."
}
