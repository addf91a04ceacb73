// Package access reads and writes values of Avro types as values of Go types, for stages in
// Go.
package access

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"millrace/pipeline/codec"
	"millrace/pipeline/stage/uuids"
)

// Of returns the functions that read and write values of an Avro type as T: a string, a
// []byte, an int64, a float64 or a bool. They are nil if T cannot hold the values. other
// returns the functions for other Go types. Functions that write append to a buffer.
func Of[T any](n *codec.Node, other func(*codec.Node) (get, put any)) (get func([]byte) (T, bool), put func([]byte, T) ([]byte, error)) {
	var g, p any
	var v T
	switch any(v).(type) {
	case string:
		g, p = accessString(n)
	case []byte:
		g, p = accessBytes(n)
	case int64:
		g, p = accessLong(n)
	case float64:
		g, p = accessDouble(n)
	case bool:
		g, p = accessBool(n)
	default:
		g, p = other(n)
	}
	get, _ = g.(func([]byte) (T, bool))
	put, _ = p.(func([]byte, T) ([]byte, error))
	return get, put
}

type (
	getter[T any] = func([]byte) (T, bool)
	putter[T any] = func([]byte, T) ([]byte, error)
)

var (
	errNotUTF8 = errors.New("the text is not valid UTF-8")
	errNotUUID = errors.New("the text is not a UUID")
)

// checkText checks that a text is valid in a field of type string.
func checkText(n *codec.Node, text []byte) error {
	var id [16]byte
	switch {
	case !utf8.Valid(text):
		return errNotUTF8
	case n.Logical == "uuid" && !uuids.Parse(&id, text):
		return errNotUUID
	}
	return nil
}

func accessString(n *codec.Node) (getter[string], putter[string]) {
	switch n.Kind {
	case codec.String:
		return func(enc []byte) (string, bool) { v, _, err := codec.ReadText(enc); return string(v), err == nil },
			func(dst []byte, v string) ([]byte, error) {
				dst = codec.AppendString(dst, v)
				return dst, checkText(n, dst[len(dst)-len(v):])
			}
	case codec.Enum:
		return func(enc []byte) (string, bool) {
				i, _, err := codec.ReadLong(enc)
				if err != nil || i < 0 || i >= int64(len(n.Symbols)) {
					return "", false
				}
				return n.Symbols[i], true
			}, func(dst []byte, v string) ([]byte, error) {
				i := slices.Index(n.Symbols, v)
				if i < 0 {
					return dst, fmt.Errorf("%q is not one of %s", v, strings.Join(n.Symbols, ", "))
				}
				return codec.AppendLong(dst, int64(i)), nil
			}
	}
	return nil, nil
}

func accessBytes(n *codec.Node) (getter[[]byte], putter[[]byte]) {
	content := func(enc []byte) ([]byte, bool) { v, _, err := codec.ReadText(enc); return v, err == nil }
	switch n.Kind {
	case codec.String:
		return content, func(dst, v []byte) ([]byte, error) { return codec.AppendBytes(dst, v), checkText(n, v) }
	case codec.Bytes:
		return content, func(dst, v []byte) ([]byte, error) { return codec.AppendBytes(dst, v), nil }
	case codec.Fixed:
		return func(enc []byte) ([]byte, bool) { return enc, true },
			func(dst, v []byte) ([]byte, error) {
				if len(v) != n.Size {
					return dst, fmt.Errorf("%d bytes do not fit into %s, which has %d", len(v), n, n.Size)
				}
				return append(dst, v...), nil
			}
	}
	return nil, nil
}

func accessLong(n *codec.Node) (getter[int64], putter[int64]) {
	if n.Kind != codec.Int && n.Kind != codec.Long {
		return nil, nil
	}
	return func(enc []byte) (int64, bool) { v, _, err := codec.ReadLong(enc); return v, err == nil },
		func(dst []byte, v int64) ([]byte, error) {
			if n.Kind == codec.Int && v != int64(int32(v)) {
				return dst, fmt.Errorf("%d does not fit an int", v)
			}
			return codec.AppendLong(dst, v), nil
		}
}

func accessDouble(n *codec.Node) (getter[float64], putter[float64]) {
	switch n.Kind {
	case codec.Float:
		return func(enc []byte) (float64, bool) { v, _, err := codec.ReadFloat(enc); return float64(v), err == nil },
			func(dst []byte, v float64) ([]byte, error) {
				if math.Abs(v) > math.MaxFloat32 && !math.IsInf(v, 0) {
					return dst, fmt.Errorf("%g does not fit a float", v)
				}
				return codec.AppendFloat(dst, float32(v)), nil
			}
	case codec.Double:
		return func(enc []byte) (float64, bool) { v, _, err := codec.ReadDouble(enc); return v, err == nil },
			func(dst []byte, v float64) ([]byte, error) { return codec.AppendDouble(dst, v), nil }
	}
	return nil, nil
}

func accessBool(n *codec.Node) (getter[bool], putter[bool]) {
	if n.Kind != codec.Boolean {
		return nil, nil
	}
	return func(enc []byte) (bool, bool) { v, _, err := codec.ReadBool(enc); return v, err == nil },
		func(dst []byte, v bool) ([]byte, error) { return codec.AppendBool(dst, v), nil }
}
