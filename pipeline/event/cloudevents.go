package event

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/topology"
)

// CloudEvents 1.0 on Kafka in binary mode: the value is the event's data, and the
// attributes are headers with the prefix ce_.
//
// Source: cloudevents/spec v1.0.2, cloudevents/bindings/kafka-protocol-binding.md,
// section 3.2 (binary content mode).
const (
	ceID          = CloudEventsPrefix + "id"
	ceSource      = CloudEventsPrefix + "source"
	ceSpecVersion = CloudEventsPrefix + "specversion"
	ceSubject     = CloudEventsPrefix + "subject"
	ceTime        = CloudEventsPrefix + "time"
	ceType        = CloudEventsPrefix + "type"

	// CloudEventsPrefix precedes the name of an attribute in the name of its header.
	CloudEventsPrefix = "ce_"
	// HeaderContentType has the media type of the value. The binding gives it no
	// prefix.
	HeaderContentType = "content-type"
	// MediaAvro is the media type of the values.
	MediaAvro = "application/avro"
	// SpecVersion is the supported version of CloudEvents.
	SpecVersion = "1.0"
)

// ceWriter creates the headers of events. It is immutable.
type ceWriter struct{ types []ceFields }

// ceFields locates the attributes in the events of a type.
type ceFields struct {
	name     string
	id, time int         // slots; -1 if the type has no envelope
	unit     *codec.Node // type of the time
}

func newCEWriter(types []*codec.Schema, layouts []*codec.Layout, bare bool) *ceWriter {
	w := &ceWriter{}
	for i, s := range types {
		f := ceFields{name: s.ShortName(), id: -1, time: -1}
		if id := layouts[i].Slot("id"); !bare && id >= 0 { // it has none if no event of the type gets headers
			f.id, f.time = id, layouts[i].Slot("timestamp")
			f.unit = layouts[i].Node(f.time)
		}
		w.types = append(w.types, f)
	}
	return w
}

// headers returns the headers of an event that has the headers had. Source and
// subject keep the value they have there; the other attributes come from the event,
// or from derived if it has no envelope. All other headers stay.
func (w *ceWriter) headers(source string, had []pipeline.Header, typ int, v *pipeline.View, derived Derived, key []byte) ([]pipeline.Header, error) {
	f := &w.types[typ]
	id, at := derived.ID, derived.Time
	if f.id >= 0 {
		var err error
		if id, _, err = codec.ReadText(v.Get(f.id)); err != nil {
			return nil, err
		}
		n, _, err := codec.ReadLong(v.Get(f.time))
		if err != nil {
			return nil, err
		}
		at = time.UnixMicro(n)
		if f.unit.Logical == "timestamp-millis" {
			at = time.UnixMilli(n)
		}
	}
	if len(id) == 0 {
		return nil, pipeline.Reject(pipeline.ReasonBadBody, "the event's id is empty, and a CloudEvent has one")
	}
	own := make([]pipeline.Header, 0, 7)
	buf := make([]byte, 0, 160) // of all values
	add := func(name, value string) {
		n := len(buf)
		buf = append(buf, value...)
		own = append(own, pipeline.Header{Key: name, Value: buf[n:len(buf):len(buf)]})
	}
	add(ceID, string(id))
	if !hasHeader(had, ceSource) {
		add(ceSource, source)
	}
	add(ceSpecVersion, SpecVersion)
	// A subject is text, and optional. A key that is no text stays the record's only.
	if len(key) > 0 && !hasHeader(had, ceSubject) && utf8.Valid(key) {
		add(ceSubject, string(key))
	}
	if t := pipeline.Time(at); t.HasText() { // the attribute is optional, and has no other form
		add(ceTime, t.String())
	}
	add(ceType, f.name)
	add(HeaderContentType, MediaAvro)
	all := make([]pipeline.Header, 0, len(had)+len(own))
	for _, h := range had {
		if !hasHeader(own, h.Key) {
			all = append(all, h)
		}
	}
	return append(all, own...), nil
}

func hasHeader(headers []pipeline.Header, name string) bool {
	return slices.ContainsFunc(headers, func(h pipeline.Header) bool { return h.Key == name })
}

// withoutCE returns the headers without those of CloudEvents.
func withoutCE(had []pipeline.Header) []pipeline.Header {
	return slices.DeleteFunc(slices.Clone(had), func(h pipeline.Header) bool {
		return strings.HasPrefix(h.Key, CloudEventsPrefix) || h.Key == HeaderContentType
	})
}

// OutputHeaders determines the headers of the events that a pipeline writes. It is
// nil if events keep the headers of their input records on every topic.
type OutputHeaders struct {
	writer *ceWriter                  // nil if no topic has CloudEvents headers
	topics map[string]*topology.Topic // topics whose headers differ from those of the input
}

