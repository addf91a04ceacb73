package codec

import "errors"

// Skip returns what follows the value of type n at the start of enc. It holds
// the value to the rules of [Layout.Walk].
func Skip(n *Node, enc []byte) (rest []byte, err error) {
	w := walker{buf: enc}
	pos := w.value(n, 0, 0)
	if w.msg != "" {
		return nil, w.err("")
	}
	return enc[pos:], nil
}

var errBlock = errors.New("a block of items out of range")

// ReadBlock returns the number of items in the block at the start of enc, within
// an array or a map, and what follows that number. 0 is the end.
func ReadBlock(enc []byte) (count int64, rest []byte, err error) {
	count, rest, err = ReadLong(enc)
	if err == nil && count < 0 { // with the block's size in bytes behind it
		if count = -count; count < 0 {
			return 0, enc, errBlock
		}
		_, rest, err = ReadLong(rest)
	}
	return count, rest, err
}

// Items goes through the items of an array, or the entries of a map:
//
//	for it := codec.ItemsOf(n, enc); it.Next(); {
//		... it.Value
//	}
type Items struct {
	Key   []byte // of an entry
	Value []byte // the Avro encoding of the item, or of the entry's value
	Err   error  // why Next returned false; nil at the end

	elem  *Node
	keyed bool
	left  int64 // in this block
	rest  []byte
}

// ItemsOf returns the items of an array or a map of type n.
func ItemsOf(n *Node, enc []byte) Items {
	return Items{elem: n.Elem, keyed: n.Kind == Map, rest: enc}
}

// Next goes on to the next item. It returns false if there is none.
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
