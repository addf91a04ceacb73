package event

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"millrace/pipeline/codec"
	"millrace/pipeline/keyring"
)

// Type is an event type of an [Encoder]. It is immutable after [Encoder.Register].
type Type struct {
	Name   string // the record's name without namespace, as events have it
	Schema *codec.Schema
	ID     int // of the schema in the registry; 0 before Register

	layout *codec.Layout
	named  bool            // the field type has the name of the type; without an envelope it is data
	key    int             // slot
	time   int             // slot of the timestamp, -1 if the type has none
	sealed *keyring.Fields // nil if no field is encrypted
}

func newType(s *codec.Schema, key []string, envelope bool) (*Type, error) {
	t := &Type{Name: s.ShortName(), Schema: s, time: -1}
	if f := s.Root().Field("type"); f != nil && envelope {
		other, _, _, _ := f.Type.Nullable()
		t.named = f.Type.Kind == codec.String || other != nil && other.Kind == codec.String
	}
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
		return nil, fmt.Errorf("%s: the field is encrypted, and a record key must be readable", s.Name())
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

// timestampUnit returns the unit of a timestamp type, or 0 for another type.
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

// snakeCase returns a name in snake case: http_request_v2 for HTTPRequestV2.
func snakeCase(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		if i > 0 && unicode.IsUpper(r) && runes[i-1] != '_' &&
			(!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// letterCase returns a name with an underscore before each capital: h_t_t_p_request for
// HTTPRequest.
func letterCase(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
