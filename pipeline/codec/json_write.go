package codec

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"millrace/pipeline/decimal"
)

// AppendJSON appends the JSON form of enc, one Avro value of type n and nothing else.
// It checks counts, lengths, nesting and UTF-8, so enc may come from anywhere. Every
// error is a [*PathError].
func AppendJSON(dst []byte, n *Node, enc []byte) ([]byte, error) {
	w := jsonWriter{dst: dst, in: enc, empty: maxEmpty}
	if err := w.value(n, 0); err != nil {
		return dst, err
	}
	if len(w.in) > 0 {
		return dst, &PathError{Msg: fmt.Sprintf("%d bytes after the end of the %s", len(w.in), n)}
	}
	return w.dst, nil
}

// jsonWriter reads Avro from in and appends JSON to dst.
type jsonWriter struct {
	dst, in []byte
	// empty is how many more items of zero bytes are accepted. Without a bound, a few
	// bytes could claim any number of them.
	empty int
}

func (w *jsonWriter) fail(n *Node, format string, args ...any) error {
	return &PathError{Msg: "expected " + n.String() + ", found " + fmt.Sprintf(format, args...)}
}

func (w *jsonWriter) value(n *Node, depth int) error {
	// Twice the limit of a walk, which counts the depth of plain records and the depth
	// within a leaf separately.
	if depth > 2*maxWalkDepth {
		return &PathError{Msg: fmt.Sprintf("nested more than %d deep", 2*maxWalkDepth)}
	}
	switch n.Kind {
	case Null:
		w.dst = append(w.dst, "null"...)
		return nil
	case Boolean:
		b, err := w.take(n, 1)
		if err != nil {
			return err
		}
		if b[0] > 1 {
			return w.fail(n, "byte 0x%02x", b[0])
		}
		w.dst = strconv.AppendBool(w.dst, b[0] == 1)
		return nil
	case Int, Long:
		v, err := w.long(n)
		if err != nil {
			return err
		}
		if n.Kind == Int && (v < math.MinInt32 || v > math.MaxInt32) {
			return w.fail(n, "%d, which is out of range", v)
		}
		if isTime(n) {
			w.dst = appendTime(w.dst, n, v)
		} else {
			w.dst = strconv.AppendInt(w.dst, v, 10)
		}
		return nil
	case Float:
		b, err := w.take(n, 4)
		if err != nil {
			return err
		}
		w.dst = appendJSONFloat(w.dst, float64(math.Float32frombits(binary.LittleEndian.Uint32(b))), 32)
		return nil
	case Double:
		b, err := w.take(n, 8)
		if err != nil {
			return err
		}
		w.dst = appendJSONFloat(w.dst, math.Float64frombits(binary.LittleEndian.Uint64(b)), 64)
		return nil
	case String:
		b, err := w.bytes(n)
		if err != nil {
			return err
		}
		return w.text(n, b)
	case Bytes:
		b, err := w.bytes(n)
		if err != nil {
			return err
		}
		return w.binary(n, b)
	case Fixed:
		b, err := w.take(n, n.Size)
		if err != nil {
			return err
		}
		return w.binary(n, b)
	case Enum:
		return w.enum(n)
	case Array, Map:
		return w.items(n, depth)
	case Record:
		return w.record(n, depth)
	}
	return w.union(n, depth)
}

func (w *jsonWriter) enum(n *Node) error {
	i, err := w.long(n)
	if err != nil {
		return err
	}
	if i < 0 || i >= int64(len(n.Symbols)) {
		return w.fail(n, "symbol number %d of %d", i, len(n.Symbols))
	}
	return w.text(n, []byte(n.Symbols[i]))
}

func (w *jsonWriter) union(n *Node, depth int) error {
	b, err := w.long(n)
	if err != nil {
		return err
	}
	if b < 0 || b >= int64(len(n.Branches)) {
		return w.fail(n, "branch number %d of %d", b, len(n.Branches))
	}
	branch := n.Branches[b]
	start := len(w.dst)
	if err := w.value(branch, depth+1); err != nil {
		return err
	}
	if needsTag(n, int(b), w.dst[start:]) {
		w.dst = slices.Insert(w.dst, start, []byte(`{"`+branchName(branch)+`":`)...)
		w.dst = append(w.dst, '}')
	}
	return nil
}

func (w *jsonWriter) record(n *Node, depth int) error {
	w.dst = append(w.dst, '{')
	for i := range n.Fields {
		f := &n.Fields[i]
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		w.dst = append(w.dst, '"')
		w.dst = append(w.dst, f.Name...) // an Avro name needs no escaping
		w.dst = append(w.dst, '"', ':')
		if err := w.value(f.Type, depth+1); err != nil {
			return under(f.Name, err)
		}
	}
	w.dst = append(w.dst, '}')
	return nil
}

