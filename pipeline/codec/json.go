package codec

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The JSON form of a value is the one people write:
//
//	null, boolean               as they are
//	int, long                   numbers; 3.0 and 3e2 are integers too, 3.5 is not
//	float, double               numbers, or "NaN", "Infinity", "-Infinity"
//	string, enum                strings
//	bytes, fixed                strings in base64 (RFC 4648, padded)
//	timestamp-{millis,micros,nanos}  RFC 3339, or the integer; digits finer than the unit are cut off
//	local-timestamp-...         the same without a zone
//	date, time-...              "2006-01-02", "15:04:05.000", or the integer
//	decimal                     a string (or number) of exactly the value: "12.50"
//	uuid                        the 36 characters, checked
//	array, map, record          as expected; the keys of a map stay in the order of the body
//	union                       the bare value; where two branches could take it, the tagged {"long": 3}
//
// What AppendJSON writes, EncodeJSON reads back to the same value.

// A PathError says where in a value something is wrong, and what.
type PathError struct {
	Path string // as in data.items[2].price; empty for the value as a whole
	Msg  string // what was expected and what was found
}

func (e *PathError) Error() string {
	if e.Path == "" {
		return e.Msg
	}
	return e.Path + ": " + e.Msg
}

// under puts one more step before the path of a PathError: errors gather their
// path on the way out, so that the good case pays nothing for it.
func under(step string, err error) error {
	e, ok := err.(*PathError) // never wrapped on its way through this file
	if !ok {
		return err
	}
	switch {
	case e.Path == "":
		e.Path = step
	case e.Path[0] == '[':
		e.Path = step + e.Path
	default:
		e.Path = step + "." + e.Path
	}
	return e
}

func underIndex(i int, err error) error { return under("["+strconv.Itoa(i)+"]", err) }

// underKey is under for the key of a map, which may be any text.
func underKey(key string, err error) error {
	if key == "" || strings.ContainsAny(key, ".[]\"\\ ") || !printable(key) {
		key = "[" + quote(key) + "]"
	}
	return under(key, err)
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0
}

// quote quotes a text for a message, and shortens it.
func quote(s string) string {
	const most = 60
	if len(s) <= most {
		return strconv.Quote(s)
	}
	end := most
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return strconv.Quote(s[:end]) + "..."
}

// EncodeJSON encodes a JSON value, as encoding/json decodes it into any with
// UseNumber, as Avro. Every error is a [*PathError].
//
// Fields that the value lacks take their defaults; fields that the schema lacks
// are errors. Nothing is rounded or cut silently, but for the digits of a time
// that are finer than its unit.
func EncodeJSON(s *Schema, value any) ([]byte, error) { return AppendAvro(nil, s, value) }

// AppendAvro is [EncodeJSON] that appends to dst.
func AppendAvro(dst []byte, s *Schema, value any) ([]byte, error) {
	return appendAvro(dst, s.root, value, 0, nil)
}

// appendAvro encodes one value. The effort is of the union with several branches to
// try that it is part of; nil if there is none.
func appendAvro(dst []byte, n *Node, v any, depth int, e *effort) ([]byte, error) {
	if e != nil {
		e.spent++
	}
	if depth > maxWalkDepth {
		return dst, &PathError{Msg: fmt.Sprintf("nested more than %d deep", maxWalkDepth)}
	}
	switch n.Kind {
	case Null:
		if v == nil {
			return dst, nil
		}
	case Boolean:
		if b, ok := v.(bool); ok {
			if b {
				return append(dst, 1), nil
			}
			return append(dst, 0), nil
		}
	case Int, Long:
		i, err := toInteger(n, v)
		if err != nil {
			return dst, err
		}
		return binary.AppendVarint(dst, i), nil
	case Float:
		f, err := toFloat(n, v, 32)
		if err != nil {
			return dst, err
		}
		return binary.LittleEndian.AppendUint32(dst, math.Float32bits(float32(f))), nil
	case Double:
		f, err := toFloat(n, v, 64)
		if err != nil {
			return dst, err
		}
		return binary.LittleEndian.AppendUint64(dst, math.Float64bits(f)), nil
	case String:
		if s, ok := v.(string); ok {
			if n.Logical == "uuid" && !isUUID(s) {
				return dst, expected(n, v)
			}
			if !utf8.ValidString(s) {
				return dst, &PathError{Msg: "expected " + n.String() + ", found text that is not UTF-8"}
			}
			return append(binary.AppendVarint(dst, int64(len(s))), s...), nil
		}
	case Bytes:
		b, err := toBytes(n, v)
		if err != nil {
			return dst, err
		}
		return append(binary.AppendVarint(dst, int64(len(b))), b...), nil
	case Fixed:
		b, err := toBytes(n, v)
		if err != nil {
			return dst, err
		}
		return append(dst, b...), nil
	case Enum:
		if s, ok := v.(string); ok {
			if i := slices.Index(n.Symbols, s); i >= 0 {
				return binary.AppendVarint(dst, int64(i)), nil
			}
			return dst, &PathError{Msg: fmt.Sprintf("expected %s (%s), found %s%s", n, strings.Join(n.Symbols, ", "), found(v), didYouMean(s, n.Symbols))}
		}
	case Array:
		if items, ok := v.([]any); ok {
			return appendArray(dst, n, items, depth, e)
		}
	case Map:
		if m, ok := v.(map[string]any); ok {
			return appendMap(dst, n, m, depth, e)
		}
	case Record:
		if m, ok := v.(map[string]any); ok {
			return appendRecord(dst, n, m, depth, e)
		}
	case Union:
		return appendUnion(dst, n, v, depth, e)
	}
	return dst, expected(n, v)
}

