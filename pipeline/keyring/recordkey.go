package keyring

import (
	"errors"
	"fmt"

	"millrace/pipeline/codec"
)

// AppendKey appends the record key for an encoded value of a string, an int or a
// long, which may be nullable: a text as it is, a number in decimal. A null or an
// empty text is an error. The id of a data subject has the same form.
func AppendKey(dst []byte, n *codec.Node, enc []byte) ([]byte, error) {
	if other, null, _, ok := n.Nullable(); ok {
		branch, rest, err := codec.ReadLong(enc)
		if err != nil {
			return dst, err
		}
		if branch == int64(null) {
			return dst, errors.New("expected the record key, found null")
		}
		n, enc = other, rest
	}
	if n.Kind != codec.String {
		v, _, err := codec.ReadLong(enc)
		if err != nil {
			return dst, err
		}
		return fmt.Append(dst, v), nil
	}
	text, _, err := codec.ReadText(enc)
	if err == nil && len(text) == 0 {
		err = errors.New("expected the record key, found an empty text")
	}
	return append(dst, text...), err
}
