package event

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"millrace/pipeline/codec"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/keyring"
	"millrace/pipeline/topology"
)

// Type is an event type of an [Encoder]. It is immutable after [Encoder.Register].
type Type struct {
	Name   string // the record's name without namespace, as events have it
	Schema *codec.Schema
	ID     int // of the schema in the registry; 0 before Register

	layout *codec.Layout
	named  bool // the field type has the name of the type; without an envelope it is data
	key    *keyformat.Maker
	time   int             // slot of the timestamp, -1 if the type has none
	sealed *keyring.Fields // nil if no field is encrypted
}

func newType(s *codec.Schema, topic *topology.Topic, key []string) (*Type, error) {
	t := &Type{Name: s.ShortName(), Schema: s, time: -1}
	if f := s.Root().Field("type"); f != nil && topic.Bare == nil {
		other, _, _, _ := f.Type.Nullable()
		t.named = f.Type.Kind == codec.String || other != nil && other.Kind == codec.String
	}
	var err error
	if t.key, err = keyformat.NewMaker(topic.KeyFormat, topic.Name, s, key); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name(), err)
	}
	paths := t.key.Paths()
	timestamp := s.Root().Field("timestamp")
	timed := timestamp != nil && timestampUnit(timestamp.Type) != 0
	if timed {
		paths = append(paths, []string{timestamp.Name})
	}
	if t.layout, err = codec.NewLayout(s, paths); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name(), err)
	}
	t.key.Bind(t.layout)
	if timed {
		t.time = t.layout.Slot(timestamp.Name)
	}
	return t, nil
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
