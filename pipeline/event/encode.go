package event

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
	"millrace/pipeline/keyring"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

// Type is an event type that the producer can send.
type Type struct {
	Name   string // as events carry it: the record's name without its namespace
	Schema *codec.Schema
	ID     int // of the schema in the registry

	layout    *codec.Layout
	key, Time int // slots; time is -1 if the type has no timestamp

	Sealed *keyring.Fields // nil if nothing of it is encrypted
}

// Encoder turns events in JSON into records. It belongs to one goroutine.
type Encoder struct {
	Topic   string
	Limits  kafka.Limits // of what it takes
	key     string       // path of the key's field
	Types   []*Type
	byName  map[string]*Type
	NewID   func() string
	Now     func() time.Time
	Headers *TopicHeaders // nil if the records are to have no headers

	Ring *keyring.Ring // nil if nothing is encrypted, or nothing sent

	JSON    codec.JSON // the one that is being encoded
	View    pipeline.View
	Subject string // whose key the event that was encoded last needs; "" if none
}

// NewEncoder returns an encoder of the types into a topic. key is the
// dotted path of the field that becomes the record key.
func NewEncoder(topic string, schemas []*codec.Schema, key string, newID func() string, now func() time.Time) (*Encoder, error) {
	e := &Encoder{Topic: topic, key: key, byName: map[string]*Type{}, NewID: newID, Now: now}
	var faults []error
	for _, s := range schemas {
		t, err := newProducedType(s, strings.Split(key, "."))
		if err != nil {
			faults = append(faults, fmt.Errorf("--key %s: %w", key, err))
			continue
		}
		e.Types = append(e.Types, t)
	}
	for _, t := range e.Types {
		for _, name := range []string{t.Name, snakeCase(t.Name)} {
			if _, taken := e.byName[name]; taken {
				e.byName[name] = nil // of two namespaces: only the full name tells
				continue
			}
			e.byName[name] = t
		}
	}
	for _, t := range e.Types {
		e.byName[t.Schema.Name()] = t
	}
	return e, errors.Join(faults...)
}

