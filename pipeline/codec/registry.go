package codec

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/twmb/avro"
	"github.com/twmb/franz-go/pkg/sr"

	"millrace/pipeline"
)

// Answers of a registry that are not failures of the registry.
var (
	// ErrNotRegistered means that the schema is not registered under the subject.
	ErrNotRegistered = errors.New("schema is not registered")

	// ErrIncompatible means that the schema is incompatible with the schemas that are
	// registered under the subject. A retry does not help.
	ErrIncompatible = errors.New("schema is incompatible")

	// ErrRefused means that the registry does not let this user do what was asked: it
	// needs another user (401, 403), or it is in read-only mode.
	ErrRefused = errors.New("the schema registry refuses")
)

// Limits of the communication with a registry.
const (
	requestTimeout    = 5 * time.Second // for one request to one URL
	maxResponse       = 16 << 20        // bytes of a response
	maxMessage        = 2 << 10         // bytes of a response in an error
	unknownTries      = 3               // requests before an id is taken to be unknown
	unknownWait       = 100 * time.Millisecond
	unknownKept       = 30 * time.Second // an unknown id may be registered later
	maxRequests       = 32               // at the same time, for schemas
	maxReferences     = 64               // references of a schema, direct and indirect
	maxReferenceDepth = 16               // references in a chain
)

// RegistryConfig configures the connection to a schema registry.
type RegistryConfig struct {
	URLs           []string // of one registry, tried in order
	User, Password string
	Token          string      // bearer token, instead of User
	TLS            *tls.Config // nil: the defaults of the system
	UserAgent      string
}

// A Registry is a client of a schema registry that speaks Confluent's REST API.
// It is safe for concurrent use.
//
// Its errors are of pipeline.ClassAbort, because a failure of the registry does not
// make an event bad. The exceptions are a schema that the registry reports as unknown,
// and one that is not valid Avro: see [Registry.Schema].
type Registry struct {
	client *sr.Client
	where  string // its URLs, for messages

	// The clock, which tests replace.
	now   func() time.Time
	sleep func(context.Context, time.Duration) error

	slots chan struct{} // limits the requests for schemas that are sent at the same time

	mu       sync.Mutex            // guards the fields below
	known    map[SchemaRef]*Schema // never evicted: a registry never changes a schema
	rejected map[SchemaRef]rejection
	inFlight map[SchemaRef]*request
	unknown  map[SchemaRef]time.Time // when the registry last said that it lacks the schema; see unknown.go
}

// A rejection is the error for a schema that is unknown or unreadable, cached for a
// while.
type rejection struct {
	err   error
	until time.Time
}

// A request is the lookup of a schema in flight. began never changes. The goroutine that
// sends it sets the other fields before it closes done; afterwards they do not change.
type request struct {
	began     time.Time
	done      chan struct{}
	schema    *Schema
	err       error
	withdrawn bool // the sender's context ended; a waiter has to send it again
}

// NewRegistry returns a client. It does not connect: see [Registry.Ping].
func NewRegistry(cfg RegistryConfig) (*Registry, error) {
	if len(cfg.URLs) == 0 {
		return nil, errors.New("schema registry: no URL")
	}
	if cfg.Token != "" && cfg.User != "" {
		return nil, errors.New("schema registry: both a token and a user are given; give only one")
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
		client:   client,
		where:    strings.Join(cfg.URLs, ","),
		now:      time.Now,
		sleep:    sleep,
		slots:    make(chan struct{}, maxRequests),
		known:    map[SchemaRef]*Schema{},
		rejected: map[SchemaRef]rejection{},
		inFlight: map[SchemaRef]*request{},
		unknown:  map[SchemaRef]time.Time{},
	}, nil
}

// bounded is a transport that limits the size of a response to maxResponse.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if resp != nil && resp.Body != nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{&boundedReader{resp.Body, maxResponse}, resp.Body}
	}
	return resp, err
}

