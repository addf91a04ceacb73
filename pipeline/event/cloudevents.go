package event

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/topology"
)

// CloudEvents 1.0 on Kafka in binary mode: the value stays what it is, and the
// attributes stand in headers.
//
// Source: bindings/kafka-protocol-binding.md of cloudevents/spec v1.0.2, 3.2.
const (
	ceID              = "ce_id"
	ceSource          = "ce_source"
	ceSpecVersion     = "ce_specversion"
	ceSubject         = "ce_subject"
	ceTime            = "ce_time"
	ceType            = "ce_type"
	HeaderContentType = "content-type" // which has no prefix

	MediaAvro = "application/avro"
)

// SpecVersion is the version of CloudEvents that is read and written.
const SpecVersion = "1.0"

// ceWriter makes the headers of events.
type ceWriter struct{ types []ceFields }

// ceFields are where the attributes of one type's events stand. Of events without
// an envelope the slots are -1.
type ceFields struct {
	name     string
	id, time int
	unit     *codec.Node // of the time
}

func newCEWriter(types []*codec.Schema, layouts []*codec.Layout, bare bool) *ceWriter {
	w := &ceWriter{}
	for i, s := range types {
		f := ceFields{name: s.ShortName(), id: -1, time: -1}
		if !bare {
			f.id, f.time = layouts[i].Slot("id"), layouts[i].Slot("timestamp")
			f.unit = layouts[i].Node(f.time)
		}
		w.types = append(w.types, f)
	}
	return w
}

// headers returns the headers of an event that had others: those that are not for
// us to say, source and subject if there are any, and what the event says now. said is
// of an event without an envelope.
func (w *ceWriter) headers(source string, had []pipeline.Header, typ int, v *pipeline.View, said Derived, key []byte) ([]pipeline.Header, error) {
	f := &w.types[typ]
	id, at := said.ID, said.Time
	if f.id >= 0 {
		var err error
		if id, _, err = codec.ReadText(v.Get(f.id)); err != nil {
			return nil, err
		}
		micros, _, err := codec.ReadLong(v.Get(f.time))
		if err != nil {
			return nil, err
		}
		at = time.UnixMicro(micros)
		if f.unit.Logical == "timestamp-millis" {
			at = time.UnixMilli(micros)
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
	if len(key) > 0 && !hasHeader(had, ceSubject) {
		add(ceSubject, strings.ToValidUTF8(string(key), "\uFFFD"))
	}
	add(ceTime, at.UTC().Format(time.RFC3339Nano))
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

// withoutCE returns the headers of an event that is no longer to have those of
// CloudEvents.
func withoutCE(had []pipeline.Header) []pipeline.Header {
	return slices.DeleteFunc(slices.Clone(had), func(h pipeline.Header) bool {
		return strings.HasPrefix(h.Key, "ce_") || h.Key == HeaderContentType
	})
}

// OutputHeaders says what headers a pipeline's events are written with. It is nil
// where they keep those they came with, whatever the topic.
type OutputHeaders struct {
	writer *ceWriter
	topics map[string]*topology.Topic
}

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
		c.writer = newCEWriter(pl.Types, pl.Layouts, pl.From.Bare != nil)
	}
	return c
}

// For returns the headers of an event that is written to a topic.
func (c *OutputHeaders) For(e *pipeline.Event, topic string, key []byte, envelope *Envelope) ([]pipeline.Header, error) {
	t := c.topics[topic]
	switch {
	case t == nil:
		return e.Headers, nil
	case t.Headers != topology.CloudEvents:
		return withoutCE(e.Headers), nil
	}
	said := Derived{Time: e.Time}
	if envelope != nil {
		said.ID = envelope.Derived.ID
	}
	return c.writer.headers(t.Source, e.Headers, e.Type, &e.View, said, key)
}

// TopicHeaders makes the headers of what a producer sends to a topic. It belongs to
// one goroutine.
type TopicHeaders struct {
	topic    *topology.Topic
	types    []*codec.Schema
	layouts  []*codec.Layout
	writer   *ceWriter
	envelope *Envelope // nil if events have one
	event    pipeline.Event
}

// NewTopicHeaders returns nil if records have none.
func NewTopicHeaders(t *topology.Topic) (*TopicHeaders, error) {
	if t.Headers != topology.CloudEvents {
		return nil, nil
	}
	h := &TopicHeaders{topic: t, types: t.Types}
	var bare []expr.BareType
	for _, s := range t.Types {
		paths := [][]string{{"id"}, {"timestamp"}}
		var of expr.BareType
		if t.Bare != nil {
			of, _ = t.Bare.Compile(s, t.Name) // the topology has no faults
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

// Clone returns one for another goroutine.
func (h *TopicHeaders) Clone() *TopicHeaders {
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

// For returns the headers of a record that has others.
func (h *TopicHeaders) For(s *codec.Schema, r *pipeline.Record, had []pipeline.Header) ([]pipeline.Header, error) {
	e := &h.event
	e.Record, e.Type = r, slices.Index(h.types, s)
	if err := h.layouts[e.Type].Walk(r.Value[codec.FrameSize:], &e.View); err != nil {
		return nil, err
	}
	said := Derived{Time: r.Time}
	if h.envelope != nil {
		if err := h.envelope.Open(e); err != nil {
			return nil, err
		}
		said.ID, said.Time = h.envelope.Derived.ID, e.Time
	}
	return h.writer.headers(h.topic.Source, had, e.Type, &e.View, said, r.Key)
}
