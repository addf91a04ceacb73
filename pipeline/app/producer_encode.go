package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

// producedType is an event type that the producer can send.
type producedType struct {
	name   string // as events carry it: the record's name without its namespace
	schema *codec.Schema
	id     int // of the schema in the registry

	layout    *codec.Layout
	key, time int // slots; time is -1 if the type has no timestamp

	sealed *sealedFields // nil if nothing of it is encrypted
}

// eventEncoder turns events in JSON into records. It belongs to one goroutine.
type eventEncoder struct {
	topic  string
	limits kafka.Limits // of what it takes
	key    string       // path of the key's field
	types  []*producedType
	byName map[string]*producedType
	newID  func() string
	now    func() time.Time
	cloud  *topicHeaders // nil if the records are to have no headers

	keys *keyring // nil if nothing is encrypted, or nothing sent

	event   codec.JSON // the one that is being encoded
	view    pipeline.View
	subject string // whose key the event that was encoded last needs; "" if none
}

// newEventEncoder returns an encoder of the types into a topic. key is the
// dotted path of the field that becomes the record key.
func newEventEncoder(topic string, schemas []*codec.Schema, key string, newID func() string, now func() time.Time) (*eventEncoder, error) {
	e := &eventEncoder{topic: topic, key: key, byName: map[string]*producedType{}, newID: newID, now: now}
	var faults []error
	for _, s := range schemas {
		t, err := newProducedType(s, strings.Split(key, "."))
		if err != nil {
			faults = append(faults, fmt.Errorf("--key %s: %w", key, err))
			continue
		}
		e.types = append(e.types, t)
	}
	for _, t := range e.types {
		for _, name := range []string{t.name, snakeCase(t.name)} {
			if _, taken := e.byName[name]; taken {
				e.byName[name] = nil // of two namespaces: only the full name tells
				continue
			}
			e.byName[name] = t
		}
	}
	for _, t := range e.types {
		e.byName[t.schema.Name()] = t
	}
	return e, errors.Join(faults...)
}

func newProducedType(s *codec.Schema, key []string) (*producedType, error) {
	t := &producedType{name: s.Name()[strings.LastIndexByte(s.Name(), '.')+1:], schema: s, time: -1}
	paths := [][]string{key}
	timestamp := s.Root().Field("timestamp")
	if timestamp != nil && timestampUnit(timestamp.Type) != 0 {
		paths = append(paths, []string{timestamp.Name})
	}
	var err error
	if t.layout, err = codec.NewLayout(s, paths); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name(), err)
	}
	t.key = t.layout.Slot(key...)
	if n := t.layout.Node(t.key); n.Tag != "" {
		return nil, fmt.Errorf("%s: it is encrypted, and a record key is read by everybody", s.Name())
	} else if !isKey(n) {
		return nil, fmt.Errorf("%s: a record key is a string, an int or a long; this is %s", s.Name(), n)
	}
	if len(paths) > 1 {
		t.time = t.layout.Slot(timestamp.Name)
	}
	return t, nil
}

// isKey reports whether a value of the type can be a record key.
func isKey(n *codec.Node) bool {
	if other, _, _, ok := n.Nullable(); ok {
		n = other
	}
	return n.Kind == codec.String || n.Kind == codec.Int || n.Kind == codec.Long
}

// timestampUnit returns the time in one unit of a timestamp, or 0 if the type is
// none.
func timestampUnit(n *codec.Node) time.Duration {
	switch n.Logical {
	case "timestamp-millis":
		return time.Millisecond
	case "timestamp-micros":
		return time.Microsecond
	case "timestamp-nanos":
		return time.Nanosecond
	}
	return 0
}