// NewOutputHeaders returns the headers of a pipeline's output.
func NewOutputHeaders(pl *topology.Pipeline) *OutputHeaders {
	c := &OutputHeaders{topics: map[string]*topology.Topic{}}
	for _, t := range pl.Writes() {
		if t.Headers == topology.CloudEvents || t.Headers != pl.From.Headers {
			c.topics[t.Name] = t
		}
	}
	if len(c.topics) == 0 {
		return nil
	}
	if slices.ContainsFunc(pl.Writes(), func(t *topology.Topic) bool { return t.Headers == topology.CloudEvents }) {
		c.writer = newCEWriter(pl.Output, pl.OutputLayouts(), pl.From.Bare != nil)
	}
	return c
}

// For returns the headers of an event on a topic. had are the headers that are carried
// over, and key is the text form of the record's key. envelope is nil if the event has an
// envelope of its own. An error is of ClassReject: the event has no id.
func (c *OutputHeaders) For(e *pipeline.Event, had []pipeline.Header, topic string, key []byte, envelope *Envelope) ([]pipeline.Header, error) {
	t := c.topics[topic]
	switch {
	case t == nil:
		return had, nil
	case t.Headers != topology.CloudEvents:
		return withoutCE(had), nil
	}
	derived := Derived{Time: e.Time}
	if envelope != nil {
		derived.ID = envelope.Derived.ID
	}
	return c.writer.headers(t.Source, had, e.Type, &e.View, derived, key)
}

// ForTombstone returns the headers of a tombstone on a topic. A tombstone is not an event
// and gets no headers of one.
func (c *OutputHeaders) ForTombstone(had []pipeline.Header, topic string) []pipeline.Header {
	if t := c.topics[topic]; t != nil && t.Headers != topology.CloudEvents {
		return withoutCE(had)
	}
	return had
}

// topicHeaders creates the headers of the records that a producer sends to a topic.
// One goroutine owns it.
type topicHeaders struct {
	topic    *topology.Topic
	layouts  []*codec.Layout // by type
	writer   *ceWriter
	envelope *Envelope // nil if events have an envelope of their own
	event    pipeline.Event
	record   pipeline.Record // with the key and the headers of the event
}

// newTopicHeaders returns nil if the topic's records have no CloudEvents headers.
func newTopicHeaders(t *topology.Topic) (*topicHeaders, error) {
	if t.Headers != topology.CloudEvents {
		return nil, nil
	}
	h := &topicHeaders{topic: t}
	var bare []expr.BareType
	for _, s := range t.Types {
		paths := [][]string{{"id"}, {"timestamp"}}
		var of expr.BareType
		if t.Bare != nil {
			of, _ = t.Bare.Compile(s, t.Name) // the topology was checked
			paths = of.Paths()
		}
		layout, err := codec.NewLayout(s, paths)
		if err == nil {
			err = of.Bind(layout)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name(), err)
		}
		bare, h.layouts = append(bare, of), append(h.layouts, layout)
	}
	if t.Bare != nil {
		h.envelope = NewEnvelope(bare)
	}
	h.writer = newCEWriter(t.Types, h.layouts, t.Bare != nil)
	return h, nil
}

// clone returns a copy for another goroutine.
func (h *topicHeaders) clone() *topicHeaders {
	if h == nil {
		return nil
	}
	c := *h
	c.event = pipeline.Event{}
	if h.envelope != nil {
		c.envelope = NewEnvelope(h.envelope.types)
	}
	return &c
}

// of returns the headers of a record that has the headers had.
func (h *topicHeaders) of(s *codec.Schema, r *pipeline.Record, had []pipeline.Header) ([]pipeline.Header, error) {
	e := &h.event
	e.Record, e.Type = r, slices.Index(h.topic.Types, s)
	if err := h.layouts[e.Type].Walk(r.Value[codec.FrameSize:], &e.View); err != nil {
		return nil, err
	}
	h.record = pipeline.Record{Key: r.Key, Headers: had}
	e.View.Record = &h.record
	if h.topic.KeyFormat.Kind == keyformat.Avro && len(r.Key) >= codec.FrameSize {
		e.View.KeyBody = r.Key[codec.FrameSize:] // the encoder writes keys with the schema of the topic
	}
	derived := Derived{Time: r.Time}
	if h.envelope != nil {
		if err := h.envelope.Open(e); err != nil {
			return nil, err
		}
		derived.ID, derived.Time = h.envelope.Derived.ID, e.Time
	}
	return h.writer.headers(h.topic.Source, had, e.Type, &e.View, derived, []byte(h.topic.KeyFormat.Show(r.Key)))
}
