// Package hide hides values: it replaces an encoded Avro value by a digest, by a part of
// it, or by a neutral value. It is the part of the stage mask that needs nothing of events.
//
// Start at [Parse] and [Method.Hider].
package hide

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"millrace/pipeline/codec"
	"millrace/pipeline/stage/uuids"
)

// The methods of mask.
const (
	byHash    = "hash"
	redact    = "redact"
	keepFirst = "keep_first"
	keepLast  = "keep_last"
)

var words = []string{byHash, redact, keepFirst, keepLast}

// A Method is a way to hide a value.
type Method struct {
	word string
	n    int // number of characters to keep, for keep_first and keep_last
}

// Parse parses a method as the parameter fields of a mask has it.
func Parse(text string) (m Method, err error) {
	word, number, more := strings.Cut(text, " ")
	m.word = word
	switch word {
	case byHash, redact:
		if more {
			return m, fmt.Errorf("%s takes no argument, but is written as %q", word, text)
		}
		return m, nil
	case keepFirst, keepLast:
		if m.n, err = strconv.Atoi(strings.TrimSpace(number)); err != nil || m.n < 1 || m.n > 1000 {
			return m, fmt.Errorf("%s needs the number of characters to keep, from 1 to 1000, as in %s 4", word, word)
		}
		return m, nil
	}
	return m, fmt.Errorf("%q is not a method to hide a value", text)
}

// A Hider appends the replacement of a value to dst. Values are in Avro encoding.
type Hider = func(d *Digester, dst, value []byte) ([]byte, error)

// Hider returns the function that hides values of a schema node. If the method does not
// support the node, it returns nil, the problem and a hint.
func (m Method) Hider(n *codec.Node) (h Hider, msg, hint string) {
	if m.word == redact {
		blank, ok := appendBlank(nil, n)
		if !ok {
			return nil, fmt.Sprintf("is %s, which has no neutral value", n), "hide its parts, or make it nullable"
		}
		return func(_ *Digester, dst, _ []byte) ([]byte, error) { return append(dst, blank...), nil }, "", ""
	}
	if other, _, branch, ok := n.Nullable(); ok {
		inner, msg, hint := m.Hider(other)
		if inner == nil {
			return nil, msg, hint
		}
		return func(d *Digester, dst, value []byte) ([]byte, error) {
			at, rest, err := codec.ReadLong(value)
			if err != nil || at != int64(branch) {
				return append(dst, value...), err
			}
			return inner(d, codec.AppendLong(dst, at), rest)
		}, "", ""
	}
	switch {
	case m.word == byHash && n.Kind == codec.String && n.Logical == "uuid":
		return hashUUIDText, "", ""
	case m.word == byHash && IsUUID(n):
		return hashUUID, "", ""
	case m.word == byHash && n.Kind == codec.String:
		return hashText, "", ""
	case m.word == byHash && n.Kind == codec.Bytes && n.Logical == "":
		return hashBytes, "", ""
	case m.word == byHash:
		return nil, fmt.Sprintf("is %s, but hash is for strings, UUIDs and plain bytes", n), "use redact"
	case n.Kind == codec.String && n.Logical == "":
		return func(_ *Digester, dst, value []byte) ([]byte, error) { return m.keep(dst, value) }, "", ""
	}
	hint = "use redact"
	if n.Kind == codec.String || n.Kind == codec.Bytes {
		hint = "use redact or hash"
	}
	return nil, fmt.Sprintf("is %s, but %s is for strings without a logical type", n, m.word), hint
}

// IsUUID reports whether n is the 16-byte form of a UUID.
func IsUUID(n *codec.Node) bool {
	return n.Kind == codec.Fixed && n.Logical == "uuid" && n.Size == 16
}

const (
	blankText = "***"
	blankUUID = "00000000-0000-0000-0000-000000000000"
)

