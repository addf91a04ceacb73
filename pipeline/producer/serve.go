package producer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/access"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/server"
	"millrace/pipeline/worker"
)

const (
	retryAfter = "1" // seconds, in the header Retry-After
	maxFaults  = 100 // most faults in an answer

	// defaultConns is the default of --max-connections. Each connection takes memory, also
	// if it is idle.
	defaultConns = 256
)

func serveCommand(e *cli.Env) *cobra.Command {
	p := &producer{env: e}
	in := &intake{}
	var concurrency int
	var memory int64
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Accept events over HTTP",
		Long: `Accepts events over HTTP: POST /v1/events with one of

  application/json                    an event as send accepts it, or an array of them
  application/cloudevents+json        a CloudEvent 1.0
  application/cloudevents-batch+json  an array of CloudEvents
  ce- headers, and JSON as the body   a CloudEvent in binary mode

The id, type and time of a CloudEvent become those of the event, and its data the
event's data. Every other attribute becomes metadata. A traceparent is copied to the
record's headers.

200 means that Kafka has acknowledged every event of the request; the answer has
their offsets. 400, 413 and 415 describe a fault of the request, and 429 means that
too many requests are in progress: nothing of the request was sent, except if Kafka
refused an event of it (400), which the answer says. 503 means that
Kafka has not acknowledged all events: some may have been written. Problems have the
form of RFC 9457.

A request without an answer, or with 429 or 503, can be repeated unchanged. An event
that was written before is then written twice with the same id; readers must treat
an id that they have seen as the same event, as the dedupe stage and projections do.
An event without an id gets a new one with each request, so set ids.`,
		Example: `  producer serve
  curl -d '{"type":"OrderPaid","data":{"id":"o-1"}}' -H 'Content-Type: application/json' http://` + worker.ProducerListen + `/v1/events`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if concurrency < 1 {
				return cli.Usagef("--at-once: %d is not a positive number of requests", concurrency)
			}
			if in.maxBody < 1 {
				return cli.Usagef("--max-body: %d is not a positive number of bytes", in.maxBody)
			}
			if memory < 1 {
				return cli.Usagef("--memory: %d is not a positive number of MiB", memory)
			}
			in.slots, in.budget = make(chan *event.Encoder, concurrency), newBudget(memory<<20)
			return p.serveEvents(cmd.Context(), in)
		},
	}
	p.addFlags(cmd, worker.ProducerListen)
	flags := cmd.Flags()
	_ = flags.MarkHidden("json") // there is no summary
	flags.IntVar(&concurrency, "at-once", 64, "process at most `n` requests at the same time; others get status 429")
	flags.Int64Var(&in.maxBody, "max-body", 4<<20, "maximum size of a request's body in `bytes`")
	flags.Int64Var(&memory, "memory", 16, "`MiB` for the bodies of all requests together; others get status 429")
	flags.BoolVar(&in.cloudHeaders, "cloudevents-headers", false, "give the records of CloudEvents the ce_ headers of the Kafka binding of CloudEvents")
	return cmd
}

// intake is the handler of /v1/events. Its fields are set before the first request and
// never changed; every request has its own goroutine.
type intake struct {
	topic        string
	writer       keyring.RecordWriter
	slots        chan *event.Encoder // the idle encoders; a request owns one after its body was read
	budget       *budget             // for the bodies
	maxBody      int64               // bytes
	patience     time.Duration       // for the acknowledgements of a request
	cloudHeaders bool                // --cloudevents-headers
	metrics      *producerMetrics
	answers      *prometheus.CounterVec
	log          *slog.Logger
}

// serveEvents serves until the context ends.
func (p *producer) serveEvents(ctx context.Context, in *intake) error {
	if p.server.Listen == "" {
		return cli.Usagef("--listen: an address is required")
	}
	if err := p.server.Config(access.Producer, nil, nil).CheckOpen(); err != nil {
		return err
	}
	p.env.TuneGC()
	c, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer c.close() // after the last request
	cfg := p.server.Config(access.Producer, c.log, c.metrics)
	cfg.MaxBody = func(*http.Request) int64 { return in.maxBody }
	at, err := server.New(cfg)
	if err != nil {
		return err
	}
	in.topic, in.writer, in.patience, in.log = c.topic.Name, c.writer, p.patience, c.log
	in.prepare(c.metrics, c.encoder)
	at.Handle("POST /v1/events", in)
	at.Handle("GET /v1/openapi.json", serveOpenAPI())
	if cfg, err := p.kafka.Config(c.log, nil); err == nil {
		at.Ready("kafka", cfg.Ping)
	}
	if c.keys != nil {
		at.Ready("keys", func(context.Context) error { return c.keys.Following() })
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return at.Run(ctx) })
	g.Go(func() error { return c.follow(ctx) })
	return g.Wait()
}