type boundedReader struct {
	r    io.Reader
	left int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("a response of more than %d MiB", maxResponse>>20)
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

// Schema returns the schema that ref names. Concurrent callers share one request, and
// the schema is cached forever.
//
// An error is of pipeline.ClassReject if the registry reports several times in a row
// that it does not have the schema, or if the schema is not valid Avro. Several times,
// because the replica that answers may lag behind. Such an error is cached for a short
// time only, because the id may be registered later.
func (r *Registry) Schema(ctx context.Context, ref SchemaRef) (*Schema, error) {
	for {
		q, mine, schema, err := r.lookUp(ref)
		if q == nil {
			return schema, err
		}
		if mine {
			r.send(ctx, ref, q)
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

// lookUp returns the cached schema or error of ref. If there is none, it returns the
// request in flight; mine reports whether it is new, so that the caller has to send it.
func (r *Registry) lookUp(ref SchemaRef) (q *request, mine bool, s *Schema, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.known[ref]; ok {
		return nil, false, s, nil
	}
	if no, ok := r.rejected[ref]; ok {
		if r.now().Before(no.until) {
			return nil, false, nil, no.err
		}
		delete(r.rejected, ref)
	}
	if q, ok := r.inFlight[ref]; ok {
		return q, false, nil, nil
	}
	q = &request{began: r.now(), done: make(chan struct{})}
	r.inFlight[ref] = q
	return q, true, nil, nil
}

// send sends the request, caches the result, and wakes the waiters.
func (r *Registry) send(ctx context.Context, ref SchemaRef, q *request) {
	q.schema, q.err = r.fetch(ctx, ref)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case q.err == nil:
		r.known[ref] = q.schema
		delete(r.unknown, ref)
	case pipeline.ClassOf(q.err) == pipeline.ClassReject:
		r.evictExpired()
		r.rejected[ref] = rejection{q.err, r.now().Add(unknownKept)}
		if pipeline.ReasonOf(q.err) == pipeline.ReasonUnknownSchema {
			r.noteUnknown(ref)
		}
	default:
		q.withdrawn = ctx.Err() != nil
	}
	delete(r.inFlight, ref)
	close(q.done)
}

// evictExpired removes expired rejections, so that random ids on a topic do not fill
// the memory. The caller holds mu.
func (r *Registry) evictExpired() {
	now := r.now()
	for ref, no := range r.rejected {
		if !now.Before(no.until) {
			delete(r.rejected, ref)
		}
	}
}

// fetch gets a schema with its references from the registry, with retries if the
// registry reports it as unknown.

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
				"the registry at %s has no schema %s after %d requests; was the event written with another registry?", r.where, ref, try)
		}
		if err := r.sleep(ctx, unknownWait<<(2*(try-1))); err != nil {
			return nil, fmt.Errorf("schema %s: querying the registry at %s: %w", ref, r.where, err)
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

// get sends one request. A request that waits before its next try occupies no slot.
func (r *Registry) get(ctx context.Context, ref SchemaRef) (sr.Schema, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return sr.Schema{}, ctx.Err()
	}
	if !ref.ByGUID {
		return r.client.SchemaByID(ctx, ref.ID)
	}
	s, err := r.client.SchemaByGUID(ctx, strings.TrimPrefix(ref.String(), "guid "))
	return s.Schema, err
}

// resolve returns the text of a schema with its references inlined. The error for a
// schema in another language than Avro is of pipeline.ClassReject.
func (r *Registry) resolve(ctx context.Context, s sr.Schema) (string, error) {
	if s.Type != sr.TypeAvro {
		return "", pipeline.Reject(pipeline.ReasonBadSchema, "its type is %s, expected AVRO", s.Type)
	}
	if len(s.References) == 0 {
		return s.Schema, nil
	}
	refs := references{registry: r, seen: map[sr.SchemaReference]bool{}}
	return refs.text(ctx, s, 0)
}

// references collects the schemas that a schema refers to, directly and indirectly.
type references struct {
	registry *Registry
	cache    avro.SchemaCache
	seen     map[sr.SchemaReference]bool
}

func (c *references) text(ctx context.Context, s sr.Schema, depth int) (string, error) {
	if depth > maxReferenceDepth {
		return "", pipeline.Reject(pipeline.ReasonBadSchema, "its references form a chain of more than %d schemas; do they form a cycle?", maxReferenceDepth)
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
		// The referenced version may be soft-deleted.
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

// Register registers the schema under the subject, unless it is registered already,
// and returns its id. The error wraps [ErrIncompatible] if the registry refuses the
// schema as incompatible, and [ErrRefused] if it does not let this user register it.
func (r *Registry) Register(ctx context.Context, subject string, s *Schema) (int, error) {
	id, err := r.client.RegisterSchema(ctx, subject, sr.Schema{Schema: s.String()}, -1, -1)
	if code(err) == sr.ErrIncompatibleSchema.Code {
		// Some registries give their reasons only in the answer to a check.
		if reasons := r.Compatible(ctx, subject, s); errors.Is(reasons, ErrIncompatible) {
			return 0, reasons
		}
		return 0, r.incompatible(subject, s, shorten(err.Error()))
	}
	if err != nil {
		return 0, r.explain("registering "+s.Name()+" under subject "+subject, err)
	}
	return id, nil
}

// Lookup returns the id of a schema under the subject. The error wraps
// [ErrNotRegistered] if the schema is not registered there.
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

// A Version is a schema that is registered under a subject.
type Version struct{ Version, ID int }

// Versions returns the schemas of a subject, in the order of their versions; none if the
// subject does not exist.
func (r *Registry) Versions(ctx context.Context, subject string) ([]Version, error) {
	numbers, err := r.client.SubjectVersions(ctx, subject)
	if code(err) == sr.ErrSubjectNotFound.Code {
		return nil, nil
	}
	var out []Version
	for _, n := range numbers {
		if err != nil {
			break
		}
		var s sr.SubjectSchema
		s, err = r.client.SchemaByVersion(ctx, subject, n)
		out = append(out, Version{n, s.ID})
	}
	if err != nil {
		return nil, r.explain("the versions of subject "+subject, err)
	}
	return out, nil
}

// SetCompatibility sets the compatibility level of the subject, such as
// BACKWARD_TRANSITIVE. The error wraps [ErrRefused] if the registry does not let this user
// set it.
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

// Compatible checks the schema against the schemas that are registered under the
// subject, at the subject's compatibility level. The error wraps [ErrIncompatible] if
// they are incompatible, with the registry's reasons. Every schema is compatible with
// a subject that does not exist.
func (r *Registry) Compatible(ctx context.Context, subject string, s *Schema) error {
	ctx = sr.WithParams(ctx, sr.Verbose)
	text := sr.Schema{Schema: s.String()}
	const latest, all = -1, -2
	result, err := r.client.CheckCompatibility(ctx, subject, all, text)
	if err != nil && unknownRequest(err) {
		// Some registries lack this request. There, check against the latest version
		// only; Register still checks fully.
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
			why = "the registry gives no reason"
		}
		return r.incompatible(subject, s, why)
	}
	return nil
}

func (r *Registry) incompatible(subject string, s *Schema, why string) error {
	return fmt.Errorf("%w: %s with subject %s of the registry at %s: %s; keep the old fields, and give new fields defaults",
		ErrIncompatible, s.Name(), subject, r.where, why)
}

// Ping checks with a small request that the registry is up.
func (r *Registry) Ping(ctx context.Context) error {
	if _, err := r.client.SupportedTypes(ctx); err != nil {
		return r.explain("ping", err)
	}
	return nil
}

// code returns the registry's own error code. It returns 0 if there is none: then the
// error is not an answer of the registry to the request.
func code(err error) int {
	var answer *sr.ResponseError
	if !errors.As(err, &answer) {
		return 0
	}
	return answer.ErrorCode
}

// unknownRequest reports whether the server does not know the request.
func unknownRequest(err error) bool {
	var answer *sr.ResponseError
	return errors.As(err, &answer) && answer.ErrorCode < 1000 &&
		(answer.StatusCode == http.StatusNotFound || answer.StatusCode == http.StatusMethodNotAllowed)
}

// refused reports whether an answer says that this user may not do what was asked.
func refused(answer *sr.ResponseError) bool {
	return answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden ||
		answer.ErrorCode == sr.ErrOperationNotPermitted.Code
}

// A refusal is an error that wraps [ErrRefused] too, whose text it does not repeat.
type refusal struct{ err error }

func (r refusal) Error() string        { return r.err.Error() }
func (r refusal) Unwrap() error        { return r.err }
func (r refusal) Is(target error) bool { return target == ErrRefused }

// explain wraps an error with the operation, the registry's URLs and a hint for the
// operator.
func (r *Registry) explain(what string, err error) error {
	var answer *sr.ResponseError
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: querying the schema registry at %s: %w", what, r.where, err)
	case !errors.As(err, &answer):
		var request *url.Error
		if errors.As(err, &request) {
			err = request.Err // it repeats the URL, and its wrapper does so again
		}
		return fmt.Errorf("%s: the schema registry at %s does not answer: %w; is it up, and is the address right?", what, r.where, err)
	}
	hint := ""
	switch s := answer.StatusCode; {
	case s == http.StatusUnauthorized:
		hint = "; check user and password, or the token, of the registry"
	case s == http.StatusForbidden:
		hint = "; this user lacks the permission: ask the operator of the registry"
	case answer.ErrorCode == sr.ErrOperationNotPermitted.Code:
		hint = "; is the registry, or the subject, in read-only mode?"
	case unknownRequest(err):
		hint = "; is that a schema registry, and is the path of its URL complete?"
	case s == http.StatusTooManyRequests:
		hint = "; it limits the rate of requests"
	case s >= http.StatusInternalServerError:
		hint = "; check the registry's log"
	}
	err = fmt.Errorf("%s: the schema registry at %s answers %d: %s%s", what, r.where, answer.StatusCode, shorten(answer.Error()), hint)
	if refused(answer) {
		err = refusal{err}
	}
	return err
}

// shorten limits a message, because a proxy may answer with a whole page.
func shorten(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	return strings.ToValidUTF8(text[:maxMessage], "") + "..."
}