// appendBlank appends the neutral value of a schema node, and reports whether there is
// one.
func appendBlank(dst []byte, n *codec.Node) ([]byte, bool) {
	switch n.Kind {
	case codec.Null:
		return dst, true
	case codec.Boolean, codec.Int, codec.Long, codec.Array, codec.Map:
		return append(dst, 0), true
	case codec.Float:
		return codec.AppendFloat(dst, 0), true
	case codec.Double:
		return codec.AppendDouble(dst, 0), true
	case codec.Bytes:
		if n.Logical == "decimal" {
			return codec.AppendBytes(dst, []byte{0}), true
		}
		return codec.AppendBytes(dst, nil), true
	case codec.Fixed:
		return append(dst, make([]byte, n.Size)...), true
	case codec.String:
		if n.Logical == "uuid" {
			return codec.AppendString(dst, blankUUID), true
		}
		return codec.AppendString(dst, blankText), true
	case codec.Union:
		for i, branch := range n.Branches {
			if branch.Kind == codec.Null {
				return codec.AppendLong(dst, int64(i)), true
			}
		}
	}
	return dst, false // an enum, a record, a union without null
}

// keep appends a text and replaces the characters that are not kept with *.
func (m Method) keep(dst, value []byte) ([]byte, error) {
	text, _, err := codec.ReadText(value)
	if err != nil {
		return dst, err
	}
	hidden := utf8.RuneCount(text)
	kept := text[len(text):]
	if hidden > m.n {
		hidden -= m.n
		if m.word == keepFirst {
			kept = text[:after(text, m.n)]
		} else {
			kept = text[after(text, hidden):]
		}
	}
	dst = codec.AppendLong(dst, int64(len(kept)+hidden))
	if m.word == keepFirst {
		dst = append(dst, kept...)
	}
	for range hidden {
		dst = append(dst, '*')
	}
	if m.word == keepLast {
		dst = append(dst, kept...)
	}
	return dst, nil
}

// after returns the byte offset after the first n characters of a text.
func after(text []byte, n int) (at int) {
	for range n {
		_, size := utf8.DecodeRune(text[at:])
		at += size
	}
	return at
}

// A Digester computes digests. One goroutine at a time may use it.
type Digester struct {
	hash hash.Hash
	salt []byte
	sum  [sha256.Size]byte
	id   [16]byte
}

// NewDigester returns a Digester with a secret key, with a salt, or without both.
func NewDigester(key, salt []byte) *Digester {
	if len(key) > 0 {
		return &Digester{hash: hmac.New(sha256.New, key)}
	}
	return &Digester{hash: sha256.New(), salt: salt}
}

// of returns the digest of a value. It is valid until the next call.
func (d *Digester) of(value []byte) []byte {
	d.hash.Reset()
	d.hash.Write(d.salt) // Write of a hash.Hash never returns an error
	d.hash.Write(value)
	return d.hash.Sum(d.sum[:0])
}

func hashText(d *Digester, dst, value []byte) ([]byte, error) {
	text, _, err := codec.ReadText(value)
	if err != nil {
		return dst, err
	}
	sum := d.of(text)
	return hex.AppendEncode(codec.AppendLong(dst, int64(hex.EncodedLen(len(sum)))), sum), nil
}

func hashBytes(d *Digester, dst, value []byte) ([]byte, error) {
	content, _, err := codec.ReadText(value)
	if err != nil {
		return dst, err
	}
	return codec.AppendBytes(dst, d.of(content)), nil
}

// hashUUID appends a version 8 UUID (RFC 9562, 5.8) with the bits of the digest.
func hashUUID(d *Digester, dst, value []byte) ([]byte, error) {
	copy(d.id[:], d.of(value))
	uuids.Stamp(&d.id, 8)
	return append(dst, d.id[:]...), nil
}

// hashUUIDText hashes the 16 bytes of the UUID, not its text, so a UUID has the same
// digest as a string and as a fixed. A text that is not a UUID is hashed as text.
func hashUUIDText(d *Digester, dst, value []byte) ([]byte, error) {
	text, _, err := codec.ReadText(value)
	if err != nil {
		return dst, err
	}
	if uuids.Parse(&d.id, text) {
		text = d.id[:]
	}
	copy(d.id[:], d.of(text))
	uuids.Stamp(&d.id, 8)
	return uuids.Append(codec.AppendLong(dst, 36), &d.id), nil
}

// Hashes reports whether the method computes digests.
func (m Method) Hashes() bool { return m.word == byHash }

// Redacts reports whether the method needs nothing of the value.
func (m Method) Redacts() bool { return m.word == redact }

// Known reports whether there is a method of this name.
func (m Method) Known() bool { return slices.Contains(words, m.word) }

// String returns the name of the method.
func (m Method) String() string { return m.word }
