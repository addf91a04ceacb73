package producer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
)

// CloudEvents 1.0 over HTTP: structured mode, batches, and binary mode.
//
// Sources, in cloudevents/spec v1.0.2, cloudevents/: spec.md (attributes),
// formats/json-format.md, bindings/http-protocol-binding.md. The headers of the
// records follow bindings/kafka-protocol-binding.md; see package event.
const (
	mediaCloudEvent  = "application/cloudevents+json"
	mediaCloudEvents = "application/cloudevents-batch+json"
	mediaJSON        = "application/json"
)

// intakeEvent is an event of a request.
type intakeEvent struct {
	text  []byte      // in Millrace's JSON form
	cloud *cloudEvent // nil if the event is not a CloudEvent
}

// cloudEvent is a CloudEvent: its attributes by name, including extensions, and its
// data as JSON.
type cloudEvent struct {
	attributes map[string]string
	data       json.RawMessage
}

// mediaError means that the form of a request is not supported.
type mediaError struct{ msg string }

func (e *mediaError) Error() string { return e.msg }

// readEvents returns the events of a request with a header and a body. An error is a
// *mediaError or describes the faults of the body, each with its path.
func readEvents(header http.Header, body []byte) ([]intakeEvent, error) {
	kind := header.Get("Content-Type")
	media, params, err := mime.ParseMediaType(kind)
	switch {
	case err != nil && kind != "":
		return nil, &mediaError{fmt.Sprintf("Content-Type %q is invalid", kind)}
	case params["charset"] != "" && !strings.EqualFold(params["charset"], "utf-8"):
		return nil, &mediaError{fmt.Sprintf("charset %s: only UTF-8 is accepted", params["charset"])}
	case header.Get("Content-Encoding") != "":
		return nil, &mediaError{"a body with a Content-Encoding is not accepted"}
	case media == mediaCloudEvent:
		e, err := structuredEvent(body)
		return []intakeEvent{e}, err
	case media == mediaCloudEvents:
		return eachEvent(body, structuredEvent)
	case strings.HasPrefix(media, "application/cloudevents"):
		return nil, &mediaError{fmt.Sprintf("%s: of CloudEvents, %s and %s are accepted", media, mediaCloudEvent, mediaCloudEvents)}
	case header.Get("Ce-Specversion") != "":
		e, err := binaryEvent(header, media, body)
		return []intakeEvent{e}, err
	case media != mediaJSON:
		return nil, &mediaError{fmt.Sprintf("Content-Type %q: %s, %s and %s are accepted", media, mediaJSON, mediaCloudEvent, mediaCloudEvents)}
	case bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("[")):
		return eachEvent(body, func(text []byte) (intakeEvent, error) { return intakeEvent{text: text}, nil })
	}
	return []intakeEvent{{text: body}}, nil
}

// eachEvent reads the events of an array.
func eachEvent(body []byte, read func([]byte) (intakeEvent, error)) ([]intakeEvent, error) {
	if tooMany(body) {
		return nil, errTooMany
	}
	if err := new(codec.JSON).Parse(body); err != nil {
		return nil, err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil || list == nil {
		return nil, errors.New("expected an array of events")
	}
	var out []intakeEvent
	var faults []error
	for i, text := range list {
		e, err := read(text)
		if err != nil {
			faults = append(faults, &eventError{i, err})
		}
		out = append(out, e)
	}
	return out, errors.Join(faults...)
}

// maxEvents is the most events of a request. Each takes memory beside its text.
const maxEvents = 10_000

// errTooMany means that a request has more than maxEvents events.
var errTooMany = errors.New("too many events")

// tooMany reports whether an array has more than maxEvents items. It takes no memory for
// them. A text that is no array is not its business.
func tooMany(body []byte) bool {
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return false
	}
	var item json.RawMessage // reused
	for n := 0; d.More(); n++ {
		if err := d.Decode(&item); err != nil {
			return false
		}
		if n == maxEvents {
			return true
		}
	}
	return false
}