func appendArray(dst []byte, n *Node, items []any, depth int, e *effort) ([]byte, error) {
	if len(items) > 0 {
		dst = binary.AppendVarint(dst, int64(len(items)))
	}
	var err error
	for i, item := range items {
		if dst, err = appendAvro(dst, n.Elem, item, depth+1, e); err != nil {
			return dst, underIndex(i, err)
		}
	}
	return append(dst, 0), nil
}

func appendMap(dst []byte, n *Node, m map[string]any, depth int, e *effort) ([]byte, error) {
	if len(m) == 0 {
		return append(dst, 0), nil
	}
	dst = binary.AppendVarint(dst, int64(len(m)))
	// The same value always gives the same bytes, whatever the order of the map.
	var few [8]string
	keys := few[:0]
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	var err error
	for _, key := range keys {
		if !utf8.ValidString(key) {
			return dst, underKey(key, &PathError{Msg: "expected a key in UTF-8"})
		}
		dst = append(binary.AppendVarint(dst, int64(len(key))), key...)
		if dst, err = appendAvro(dst, n.Elem, m[key], depth+1, e); err != nil {
			return dst, underKey(key, err)
		}
	}
	return append(dst, 0), nil
}

func appendRecord(dst []byte, n *Node, m map[string]any, depth int, e *effort) ([]byte, error) {
	known := 0
	var err error
	for i := range n.Fields {
		f := &n.Fields[i]
		v, ok := m[f.Name]
		switch {
		case ok:
			known++
		case f.HasDefault:
			v = f.Default
		default:
			if err := unknownField(n, m); err != nil {
				return dst, err // a misspelt field is the better news than the one it leaves missing
			}
			return dst, under(f.Name, &PathError{Msg: "missing; expected " + f.Type.String()})
		}
		if dst, err = appendAvro(dst, f.Type, v, depth+1, e); err != nil {
			return dst, under(f.Name, err)
		}
	}
	if known < len(m) {
		return dst, unknownField(n, m)
	}
	return dst, nil
}

// unknownField returns the error for the first field, by name, that the record
// does not have, or nil.
func unknownField(n *Node, m map[string]any) error {
	unknown := ""
	have := false
	for name := range m {
		if n.Field(name) == nil && (!have || name < unknown) {
			unknown, have = name, true
		}
	}
	if !have {
		return nil
	}
	names := make([]string, len(n.Fields))
	for i := range n.Fields {
		names[i] = n.Fields[i].Name
	}
	msg := "unknown field" + didYouMean(unknown, names)
	if msg == "unknown field" {
		msg += fmt.Sprintf("; %s has %s", n.Name, strings.Join(names, ", "))
	}
	return underKey(unknown, &PathError{Msg: msg})
}

