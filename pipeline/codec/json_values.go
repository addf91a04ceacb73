package codec

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"

	"millrace/pipeline/decimal"
)

// numberText returns the text of a number: a json.Number, or a Go number from a
// schema's default or from Go code.
func numberText(v any) (string, bool) {
	switch v := v.(type) {
	case json.Number:
		return string(v), true
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64), true
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32), true
	case int:
		return strconv.Itoa(v), true
	case int32:
		return strconv.FormatInt(int64(v), 10), true
	case int64:
		return strconv.FormatInt(v, 10), true
	}
	return "", false
}

// toInteger returns the integer for v as an int or a long of any logical type.
func toInteger(n *Node, v any) (int64, error) {
	if text, ok := v.(string); ok && isTime(n) {
		return parseTime(n, text)
	}
	text, ok := numberText(v)
	if !ok {
		return 0, expected(n, v)
	}
	bits := 64
	if n.Kind == Int {
		bits = 32
	}
	i, err := strconv.ParseInt(text, 10, bits)
	if err == nil {
		return i, nil
	}
	if !errors.Is(err, strconv.ErrRange) {
		// 3.0 and 3e2 are exact integers in another form.
		unscaled, ok := scaled(text, 0, 20)
		if !ok {
			return 0, expected(n, v)
		}
		if i, err = strconv.ParseInt(unscaled, 10, bits); err == nil {
			return i, nil
		}
	}
	low, high := int64(math.MinInt64), int64(math.MaxInt64)
	if bits == 32 {
		low, high = math.MinInt32, math.MaxInt32
	}
	return 0, &PathError{Msg: fmt.Sprintf("expected %s (%d to %d), found %s", n, low, high, found(v))}
}

// scaled returns number * 10^scale as the text of an integer. It returns false if the
// text is not a number, or the result is not an integer of at most most digits.
func scaled(number string, scale, most int) (string, bool) {
	sign, rest := "", number
	if strings.HasPrefix(rest, "-") {
		sign, rest = "-", rest[1:]
	}
	mantissa, exponent := rest, 0
	if i := strings.IndexAny(rest, "eE"); i >= 0 {
		var err error
		if exponent, err = strconv.Atoi(rest[i+1:]); err != nil || exponent < -1<<30 || exponent > 1<<30 {
			return "", false
		}
		mantissa = rest[:i]
	}
	whole, fraction, dot := strings.Cut(mantissa, ".")
	if whole == "" || dot && fraction == "" {
		return "", false
	}
	digits := whole + fraction
	if strings.Trim(digits, "0123456789") != "" {
		return "", false
	}
	exponent += scale - len(fraction)
	digits = strings.TrimLeft(digits, "0")
	if digits == "" {
		return "0", true
	}
	if exponent < 0 {
		keep := len(digits) + exponent
		if keep <= 0 || strings.Trim(digits[keep:], "0") != "" {
			return "", false
		}
		return sign + digits[:keep], keep <= most
	}
	if len(digits)+exponent > most {
		return "", false
	}
	return sign + digits + strings.Repeat("0", exponent), true
}

func toFloat(n *Node, v any, bits int) (float64, error) {
	switch v := v.(type) {
	case string:
		switch v {
		case "NaN":
			return math.NaN(), nil
		case "Infinity":
			return math.Inf(1), nil
		case "-Infinity":
			return math.Inf(-1), nil
		}
	case float64:
		return v, nil
	case float32:
		return float64(v), nil
	}
	text, ok := numberText(v)
	if !ok {
		return 0, expected(n, v)
	}
	f, err := strconv.ParseFloat(text, bits)
	if errors.Is(err, strconv.ErrRange) {
		return 0, &PathError{Msg: fmt.Sprintf("expected %s, found %s, which is out of range", n, found(v))}
	}
	if err != nil {
		return 0, expected(n, v)
	}
	return f, nil
}

// toBytes returns the content of a bytes or fixed value, without its length.
func toBytes(n *Node, v any) ([]byte, error) {
	if raw, ok := v.([]byte); ok { // a schema's default
		if n.Kind == Fixed && len(raw) != n.Size {
			return nil, expected(n, v)
		}
		return raw, nil
	}
	switch {
	case n.Logical == "decimal":
		return toDecimal(n, v)
	case isUUIDBytes(n):
		text, ok := v.(string)
		if !ok || !isUUID(text) {
			return nil, &PathError{Msg: "expected " + n.String() + " (a UUID), found " + found(v)}
		}
		return parseUUID(text), nil
	}
	text, ok := v.(string)
	if !ok {
		return nil, &PathError{Msg: "expected " + n.String() + " (in base64), found " + foundIn(n, v)}
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, &PathError{Msg: "expected " + n.String() + " (in base64), found " + foundIn(n, v)}
	}
	if n.Kind == Fixed && len(b) != n.Size {
		return nil, &PathError{Msg: fmt.Sprintf("expected %s (%d bytes), found %d bytes", n, n.Size, len(b))}
	}
	return b, nil
}

func toDecimal(n *Node, v any) ([]byte, error) {
	text, ok := v.(string)
	if !ok {
		text, ok = numberText(v)
	}
	unscaled := ""
	if ok {
		unscaled, ok = scaled(text, n.Scale, n.Precision)
	}
	i, parsed := new(big.Int).SetString(unscaled, 10)
	if !ok || !parsed {
		return nil, &PathError{Msg: fmt.Sprintf("expected decimal of at most %d digits, %d of them after the point, found %s", n.Precision, n.Scale, found(v))}
	}
	d := decimal.FromBig(i, n.Scale)
	b, ok := d.AppendBytes(nil, n.Size)
	if !ok {
		return nil, &PathError{Msg: fmt.Sprintf("expected %s (decimal in %d bytes), found %s, which takes %d", n, n.Size, found(v), d.Size())}
	}
	return b, nil
}

func isUUIDBytes(n *Node) bool { return n.Kind == Fixed && n.Size == 16 && n.Logical == "uuid" }

func isUUID[text string | []byte](s text) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F') {
				return false
			}
		}
	}
	return true
}

// parseUUID returns the 16 bytes of a text that passes isUUID.
func parseUUID(s string) []byte {
	b := make([]byte, 0, 16)
	for _, part := range strings.Split(s, "-") {
		for i := 0; i < len(part); i += 2 {
			octet, _ := strconv.ParseUint(part[i:i+2], 16, 8)
			b = append(b, byte(octet))
		}
	}
	return b
}