// items writes an array or a map.
func (w *jsonWriter) items(n *Node, depth int) error {
	open, shut := byte('['), byte(']')
	if n.Kind == Map {
		open, shut = '{', '}'
	}
	w.dst = append(w.dst, open)
	for i := 0; ; {
		count, err := w.long(n)
		if err != nil {
			return err
		}
		if count == 0 {
			break
		}
		left := int64(-1) // how many bytes follow the block; -1 if its size is not given
		if count < 0 {
			size, err := w.long(n)
			if err != nil {
				return err
			}
			if count = -count; count < 0 || size < 0 || size > int64(len(w.in)) {
				return w.fail(n, "a block of %d items in %d bytes with %d left", count, size, len(w.in))
			}
			left = int64(len(w.in)) - size
		}
		if n.Kind == Map && count > int64(len(w.in)) {
			return w.fail(n, "%d entries in %d bytes", count, len(w.in))
		}
		for range count {
			if i > 0 {
				w.dst = append(w.dst, ',')
			}
			before := len(w.in)
			if err := w.item(n, i, depth); err != nil {
				return err
			}
			if len(w.in) == before {
				if w.empty--; w.empty < 0 {
					return w.fail(n, "too many items of zero bytes")
				}
			}
			i++
		}
		if left >= 0 && left != int64(len(w.in)) {
			return w.fail(n, "a block whose size in bytes is wrong")
		}
	}
	w.dst = append(w.dst, shut)
	return nil
}

func (w *jsonWriter) item(n *Node, i, depth int) error {
	if n.Kind == Array {
		if err := w.value(n.Elem, depth+1); err != nil {
			return underIndex(i, err)
		}
		return nil
	}
	key, err := w.bytes(n)
	if err != nil {
		return err
	}
	if err := w.text(n, key); err != nil {
		return err
	}
	w.dst = append(w.dst, ':')
	if err := w.value(n.Elem, depth+1); err != nil {
		return underKey(string(key), err)
	}
	return nil
}

func (w *jsonWriter) take(n *Node, size int) ([]byte, error) {
	if size > len(w.in) {
		return nil, w.fail(n, "%d of its %d bytes", len(w.in), size)
	}
	b := w.in[:size]
	w.in = w.in[size:]
	return b, nil
}

func (w *jsonWriter) long(n *Node) (int64, error) {
	v, size := binary.Varint(w.in)
	switch {
	case size == 0:
		return 0, w.fail(n, "the end of the input")
	case size < 0:
		return 0, w.fail(n, "a number of more than 64 bits")
	}
	w.in = w.in[size:]
	return v, nil
}

func (w *jsonWriter) bytes(n *Node) ([]byte, error) {
	size, err := w.long(n)
	if err != nil {
		return nil, err
	}
	if size < 0 || size > int64(len(w.in)) {
		return nil, w.fail(n, "a length of %d with %d bytes left", size, len(w.in))
	}
	return w.take(n, int(size))
}

func (w *jsonWriter) text(n *Node, b []byte) error {
	if !utf8.Valid(b) {
		return w.fail(n, "text that is not UTF-8")
	}
	w.dst = appendJSONString(w.dst, b)
	return nil
}

// binary writes the content of a bytes or fixed value.
func (w *jsonWriter) binary(n *Node, b []byte) error {
	switch {
	case n.Logical == "decimal":
		if len(b) > maxDecimal {
			return w.fail(n, "%d bytes", len(b))
		}
		w.dst = append(w.dst, '"')
		w.dst = decimal.FromBytes(b, n.Scale).AppendText(w.dst)
		w.dst = append(w.dst, '"')
	case isUUIDBytes(n):
		w.dst = append(w.dst, '"')
		w.dst = fmt.Appendf(w.dst, "%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
		w.dst = append(w.dst, '"')
	default:
		w.dst = append(w.dst, '"')
		w.dst = base64.StdEncoding.AppendEncode(w.dst, b)
		w.dst = append(w.dst, '"')
	}
	return nil
}

// appendJSONFloat appends the shortest number that reads back as f.
func appendJSONFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, `"NaN"`...)
	case math.IsInf(f, 1):
		return append(dst, `"Infinity"`...)
	case math.IsInf(f, -1):
		return append(dst, `"-Infinity"`...)
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, bits)
}

// appendJSONString appends valid UTF-8 as a JSON string. It escapes only what JSON
// requires, and U+2028 and U+2029: some readers of JSON lines break lines there.
func appendJSONString(dst, s []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c != 0xe2 {
			continue
		}
		if c == 0xe2 {
			if s[i+1] == 0x80 && s[i+2]&^1 == 0xa8 {
				dst = append(dst, s[start:i]...)
				dst = append(dst, '\\', 'u', '2', '0', '2', hex[s[i+2]&0xf])
				start = i + 3
			}
			i += 2
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
	}
	return append(append(dst, s[start:]...), '"')
}
