// Package uuids makes and parses UUIDs without allocating.
package uuids

import (
	"crypto/sha1" //nolint:gosec // UUID version 5 requires SHA-1
	"encoding/hex"
)

// OIDSpace is the namespace for OIDs (RFC 9562, 6.6).
var OIDSpace = [16]byte{0x6b, 0xa7, 0xb8, 0x12, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}

// V5 sets id to the version 5 UUID of a name (RFC 9562, 5.5). It allocates only
// for a long name.
func V5(id *[16]byte, space [16]byte, name []byte) {
	var room [128]byte
	sum := sha1.Sum(append(append(room[:0], space[:]...), name...))
	copy(id[:], sum[:])
	Stamp(id, 5)
}

// Stamp sets the version and variant bits of a UUID.
func Stamp(id *[16]byte, version byte) {
	id[6] = id[6]&0x0f | version<<4
	id[8] = id[8]&0x3f | 0x80
}

// Parse parses the 36-character form of a UUID and reports whether it is valid.
func Parse(id *[16]byte, text []byte) bool {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return false
	}
	for _, part := range [...]struct{ to, from, end int }{{0, 0, 8}, {4, 9, 13}, {6, 14, 18}, {8, 19, 23}, {10, 24, 36}} {
		if _, err := hex.Decode(id[part.to:], text[part.from:part.end]); err != nil {
			return false
		}
	}
	return true
}

// Append appends the 36-character form of a UUID.
func Append(dst []byte, id *[16]byte) []byte {
	dst = hex.AppendEncode(dst, id[:4])
	for _, part := range [...]struct{ from, end int }{{4, 6}, {6, 8}, {8, 10}, {10, 16}} {
		dst = hex.AppendEncode(append(dst, '-'), id[part.from:part.end])
	}
	return dst
}
