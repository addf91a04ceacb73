package event

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/wording"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

// EncoderConfig configures an [Encoder].
type EncoderConfig struct {
	Topic      *topology.Topic      // name, event types, key format and headers of the records
	Key        string               // dotted path of the field that becomes the record key
	Encryption *topology.Encryption // nil: no field is encrypted
	NewID      func() string        // of events without an id
	Now        func() time.Time     // of events without a timestamp
}

// Encoder encodes events in JSON as records. One goroutine owns it; [Encoder.Clone]
// makes one for another goroutine. [Encoder.Register], [Encoder.SetLimits] and
// [Encoder.UseKeys] complete the configuration: call them before the first Encode.
type Encoder struct {
	topic    string
	subjects codec.SubjectNames // of the topic
	types    []*Type
	keys     *codec.Schema    // of Avro keys; nil for other formats
	keyID    int              // of keys in the registry; 0 before Register
	byName   map[string]*Type // nil: the name is ambiguous
	newID    func() string
	now      func() time.Time
	headers  *topicHeaders // nil: records get no headers
	limits   kafka.Limits
	gate     *kafka.Gate   // of the topic, by limits
	ring     *keyring.Ring // nil: nothing is encrypted, or nothing is sent

	// Of the current event:
	json    codec.JSON
	view    pipeline.View
	subject string
}

