package codec

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Dates, times of day and timestamps. A unit is a number of nanoseconds; a date counts
// days and has no unit.

func isTime(n *Node) bool { return n.Logical == "date" && n.Kind == Int || timeUnit(n) != 0 }

// timeUnit returns the nanoseconds in one unit of a time of day or a timestamp,
// or 0 if the node is neither.
func timeUnit(n *Node) int64 {
	if n.Kind == Int {
		if n.Logical == "time-millis" {
			return 1e6
		}
		return 0
	}
	switch n.Logical {
	case "timestamp-micros", "local-timestamp-micros", "time-micros":
		return 1e3
	case "timestamp-millis", "local-timestamp-millis":
		return 1e6
	case "timestamp-nanos", "local-timestamp-nanos":
		return 1
	}
	return 0
}

const (
	localLayout = "2006-01-02T15:04:05"
	dayNanos    = 24 * int64(time.Hour)

	// The range of RFC 3339, in seconds since 1970: the years 0000 to 9999.
	minSeconds, maxSeconds = -62167219200, 253402300799

	// The seconds since 1970 whose nanoseconds fit in 64 bits.
	minNanoSeconds, maxNanoSeconds = math.MinInt64 / 1_000_000_000, math.MaxInt64/1_000_000_000 - 1
)

// parseTime parses the text form of a date or time and returns its integer.
func parseTime(n *Node, text string) (int64, error) {
	var t time.Time
	var err error
	form := "RFC 3339, as in 2006-01-02T15:04:05.999Z"
	switch {
	case n.Logical == "date":
		if t, err = time.Parse(time.DateOnly, text); err == nil {
			return floorDiv(t.Unix(), 24*60*60), nil
		}
		form = "as in 2006-01-02"
	case strings.HasPrefix(n.Logical, "time-"):
		if t, err = time.Parse(time.TimeOnly, text); err == nil {
			return int64(t.Sub(t.Truncate(24*time.Hour))) / timeUnit(n), nil
		}
		form = "as in 15:04:05.999"
	case strings.HasPrefix(n.Logical, "local-"):
		if t, err = time.Parse(localLayout, text); err == nil {
			return fromTime(n, t, text)
		}
		form = "without a zone, as in 2006-01-02T15:04:05.999"
	default:
		if err = t.UnmarshalText([]byte(text)); err == nil {
			return fromTime(n, t, text)
		}
		if _, err := time.Parse(localLayout, text); err == nil {
			form += "; it lacks the zone: Z for UTC"
		}
	}
	return 0, &PathError{Msg: fmt.Sprintf("expected %s, found %s (%s)", n, found(text), form)}
}

func fromTime(n *Node, t time.Time, text string) (int64, error) {
	unit := timeUnit(n)
	if s := t.Unix(); unit == 1 && (s < minNanoSeconds || s > maxNanoSeconds) {
		return 0, &PathError{Msg: fmt.Sprintf("expected %s (years 1678 to 2262), found %s", n, found(text))}
	}
	return t.Unix()*(1e9/unit) + int64(t.Nanosecond())/unit, nil
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// appendTime appends a date or time as quoted text. It appends the integer if the
// value is out of the range of the text form.
func appendTime(dst []byte, n *Node, v int64) []byte {
	unit := timeUnit(n)
	var t time.Time
	layout, zone := localLayout, ""
	switch {
	case n.Logical == "date":
		if v < minSeconds/86400 || v > maxSeconds/86400 {
			return strconv.AppendInt(dst, v, 10)
		}
		dst = append(dst, '"')
		dst = time.Unix(v*86400, 0).UTC().AppendFormat(dst, time.DateOnly)
		return append(dst, '"')
	case strings.HasPrefix(n.Logical, "time-"):
		if v < 0 || v >= dayNanos/unit {
			return strconv.AppendInt(dst, v, 10)
		}
		t, layout = time.Unix(0, v*unit).UTC(), time.TimeOnly
	default:
		perSecond := 1e9 / unit
		seconds := floorDiv(v, perSecond)
		if seconds < minSeconds || seconds > maxSeconds {
			return strconv.AppendInt(dst, v, 10)
		}
		t = time.Unix(seconds, (v-seconds*perSecond)*unit).UTC()
		if n.Logical[0] != 'l' {
			zone = "Z"
		}
	}
	dst = append(dst, '"')
	dst = t.AppendFormat(dst, layout)
	// Always three digits; six or nine if the value needs them.
	width, fraction := 9, t.Nanosecond()
	for width > 3 && fraction%1000 == 0 {
		width, fraction = width-3, fraction/1000
	}
	dst = append(dst, '.')
	for at := width - 1; at >= 0; at-- {
		dst = append(dst, '0')
	}
	for at := len(dst) - 1; fraction > 0; at-- {
		dst[at] = byte('0' + fraction%10)
		fraction /= 10
	}
	dst = append(dst, zone...)
	return append(dst, '"')
}
