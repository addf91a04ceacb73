package codec

import "errors"

// Skip returns the bytes after the value of type n at the start of enc. It checks
// the value by the rules of [Layout.Walk].
func Skip(n *Node, enc []byte) (rest []byte, err error) {
	w := walker{buf: enc}
	pos := w.value(n, 0, 0)
	if w.msg != "" {
		return nil, w.err("")
	}
	return enc[pos:], nil
}

var errBlock = errors.New("the item count of a block is out of range")

// ReadBlock returns the number of items in the block at the start of enc, and the rest
// of enc, which begins with the items. An array or a map is a sequence of blocks; a
// block of 0 items ends it.
func ReadBlock(enc []byte) (count int64, rest []byte, err error) {
	count, rest, err = ReadLong(enc)
	if err == nil && count < 0 { // the block's size in bytes follows
		if count = -count; count < 0 {
			return 0, enc, errBlock
		}
		_, rest, err = ReadLong(rest)
	}
	return count, rest, err
}

// Items iterates over the items of an array, or the entries of a map:
//
//	for it := codec.ItemsOf(n, enc); it.Next(); {
//		... it.Value
//	}
type Items struct {
	Key   []byte // of a map entry
	Value []byte // the Avro encoding of the item, or of the entry's value
	Err   error  // why Next returned false; nil at the end

	elem  *Node
	keyed bool
	left  int64 // items in this block
	rest  []byte
}

// ItemsOf returns an iterator over enc, an array or a map of type n. Key and Value
// share memory with enc.
func ItemsOf(n *Node, enc []byte) Items {
	return Items{elem: n.Elem, keyed: n.Kind == Map, rest: enc}
}

// Next moves to the next item. It returns false at the end, and on an error (see Err).
func (it *Items) Next() bool {
	if it.left == 0 {
		if it.left, it.rest, it.Err = ReadBlock(it.rest); it.Err != nil || it.left == 0 {
			return false
		}
	}
	it.left--
	at := it.rest
	if it.keyed {
		if it.Key, at, it.Err = ReadText(at); it.Err != nil {
			return false
		}
	}
	if it.rest, it.Err = Skip(it.elem, at); it.Err != nil {
		return false
	}
	end := len(at) - len(it.rest)
	it.Value = at[:end:end]
	return true
}
