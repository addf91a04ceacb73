package expr

import (
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/library"
)

// The readers in this file get bytes that a codec.Layout has accepted. An error
// of a codec function means that the caller skipped the walk.

// An instant is a point in time, like a CEL timestamp without a zone.
type instant struct {
	sec  int64
	nano int32
}

func instantOf(t time.Time) instant { return instant{t.Unix(), int32(t.Nanosecond())} }

func (t instant) time() time.Time { return time.Unix(t.sec, int64(t.nano)).UTC() }

// A timeText appends times in RFC 3339, in UTC, with as many digits of the
// second as needed, like time.RFC3339Nano. It caches the last text: the next time
// is usually in the same second, and often the same.
type timeText struct {
	at   instant
	size int // of text; 0 before the first time
	text [len("2006-01-02T15:04:05.999999999Z")]byte
}

const secondSize = len("2006-01-02T15:04:05")

func (w *timeText) append(dst []byte, t instant) []byte {
	if w.size == 0 || t != w.at {
		if t.sec < library.MinSecond || t.sec > library.MaxSecond {
			return t.time().AppendFormat(dst, time.RFC3339Nano) // CEL has no such times
		}
		w.write(t)
	}
	return append(dst, w.text[:w.size]...)
}

func (w *timeText) write(t instant) {
	if w.size == 0 || t.sec != w.at.sec {
		t.time().AppendFormat(w.text[:0], "2006-01-02T15:04:05")
	}
	w.at, w.size = t, secondSize
	if t.nano != 0 {
		w.text[secondSize] = '.'
		n := uint32(t.nano)
		for i := secondSize + 9; i > secondSize; i-- {
			w.text[i] = byte('0' + n%10)
			n /= 10
		}
		for w.size = secondSize + 10; w.text[w.size-1] == '0'; w.size-- {
		}
	}
	w.text[w.size] = 'Z'
	w.size++
}

func (t instant) compare(o instant) int {
	switch {
	case t.sec < o.sec || t.sec == o.sec && t.nano < o.nano:
		return -1
	case t == o:
		return 0
	}
	return 1
}

// toInstant converts an Avro number of units since 1970.
func toInstant(v int64, u unit) (instant, error) {
	var t instant
	if u == days {
		t.sec = v * 86400 // an Avro int: no overflow
	} else {
		per := u.perSecond()
		t.sec = v / per
		rest := v % per
		if rest < 0 {
			t.sec--
			rest += per
		}
		t.nano = int32(rest * (1e9 / per))
	}
	if t.sec < library.MinSecond || t.sec > library.MaxSecond {
		return instant{}, library.ErrTimestamp
	}
	return t, nil
}

// fromInstant is the inverse of toInstant. It rounds down to the unit, towards
// the past.
func fromInstant(t instant, u unit) (int64, error) {
	if u == days {
		d := t.sec / 86400
		if t.sec%86400 < 0 {
			d--
		}
		return d, nil
	}
	per := u.perSecond()
	sec, rest := t.sec, int64(t.nano)/(1e9/per)
	if sec < 0 {
		sec, rest = sec+1, rest-per // keeps the product in range if the sum is in range
	}
	v, err := multiply(sec, per)
	if err == nil {
		v, err = add(v, rest)
	}
	if err != nil { // only nanoseconds overflow
		return 0, errors.New("timestamp out of range: timestamp-nanos holds years 1678 to 2262")
	}
	return v, nil
}

// same reports whether values of a and b have the same bytes and meaning.
func same(a, b *codec.Node) bool { return sameNode(a, b, nil) }

func sameNode(a, b *codec.Node, above [][2]*codec.Node) bool {
	if a == b || slices.Contains(above, [2]*codec.Node{a, b}) {
		return true
	}
	if a.Kind != b.Kind || a.Size != b.Size || a.Scale != b.Scale || a.Precision != b.Precision {
		return false
	}
	if a.Logical != b.Logical && (kindOf(a) != kindOf(b) || unitOf(a) != unitOf(b) || a.Kind == codec.Fixed) {
		return false
	}
	if b.Kind == codec.String && b.Logical == "uuid" && a.Logical != "uuid" {
		return false // not every string is a UUID
	}
	switch a.Kind {
	case codec.Enum:
		return slices.Equal(a.Symbols, b.Symbols)
	case codec.Array, codec.Map:
		return sameNode(a.Elem, b.Elem, above)
	case codec.Union:
		return slices.EqualFunc(a.Branches, b.Branches, func(x, y *codec.Node) bool { return sameNode(x, y, above) })
	case codec.Record:
		above = append(above, [2]*codec.Node{a, b})
		return slices.EqualFunc(a.Fields, b.Fields, func(x, y codec.Field) bool {
			return x.Name == y.Name && sameNode(x.Type, y.Type, above)
		})
	}
	return true
}

// appendUUID appends the text form of the 16 bytes of a UUID.
func appendUUID(dst, b []byte) []byte {
	dst = hex.AppendEncode(dst, b[:4])
	for _, part := range [][]byte{b[4:6], b[6:8], b[8:10], b[10:16]} {
		dst = append(dst, '-')
		dst = hex.AppendEncode(dst, part)
	}
	return dst
}
