package keyformat

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
)

// ReasonBadKey is the reason of a rejection: a key does not have the declared format.
const ReasonBadKey pipeline.Reason = "bad_key"

// Schemas returns the schema with an id or GUID; see event.Schemas.
type Schemas interface {
	Schema(context.Context, codec.SchemaRef) (*codec.Schema, error)
}

// A Reader reads the keys of a topic. One goroutine owns it.
type Reader struct {
	format  Format
	topic   string // for messages
	schemas Schemas
	known   map[codec.SchemaRef]*writer // of Avro keys
	view    pipeline.View
	body    []byte // of the last Avro key, read with the format's schema
	scratch []byte // holds body if its schema is another
	key     Key    // of the last Read
}

// writer is a schema that Avro keys were written with.
type writer struct {
	schema *codec.Schema
	layout *codec.Layout     // nil if the schema is not a record
	read   *resolve.Resolver // to the format's schema; nil if both have the same bytes
	err    error             // of ClassReject: no key with this schema can be read
}

// NewReader returns a reader of the keys of a topic. schemas has the schemas of Avro
// keys; it can be nil for other formats.
func NewReader(f Format, topic string, schemas Schemas) *Reader {
	return &Reader{format: f, topic: topic, schemas: schemas, known: map[codec.SchemaRef]*writer{}}
}

// Check returns an error of ClassReject if the record's key does not have the format of
// the topic. The message names the format that the key seems to have. A record without a
// key has the format Text. Another error means that the schema of an Avro key is not
// available at the moment.
func (r *Reader) Check(ctx context.Context, in *pipeline.Record) error {
	switch r.format.Kind {
	case "", Text:
		if !ValidText(in.Key) {
			return r.mismatch(in.Key)
		}
		return nil
	case Avro:
		_, _, err := r.avro(ctx, in)
		return err
	}
	if !r.format.fits(in.Key) {
		return r.mismatch(in.Key)
	}
	return nil
}

// ValidText reports whether a key has the format Text, as Check does.
func ValidText(key []byte) bool {
	return len(key) == 0 || key[0] != 0 && codec.ValidText(key)
}

// AppendText appends the text form of the record's key to dst. Errors are those of
// Check.
func (r *Reader) AppendText(ctx context.Context, dst []byte, in *pipeline.Record) ([]byte, error) {
	if r.format.Kind != Avro {
		if err := r.Check(ctx, in); err != nil {
			return dst, err
		}
		return r.format.appendText(dst, in.Key), nil
	}
	w, body, err := r.avro(ctx, in)
	if err != nil {
		return dst, err
	}
	return appendAvroText(dst, w.schema.Root(), body)
}

// Show returns the text form of the record's key for people: that of [Format.Show] if the
// key cannot be read.
func (r *Reader) Show(ctx context.Context, in *pipeline.Record) string {
	if r.format.Kind == Avro {
		if text, err := r.AppendText(ctx, nil, in); err == nil {
			return string(text)
		}
	}
	return r.format.Show(in.Key)
}

// fits reports whether a key has the length of the format, which is not Text nor Avro.
func (f Format) fits(key []byte) bool {
	switch f.Kind {
	case Long:
		return len(key) == 8
	case Int:
		return len(key) == 4
	case UUID:
		return len(key) == 16
	}
	return len(key) > 0
}

// appendText appends the text form of a key that fits.
func (f Format) appendText(dst, key []byte) []byte {
	switch f.Kind {
	case Long:
		return strconv.AppendInt(dst, int64(binary.BigEndian.Uint64(key)), 10)
	case Int:
		return strconv.AppendInt(dst, int64(int32(binary.BigEndian.Uint32(key))), 10)
	case UUID:
		for i := range key {
			if i == 4 || i == 6 || i == 8 || i == 10 {
				dst = append(dst, '-')
			}
			dst = hex.AppendEncode(dst, key[i:i+1])
		}
		return dst
	case Bytes:
		return hex.AppendEncode(dst, key)
	}
	return append(dst, key...)
}

// avro returns the schema and the body of an Avro key. The body was walked.
func (r *Reader) avro(ctx context.Context, in *pipeline.Record) (*writer, []byte, error) {
	ref, body, err := codec.UnframeKey(in)
	if err != nil {
		return nil, nil, r.mismatch(in.Key)
	}
	w := r.known[ref]
	if w == nil {
		s, err := r.schemas.Schema(ctx, ref)
		if err != nil {
			return nil, nil, fmt.Errorf("the key's schema: %w", err)
		}
		w = &writer{schema: s}
		if s.Root().Kind == codec.Record {
			w.layout, w.err = codec.NewLayout(s, nil)
		}
		if w.err == nil && r.format.Schema != nil {
			w.read, w.err = resolve.New(s, r.format.Schema)
		}
		if w.err != nil {
			w.err = pipeline.Reject(ReasonBadKey, "the key of %s was written with the schema %s, which cannot be read as key_schema: %w", r.topic, s.Name(), w.err)
		}
		r.known[ref] = w
	}
	if w.err != nil {
		return nil, nil, w.err
	}
	if w.layout != nil {
		err = w.layout.Walk(body, &r.view)
	} else if rest, skipErr := codec.Skip(w.schema.Root(), body); skipErr != nil || len(rest) > 0 {
		err = fmt.Errorf("%d bytes are left over, %w", len(rest), skipErr)
	}
	if err != nil {
		return nil, nil, pipeline.Reject(ReasonBadKey, "the key of %s is not valid Avro: %w", r.topic, err)
	}
	r.body = body
	if w.read != nil {
		if r.scratch, err = w.read.Append(r.scratch[:0], body); err != nil {
			return nil, nil, pipeline.Reject(ReasonBadKey, "the key of %s cannot be read as key_schema: %w", r.topic, err)
		}
		r.body = r.scratch
	}
	return w, body, nil
}