// didYouMean returns `; did you mean "name"?` for the nearest of the names, if
// one is near.
func didYouMean(s string, names []string) string {
	best, least := "", len(s)/3+2
	for _, name := range names {
		if d := distance(strings.ToLower(s), strings.ToLower(name)); d < least {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + strconv.Quote(best) + "?"
}

// distance is the number of bytes to insert, drop, replace or swap with their
// neighbour to make a into b; for long texts a bound that is too large to matter.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	var before, last, row [65]int
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// expected is the error for a value that is not of the node's type.
func expected(n *Node, v any) error {
	return &PathError{Msg: "expected " + n.String() + ", found " + foundIn(n, v)}
}

// foundIn is found for a value of a field, which messages do not show if it is
// personal.
func foundIn(n *Node, v any) string {
	if n.Tag != "" && v != nil {
		return "something else (which is personal, and not shown)"
	}
	return found(v)
}

// found describes a JSON value for a message.
func found(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case string:
		return "string " + quote(v)
	case []any:
		return "array"
	case map[string]any:
		return "object"
	case []byte:
		return fmt.Sprintf("%d bytes", len(v))
	}
	if text, ok := numberText(v); ok {
		if len(text) > 60 {
			text = text[:60] + "..."
		}
		return "number " + text
	}
	return fmt.Sprintf("%T", v)
}

// numberText returns the text of a number: json.Number, or what a schema's
// default or Go code holds.
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

// toInteger returns the integer that v is for an int or a long, of whatever
// logical type.
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
		// 3.0 and 3e2: exact integers in another form.
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

// scaled returns number * 10^scale as the text of an integer, or false if that
// is none, has more than max digits, or the text is no number.
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

// toBytes returns what stands in the body for bytes or a fixed.
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
	b := twosComplement(i)
	if n.Kind != Fixed {
		return b, nil
	}
	if len(b) > n.Size {
		return nil, &PathError{Msg: fmt.Sprintf("expected %s (decimal in %d bytes), found %s, which takes %d", n, n.Size, found(v), len(b))}
	}
	sign := byte(0)
	if i.Sign() < 0 {
		sign = 0xff
	}
	full := slices.Repeat([]byte{sign}, n.Size)
	copy(full[n.Size-len(b):], b)
	return full, nil
}

// twosComplement returns the fewest big-endian bytes that hold i with its sign.
func twosComplement(i *big.Int) []byte {
	if i.Sign() >= 0 {
		b := i.Bytes()
		if len(b) == 0 || b[0] >= 0x80 {
			b = append([]byte{0}, b...)
		}
		return b
	}
	// -i-1 has the inverse bits of i.
	b := new(big.Int).Not(i).Bytes()
	if len(b) == 0 || b[0] >= 0x80 {
		b = append([]byte{0}, b...)
	}
	for j := range b {
		b[j] = ^b[j]
	}
	return b
}

func fromTwosComplement(b []byte) *big.Int {
	i := new(big.Int)
	if len(b) == 0 || b[0] < 0x80 {
		return i.SetBytes(b)
	}
	inverse := make([]byte, len(b))
	for j := range b {
		inverse[j] = ^b[j]
	}
	return i.Not(i.SetBytes(inverse))
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

// parseUUID returns the 16 bytes of what isUUID.
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

// Times. A unit is nanoseconds per 1; a date counts days and has none.

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

	// Seconds since 1970 of the years that RFC 3339 can write: 0000 to 9999.
	minSeconds, maxSeconds = -62167219200, 253402300799

	// Whole seconds that fit as nanoseconds in 64 bits.
	minNanoSeconds, maxNanoSeconds = math.MinInt64 / 1_000_000_000, math.MaxInt64/1_000_000_000 - 1
)

// parseTime returns the integer for a time in text.
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

// appendTime appends a time as text in quotes, or as the integer it is where
// its text form cannot write it.
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
	// Milliseconds always, finer digits where there are any.
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

// Unions. A bare value goes to the branch that takes it; where several do, to
// the first that can encode it. AppendJSON tags a value exactly where the bare
// one would be read as another branch, or as a tag.

// appendUnion encodes v as a branch of the union.
func appendUnion(dst []byte, n *Node, v any, depth int, e *effort) ([]byte, error) {
	if b, inner, ok := tagged(n, v); ok {
		dst = binary.AppendVarint(dst, int64(b))
		dst, err := appendAvro(dst, n.Branches[b], inner, depth+1, e)
		if err != nil {
			return dst, underKey(branchName(n.Branches[b]), err)
		}
		return dst, nil
	}
	start := len(dst)
	var first error
	for b := nextBranch(n, v, 0); b >= 0; {
		next := nextBranch(n, v, b+1)
		if next >= 0 && e == nil {
			e = newEffort(n, v)
		}
		dst = binary.AppendVarint(dst[:start], int64(b))
		var err error
		if dst, err = appendAvro(dst, n.Branches[b], v, depth+1, e); err == nil {
			return dst, nil
		}
		if first == nil {
			first = err
		}
		switch {
		case e != nil && e.refused:
			return dst[:start], err
		case next >= 0 && e.spent > e.most:
			e.refused = true
			return dst[:start], &PathError{Msg: `too many ways to read this as branches of unions: say which, as in {"branch": value}`}
		}
		b = next
	}
	if first != nil {
		return dst[:start], first
	}
	return dst, expected(n, v)
}

