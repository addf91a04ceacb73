// Package raw reads and edits Avro values in their encoding, without decoding them: it
// skips values, iterates over items and entries, and looks up and replaces entries of maps.
//
// Its functions get bytes that a codec.Layout has accepted. An error means that the
// caller skipped the walk.
package raw

import (
	"errors"

	"millrace/pipeline/codec"
)

// ErrBytes is the error for bytes that do not match the schema.
var ErrBytes = errors.New("bytes do not match the schema")

// Skip returns the bytes after a value of type n.
func Skip(n *codec.Node, b []byte) ([]byte, error) {
	size := 0
	switch n.Kind {
	case codec.Null:
	case codec.Boolean:
		size = 1
	case codec.Float:
		size = 4
	case codec.Double:
		size = 8
	case codec.Fixed:
		size = n.Size
	case codec.Int, codec.Long, codec.Enum:
		_, b, err := codec.ReadLong(b)
		return b, err
	case codec.String, codec.Bytes:
		_, b, err := codec.ReadText(b)
		return b, err
	case codec.Union:
		branch, b, err := codec.ReadLong(b)
		if err != nil {
			return nil, err
		}
		if branch < 0 || branch >= int64(len(n.Branches)) {
			return nil, ErrBytes
		}
		return Skip(n.Branches[branch], b)
	case codec.Record:
		var err error
		for i := range n.Fields {
			if b, err = Skip(n.Fields[i].Type, b); err != nil {
				return nil, err
			}
		}
		return b, nil
	case codec.Array, codec.Map:
		it := ItemsOf(n, b)
		for it.Next() {
		}
		return it.Rest, it.Err
	}
	if len(b) < size {
		return nil, ErrBytes
	}
	return b[size:], nil
}

// Items iterates over the items of an array or the entries of a map.
type Items struct {
	Rest  []byte // the unread bytes; after the end, the bytes after the array or map
	Whole []byte // the item, or the entry with its key
	Key   []byte // of the entry
	Value []byte
	Err   error // why Next returned false; nil at the end

	node *codec.Node
	left int64 // items left in this block
}

// ItemsOf returns an iterator over enc, an array or a map of type n.
func ItemsOf(n *codec.Node, enc []byte) Items { return Items{node: n, Rest: enc} }

// Next moves to the next item. It returns false at the end, and on an error.
func (it *Items) Next() bool {
	if it.left == 0 && !it.block() {
		return false
	}
	it.left--
	all := it.Rest
	b := all
	if it.node.Kind == codec.Map {
		n, ok := shortText(b)
		if ok {
			it.Key, b = b[1:n:n], b[n:]
		} else if it.Key, b, it.Err = codec.ReadText(b); it.Err != nil {
			return false
		}
	}
	var rest []byte
	if n, ok := shortText(b); ok && it.node.Elem.Kind == codec.String {
		rest = b[n:]
	} else if rest, it.Err = Skip(it.node.Elem, b); it.Err != nil {
		return false
	}
	it.Value, it.Rest = b[:len(b)-len(rest)], rest
	it.Whole = all[:len(all)-len(rest)]
	return true
}

// block starts the next block. It returns false at the end.
func (it *Items) block() bool {
	it.left, it.Rest, it.Err = codec.ReadBlock(it.Rest)
	return it.Err == nil && it.left != 0
}

// shortText returns the size of the string at the start of b, including its
// length prefix, if that prefix is a single byte.
func shortText(b []byte) (size int, ok bool) {
	if len(b) == 0 || b[0]&0x81 != 0 {
		return 0, false
	}
	size = 1 + int(b[0]>>1)
	return size, size <= len(b)
}
