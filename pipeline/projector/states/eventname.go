package states

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// eventName is an event's id in 16 bytes: the bytes of a UUID in its usual form, else
// the first 16 bytes of the id's SHA-256. If ids are compared within aggregates, it
// also contains the aggregate.
type eventName struct {
	high, low uint64
	hashed    bool
	scope     scope
}

// scope is the id of an aggregate in 16 bytes: up to 15 bytes as they are, the bytes of a
// UUID, else the first 16 bytes of the SHA-256. The zero scope is the partition.
type scope struct {
	form      scopeForm
	high, low uint64
}

type scopeForm byte

const (
	scopeShort scopeForm = iota + 1
	scopeUUID
	scopeHashed
)

// scopeOf returns the scope of an aggregate; that of the partition if id is nil.
func scopeOf(id []byte) scope {
	var short [16]byte
	switch {
	case id == nil:
		return scope{}
	case len(id) < len(short):
		short[15] = byte(copy(short[:], id))
		return scope{scopeShort, binary.BigEndian.Uint64(short[:]), binary.BigEndian.Uint64(short[8:])}
	}
	if high, low, ok := parseUUID(id); ok {
		return scope{scopeUUID, high, low}
	}
	sum := sha256.Sum256(id)
	return scope{scopeHashed, binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:])}
}

func eventNameOf(id []byte) eventName {
	if high, low, ok := parseUUID(id); ok {
		return eventName{high: high, low: low}
	}
	sum := sha256.Sum256(id)
	return eventName{high: binary.BigEndian.Uint64(sum[:]), low: binary.BigEndian.Uint64(sum[8:]), hashed: true}
}

// hash is the finalizer of splitmix64.
func (e eventName) hash() uint64 {
	x := e.high ^ bits.RotateLeft64(e.low, 23)*0x9e3779b97f4a7c15
	if e.scope.form > 0 {
		x = (x ^ x>>32) * 0xd6e8feb86659fd93
		x ^= e.scope.high ^ bits.RotateLeft64(e.scope.low, 23)*0x9e3779b97f4a7c15
	}
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// key appends the key of familyEvent. After the id come, without a scope, one byte if the
// id is hashed, and with a scope, a byte for both forms and the scope.
func (e eventName) key(dst []byte, layer int) []byte {
	dst = e.prefix(dst, layer)
	switch {
	case e.scope.form > 0:
		form := byte(e.scope.form) << 1
		if e.hashed {
			form |= 1
		}
		dst = append(dst, form)
		dst = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, e.scope.high), e.scope.low)
	case e.hashed:
		dst = append(dst, 'h')
	}
	return dst
}

// prefix appends the start of the keys of an id in all scopes.
func (e eventName) prefix(dst []byte, layer int) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(layer))
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, e.high), e.low)
}

// conflictKey appends the key of familyConflict.
func (e eventName) conflictKey(dst, aggregate []byte) []byte {
	dst = appendAggregateKey(dst, aggregate)
	dst = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, e.high), e.low)
	if e.hashed {
		dst = append(dst, 'h')
	}
	return dst
}

// isKey reports whether a key with the prefix is of the id, in any scope.
func (e eventName) isKey(key []byte) bool {
	switch rest := key[len(e.prefix(nil, 0)):]; len(rest) {
	case 0:
		return !e.hashed
	case 1:
		return e.hashed
	default:
		return e.hashed == (rest[0]&1 == 1)
	}
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
