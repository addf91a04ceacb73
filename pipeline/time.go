package pipeline

import (
	"encoding/json"
	"fmt"
	"math/big"
	"time"
)

// A Time is a point in time for people and for JSON. Its text is in RFC 3339, in UTC. A
// time outside the years 0 to 9999 has no such text: it is the number of microseconds
// since 1970. Such a time is usually a slip, for example nanoseconds in a field of
// microseconds.
type Time time.Time

// UnixMicro returns the time that is some microseconds after 1970.
func UnixMicro(micros int64) Time { return Time(time.UnixMicro(micros)) }

// Std returns the time as the standard library has it.
func (t Time) Std() time.Time { return time.Time(t) }

// UnixMicro returns the microseconds since 1970. They overflow for a time that is
// further away than 292,000 years.
func (t Time) UnixMicro() int64 { return t.Std().UnixMicro() }

// HasText reports whether the time has a text in RFC 3339.
func (t Time) HasText() bool {
	year := t.Std().UTC().Year()
	return year >= 0 && year <= 9999
}

// Append appends the text of the time.
func (t Time) Append(dst []byte) []byte {
	if at := t.Std().UTC(); t.HasText() {
		return at.AppendFormat(dst, time.RFC3339Nano)
	}
	micros := new(big.Int).Mul(big.NewInt(t.Std().Unix()), big.NewInt(1e6))
	micros.Add(micros, big.NewInt(int64(t.Std().Nanosecond()/1e3)))
	return micros.Append(dst, 10)
}

func (t Time) String() string { return string(t.Append(nil)) }

// MarshalJSON implements [json.Marshaler].
func (t Time) MarshalJSON() ([]byte, error) {
	text := t.Append(make([]byte, 0, len(time.RFC3339Nano)+2))
	if !t.HasText() {
		return text, nil
	}
	return append(append([]byte{'"'}, text...), '"'), nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (t *Time) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	text := string(data)
	if data[0] == '"' {
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
	}
	at, err := ParseTime(text)
	if err == nil {
		*t = at
	}
	return err
}

// ParseTime reads the text of a [Time].
func ParseTime(text string) (Time, error) {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return Time(at.UTC()), nil
	}
	micros, ok := new(big.Int).SetString(text, 10)
	seconds, rest := new(big.Int), new(big.Int)
	if ok {
		seconds.DivMod(micros, big.NewInt(1e6), rest)
	}
	if !ok || !seconds.IsInt64() {
		return Time{}, fmt.Errorf("%q is neither a time in RFC 3339, such as 2006-01-02T15:04:05Z, nor a number of microseconds since 1970", text)
	}
	return Time(time.Unix(seconds.Int64(), rest.Int64()*1e3).UTC()), nil
}