func newProducedType(s *codec.Schema, key []string) (*Type, error) {
	t := &Type{Name: s.Name()[strings.LastIndexByte(s.Name(), '.')+1:], Schema: s, Time: -1}
	paths := [][]string{key}
	timestamp := s.Root().Field("timestamp")
	if timestamp != nil && TimestampUnit(timestamp.Type) != 0 {
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
		t.Time = t.layout.Slot(timestamp.Name)
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

// TimestampUnit returns the time in one unit of a timestamp, or 0 if the type is
// none.
func TimestampUnit(n *codec.Node) time.Duration {
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

// Encode makes the record of one event. The record's value and key are appended
// to buf, which is returned. An error says what is wrong with the line; the type
// is known even then, if the line got so far, else nil.
func (e *Encoder) Encode(line []byte, r *pipeline.Record, buf []byte) (*Type, []byte, error) {
	if err := e.JSON.Parse(line); err != nil {
		return nil, buf, err
	}
	if !e.JSON.IsObject() {
		return nil, buf, errors.New("expected an event, a JSON object")
	}
	t, err := e.typeOf()
	if err != nil {
		return nil, buf, err
	}
	e.fillIn(t)
	buf = codec.AppendFrame(buf[:0], t.ID)
	frame := len(buf)
	if buf, err = e.JSON.AppendAvro(buf, t.Schema); err != nil {
		return t, buf, err
	}
	value := len(buf)
	if err := t.layout.Walk(buf[frame:], &e.View); err != nil {
		return t, buf, err
	}
	if buf, err = keyring.AppendKey(buf, t.layout.Node(t.key), e.View.Get(t.key)); err != nil {
		return t, buf, &codec.PathError{Path: e.key, Msg: err.Error()}
	}
	at := e.Now()
	if t.Time >= 0 {
		if at, err = timeOf(t.layout.Node(t.Time), e.View.Get(t.Time)); err != nil {
			return t, buf, err
		}
	}
	e.Subject = ""
	if t.Sealed != nil {
		err := t.Sealed.Layout.Walk(buf[frame:value], &e.View)
		if err == nil && t.Sealed.Any(&e.View) {
			e.Subject, err = t.Sealed.Subject(&e.View)
		}
		if err != nil {
			return t, buf, err
		}
	}
	*r = pipeline.Record{Topic: e.Topic, Partition: pipeline.KeyPartition, Key: buf[value:], Value: buf[:value:value], Time: at}
	if e.Headers != nil {
		if r.Headers, err = e.Headers.For(t.Schema, r, nil); err != nil {
			return t, buf, err
		}
	}
	return t, buf, e.Fits(r, "")
}

// Fits returns an error for a record that is larger than the topic takes.
func (e *Encoder) Fits(r *pipeline.Record, how string) error {
	if n, most := r.Size(), e.Limits.Record(r.Topic); n > most {
		return &codec.PathError{Msg: fmt.Sprintf("too large: %d bytes as a record%s, and %s takes at most %d", n, how, r.Topic, most)}
	}
	return nil
}

// Encrypt makes the encoder one of events whose tagged fields are encrypted.
func (e *Encoder) Encrypt(how *topology.Encryption) (err error) {
	for _, t := range e.Types {
		if t.Sealed, err = keyring.NewFields(how, t.Schema); err != nil {
			return err
		}
	}
	return nil
}

// Seal encrypts the tagged fields of a record that encode has made, under a key of
// the subject that it needs; keyring.ensure has made it. The new value is appended
// to buf, which is returned. A [codec.PathError] says that it cannot be taken;
// another error that the keys are not as they have to be.
func (e *Encoder) Seal(t *Type, subject string, r *pipeline.Record, buf []byte) ([]byte, error) {
	if subject == "" || e.Ring == nil {
		return buf, nil
	}
	key, err := e.Ring.Cache.Current(subject)
	switch {
	case errors.Is(err, seal.ErrErased):
		return buf, &codec.PathError{Path: t.Sealed.Path, Msg: err.Error() + ": nothing personal is taken of it any more"}
	case err != nil:
		return buf, fmt.Errorf("the key of subject %q: %w", subject, err)
	}
	body := len(codec.AppendFrame(nil, t.ID))
	if err := t.Sealed.Layout.Walk(r.Value[body:], &e.View); err != nil {
		return buf, err
	}
	t.Sealed.Seal(&e.View, subject, key)
	start := len(buf)
	buf = e.View.Append(append(buf, r.Value[:body]...))
	r.Value = buf[start:len(buf):len(buf)]
	return buf, e.Fits(r, " with its fields encrypted")
}

// typeOf finds the type that the event names. A topic of a single type needs no
// name.
func (e *Encoder) typeOf() (*Type, error) {
	named := e.JSON.Has("type")
	if !named && len(e.Types) == 1 {
		return e.Types[0], nil
	}
	name, isText := e.JSON.Text("type")
	if t := e.byName[string(name)]; t != nil {
		return t, nil
	}
	if len(e.Types) == 1 && e.Types[0].Schema.Root().Field("type") == nil {
		return e.Types[0], nil // no envelope: whatever type is, the schema decides
	}
	msg := "missing"
	switch {
	case isText:
		msg = fmt.Sprintf("unknown event type %q", name)
	case named:
		msg = "expected a string"
	}
	var names []string
	for _, t := range e.Types {
		if e.byName[t.Name] == nil {
			names = append(names, t.Schema.Name())
		} else {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return nil, &codec.PathError{Path: "type", Msg: fmt.Sprintf("%s; %s takes %s", msg, e.Topic, strings.Join(names, ", "))}
}

// fillIn gives the event what it left out. The type is written in the schema's
// own spelling.
func (e *Encoder) fillIn(t *Type) {
	for i := range t.Schema.Root().Fields {
		f := &t.Schema.Root().Fields[i]
		if f.Name == "type" {
			if given, _ := e.JSON.Text(f.Name); string(given) != t.Name {
				e.JSON.Set(f.Name, strconv.Quote(t.Name)) // an Avro name needs no escapes
			}
		} else if !e.JSON.Has(f.Name) {
			if value, ok := e.leftOut(t, f); ok {
				e.JSON.Set(f.Name, value)
			}
		}
	}
}

// Complete is fillIn for an event that is a tree of values.
func (e *Encoder) Complete(t *Type, event map[string]any) {
	for i := range t.Schema.Root().Fields {
		f := &t.Schema.Root().Fields[i]
		if f.Name == "type" {
			event[f.Name] = t.Name
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
func (e *Encoder) leftOut(t *Type, f *codec.Field) (string, bool) {
	switch {
	case f.Name == "id":
		return strconv.Quote(e.NewID()), true
	case f.Name == "timestamp" && t.Time >= 0:
		return strconv.Quote(e.Now().UTC().Format(time.RFC3339Nano)), true
	case f.HasDefault:
	case f.Name == "version" && f.Type.Kind == codec.Int:
		return "1", true
	case f.Name == "metadata" && f.Type.Kind == codec.Map:
		return "{}", true
	}
	return "", false
}

// timeOf returns a record's time from its timestamp.
func timeOf(n *codec.Node, enc []byte) (time.Time, error) {
	v, _, err := codec.ReadLong(enc)
	if err != nil {
		return time.Time{}, err
	}
	unit := TimestampUnit(n)
	perSecond := int64(time.Second / unit)
	at := time.Unix(v/perSecond, v%perSecond*int64(unit))
	if at.UnixMilli() < 0 {
		return at, &codec.PathError{Path: "timestamp", Msg: fmt.Sprintf("%s is before 1970, which a Kafka record's time cannot be", at.UTC().Format(time.RFC3339Nano))}
	}
	return at, nil
}