// follow watches the topics until the context ends. The writer continues with a topic that
// was created again; more partitions are an error.
func (c *connection) follow(ctx context.Context) error {
	for {
		err := c.watch(ctx)
		if !errors.Is(err, kafka.ErrRecreated) {
			return err
		}
		var specs []kafka.TopicSpec
		for _, t := range c.known {
			specs = append(specs, kafka.TopicSpec{Name: t.Name, Partitions: t.Partitions})
		}
		now, ensured := kafka.EnsureTopics(ctx, c.kafka, specs, false)
		if ensured != nil {
			return ensured
		}
		for name, t := range c.known {
			if name != c.topic.Name && now.Topics[name].ID != t.ID {
				return err // the keys were read from the old topic
			}
		}
		c.log.Warn("the topic was deleted and created again; events go to the new one from now on", "err", err)
		c.forget(c.topic.Name)
		c.known = now.Topics
	}
}

// prepare creates the metrics, and an encoder for each slot.
func (in *intake) prepare(reg prometheus.Registerer, encoder *event.Encoder) {
	in.metrics = newProducerMetrics(reg, encoder.Types())
	in.answers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_producer_requests_total",
		Help: "Requests to send events, by HTTP status of the answer.",
	}, []string{"status"})
	reg.MustRegister(in.answers)
	for range cap(in.slots) {
		in.slots <- encoder.Clone()
	}
}

// sentEvent locates a written event.
type sentEvent struct {
	ID        string `json:"id,omitempty"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// problem is an answer with an error: the problem details of RFC 9457.
type problem struct {
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail"`
	Errors []fieldFault `json:"errors,omitempty"` // one per bad event, at most maxFaults
}

// fieldFault describes the fault of an event.
type fieldFault struct {
	Event  int    `json:"event"`           // index in the request
	Field  string `json:"field,omitempty"` // dotted path
	Detail string `json:"detail"`
}

// problem answers with an error.
func (in *intake) problem(w http.ResponseWriter, status int, faults []fieldFault, format string, args ...any) {
	in.answers.WithLabelValues(strconv.Itoa(status)).Inc()
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	detail := fmt.Sprintf(format, args...)
	if len(faults) > maxFaults {
		detail += fmt.Sprintf("; only the first %d are listed", maxFaults)
		faults = faults[:maxFaults]
	}
	_ = json.NewEncoder(w).Encode(problem{http.StatusText(status), status, detail, faults}) // fails only if the client is gone
}

// ServeHTTP implements [http.Handler].
func (in *intake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The body may take long, so no slot waits for it.
	events, done, ok := in.read(w, r)
	defer done()
	if !ok {
		return
	}
	var encoder *event.Encoder
	select {
	case encoder = <-in.slots:
		defer func() { in.slots <- encoder }()
	default:
		w.Header().Set("Retry-After", retryAfter)
		in.problem(w, http.StatusTooManyRequests, nil, "%d requests are in progress already; nothing of this request was sent", cap(in.slots))
		return
	}
	flights, faults := in.encode(encoder, events, r.Header)
	if len(faults) == 0 {
		var err error
		if faults, err = in.seal(r.Context(), encoder, flights); err != nil {
			in.log.Error("the events of a request cannot be encrypted", "err", err)
			w.Header().Set("Retry-After", retryAfter)
			in.problem(w, http.StatusServiceUnavailable, nil, "the keys to encrypt the events are not available; nothing of the request was sent")
			return
		}
	}
	if len(faults) > 0 {
		in.refuse(w, faults)
		return
	}
	in.send(w, r, flights)
}

// read returns the events of a request. If there are faults, it answers and returns
// false. done releases the memory of the events.
func (in *intake) read(w http.ResponseWriter, r *http.Request) (events []intakeEvent, done func(), ok bool) {
	stop := func() { _ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) } // in the past; not supported by the writers of tests
	body, done, err := in.budget.body(r.Context(), http.MaxBytesReader(w, r.Body, in.maxBody), r.ContentLength, stop)
	if err == nil {
		events, err = readEvents(r.Header, body)
	} else {
		err = &bodyError{err}
	}
	var large *http.MaxBytesError
	var cut *bodyError
	var media *mediaError
	switch {
	case err == nil:
		return events, done, true
	case errors.As(err, &large):
		in.problem(w, http.StatusRequestEntityTooLarge, nil, "a request may have at most %d bytes", large.Limit)
	case errors.Is(err, errTooMany):
		in.problem(w, http.StatusRequestEntityTooLarge, nil, "a request may have at most %d events", maxEvents)
	case errors.Is(err, errBudget), errors.Is(err, errSlow):
		w.Header().Set("Retry-After", retryAfter)
		in.problem(w, http.StatusTooManyRequests, nil, "%v; nothing of this request was sent", errors.Unwrap(err))
	case errors.As(err, &cut):
		in.problem(w, http.StatusBadRequest, nil, "the body is incomplete")
	case errors.As(err, &media):
		in.problem(w, http.StatusUnsupportedMediaType, nil, "%v", media)
	default:
		in.refuse(w, eventFaults(err))
	}
	return nil, done, false
}

// bodyError means that a body could not be read.
type bodyError struct{ error }

func (e *bodyError) Unwrap() error { return e.error }

