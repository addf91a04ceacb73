package event

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline/codec"
)

// fillIn sets the envelope fields that the event leaves out, and the type in the
// schema's spelling.
func (e *Encoder) fillIn(t *Type) {
	for i := range t.Schema.Root().Fields {
		f := &t.Schema.Root().Fields[i]
		if f.Name == "type" && t.named {
			if given, _ := e.json.Text(f.Name); string(given) != t.Name {
				e.json.Set(f.Name, strconv.Quote(t.Name)) // an Avro name needs no escapes
			}
		} else if !e.json.Has(f.Name) {
			if value, ok := defaultOf(f, e.newID, e.now); ok {
				e.json.Set(f.Name, value)
			}
		}
	}
}

// Complete sets the envelope fields that an event of the schema leaves out, as an
// [Encoder] does. The event is a tree of values as encoding/json decodes it.
func Complete(s *codec.Schema, event map[string]any, newID func() string, now func() time.Time) {
	for i := range s.Root().Fields {
		f := &s.Root().Fields[i]
		if f.Name == "type" {
			event[f.Name] = s.ShortName()
		} else if _, has := event[f.Name]; !has {
			value, ok := defaultOf(f, newID, now)
			d := json.NewDecoder(strings.NewReader(value))
			d.UseNumber()
			var v any
			if ok && d.Decode(&v) == nil { // always: the value is JSON
				event[f.Name] = v
			}
		}
	}
}

// defaultOf returns, as JSON, the value of an envelope field that an event leaves
// out: id, timestamp, version or metadata. A default in the schema takes precedence
// for version and metadata.
func defaultOf(f *codec.Field, newID func() string, now func() time.Time) (string, bool) {
	switch {
	case f.Name == "id":
		return strconv.Quote(newID()), true
	case f.Name == "timestamp" && timestampUnit(f.Type) != 0:
		return strconv.Quote(now().UTC().Format(time.RFC3339Nano)), true
	case f.HasDefault:
	case f.Name == "version" && f.Type.Kind == codec.Int:
		return "1", true
	case f.Name == "metadata" && f.Type.Kind == codec.Map:
		return "{}", true
	}
	return "", false
}