// Body returns the body of the last Avro key that was checked, read with the schema of
// the format. It is valid until the next call. It is nil for other formats.
func (r *Reader) Body() []byte { return r.body }

// appendAvroText appends the text form of an Avro key.
func appendAvroText(dst []byte, n *codec.Node, body []byte) ([]byte, error) {
	if n.Kind == codec.Record && len(n.Fields) == 1 {
		n = n.Fields[0].Type
	}
	start := len(dst)
	dst, err := codec.AppendJSON(dst, n, body)
	if err != nil {
		return dst[:start], pipeline.Reject(ReasonBadKey, "the key: %w", err)
	}
	if dst[start] == '"' {
		var text string
		if err := json.Unmarshal(dst[start:], &text); err != nil {
			return dst[:start], pipeline.Reject(ReasonBadKey, "the key: %w", err)
		}
		dst = append(dst[:start], text...)
	}
	return dst, nil
}

// mismatch returns the rejection of a key that does not have the format.
func (r *Reader) mismatch(key []byte) error {
	if key == nil {
		return pipeline.Reject(ReasonBadKey, "the record has no key, but the keys on %s are %s", r.topic, r.format)
	}
	shown := hex.EncodeToString(key[:min(len(key), 24)])
	if ValidText(key) {
		shown = strconv.Quote(string(key[:min(len(key), 48)]))
	}
	return pipeline.Reject(ReasonBadKey, "the key %s (%d bytes) is not %s, the key_format of %s; it seems to be %s", shown, len(key), r.format, r.topic, guess(key))
}

// guess returns the format that a key seems to have.
func guess(key []byte) Kind {
	switch {
	case len(key) > 0 && ValidText(key):
		return Text
	case len(key) == 8:
		return Long
	case len(key) == 4:
		return Int
	case len(key) > 5 && key[0] == 0 && key[1] == 0:
		return Avro
	case len(key) == 16:
		return UUID
	case len(key) > 5 && key[0] == 0:
		return Avro
	}
	return Bytes
}

// AppendKey appends the bytes of the key with a text form to dst. The error says why the
// text is not a key of the format. A text form does not determine an Avro key.
func (f Format) AppendKey(dst, text []byte) ([]byte, error) {
	switch f.Kind {
	case "", Text:
		return append(dst, text...), nil
	case Long:
		if v, ok := parseInteger(string(text), 64); ok {
			return binary.BigEndian.AppendUint64(dst, uint64(v)), nil
		}
	case Int:
		if v, ok := parseInteger(string(text), 32); ok {
			return binary.BigEndian.AppendUint32(dst, uint32(v)), nil
		}
	case UUID:
		if u, ok := parseUUID(string(text)); ok {
			return append(dst, u...), nil
		}
	case Bytes:
		if b, err := hex.DecodeString(string(text)); err == nil && len(b) > 0 {
			return append(dst, b...), nil
		}
	case Avro:
		return dst, pipeline.Reject(ReasonBadKey, "the text %q does not determine an Avro key", text)
	}
	return dst, pipeline.Reject(ReasonBadKey, "%q is not a key of the format %s", text, f)
}

// Encode returns the bytes of the key with a text form. idOf returns the id of the schema
// of Avro keys in the registry; it can be nil for other formats.
func (f Format) Encode(text string, idOf func(*codec.Schema) int) ([]byte, error) {
	if f.Kind != Avro {
		return f.AppendKey(nil, []byte(text))
	}
	n := f.Schema.Root()
	var v any
	switch {
	case n.Kind == codec.Record && len(n.Fields) == 1:
		v = map[string]any{n.Fields[0].Name: jsonOf(n.Fields[0].Type, text)}
	default:
		v = jsonOf(n, text)
	}
	body, err := codec.EncodeJSON(f.Schema, v)
	if err != nil {
		return nil, pipeline.Reject(ReasonBadKey, "%q is not a key of the schema %s: %w", text, f.Schema.Name(), err)
	}
	return append(codec.AppendFrame(nil, idOf(f.Schema)), body...), nil
}

// jsonOf returns a text as the value of a type. Texts of types that are no strings in JSON
// are JSON.
func jsonOf(n *codec.Node, text string) any {
	n = n.NotNull()
	switch n.Kind {
	case codec.String, codec.Enum, codec.Bytes, codec.Fixed:
		return text
	}
	if !json.Valid([]byte(text)) {
		return text // a time, for example
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return text
	}
	return v
}

// Show returns the text form of a key for people. It needs no registry, so it reads an
// Avro key with the declared schema. A key that does not have the format is shown in
// hexadecimal, or as it is if it is text.
func (f Format) Show(key []byte) string {
	switch {
	case f.IsText():
	case f.Kind == Avro:
		if len(key) >= codec.FrameSize && key[0] == 0 && f.Schema != nil {
			body := key[codec.FrameSize:]
			if rest, err := codec.Skip(f.Schema.Root(), body); err != nil || len(rest) > 0 {
				break // another schema
			}
			if text, err := appendAvroText(nil, f.Schema.Root(), body); err == nil {
				return string(text)
			}
		}
	case f.fits(key):
		return string(f.appendText(nil, key))
	}
	if ValidText(key) {
		return string(key)
	}
	return hex.EncodeToString(key)
}
