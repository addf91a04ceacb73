package resolve

import (
	"fmt"
	"math"

	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
)

// value reads values of primitive types and fixeds.
func value(w, r *codec.Node) *reading {
	same := w.Kind == r.Kind
	integers := isInteger(w) && isInteger(r)
	switch {
	case isDecimal(w, r):
		return rescaledDecimal(w, r)
	case integers && unitOf(w).of != unitOf(r).of && unitOf(w).perSecond > 0 && unitOf(r).perSecond > 0:
		return never("%s is not %s", w, r)
	case integers && unitOf(w).perSecond > 0 && unitOf(r).perSecond > 0:
		return rescaledTime(w, r)
	case w.Kind == codec.Fixed && same && w.Size != r.Size:
		return never("%s has %d bytes, and %s has %d", w, w.Size, r, r.Size)
	case w.Kind == codec.Bytes && r.Kind == codec.Bytes && r.Logical == "decimal" && w.Logical != "decimal":
		return boundedBytes(w, r)
	case same:
		return &reading{read: copied(w), identity: true}
	case w.Kind == codec.Int && r.Kind == codec.Long, w.Kind == codec.String && r.Kind == codec.Bytes && r.Logical != "decimal":
		return &reading{read: copied(w), identity: true, changes: converted(w, r)}
	case w.Kind == codec.String && r.Kind == codec.Bytes:
		return boundedBytes(w, r)
	case w.Kind == codec.Bytes && r.Kind == codec.String:
		return &reading{changes: converted(w, r), read: func(_ *state, dst, enc []byte) ([]byte, []byte, error) {
			text, rest, err := codec.ReadText(enc)
			if err == nil && codec.CheckText(text) != nil {
				err = misfitf("bytes that are not UTF-8 cannot become a string: %v", codec.CheckText(text))
			}
			return codec.AppendBytes(dst, text), rest, err
		}}
	case isInteger(w) && (r.Kind == codec.Float || r.Kind == codec.Double):
		return &reading{changes: converted(w, r), read: func(_ *state, dst, enc []byte) ([]byte, []byte, error) {
			v, rest, err := codec.ReadLong(enc)
			if r.Kind == codec.Float {
				return codec.AppendFloat(dst, float32(v)), rest, err
			}
			return codec.AppendDouble(dst, float64(v)), rest, err
		}}
	case w.Kind == codec.Float && r.Kind == codec.Double:
		return &reading{changes: converted(w, r), read: func(_ *state, dst, enc []byte) ([]byte, []byte, error) {
			v, rest, err := codec.ReadFloat(enc)
			return codec.AppendDouble(dst, float64(v)), rest, err
		}}
	}
	return never("%s cannot become %s", w, r)
}

func converted(w, r *codec.Node) []Change {
	return []Change{{Converted, "", fmt.Sprintf("%s becomes %s", w, r)}}
}

func isInteger(n *codec.Node) bool { return n.Kind == codec.Int || n.Kind == codec.Long }

// boundedBytes copies text or bytes that become a decimal, within the limit of decimals.
func boundedBytes(w, r *codec.Node) *reading {
	return &reading{changes: converted(w, r), read: func(_ *state, dst, enc []byte) ([]byte, []byte, error) {
		content, rest, err := codec.ReadText(enc)
		out := codec.AppendBytes(dst, content)
		if err == nil && codec.Validate(r, out[len(dst):]) != nil {
			err = misfitf("%d bytes are too many for a decimal", len(content))
		}
		return out, rest, err
	}}
}

// A unit is what an integer with a logical type counts.
type unit struct {
	of        string // date, time of day, or point in time
	perSecond int64  // 0 if it is not a time; 1 for days, which have no other unit
}

func unitOf(n *codec.Node) unit {
	switch {
	case n.Kind == codec.Int && n.Logical == "date":
		return unit{"date", 1}
	case n.Kind == codec.Int && n.Logical == "time-millis":
		return unit{"time", 1e3}
	case n.Kind != codec.Long:
	case n.Logical == "time-micros":
		return unit{"time", 1e6}
	case n.Logical == "time-nanos":
		return unit{"time", 1e9}
	case n.Logical == "timestamp-millis" || n.Logical == "local-timestamp-millis":
		return unit{"timestamp", 1e3}
	case n.Logical == "timestamp-micros" || n.Logical == "local-timestamp-micros":
		return unit{"timestamp", 1e6}
	case n.Logical == "timestamp-nanos" || n.Logical == "local-timestamp-nanos":
		return unit{"timestamp", 1e9}
	}
	return unit{}
}

// rescaledTime converts a time from one unit to another. A coarser unit rounds down,
// towards the past.
func rescaledTime(w, r *codec.Node) *reading {
	from, to := unitOf(w).perSecond, unitOf(r).perSecond
	if from == to {
		return &reading{read: copied(w), identity: true}
	}
	return &reading{changes: converted(w, r), read: func(_ *state, dst, enc []byte) ([]byte, []byte, error) {
		v, rest, err := codec.ReadLong(enc)
		switch {
		case err != nil:
		case from < to:
			by := to / from
			if v > math.MaxInt64/by || v < math.MinInt64/by {
				return dst, rest, misfitf("the time %d is out of range in the finer unit", v)
			}
			v *= by
		default:
			by := from / to
			if v%by < 0 {
				v -= by // makes the division round down
			}
			v /= by
		}
		if err == nil && r.Kind == codec.Int && v != int64(int32(v)) {
			err = misfitf("%d does not fit an int", v)
		}
		return codec.AppendLong(dst, v), rest, err
	}}
}

func isDecimal(w, r *codec.Node) bool { return w.Logical == "decimal" && r.Logical == "decimal" }

// rescaledDecimal converts a decimal to another scale, precision or size, without a loss.
func rescaledDecimal(w, r *codec.Node) *reading {
	if w.Kind == r.Kind && w.Precision == r.Precision && w.Scale == r.Scale && w.Size == r.Size {
		return &reading{read: copied(w), identity: true}
	}
	changes := []Change{{Converted, "", fmt.Sprintf("%s becomes %s", decimalText(w), decimalText(r))}}
	return &reading{changes: changes, read: func(_ *state, dst, enc []byte) ([]byte, []byte, error) {
		var content, rest []byte
		if w.Kind == codec.Fixed {
			content, rest = enc[:w.Size], enc[w.Size:]
		} else {
			var err error
			if content, rest, err = codec.ReadText(enc); err != nil {
				return dst, rest, err
			}
		}
		v, ok := decimal.FromBytes(content, w.Scale).Rescale(r.Scale)
		switch {
		case !ok:
			return dst, rest, misfitf("a %s with more than %d digits after the point", decimalText(w), r.Scale)
		case v.Digits() > r.Precision:
			return dst, rest, misfitf("a %s with more digits than %s has", decimalText(w), decimalText(r))
		case r.Kind == codec.Fixed && v.Size() > r.Size:
			return dst, rest, misfitf("a decimal of %d bytes, and %s has %d", v.Size(), r, r.Size)
		case r.Kind != codec.Fixed:
			dst = codec.AppendLong(dst, int64(v.Size()))
		}
		dst, _ = v.AppendBytes(dst, r.Size) // it fits: see above
		return dst, rest, nil
	}}
}

func decimalText(n *codec.Node) string { return fmt.Sprintf("decimal(%d,%d)", n.Precision, n.Scale) }
