package states

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// eventName is an event's id in 16 bytes: the bytes of a UUID in its usual form, else
// the first 16 bytes of the id's SHA-256.
type eventName struct {
	high, low uint64
	hashed    bool
}

func eventNameOf(id []byte) eventName {
	if high, low, ok := parseUUID(id); ok {
		return eventName{high, low, false}
	}
	sum := sha256.Sum256(id)
	return eventName{binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:]), true}
}

// hash is the finalizer of splitmix64.
func (e eventName) hash() uint64 {
	x := e.high ^ bits.RotateLeft64(e.low, 23)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// key appends the key of familyEvent. The key of a hashed id is one byte longer.
func (e eventName) key(dst []byte, layer int) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(layer))
	dst = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, e.high), e.low)
	if e.hashed {
		dst = append(dst, 'h')
	}
	return dst
}

// parseUUID reads a UUID in groups of 8, 4, 4, 4 and 12 digits. With upper-case digits,
// the id is another one, and not a UUID here.
func parseUUID(s []byte) (high, low uint64, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return 0, 0, false
	}
	bad := byte(0)
	digits := func(n uint64, s []byte) uint64 {
		for _, c := range s {
			d := hexDigits[c]
			bad |= d
			n = n<<4 | uint64(d&15)
		}
		return n
	}
	high = digits(digits(digits(0, s[:8]), s[9:13]), s[14:18])
	low = digits(digits(0, s[19:23]), s[24:])
	return high, low, bad < 16
}

// hexDigits maps a digit to its value, and any other byte to 16.
var hexDigits = func() (t [256]byte) {
	for i := range t {
		t[i] = 16
	}
	for i, c := range "0123456789abcdef" {
		t[c] = byte(i)
	}
	return t
}()