// NewEncoder returns an encoder. An error names the types that the key does not fit,
// or is about the encryption.
func NewEncoder(cfg EncoderConfig) (*Encoder, error) {
	e := &Encoder{topic: cfg.Topic.Name, subjects: cfg.Topic.Subjects, keys: cfg.Topic.KeyFormat.Schema, byName: map[string]*Type{}, newID: cfg.NewID, now: cfg.Now}
	e.SetLimits(nil)
	if len(cfg.Topic.Types) > 1 && cfg.Topic.Subjects == codec.TopicName {
		return nil, fmt.Errorf("%s has %d event types, but with subjects: topic its subject %s holds one: use subjects: topic_record, or a topic for each type",
			cfg.Topic.Name, len(cfg.Topic.Types), cfg.Topic.Subject(cfg.Topic.Types[0]))
	}
	var faults []error
	for _, s := range cfg.Topic.Types {
		t, err := newType(s, cfg.Topic, strings.Split(cfg.Key, "."))
		if err != nil {
			faults = append(faults, fmt.Errorf("--key %s: %w", cfg.Key, err))
			continue
		}
		e.types = append(e.types, t)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	e.nameTypes()
	var err error
	if e.headers, err = newTopicHeaders(cfg.Topic); err != nil {
		return nil, err
	}
	for _, t := range e.types {
		if t.sealed, err = keyring.NewFields(cfg.Encryption, t.Schema); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// nameTypes fills byName: an event may name its type by the full name, the short
// name, or the short name in snake case.
func (e *Encoder) nameTypes() {
	for _, name := range []func(*Type) string{
		func(t *Type) string { return t.Schema.Name() },
		func(t *Type) string { return t.Name },
		func(t *Type) string { return wording.Snake(t.Name, true) },
		func(t *Type) string { return letterCase(t.Name) },
	} {
		own := map[string]*Type{}
		for _, t := range e.types {
			if _, taken := own[name(t)]; taken {
				own[name(t)] = nil // of several types: another name of them is unique
				continue
			}
			own[name(t)] = t
		}
		for name, t := range own {
			if _, taken := e.byName[name]; !taken { // the names before are closer to the type
				e.byName[name] = t
			}
		}
	}
}

// Register sets the schema ids of the types, and of Avro keys, from the registry. If
// create is set, it registers the schemas that are missing there.
func (e *Encoder) Register(ctx context.Context, registry Registry, create bool) error {
	for _, t := range e.types {
		id, err := EnsureSchema(ctx, registry, e.subjects.Value(e.topic, t.Schema), t.Schema, create)
		if err != nil {
			return fmt.Errorf("schema of %s: %w", t.Schema.Name(), err)
		}
		t.ID = id
	}
	if e.keys == nil {
		return nil
	}
	var err error
	if e.keyID, err = EnsureSchema(ctx, registry, codec.KeySubject(e.topic), e.keys, create); err != nil {
		return fmt.Errorf("schema of the keys, %s: %w", e.keys.Name(), err)
	}
	return nil
}

// SetLimits sets what the topic accepts. Without it, the default of Kafka applies to the
// size of a record, and any time is accepted.
func (e *Encoder) SetLimits(limits kafka.Limits) {
	e.limits, e.gate = limits, limits.Gate(e.topic, e.now)
}

// UseKeys sets the keys that Seal encrypts with. Without them, records stay
// unencrypted; they must not be sent.
func (e *Encoder) UseKeys(ring *keyring.Ring) { e.ring = ring }

// Clone returns an encoder for another goroutine. Both share the types.
func (e *Encoder) Clone() *Encoder {
	c := *e
	c.json, c.view, c.headers = codec.JSON{}, pipeline.View{}, e.headers.clone()
	c.SetLimits(e.limits)
	return &c
}

// Types returns the event types. The caller must not change them.
func (e *Encoder) Types() []*Type { return e.types }

// Encrypts reports whether a type has encrypted fields.
func (e *Encoder) Encrypts() bool {
	return slices.ContainsFunc(e.types, func(t *Type) bool { return t.sealed != nil })
}

// Keys returns the keys that Seal encrypts with, nil if it does not encrypt.
func (e *Encoder) Keys() *keyring.Ring { return e.ring }

// HasHeaders reports whether records get the headers of CloudEvents.
func (e *Encoder) HasHeaders() bool { return e.headers != nil }

// Encode encodes one event. Value and key of the record are appended to buf, which
// is returned. An error describes the fault of the line. The type is nil only if the
// fault hides it.
func (e *Encoder) Encode(line []byte, r *pipeline.Record, buf []byte) (*Type, []byte, error) {
	return e.EncodeWith(nil, line, r, buf)
}

// EncodeWith is Encode for a record with headers of its own beside those of the topic.
func (e *Encoder) EncodeWith(own []pipeline.Header, line []byte, r *pipeline.Record, buf []byte) (*Type, []byte, error) {
	if err := e.json.Parse(line); err != nil {
		return nil, buf, err
	}
	if !e.json.IsObject() {
		return nil, buf, errors.New("expected an event, a JSON object")
	}
	t, err := e.typeOf()
	if err != nil {
		return nil, buf, err
	}
	e.fillIn(t)
	buf = codec.AppendFrame(buf[:0], t.ID)
	frame := len(buf)
	if buf, err = e.json.AppendAvro(buf, t.Schema); err != nil {
		return t, buf, err
	}
	value := len(buf)
	if err := t.layout.Walk(buf[frame:], &e.view); err != nil {
		return t, buf, err
	}
	if buf, err = t.key.Append(buf, e.keyID, &e.view); err != nil {
		return t, buf, err
	}
	at := e.now()
	if t.time >= 0 {
		if at, err = timeOf(t.layout.Node(t.time), e.view.Get(t.time)); err != nil {
			return t, buf, err
		}
	}
	e.subject = ""
	if t.sealed != nil {
		err := t.sealed.Walk(buf[frame:value], &e.view)
		if err == nil && t.sealed.Any(&e.view) {
			e.subject, err = t.sealed.Subject(&e.view)
		}
		if err != nil {
			return t, buf, err
		}
	}
	*r = pipeline.Record{Topic: e.topic, Partition: pipeline.KeyPartition, Key: buf[value:], Value: buf[:value:value], Time: at, Headers: own}
	if e.headers != nil {
		if r.Headers, err = e.headers.of(t.Schema, r, own); err != nil {
			return t, buf, err
		}
	}
	return t, buf, e.Fits(r, "")
}

// Subject returns the data subject whose key Seal needs for the last encoded event,
// "" if the event needs none.
func (e *Encoder) Subject() string { return e.subject }

// ID returns the id of the last encoded event, "" if its type has none.
func (e *Encoder) ID() string {
	id, _ := e.json.Text("id")
	return string(id)
}

// Fits returns an error for a record that its topic does not accept. how describes the
// record in the error, after "as a record".
func (e *Encoder) Fits(r *pipeline.Record, how string) error {
	size := r.Size()
	err := e.gate.Check(size, r.Key, r.Time)
	if err == nil {
		return nil
	}
	switch pipeline.ReasonOf(err) {
	case pipeline.ReasonTooLarge:
		return &codec.PathError{Msg: fmt.Sprintf("too large: %d bytes as a record%s, and %s takes at most %d", size, how, r.Topic, e.gate.MaxRecord())}
	case pipeline.ReasonBadTime:
		return &codec.PathError{Path: "timestamp", Msg: errors.Unwrap(err).Error()}
	}
	return &codec.PathError{Msg: errors.Unwrap(err).Error()}
}

// Seal encrypts the tagged fields of a record from Encode under the key of its
// subject; create missing keys with [keyring.Ring.Ensure] before. The new value is
// appended to buf, which is returned. A [codec.PathError] means that the event is
// rejected, another error that the key is unavailable.
func (e *Encoder) Seal(t *Type, subject string, r *pipeline.Record, buf []byte) ([]byte, error) {
	if subject == "" || e.ring == nil {
		return buf, nil
	}
	key, err := e.ring.Current(subject)
	switch {
	case errors.Is(err, seal.ErrErased):
		return buf, &codec.PathError{Path: t.sealed.SubjectPath(), Msg: err.Error() + ": new personal data of it is not accepted"}
	case err != nil:
		return buf, fmt.Errorf("the key of subject %q: %w", subject, err)
	}
	body := len(codec.AppendFrame(nil, t.ID))
	if err := t.sealed.Walk(r.Value[body:], &e.view); err != nil {
		return buf, err
	}
	t.sealed.Seal(&e.view, subject, key)
	start := len(buf)
	buf = e.view.Append(append(buf, r.Value[:body]...))
	r.Value = buf[start:len(buf):len(buf)]
	return buf, e.Fits(r, " with its fields encrypted")
}

// typeOf finds the type that the event names. An event of a topic with one type need
// not name it.
func (e *Encoder) typeOf() (*Type, error) {
	named := e.json.Has("type")
	if !named && len(e.types) == 1 {
		return e.types[0], nil
	}
	name, isText := e.json.Text("type")
	if t := e.byName[string(name)]; t != nil {
		return t, nil
	}
	if len(e.types) == 1 && !e.types[0].named {
		return e.types[0], nil // type is a field like any other
	}
	return nil, e.unknownType(name, named, isText)
}

// unknownType returns the error for an event without a known type.
func (e *Encoder) unknownType(name []byte, named, isText bool) error {
	msg := "missing"
	switch {
	case isText:
		msg = fmt.Sprintf("unknown event type %q", name)
	case named:
		msg = "expected a string"
	}
	var names []string
	for _, t := range e.types {
		if e.byName[t.Name] == nil {
			names = append(names, t.Schema.Name())
		} else {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return &codec.PathError{Path: "type", Msg: fmt.Sprintf("%s; %s takes %s", msg, e.topic, strings.Join(names, ", "))}
}

// timeOf returns a record's time from the event's timestamp.
func timeOf(n *codec.Node, enc []byte) (time.Time, error) {
	v, _, err := codec.ReadLong(enc)
	if err != nil {
		return time.Time{}, err
	}
	unit := timestampUnit(n)
	perSecond := int64(time.Second / unit)
	return time.Unix(v/perSecond, v%perSecond*int64(unit)), nil
}