// structuredEvent reads an event in the JSON event format.
func structuredEvent(text []byte) (intakeEvent, error) {
	if err := new(codec.JSON).Parse(text); err != nil {
		return intakeEvent{}, err
	}
	e := &cloudEvent{attributes: map[string]string{}}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return intakeEvent{}, errors.New("expected a CloudEvent, a JSON object")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		name, _ := t.(string)
		var raw json.RawMessage
		if err == nil {
			err = d.Decode(&raw)
		}
		switch {
		case err != nil:
			return intakeEvent{}, err
		case seen[name]:
			return intakeEvent{}, &codec.PathError{Path: name, Msg: "duplicate key"}
		}
		seen[name] = true
		if err := e.member(name, raw); err != nil {
			return intakeEvent{}, err
		}
	}
	if seen["data"] && seen["data_base64"] {
		return intakeEvent{}, &codec.PathError{Path: "data_base64", Msg: "only one of data and data_base64 is allowed"}
	}
	return e.intake()
}

// member adds a member of the JSON event format.
func (e *cloudEvent) member(name string, raw json.RawMessage) error {
	switch {
	case name == "data":
		e.data = raw
		return nil
	case string(raw) == "null":
		return nil // the same as a missing attribute
	case name == "data_base64":
		var text string
		err := json.Unmarshal(raw, &text)
		if err == nil {
			e.data, err = base64.StdEncoding.DecodeString(text)
		}
		if err != nil {
			return &codec.PathError{Path: name, Msg: "expected a string in base64"}
		}
		return nil
	case !isAttributeName(name):
		return &codec.PathError{Path: name, Msg: "the name of an attribute has only lower-case letters and digits"}
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		e.attributes[name] = v
	case json.Number, bool:
		if slices.Contains(contextAttributes, name) {
			return &codec.PathError{Path: name, Msg: fmt.Sprintf("expected a string, found %v", v)}
		}
		e.attributes[name] = fmt.Sprint(v)
	default:
		return &codec.PathError{Path: name, Msg: "expected a string, a number or a boolean"}
	}
	return nil
}

func isAttributeName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// binaryEvent reads an event in binary mode: the attributes are headers, and the data
// is the body.
func binaryEvent(header http.Header, media string, body []byte) (intakeEvent, error) {
	if media != mediaJSON && !strings.HasSuffix(media, "+json") {
		return intakeEvent{}, &mediaError{fmt.Sprintf("Content-Type %q: the data of a CloudEvent must be JSON", media)}
	}
	e := &cloudEvent{attributes: map[string]string{}, data: body}
	for key, values := range header {
		name, ok := strings.CutPrefix(strings.ToLower(key), "ce-")
		if !ok {
			continue
		}
		switch {
		case !isAttributeName(name):
			return intakeEvent{}, &codec.PathError{Path: key, Msg: "the name of an attribute has only letters and digits"}
		case len(values) > 1:
			return intakeEvent{}, &codec.PathError{Path: name, Msg: "duplicate header"}
		}
		value, err := url.PathUnescape(values[0]) // HTTP binding, section 3.1.3.2
		if err != nil {
			return intakeEvent{}, &codec.PathError{Path: name, Msg: "a % in a header must be followed by two hexadecimal digits"}
		}
		if err := codec.CheckText([]byte(value)); err != nil {
			return intakeEvent{}, &codec.PathError{Path: name, Msg: err.Error()}
		}
		e.attributes[name] = value
	}
	if err := new(codec.JSON).Parse(body); err != nil {
		return intakeEvent{}, &codec.PathError{Path: "data", Msg: err.Error()}
	}
	return e.intake()
}

// contextAttributes are the attributes in the specification. They are strings.
var contextAttributes = []string{"specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time"}