// seal encrypts the tagged fields of the events. An error means that the keys are
// not available; the request is not at fault.
func (in *intake) seal(ctx context.Context, encoder *event.Encoder, flights []*intakeFlight) (faults []fieldFault, err error) {
	keys := encoder.Keys()
	if keys == nil {
		return nil, nil
	}
	var subjects []string
	for _, f := range flights {
		if f.subject != "" {
			subjects = append(subjects, f.subject)
		}
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), in.patience, errNoProgress)
	defer cancel()
	if err := keys.Ensure(ctx, subjects); err != nil {
		return nil, err
	}
	for _, f := range flights {
		if f.buf, err = encoder.Seal(f.typ, f.subject, &f.record, f.buf); err == nil {
			continue
		}
		var fault *codec.PathError
		if !errors.As(err, &fault) {
			return nil, err
		}
		in.metrics.countRejected(f.typ)
		faults = append(faults, faultOf(f.index, err, f.cloud))
	}
	return faults, nil
}

// refuse answers with the faults of the events.
func (in *intake) refuse(w http.ResponseWriter, faults []fieldFault) {
	in.problem(w, http.StatusBadRequest, faults, "%d events are invalid; nothing of the request was sent", len(faults))
}

// eventFaults returns the faults in an error of readEvents.
func eventFaults(err error) (faults []fieldFault) {
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { // from eachEvent
		list = joined.Unwrap()
	}
	for _, err := range list {
		index := 0
		var of *eventError
		if errors.As(err, &of) {
			index, err = of.index, of.err
		}
		faults = append(faults, faultOf(index, err, nil))
	}
	return faults
}

// faultOf returns the fault of the event with an index. from is its CloudEvent, if it
// is one: the fault then names an attribute instead of a field.
func faultOf(index int, err error, from *cloudEvent) fieldFault {
	var at *codec.PathError
	if !errors.As(err, &at) {
		return fieldFault{Event: index, Detail: err.Error()}
	}
	path := at.Path
	if from != nil {
		path = attributePath(path)
	}
	return fieldFault{index, path, at.Msg}
}

// intakeFlight is an event of a request between its encoding and its
// acknowledgement.
type intakeFlight struct {
	id      string
	typ     *event.Type
	record  pipeline.Record
	buf     []byte      // of the record's key and value
	index   int         // in the request
	cloud   *cloudEvent // nil if the event is not a CloudEvent
	subject string      // data subject whose key the event needs; "" if none
}

// encode encodes the events of a request.
func (in *intake) encode(encoder *event.Encoder, events []intakeEvent, header http.Header) ([]*intakeFlight, []fieldFault) {
	var faults []fieldFault
	flights := make([]*intakeFlight, 0, len(events))
	for i, e := range events {
		f := &intakeFlight{index: i, cloud: e.cloud}
		own := traceHeaders(e.cloud, header)
		if e.cloud != nil && (in.cloudHeaders || encoder.HasHeaders()) {
			own = append(own, e.cloud.headers()...)
		}
		var err error
		if f.typ, f.buf, err = encoder.EncodeWith(own, e.text, &f.record, nil); err != nil {
			in.metrics.countRejected(f.typ)
			faults = append(faults, faultOf(i, err, e.cloud))
			continue
		}
		f.id, f.subject = encoder.ID(), encoder.Subject()
		flights = append(flights, f)
	}
	return flights, faults
}

// send writes the records. It answers when all results are known or the patience has
// ended. The end of the request does not stop it: the records may be in Kafka
// already.
func (in *intake) send(w http.ResponseWriter, r *http.Request, flights []*intakeFlight) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), in.patience)
	defer cancel()
	results := keyring.NewResults(len(flights))
	refused := make([]error, len(flights)) // each is set by one callback, before its result
	for i, f := range flights {
		in.writer.Write(ctx, &f.record, func(err error) {
			switch {
			case kafka.IsRefusal(err):
				in.metrics.countRejected(f.typ)
				refused[i], err = err, nil
			case err != nil:
				in.metrics.countFailed(f.typ)
			default:
				in.metrics.countSent(f.typ)
			}
			results.Add(err)
		})
	}
	if err := results.Wait(ctx); err != nil {
		in.log.Warn("Kafka has not acknowledged all events of a request", "err", err)
		w.Header().Set("Retry-After", retryAfter)
		in.problem(w, http.StatusServiceUnavailable, nil, "Kafka has not acknowledged all %d events; some may be written: send them again with the same ids", len(flights))
		return
	}
	var faults []fieldFault
	for i, err := range refused {
		if err != nil {
			faults = append(faults, faultOf(flights[i].index, fmt.Errorf("Kafka refused the event: %w", err), nil))
		}
	}
	if len(faults) > 0 {
		in.problem(w, http.StatusBadRequest, faults, "Kafka refused %d events; the other %d are written", len(faults), len(flights)-len(faults))
		return
	}
	sent := make([]sentEvent, len(flights))
	for i, f := range flights {
		sent[i] = sentEvent{f.id, f.record.Topic, f.record.Partition, f.record.Offset}
	}
	in.answers.WithLabelValues(strconv.Itoa(http.StatusOK)).Inc()
	server.WriteJSON(w, http.StatusOK, sentAnswer{sent})
}