// nextBranch returns the first branch from number b on that may take the value, -1
// if there is none. Of records, only those come into question that have the fields
// of an object; if no branch has them, it is the first record, whose error says
// what is wrong.
func nextBranch(n *Node, v any, b int) int {
	for i := b; i < len(n.Branches); i++ {
		if takes(n.Branches[i], v) && hasFields(n.Branches[i], v) {
			return i
		}
	}
	if b > 0 {
		return -1
	}
	return slices.IndexFunc(n.Branches, func(branch *Node) bool { return takes(branch, v) })
}

// hasFields reports whether the node, if it is a record, has all fields of an
// object, and the object all that it needs.
func hasFields(n *Node, v any) bool {
	m, ok := v.(map[string]any)
	if !ok || n.Kind != Record {
		return true
	}
	known := 0
	for i := range n.Fields {
		if _, ok := m[n.Fields[i].Name]; ok {
			known++
		} else if !n.Fields[i].HasDefault {
			return false
		}
	}
	return known == len(m)
}

// An effort bounds the search for the branch of a value that fits several, and may
// have values within it that do so, too: tried without a bound, each level would
// take several times as long as the one in it.
type effort struct {
	spent, most int  // values that were encoded
	refused     bool // the search has ended; the error says so
}

func newEffort(n *Node, v any) *effort {
	return &effort{most: 256 + (16+len(n.Branches))*countValues(v)}
}

// countValues returns how many values a value is made of.
func countValues(v any) int {
	n := 1
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			n += countValues(item)
		}
	case map[string]any:
		for _, item := range v {
			n += countValues(item)
		}
	}
	return n
}

// tagged returns the branch and the value of a tagged {"branch": value}, if v is
// one. In a union with a single branch besides null the tag is never written,
// so a map, and a record with such a field, win over it.
func tagged(n *Node, v any) (branch int, inner any, ok bool) {
	m, isObject := v.(map[string]any)
	if !isObject || len(m) != 1 {
		return 0, nil, false
	}
	for tag, inner := range m {
		b := branchNamed(n, tag)
		if b < 0 {
			return 0, nil, false
		}
		if branches := n.Branches; single(n) {
			other := branches[b]
			if other.Kind == Map || other.Kind == Record && other.Field(tag) != nil {
				return 0, nil, false
			}
		}
		return b, inner, true
	}
	return 0, nil, false
}

// single reports whether the union has one branch besides null, or only one.
func single(n *Node) bool {
	others := 0
	for _, b := range n.Branches {
		if b.Kind != Null {
			others++
		}
	}
	return others <= 1
}

// branchNamed returns the number of the branch of that tag, or -1. The short
// name of a named type will do where only one has it.
func branchNamed(n *Node, tag string) int {
	short := -1
	for i, b := range n.Branches {
		if b.Kind == Null {
			continue
		}
		name := branchName(b)
		if name == tag {
			return i
		}
		if strings.HasSuffix(name, tag) && strings.HasSuffix(name[:len(name)-len(tag)], ".") {
			if short >= 0 {
				return -1
			}
			short = i
		}
	}
	return short
}

func branchName(n *Node) string {
	if n.Name != "" {
		return n.Name
	}
	return n.Kind.String()
}

// takes reports whether a value of the JSON type of v may be one of the node's:
// the first look, which leaves checking to the encoder.
func takes(n *Node, v any) bool {
	switch v := v.(type) {
	case nil:
		return n.Kind == Null
	case bool:
		return n.Kind == Boolean
	case string:
		switch n.Kind {
		case Int, Long:
			return isTime(n)
		case Float, Double:
			return v == "NaN" || v == "Infinity" || v == "-Infinity"
		case Enum:
			return slices.Contains(n.Symbols, v)
		}
		return n.Kind == String || n.Kind == Bytes || n.Kind == Fixed
	case []any:
		return n.Kind == Array
	case map[string]any:
		return n.Kind == Map || n.Kind == Record
	case []byte:
		return n.Kind == Bytes || n.Kind == Fixed
	}
	switch n.Kind {
	case Int, Long:
		text, ok := numberText(v)
		if !ok {
			return false
		}
		_, exact := scaled(text, 0, 20)
		return exact
	case Float, Double:
		return true
	}
	return n.Logical == "decimal"
}