// intake checks the attributes and returns the event in Millrace's form. Id, type and
// time are fields of the envelope. The other attributes are metadata, except those of
// the data's form and of the trace.
func (e *cloudEvent) intake() (intakeEvent, error) {
	for _, name := range []string{"specversion", "id", "source", "type"} {
		if e.attributes[name] == "" {
			return intakeEvent{}, &codec.PathError{Path: name, Msg: "missing; a CloudEvent has specversion, id, source and type"}
		}
	}
	for _, name := range []string{"time", "subject", "dataschema"} {
		if v, ok := e.attributes[name]; ok && v == "" {
			return intakeEvent{}, &codec.PathError{Path: name, Msg: "empty; leave the attribute out"}
		}
	}
	if v := e.attributes["specversion"]; v != event.SpecVersion {
		return intakeEvent{}, &codec.PathError{Path: "specversion", Msg: fmt.Sprintf("expected %q, found %q", event.SpecVersion, v)}
	}
	if form, ok := e.attributes["datacontenttype"]; ok {
		media, _, err := mime.ParseMediaType(form)
		if err != nil || media != mediaJSON && !strings.HasSuffix(media, "+json") {
			return intakeEvent{}, &codec.PathError{Path: "datacontenttype", Msg: fmt.Sprintf("expected %s, found %q", mediaJSON, form)}
		}
	}
	if e.data == nil {
		return intakeEvent{}, &codec.PathError{Path: "data", Msg: "missing"}
	}
	if err := new(codec.JSON).Parse(e.data); err != nil {
		return intakeEvent{}, &codec.PathError{Path: "data", Msg: err.Error()}
	}
	metadata := map[string]string{}
	for name, value := range e.attributes {
		switch name {
		case "specversion", "id", "type", "time", "datacontenttype", "dataschema", "traceparent", "tracestate":
		default:
			metadata[name] = value
		}
	}
	text, err := json.Marshal(struct {
		ID       string            `json:"id"`
		Type     string            `json:"type"`
		Time     string            `json:"timestamp,omitempty"`
		Metadata map[string]string `json:"metadata"`
		Data     json.RawMessage   `json:"data"`
	}{e.attributes["id"], e.attributes["type"], e.attributes["time"], metadata, e.data})
	return intakeEvent{text, e}, err
}

// headers returns the headers of the record in the Kafka binding, sorted by name.
func (e *cloudEvent) headers() (out []pipeline.Header) {
	names := make([]string, 0, len(e.attributes))
	for name := range e.attributes {
		if name != "datacontenttype" && name != "dataschema" && name != "traceparent" && name != "tracestate" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		out = append(out, pipeline.Header{Key: event.CloudEventsPrefix + name, Value: []byte(e.attributes[name])})
	}
	return append(out, pipeline.Header{Key: event.HeaderContentType, Value: []byte(event.MediaAvro)})
}

// attributePath returns the attribute that a field of Millrace's form came from.
func attributePath(path string) string {
	if path == "timestamp" {
		return "time"
	}
	return strings.TrimPrefix(path, "metadata.")
}

// eventError is the fault of one event of a batch.
type eventError struct {
	index int
	err   error
}

func (e *eventError) Error() string { return fmt.Sprintf("event %d: %v", e.index, e.err) }
func (e *eventError) Unwrap() error { return e.err }

// traceHeaders returns the trace context for a record: that of the event, or else of
// the request. Invalid headers are dropped.
//
// Source: W3C Recommendation Trace Context Level 1, sections 3.2 (traceparent) and
// 3.3 (tracestate).
func traceHeaders(e *cloudEvent, request http.Header) (out []pipeline.Header) {
	parent, state := request.Get("Traceparent"), strings.Join(request.Values("Tracestate"), ",")
	if e != nil && e.attributes["traceparent"] != "" {
		parent, state = e.attributes["traceparent"], e.attributes["tracestate"]
	}
	if !isTraceparent(parent) {
		return nil
	}
	out = append(out, pipeline.Header{Key: "traceparent", Value: []byte(parent)})
	if state != "" && len(state) <= maxTracestate {
		out = append(out, pipeline.Header{Key: "tracestate", Value: []byte(state)})
	}
	return out
}

// maxTracestate is the length in bytes up to which a tracestate must be propagated; a
// longer one may be dropped (Trace Context, section 3.3.1.5).
const maxTracestate = 512

// isTraceparent reports whether a text is a traceparent of version 00:
// 00-<trace id>-<parent id>-<flags>, in lower-case hexadecimal, without ids of only
// zeros (Trace Context, section 3.2.2).
func isTraceparent(s string) bool {
	parts := strings.Split(s, "-")
	if len(parts) != 4 || parts[0] != "00" {
		return false
	}
	for i, size := range []int{2, 32, 16, 2} {
		if len(parts[i]) != size || strings.Trim(parts[i], "0123456789abcdef") != "" {
			return false
		}
	}
	return strings.Trim(parts[1], "0") != "" && strings.Trim(parts[2], "0") != ""
}
