package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// The JSON form of a value is the usual one:
//
//	null, boolean               the JSON literals
//	int, long                   numbers; 3.0 and 3e2 are integers too, 3.5 is not
//	float, double               numbers, or "NaN", "Infinity", "-Infinity"
//	string, enum                strings
//	bytes, fixed                strings in base64 (RFC 4648, padded)
//	timestamp-{millis,micros,nanos}  RFC 3339, or the integer; digits finer than the unit are dropped
//	local-timestamp-...         the same without a zone
//	date, time-...              "2006-01-02", "15:04:05.000", or the integer
//	decimal                     a string (or number) with exactly the value: "12.50"
//	uuid                        the 36 characters, checked
//	array, map, record          array, object, object; AppendJSON keeps the order of a map's keys
//	union                       the bare value; tagged, as {"long": 3}, where several branches could take it
//
// EncodeJSON reads the output of AppendJSON back to the same value.

// EncodeJSON encodes a JSON value as Avro. The value is of the types into which
// encoding/json decodes with UseNumber. Every error is a [*PathError].
//
// A field that the value lacks takes its default; a field that the schema lacks
// is an error. Nothing is rounded or cut off silently, except for the digits of a
// time that are finer than its unit.
func EncodeJSON(s *Schema, value any) ([]byte, error) { return AppendAvro(nil, s, value) }

// AppendAvro does the same as [EncodeJSON] and appends to dst.
func AppendAvro(dst []byte, s *Schema, value any) ([]byte, error) {
	out, err := appendAvro(dst, s.root, value, 0, nil)
	if err != nil {
		return out, err
	}
	return out, s.checkEncoded(out[len(dst):])
}

// checkEncoded does the same as CheckWritten, with a [*PathError].
func (s *Schema) checkEncoded(body []byte) error {
	err := s.CheckWritten(body)
	if at := (*WalkError)(nil); errors.As(err, &at) {
		return &PathError{Path: at.Path, Msg: at.Msg}
	}
	return err
}

// appendAvro encodes one value. If the value is part of a union with several
// branches to try, e bounds that search; otherwise e is nil.
func appendAvro(dst []byte, n *Node, v any, depth int, e *effort) ([]byte, error) {
	if e != nil {
		e.spent++
	}
	if depth > maxWalkDepth {
		return dst, &PathError{Msg: fmt.Sprintf("nested more than %d deep", maxWalkDepth)}
	}
	switch n.Kind {
	case Null:
		if v == nil {
			return dst, nil
		}
	case Boolean:
		if b, ok := v.(bool); ok {
			return AppendBool(dst, b), nil
		}
	case Int, Long:
		i, err := toInteger(n, v)
		if err != nil {
			return dst, err
		}
		return binary.AppendVarint(dst, i), nil
	case Float:
		f, err := toFloat(n, v, 32)
		if err != nil {
			return dst, err
		}
		return binary.LittleEndian.AppendUint32(dst, math.Float32bits(float32(f))), nil
	case Double:
		f, err := toFloat(n, v, 64)
		if err != nil {
			return dst, err
		}
		return binary.LittleEndian.AppendUint64(dst, math.Float64bits(f)), nil
	case String:
		if s, ok := v.(string); ok {
			if n.Logical == "uuid" && !isUUID(s) {
				return dst, expected(n, v)
			}
			if !utf8.ValidString(s) {
				return dst, &PathError{Msg: "expected " + n.String() + ", found text that is not UTF-8"}
			}
			return append(binary.AppendVarint(dst, int64(len(s))), s...), nil
		}
	case Bytes:
		b, err := toBytes(n, v)
		if err != nil {
			return dst, err
		}
		return append(binary.AppendVarint(dst, int64(len(b))), b...), nil
	case Fixed:
		b, err := toBytes(n, v)
		if err != nil {
			return dst, err
		}
		return append(dst, b...), nil
	case Enum:
		if s, ok := v.(string); ok {
			if i := slices.Index(n.Symbols, s); i >= 0 {
				return binary.AppendVarint(dst, int64(i)), nil
			}
			return dst, &PathError{Msg: fmt.Sprintf("expected %s (%s), found %s%s", n, strings.Join(n.Symbols, ", "), found(v), didYouMean(s, n.Symbols))}
		}
	case Array:
		if items, ok := v.([]any); ok {
			return appendArray(dst, n, items, depth, e)
		}
	case Map:
		if m, ok := v.(map[string]any); ok {
			return appendMap(dst, n, m, depth, e)
		}
	case Record:
		if m, ok := v.(map[string]any); ok {
			return appendRecord(dst, n, m, depth, e)
		}
	case Union:
		return appendUnion(dst, n, v, depth, e)
	}
	return dst, expected(n, v)
}

func appendArray(dst []byte, n *Node, items []any, depth int, e *effort) ([]byte, error) {
	if len(items) > 0 {
		dst = binary.AppendVarint(dst, int64(len(items)))
	}
	var err error
	for i, item := range items {
		if dst, err = appendAvro(dst, n.Elem, item, depth+1, e); err != nil {
			return dst, underIndex(i, err)
		}
	}
	return append(dst, 0), nil
}

func appendMap(dst []byte, n *Node, m map[string]any, depth int, e *effort) ([]byte, error) {
	if len(m) == 0 {
		return append(dst, 0), nil
	}
	dst = binary.AppendVarint(dst, int64(len(m)))
	// Sorted keys: the same value always gives the same bytes.
	var few [8]string
	keys := few[:0]
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	var err error
	for _, key := range keys {
		if !utf8.ValidString(key) {
			return dst, underKey(key, &PathError{Msg: "expected a key in UTF-8"})
		}
		dst = append(binary.AppendVarint(dst, int64(len(key))), key...)
		if dst, err = appendAvro(dst, n.Elem, m[key], depth+1, e); err != nil {
			return dst, underKey(key, err)
		}
	}
	return append(dst, 0), nil
}

func appendRecord(dst []byte, n *Node, m map[string]any, depth int, e *effort) ([]byte, error) {
	known := 0
	var err error
	for i := range n.Fields {
		f := &n.Fields[i]
		v, ok := m[f.Name]
		switch {
		case ok:
			known++
		case f.HasDefault:
			v = f.Default
		default:
			if err := unknownField(n, m); err != nil {
				return dst, err // a misspelled field explains the missing one
			}
			return dst, under(f.Name, &PathError{Msg: "missing; expected " + f.Type.String()})
		}
		if dst, err = appendAvro(dst, f.Type, v, depth+1, e); err != nil {
			return dst, under(f.Name, err)
		}
	}
	if known < len(m) {
		return dst, unknownField(n, m)
	}
	return dst, nil
}

// unknownField returns an error about a name in m that is not a field of the record,
// the first in alphabetical order. It returns nil if there is none.
func unknownField(n *Node, m map[string]any) error {
	unknown := ""
	have := false
	for name := range m {
		if n.Field(name) == nil && (!have || name < unknown) {
			unknown, have = name, true
		}
	}
	if !have {
		return nil
	}
	names := n.FieldNames()
	msg := "unknown field" + didYouMean(unknown, names)
	if msg == "unknown field" {
		msg += fmt.Sprintf("; %s has %s", n.Name, strings.Join(names, ", "))
	}
	return underKey(unknown, &PathError{Msg: msg})
}
