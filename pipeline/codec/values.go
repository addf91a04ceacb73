package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
)

// AppendLong appends an Avro int or long, or the index of an enum's symbol or of a
// union's branch. They have the same encoding.
func AppendLong(dst []byte, v int64) []byte { return binary.AppendVarint(dst, v) }

// AppendString appends an Avro string.
func AppendString(dst []byte, s string) []byte {
	return append(binary.AppendVarint(dst, int64(len(s))), s...)
}

// AppendBytes appends Avro bytes, or a string given as UTF-8.
func AppendBytes(dst, b []byte) []byte {
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

// AppendBool appends an Avro boolean.
func AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// AppendFloat appends an Avro float.
func AppendFloat(dst []byte, v float32) []byte {
	return binary.LittleEndian.AppendUint32(dst, math.Float32bits(v))
}

// AppendDouble appends an Avro double.
func AppendDouble(dst []byte, v float64) []byte {
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
}

var (
	errShort  = errors.New("unexpected end of the input")
	errVarint = errors.New("a number of more than 64 bits")
	errLength = errors.New("the length is out of range")
)

// ReadLong returns the int, long, enum index or union branch at the start of enc,
// and the rest of enc.
func ReadLong(enc []byte) (v int64, rest []byte, err error) {
	if len(enc) > 0 && enc[0] < 0x80 { // fast path: one byte; this part is inlined
		return int64(enc[0]>>1) ^ -int64(enc[0]&1), enc[1:], nil
	}
	return readLong(enc)
}

func readLong(enc []byte) (v int64, rest []byte, err error) {
	v, n := binary.Varint(enc)
	switch {
	case n > 0:
		return v, enc[n:], nil
	case n == 0:
		return 0, enc, errShort
	}
	return 0, enc, errVarint
}

// ReadText returns the content of the string or bytes at the start of enc, and the rest
// of enc. It does not copy, and does not check UTF-8.
func ReadText(enc []byte) (s, rest []byte, err error) {
	n, rest, err := ReadLong(enc)
	switch {
	case err != nil:
		return nil, enc, err
	case n < 0:
		return nil, enc, errLength
	case n > int64(len(rest)):
		return nil, enc, errShort
	}
	return rest[:n:n], rest[n:], nil
}

// ReadBool returns the boolean at the start of enc, and the rest of enc.
func ReadBool(enc []byte) (v bool, rest []byte, err error) {
	if len(enc) == 0 {
		return false, enc, errShort
	}
	if enc[0] > 1 {
		return false, enc, fmt.Errorf("a boolean of %d", enc[0])
	}
	return enc[0] == 1, enc[1:], nil
}

// ReadFloat returns the float at the start of enc, and the rest of enc.
func ReadFloat(enc []byte) (v float32, rest []byte, err error) {
	if len(enc) < 4 {
		return 0, enc, errShort
	}
	return math.Float32frombits(binary.LittleEndian.Uint32(enc)), enc[4:], nil
}

// ReadDouble returns the double at the start of enc, and the rest of enc.
func ReadDouble(enc []byte) (v float64, rest []byte, err error) {
	if len(enc) < 8 {
		return 0, enc, errShort
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(enc)), enc[8:], nil
}

// NewRecord returns the encoding of a record in which every field has its default. A
// field without a default is an error, unless it is a record (see [AppendDefault]).
func NewRecord(n *Node) ([]byte, error) {
	if n.Kind != Record {
		return nil, fmt.Errorf("%s is not a record", n)
	}
	return new(defaults).appendRecord(nil, n)
}

// AppendDefault appends the field's default. If a record field has no default, it
// appends the defaults of its fields.
func AppendDefault(dst []byte, f *Field) ([]byte, error) { return new(defaults).append(dst, f) }

// defaults bounds the work of one call: a record may contain itself, and n record
// types, each used twice by the next, have 2^n fields.
type defaults struct {
	open   []*Node // the records around the current field
	fields int     // appended so far
}

func (d *defaults) appendRecord(dst []byte, n *Node) (_ []byte, err error) {
	if slices.Contains(d.open, n) {
		return dst, fmt.Errorf("%s contains itself; give the field a default, such as null in a union", n)
	}
	d.open = append(d.open, n)
	defer func() { d.open = d.open[:len(d.open)-1] }()
	for i := range n.Fields {
		if d.fields++; d.fields > maxLeaves {
			return dst, fmt.Errorf("more than %d fields, including those of its records", maxLeaves)
		}
		if dst, err = d.append(dst, &n.Fields[i]); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

func (d *defaults) append(dst []byte, f *Field) ([]byte, error) {
	if !f.HasDefault {
		if f.Type.Kind == Record {
			out, err := d.appendRecord(dst, f.Type)
			if err != nil {
				return dst, fmt.Errorf("%s.%w", f.Name, err)
			}
			return out, nil
		}
		return dst, fmt.Errorf("%s has no default", f.Name)
	}
	dst, err := appendValue(dst, f.Type, f.Default)
	if err != nil {
		return dst, fmt.Errorf("%s: default: %w", f.Name, err)
	}
	return dst, nil
}

// appendValue encodes a default, given in the Go types of the Avro library.
func appendValue(dst []byte, n *Node, v any) ([]byte, error) {
	switch n.Kind {
	case Null:
		return dst, nil
	case Boolean:
		if b, ok := v.(bool); ok {
			return AppendBool(dst, b), nil
		}
	case Int, Long:
		switch i := v.(type) {
		case int32:
			return AppendLong(dst, int64(i)), nil
		case int64:
			return AppendLong(dst, i), nil
		}
	case Float:
		if f, ok := v.(float32); ok {
			return AppendFloat(dst, f), nil
		}
	case Double:
		if f, ok := v.(float64); ok {
			return AppendDouble(dst, f), nil
		}
	case String:
		if s, ok := v.(string); ok {
			return AppendString(dst, s), nil
		}
	case Bytes:
		if b, ok := v.([]byte); ok {
			return AppendBytes(dst, b), nil
		}
	case Fixed:
		if b, ok := v.([]byte); ok && len(b) == n.Size {
			return append(dst, b...), nil
		}
	case Enum:
		for i, symbol := range n.Symbols {
			if v == symbol {
				return AppendLong(dst, int64(i)), nil
			}
		}
	case Array:
		if items, ok := v.([]any); ok {
			return appendBlocks(dst, len(items), func(dst []byte, i int) ([]byte, error) { return appendValue(dst, n.Elem, items[i]) })
		}
	case Map:
		if entries, ok := v.(map[string]any); ok {
			keys := slices.Sorted(maps.Keys(entries))
			return appendBlocks(dst, len(keys), func(dst []byte, i int) ([]byte, error) {
				return appendValue(AppendString(dst, keys[i]), n.Elem, entries[keys[i]])
			})
		}
	case Record:
		fields, ok := v.(map[string]any)
		for i := range n.Fields {
			f := &n.Fields[i]
			var err error
			if value, given := fields[f.Name]; given {
				dst, err = appendValue(dst, f.Type, value)
			} else {
				dst, err = AppendDefault(dst, f)
			}
			if err != nil || !ok {
				return dst, fmt.Errorf("%s: %w", f.Name, err)
			}
		}
		return dst, nil
	case Union:
		// The first branch that accepts the value, the same choice as the Avro library's.
		for i, b := range n.Branches {
			if b.Kind == Null && v != nil {
				continue
			}
			if enc, err := appendValue(AppendLong(dst, int64(i)), b, v); err == nil && (b.Kind != Null || v == nil) {
				return enc, nil
			}
		}
	}
	return dst, fmt.Errorf("%v (%T) is not a value of %s", v, v, n)
}

func appendBlocks(dst []byte, n int, item func(dst []byte, i int) ([]byte, error)) ([]byte, error) {
	if n > 0 {
		dst = AppendLong(dst, int64(n))
		for i := range n {
			var err error
			if dst, err = item(dst, i); err != nil {
				return dst, err
			}
		}
	}
	return append(dst, 0), nil
}
