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

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/keyring"
	"millrace/pipeline/worker"
)

const (
	bodyTimeout = 30 * time.Second // for a request's body to come
	retryAfter  = "1"              // seconds
)

func serveCommand(e *cli.Env) *cobra.Command {
	p := &producer{env: e}
	in := &intake{}
	var atOnce int
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Take events over HTTP",
		Long: `Takes events over HTTP: POST /v1/events with one of

  application/json                    an event as send takes it, or an array of them
  application/cloudevents+json        a CloudEvent 1.0
  application/cloudevents-batch+json  an array of CloudEvents
  ce- headers, and JSON as the body   a CloudEvent in binary mode

Of a CloudEvent, id, type and time are the event's own, data is its data, and
every other attribute is metadata. A traceparent goes into the record.

200 says that Kafka has every event of the request, and where. 400, 413 and 415
say what is wrong with it: nothing of it was sent. 429 says that too much is
under way: nothing of it was sent. 503 says that Kafka did not acknowledge all of
it: some of it may be there. Problems are in the form of RFC 9457.

A request that was not answered, or with 429 or 503, may be sent again as it is.
An event that was there already is then there twice, with the same id: who
reads takes an id that was seen before for the same event (the dedupe stage and
projections do). An event without an id gets a new one with each request, so
give ids.`,
		Example: `  producer serve
  curl -d '{"type":"OrderPaid","data":{"id":"o-1"}}' -H 'Content-Type: application/json' http://` + worker.ProducerListen + `/v1/events`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if atOnce < 1 {
				return cli.Usagef("--at-once: %d requests are none", atOnce)
			}
			if in.maxBody < 1 {
				return cli.Usagef("--max-body: %d bytes are none", in.maxBody)
			}
			in.slots = make(chan *event.Encoder, atOnce)
			return p.serveEvents(cmd.Context(), in)
		},
	}
	p.addFlags(cmd, worker.ProducerListen)
	flags := cmd.Flags()
	_ = flags.MarkHidden("json") // there is no summary
	flags.IntVar(&atOnce, "at-once", 64, "work on at most `n` requests at a time; further ones are answered with 429")
	flags.Int64Var(&in.maxBody, "max-body", 4<<20, "how many `bytes` a request may have")
	flags.BoolVar(&in.cloudHeaders, "cloudevents-headers", false, "give the records of CloudEvents the ce_ headers of the CloudEvents binding for Kafka")
	return cmd
}

// intake takes events over HTTP.
type intake struct {
	topic        string
	writer       keyring.RecordWriter
	slots        chan *event.Encoder // a request takes one for its time
	maxBody      int64
	patience     time.Duration // how long Kafka may take for a request
	cloudHeaders bool
	metrics      *producerMetrics
	answers      *prometheus.CounterVec
	log          *slog.Logger
}

// serveEvents takes events until the context ends.
func (p *producer) serveEvents(ctx context.Context, in *intake) error {
	if p.server.Listen == "" {
		return cli.Usagef("--listen: there is nothing to serve at")
	}
	way, err := p.open(ctx)
	if err != nil {
		return err
	}
	defer way.close() // after the last request
	server, err := worker.NewServer(p.server.Config(way.log, way.metrics))
	if err != nil {
		return err
	}
	in.topic, in.writer, in.patience, in.log = way.topic.Name, way.writer, p.patience, way.log
	in.observe(way.metrics, way.encoder)
	server.Handle("/v1/events", in)
	if cfg, err := p.kafka.Config(way.log, nil); err == nil {
		server.Ready("kafka", cfg.Ping)
	}
	return server.Run(ctx)
}

// observe makes the metrics, and a copy of the encoder for each request that is
// worked on.
func (in *intake) observe(reg prometheus.Registerer, encoder *event.Encoder) {
	in.metrics = newProducerMetrics(reg, encoder.Types)
	in.answers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_producer_requests_total",
		Help: "Requests to send events, by HTTP status of the answer.",
	}, []string{"status"})
	reg.MustRegister(in.answers)
	for range cap(in.slots) {
		one := *encoder
		one.JSON, one.View, one.Headers = codec.JSON{}, pipeline.View{}, encoder.Headers.Clone()
		in.slots <- &one
	}
}

// sentEvent says where an event is.
type sentEvent struct {
	ID        string `json:"id,omitempty"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// problem is an answer in the form of RFC 9457.
type problem struct {
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail"`
	Errors []fieldFault `json:"errors,omitempty"` // one for each bad event
}

// fieldFault says what is wrong with an event.
type fieldFault struct {
	Event  int    `json:"event"`           // its number in the request, from 0
	Field  string `json:"field,omitempty"` // dotted path
	Detail string `json:"detail"`
}

func (in *intake) problem(w http.ResponseWriter, status int, faults []fieldFault, format string, args ...any) {
	in.answers.WithLabelValues(strconv.Itoa(status)).Inc()
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(problem{http.StatusText(status), status, fmt.Sprintf(format, args...), faults}) // whoever asked has gone
}

