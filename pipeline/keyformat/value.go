package keyformat

import (
	"encoding/binary"
	"errors"

	"millrace/pipeline/codec"
)

// This file has the type of keys in expressions.

// Node returns the type that expressions read a key with: a long for Long and Int, the
// type of the schema for Avro, a string with the text form for others.
func (f Format) Node() *codec.Node {
	switch {
	case f.Kind == Long || f.Kind == Int:
		return &codec.Node{Kind: codec.Long}
	case f.Kind == Avro && f.Schema != nil:
		return f.Schema.Root()
	}
	return &codec.Node{Kind: codec.String}
}

var (
	errNoBody = errors.New("the Avro key of the record is unknown here")
	errUnfit  = errors.New("the key of the record does not have the key_format of its topic")
)

// AppendValue appends a key, encoded as [Format.Node] says. body is that of an Avro key:
// see [Reader.Body]. The format is not Text.
func (f Format) AppendValue(dst, key, body []byte) ([]byte, error) {
	switch {
	case f.Kind == Avro && body == nil:
		return dst, errNoBody
	case f.Kind == Avro:
		return append(dst, body...), nil
	case !f.fits(key):
		return dst, errUnfit
	case f.Kind == Long:
		return codec.AppendLong(dst, int64(binary.BigEndian.Uint64(key))), nil
	case f.Kind == Int:
		return codec.AppendLong(dst, int64(int32(binary.BigEndian.Uint32(key)))), nil
	case f.Kind == UUID:
		return f.appendText(codec.AppendLong(dst, 36), key), nil
	}
	return f.appendText(codec.AppendLong(dst, int64(2*len(key))), key), nil
}