// snakeCase returns UserCreated as user_created.
func snakeCase(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// encode makes the record of one event. The record's value and key are appended
// to buf, which is returned. An error says what is wrong with the line; the type
// is known even then, if the line got so far, else nil.
func (e *eventEncoder) encode(line []byte, r *pipeline.Record, buf []byte) (*producedType, []byte, error) {
	if err := e.event.Parse(line); err != nil {
		return nil, buf, err
	}
	if !e.event.IsObject() {
		return nil, buf, errors.New("expected an event, a JSON object")
	}
	t, err := e.typeOf()
	if err != nil {
		return nil, buf, err
	}
	e.fillIn(t)
	buf = codec.AppendFrame(buf[:0], t.id)
	frame := len(buf)
	if buf, err = e.event.AppendAvro(buf, t.schema); err != nil {
		return t, buf, err
	}
	value := len(buf)
	if err := t.layout.Walk(buf[frame:], &e.view); err != nil {
		return t, buf, err
	}
	if buf, err = appendKey(buf, t.layout.Node(t.key), e.view.Get(t.key)); err != nil {
		return t, buf, &codec.PathError{Path: e.key, Msg: err.Error()}
	}
	at := e.now()
	if t.time >= 0 {
		if at, err = timeOf(t.layout.Node(t.time), e.view.Get(t.time)); err != nil {
			return t, buf, err
		}
	}
	e.subject = ""
	if t.sealed != nil {
		err := t.sealed.layout.Walk(buf[frame:value], &e.view)
		if err == nil && t.sealed.any(&e.view) {
			e.subject, err = t.sealed.whose(&e.view)
		}
		if err != nil {
			return t, buf, err
		}
	}
	*r = pipeline.Record{Topic: e.topic, Partition: pipeline.KeyPartition, Key: buf[value:], Value: buf[:value:value], Time: at}
	if e.cloud != nil {
		if r.Headers, err = e.cloud.of(t.schema, r, nil); err != nil {
			return t, buf, err
		}
	}
	return t, buf, e.fits(r, "")
}

// fits returns an error for a record that is larger than the topic takes.
func (e *eventEncoder) fits(r *pipeline.Record, how string) error {
	if n, most := r.Size(), e.limits.Record(r.Topic); n > most {
		return &codec.PathError{Msg: fmt.Sprintf("too large: %d bytes as a record%s, and %s takes at most %d", n, how, r.Topic, most)}
	}
	return nil
}

// encrypt makes the encoder one of events whose tagged fields are encrypted.
func (e *eventEncoder) encrypt(how *topology.Encryption) (err error) {
	for _, t := range e.types {
		if t.sealed, err = newSealedFields(how, t.schema); err != nil {
			return err
		}
	}
	return nil
}

// seal encrypts the tagged fields of a record that encode has made, under a key of
// the subject that it needs; keyring.ensure has made it. The new value is appended
// to buf, which is returned. A [codec.PathError] says that it cannot be taken;
// another error that the keys are not as they have to be.
func (e *eventEncoder) seal(t *producedType, subject string, r *pipeline.Record, buf []byte) ([]byte, error) {
	if subject == "" || e.keys == nil {
		return buf, nil
	}
	key, err := e.keys.ring.Current(subject)
	switch {
	case errors.Is(err, seal.ErrErased):
		return buf, &codec.PathError{Path: t.sealed.path, Msg: err.Error() + ": nothing personal is taken of it any more"}
	case err != nil:
		return buf, fmt.Errorf("the key of subject %q: %w", subject, err)
	}
	body := len(codec.AppendFrame(nil, t.id))
	if err := t.sealed.layout.Walk(r.Value[body:], &e.view); err != nil {
		return buf, err
	}
	t.sealed.seal(&e.view, subject, key)
	start := len(buf)
	buf = e.view.Append(append(buf, r.Value[:body]...))
	r.Value = buf[start:len(buf):len(buf)]
	return buf, e.fits(r, " with its fields encrypted")
}

// typeOf finds the type that the event names. A topic of a single type needs no
// name.
func (e *eventEncoder) typeOf() (*producedType, error) {
	named := e.event.Has("type")
	if !named && len(e.types) == 1 {
		return e.types[0], nil
	}
	name, isText := e.event.Text("type")
	if t := e.byName[string(name)]; t != nil {
		return t, nil
	}
	if len(e.types) == 1 && e.types[0].schema.Root().Field("type") == nil {
		return e.types[0], nil // no envelope: whatever type is, the schema decides
	}
	msg := "missing"
	switch {
	case isText:
		msg = fmt.Sprintf("unknown event type %q", name)
	case named:
		msg = "expected a string"
	}
	var names []string
	for _, t := range e.types {
		if e.byName[t.name] == nil {
			names = append(names, t.schema.Name())
		} else {
			names = append(names, t.name)
		}
	}
	slices.Sort(names)
	return nil, &codec.PathError{Path: "type", Msg: fmt.Sprintf("%s; %s takes %s", msg, e.topic, strings.Join(names, ", "))}
}

// fillIn gives the event what it left out. The type is written in the schema's
// own spelling.
func (e *eventEncoder) fillIn(t *producedType) {
	for i := range t.schema.Root().Fields {
		f := &t.schema.Root().Fields[i]
		if f.Name == "type" {
			if given, _ := e.event.Text(f.Name); string(given) != t.name {
				e.event.Set(f.Name, strconv.Quote(t.name)) // an Avro name needs no escapes
			}
		} else if !e.event.Has(f.Name) {
			if value, ok := e.leftOut(t, f); ok {
				e.event.Set(f.Name, value)
			}
		}
	}
}

// complete is fillIn for an event that is a tree of values.
func (e *eventEncoder) complete(t *producedType, event map[string]any) {
	for i := range t.schema.Root().Fields {
		f := &t.schema.Root().Fields[i]
		if f.Name == "type" {
			event[f.Name] = t.name
		} else if _, have := event[f.Name]; !have {
			value, ok := e.leftOut(t, f)
			d := json.NewDecoder(strings.NewReader(value))
			d.UseNumber()
			var v any
			if ok && d.Decode(&v) == nil { // it is JSON
				event[f.Name] = v
			}
		}
	}
}

// leftOut returns, as JSON, what becomes of a field of the envelope that an event
// may leave out: id, timestamp, version and metadata, of which the last two may
// have a default.
func (e *eventEncoder) leftOut(t *producedType, f *codec.Field) (string, bool) {
	switch {
	case f.Name == "id":
		return strconv.Quote(e.newID()), true
	case f.Name == "timestamp" && t.time >= 0:
		return strconv.Quote(e.now().UTC().Format(time.RFC3339Nano)), true
	case f.HasDefault:
	case f.Name == "version" && f.Type.Kind == codec.Int:
		return "1", true
	case f.Name == "metadata" && f.Type.Kind == codec.Map:
		return "{}", true
	}
	return "", false
}

// appendKey appends the record key that a value is: text as it is, numbers in
// decimal.
func appendKey(dst []byte, n *codec.Node, enc []byte) ([]byte, error) {
	if other, null, _, ok := n.Nullable(); ok {
		branch, rest, err := codec.ReadLong(enc)
		if err != nil {
			return dst, err
		}
		if branch == int64(null) {
			return dst, errors.New("expected the record key, found null")
		}
		n, enc = other, rest
	}
	if n.Kind != codec.String {
		v, _, err := codec.ReadLong(enc)
		if err != nil {
			return dst, err
		}
		return fmt.Append(dst, v), nil
	}
	text, _, err := codec.ReadText(enc)
	if err == nil && len(text) == 0 {
		err = errors.New("expected the record key, found an empty text")
	}
	return append(dst, text...), err
}

// timeOf returns a record's time from its timestamp.
func timeOf(n *codec.Node, enc []byte) (time.Time, error) {
	v, _, err := codec.ReadLong(enc)
	if err != nil {
		return time.Time{}, err
	}
	unit := timestampUnit(n)
	perSecond := int64(time.Second / unit)
	at := time.Unix(v/perSecond, v%perSecond*int64(unit))
	if at.UnixMilli() < 0 {
		return at, &codec.PathError{Path: "timestamp", Msg: fmt.Sprintf("%s is before 1970, which a Kafka record's time cannot be", at.UTC().Format(time.RFC3339Nano))}
	}
	return at, nil
}