// ServeHTTP implements [http.Handler].
func (in *intake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		in.problem(w, http.StatusMethodNotAllowed, nil, "events are sent with POST")
		return
	}
	var encoder *event.Encoder
	select {
	case encoder = <-in.slots:
		defer func() { in.slots <- encoder }()
	default:
		w.Header().Set("Retry-After", retryAfter)
		in.problem(w, http.StatusTooManyRequests, nil, "%d requests are under way already; nothing of this one was sent", cap(in.slots))
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)) // not every writer can
	body, err := readBody(w, r, in.maxBody)
	if err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			in.problem(w, http.StatusRequestEntityTooLarge, nil, "a request has %d bytes at most", large.Limit)
		} else {
			in.problem(w, http.StatusBadRequest, nil, "the body did not come whole")
		}
		return
	}
	events, err := readEvents(r.Header, body)
	var media *mediaError
	switch {
	case errors.As(err, &media):
		in.problem(w, http.StatusUnsupportedMediaType, nil, "%v", media)
		return
	case err != nil:
		in.refuse(w, eventFaults(err))
		return
	}
	flights, faults := in.encode(encoder, events, r.Header)
	if len(faults) == 0 {
		faults, err = in.seal(r.Context(), encoder, flights)
	}
	switch {
	case err != nil:
		in.log.Error("events of a request cannot be encrypted", "err", err)
		w.Header().Set("Retry-After", retryAfter)
		in.problem(w, http.StatusServiceUnavailable, nil, "the keys to encrypt the events with are not at hand; nothing of the request was sent")
		return
	case len(faults) > 0:
		in.refuse(w, faults)
		return
	}
	in.send(w, r, flights)
}

// seal encrypts the tagged fields of events. The error is about the keys, and not
// the request's fault.
func (in *intake) seal(ctx context.Context, encoder *event.Encoder, flights []*intakeFlight) (faults []fieldFault, err error) {
	if encoder.Ring == nil {
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
	if err := encoder.Ring.Ensure(ctx, subjects); err != nil {
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
		faults = append(faults, faultOf(f.number, err, f.cloud))
	}
	return faults, nil
}

func (in *intake) refuse(w http.ResponseWriter, faults []fieldFault) {
	in.problem(w, http.StatusBadRequest, faults, "%d of the events cannot be taken; nothing of the request was sent", len(faults))
}

// eventFaults returns the faults that an error of readEvents is about.
func eventFaults(err error) (faults []fieldFault) {
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok { // as eachEvent returns it
		list = joined.Unwrap()
	}
	for _, err := range list {
		number := 0
		var of *eventError
		if errors.As(err, &of) {
			number, err = of.number, of.err
		}
		faults = append(faults, faultOf(number, err, nil))
	}
	return faults
}

func faultOf(number int, err error, from *cloudEvent) fieldFault {
	var at *codec.PathError
	if !errors.As(err, &at) {
		return fieldFault{Event: number, Detail: err.Error()}
	}
	path := at.Path
	if from != nil {
		path = attributePath(path)
	}
	return fieldFault{number, path, at.Msg}
}

// intakeFlight is an event of a request on its way.
type intakeFlight struct {
	id      string
	typ     *event.Type
	record  pipeline.Record
	buf     []byte
	number  int         // in the request
	cloud   *cloudEvent // nil if it is none
	subject string      // whose key it needs; "" if none
}

// encode makes the records of a request's events.
func (in *intake) encode(encoder *event.Encoder, events []intakeEvent, header http.Header) ([]*intakeFlight, []fieldFault) {
	var faults []fieldFault
	flights := make([]*intakeFlight, 0, len(events))
	for i, e := range events {
		f := &intakeFlight{number: i, cloud: e.cloud}
		var err error
		if f.typ, f.buf, err = encoder.Encode(e.text, &f.record, nil); err != nil {
			in.metrics.countRejected(f.typ)
			faults = append(faults, faultOf(i, err, e.cloud))
			continue
		}
		id, _ := encoder.JSON.Text("id")
		f.id, f.subject = string(id), encoder.Subject
		f.record.Headers = traceHeaders(e.cloud, header)
		if e.cloud != nil && (in.cloudHeaders || encoder.Headers != nil) {
			f.record.Headers = append(f.record.Headers, e.cloud.headers()...)
		}
		if encoder.Headers != nil {
			if f.record.Headers, err = encoder.Headers.For(f.typ.Schema, &f.record, f.record.Headers); err != nil {
				faults = append(faults, faultOf(i, err, e.cloud)) // encoding it would have failed before
				continue
			}
		}
		if err := encoder.Fits(&f.record, ""); err != nil {
			in.metrics.countRejected(f.typ)
			faults = append(faults, faultOf(i, err, e.cloud))
			continue
		}
		flights = append(flights, f)
	}
	return flights, faults
}

// send writes the records and answers when the fate of all is known, or the
// patience is at its end. The request's own end stops nothing: what was begun
// may be in Kafka.
func (in *intake) send(w http.ResponseWriter, r *http.Request, flights []*intakeFlight) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), in.patience)
	defer cancel()
	results := &keyring.Results{Open: len(flights), All: make(chan struct{})}
	if len(flights) == 0 {
		close(results.All)
	}
	for _, f := range flights {
		in.writer.Write(ctx, &f.record, func(err error) {
			if err != nil {
				in.metrics.countFailed(f.typ)
			} else {
				in.metrics.countSent(f.typ)
			}
			results.Add(err)
		})
	}
	select {
	case <-results.All:
	case <-ctx.Done():
	}
	if err := results.Get(); err != nil {
		in.log.Warn("Kafka did not acknowledge all events of a request", "err", err)
		w.Header().Set("Retry-After", retryAfter)
		in.problem(w, http.StatusServiceUnavailable, nil, "Kafka did not acknowledge all %d events; some may be there: send them again with the same ids", len(flights))
		return
	}
	sent := make([]sentEvent, len(flights))
	for i, f := range flights {
		sent[i] = sentEvent{f.id, f.record.Topic, f.record.Partition, f.record.Offset}
	}
	in.answers.WithLabelValues(strconv.Itoa(http.StatusOK)).Inc()
	worker.WriteJSON(w, http.StatusOK, map[string]any{"events": sent})
}