// needsTag reports whether the bare form of a value of branch b would not be
// read back as one.
func needsTag(n *Node, b int, bare []byte) bool {
	if single(n) {
		return false
	}
	var shape any
	switch bare[0] {
	case 'n':
		return false
	case 't', 'f':
		shape = true
	case '"':
		// Only a text that is itself in quotes, without escapes, is a symbol or
		// NaN, so the escapes need not be undone.
		shape = string(bare[1 : len(bare)-1])
	case '[':
		shape = []any(nil)
	case '{':
		for i := range n.Branches[b].Fields {
			if branchNamed(n, n.Branches[b].Fields[i].Name) >= 0 {
				return true
			}
		}
		if n.Branches[b].Kind == Map {
			return true
		}
		shape = map[string]any(nil)
	default:
		shape = json.Number(bare)
	}
	for i, branch := range n.Branches {
		if i != b && takes(branch, shape) {
			return true
		}
	}
	return false
}

// AppendJSON appends the JSON form of one Avro value of type n. It trusts
// nothing in enc: counts, lengths, nesting, text are checked, and nothing may
// follow the value. Every error is a [*PathError].
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

// jsonWriter turns what it takes from in into JSON in dst.
type jsonWriter struct {
	dst, in []byte
	// empty is how many more items that take no bytes are believed: without a
	// bound a few bytes could claim any number of them.
	empty int
}

func (w *jsonWriter) fail(n *Node, format string, args ...any) error {
	return &PathError{Msg: "expected " + n.String() + ", found " + fmt.Sprintf(format, args...)}
}

func (w *jsonWriter) value(n *Node, depth int) error {
	// A walk counts plain records and what is in them apart.
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
		i, err := w.long(n)
		if err != nil {
			return err
		}
		if i < 0 || i >= int64(len(n.Symbols)) {
			return w.fail(n, "symbol number %d of %d", i, len(n.Symbols))
		}
		return w.text(n, []byte(n.Symbols[i]))
	case Array, Map:
		return w.items(n, depth)
	case Record:
		return w.record(n, depth)
	}
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
		w.dst = append(w.dst, f.Name...) // an Avro name needs no escapes
		w.dst = append(w.dst, '"', ':')
		if err := w.value(f.Type, depth+1); err != nil {
			return under(f.Name, err)
		}
	}
	w.dst = append(w.dst, '}')
	return nil
}

// items writes an array or a map, which come in blocks.
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
		left := int64(-1) // how many bytes are left after the block, if it says so
		if count < 0 {
			size, err := w.long(n)
			if err != nil {
				return err
			}
			if count = -count; count < 0 || size < 0 || size > int64(len(w.in)) {
				return w.fail(n, "a block of %d items in %d bytes where %d are left", count, size, len(w.in))
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
					return w.fail(n, "too many items of no bytes")
				}
			}
			i++
		}
		if left >= 0 && left != int64(len(w.in)) {
			return w.fail(n, "a block that does not end where it says")
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
		return nil, w.fail(n, "%d bytes where %d are due", len(w.in), size)
	}
	b := w.in[:size]
	w.in = w.in[size:]
	return b, nil
}

func (w *jsonWriter) long(n *Node) (int64, error) {
	v, size := binary.Varint(w.in)
	switch {
	case size == 0:
		return 0, w.fail(n, "the end of the bytes")
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
		return nil, w.fail(n, "a length of %d where %d bytes are left", size, len(w.in))
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

// binary writes what bytes and fixed hold.
func (w *jsonWriter) binary(n *Node, b []byte) error {
	switch {
	case n.Logical == "decimal":
		if len(b) > maxDecimal {
			return w.fail(n, "%d bytes", len(b))
		}
		w.dst = append(w.dst, '"')
		w.dst = appendDecimal(w.dst, b, n.Scale)
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

func appendDecimal(dst, b []byte, scale int) []byte {
	i := fromTwosComplement(b)
	if i.Sign() < 0 {
		dst = append(dst, '-')
		i.Neg(i)
	}
	digits := i.String()
	if missing := scale + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	point := len(digits) - scale
	dst = append(dst, digits[:point]...)
	if scale > 0 {
		dst = append(dst, '.')
		dst = append(dst, digits[point:]...)
	}
	return dst
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

// appendJSONString appends valid UTF-8 as a JSON string. Only what must be is
// escaped, and the two line separators of Unicode: some readers of JSON lines
// would break the line there.
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
