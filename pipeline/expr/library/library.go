// Package library holds the functions of expressions that CEL's standard does not
// have: CEL's extension libraries, Millrace's own functions, and decimals as values
// of CEL. All functions are deterministic: none is random or reads a clock.
package library

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/functions"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
	"github.com/cespare/xxhash/v2"
	"github.com/google/uuid"
)

// Ordered is the name of a function that returns a map which iterates in the order
// of its keys. No source text can contain it.
const Ordered = "@ordered"

// The range of CEL's timestamps, in seconds since 1970.
const (
	MinSecond = -62135596800
	MaxSecond = 253402300799
)

// ErrTimestamp is the error for a time outside this range.
var ErrTimestamp = errors.New("timestamp out of range: years 1 to 9999 are possible")

// Limits of one function call. CEL charges the cost of a call after the call, so a
// call whose result can be much larger than its arguments is limited in advance.
const (
	maxText  = 1 << 20 // bytes of the result of replace, join or format
	maxRange = 10_000  // numbers in the result of lists.range
)

// Options returns the functions as options for an environment.
func Options() []cel.EnvOption {
	return slices.Concat([]cel.EnvOption{
		ext.Strings(ext.StringsVersion(5)),
		ext.Math(),
		ext.Lists(ext.ListsVersion(4), ext.ListsMaxRangeSize(maxRange)), // version 5 adds the functions of Sets again, under other names
		ext.Sets(),
		ext.Encoders(ext.EncodersVersion(0)),
		ext.TwoVarComprehensions(),
		limited("replace", nil, func(args []ref.Val) int {
			text, old, to := string(args[0].(types.String)), string(args[1].(types.String)), string(args[2].(types.String))
			return len(text) + strings.Count(text, old)*max(0, len(to)-len(old))
		}),
		limited("join", nil, func(args []ref.Val) int {
			list := args[0].(traits.Lister)
			size := textSize(list)
			if len(args) == 2 {
				size += int(list.Size().(types.Int)) * len(args[1].(types.String))
			}
			return size
		}),
		limited("format", func(args []ref.Val) []ref.Val { return []ref.Val{args[0], printable(args[1].(traits.Lister))} }, func(args []ref.Val) int {
			return len(args[0].(types.String)) + textSize(args[1].(traits.Lister))
		}),
	}, ownFunctions(), decimals())
}

// limited replaces a CEL function by one that fails if its result may exceed
// maxText bytes. size returns an upper bound of the result, from the arguments.
// prepare, if not nil, returns the arguments to use instead of the given ones.
func limited(name string, prepare func(args []ref.Val) []ref.Val, size func(args []ref.Val) int) cel.EnvOption {
	return func(e *cel.Env) (*cel.Env, error) {
		decl := e.Functions()[name]
		bindings, err := decl.Bindings()
		if err != nil {
			return nil, err
		}
		var options []cel.FunctionOpt
		for _, o := range decl.OverloadDecls() {
			i := slices.IndexFunc(bindings, func(b *functions.Overload) bool { return b.Operator == o.ID() })
			if i < 0 {
				return nil, fmt.Errorf("%s has no %s", name, o.ID())
			}
			call := callable(bindings[i])
			options = append(options, cel.MemberOverload(o.ID(), o.ArgTypes(), o.ResultType(), cel.FunctionBinding(func(args ...ref.Val) ref.Val {
				if prepare != nil {
					args = prepare(args)
				}
				if n := size(args); n > maxText {
					return types.NewErr("%s would return a string of more than %d bytes", name, maxText)
				}
				return call(args)
			})))
		}
		return cel.Function(name, options...)(e)
	}
}

// callable returns one function that calls the implementation of an overload.
func callable(o *functions.Overload) func(args []ref.Val) ref.Val {
	return func(args []ref.Val) ref.Val {
		switch {
		case o.Unary != nil && len(args) == 1:
			return o.Unary(args[0])
		case o.Binary != nil && len(args) == 2:
			return o.Binary(args[0], args[1])
		}
		return o.Function(args...)
	}
}

// textSize returns an upper bound, in bytes, of the items of a list as text. It
// stops counting at maxText.
func textSize(list traits.Lister) int {
	size := 0
	for it := list.Iterator(); it.HasNext() == types.True; {
		switch v := it.Next().(type) {
		case types.String:
			size += len(v)
		case types.Bytes:
			size += 4 * len(v)
		case traits.Lister:
			size += textSize(v)
		default:
			size += 512
		}
		if size > maxText {
			break
		}
	}
	return size
}

// ownFunctions returns Millrace's own functions.
func ownFunctions() []cel.EnvOption {
	var (
		list = cel.ListType(cel.TypeParamType("A"))
		dict = cel.MapType(cel.TypeParamType("A"), cel.TypeParamType("B"))
		a, b = cel.TypeParamType("A"), cel.TypeParamType("B")
	)
	options := []cel.EnvOption{
		cel.Function("hash", onText("hash", cel.IntType, func(b []byte) ref.Val { return types.Int(xxhash.Sum64(b) >> 1) })...),
		cel.Function("xxhash", onText("xxhash", cel.StringType, func(b []byte) ref.Val { return types.String(fmt.Sprintf("%016x", xxhash.Sum64(b))) })...),
		cel.Function("crc32", onText("crc32", cel.StringType, func(b []byte) ref.Val { return types.String(fmt.Sprintf("%08x", crc32.ChecksumIEEE(b))) })...),
		cel.Function("md5", onText("md5", cel.StringType, func(b []byte) ref.Val { return types.String(fmt.Sprintf("%x", md5.Sum(b))) })...),
		cel.Function("sha256", onText("sha256", cel.StringType, func(b []byte) ref.Val { return types.String(fmt.Sprintf("%x", sha256.Sum256(b))) })...),
		cel.Function("hex.encode", cel.Overload("hex_encode_bytes", []*cel.Type{cel.BytesType}, cel.StringType,
			cel.UnaryBinding(func(v ref.Val) ref.Val { return types.String(hex.EncodeToString(v.(types.Bytes))) }))),
		cel.Function("hex.decode", cel.Overload("hex_decode_string", []*cel.Type{cel.StringType}, cel.BytesType,
			cel.UnaryBinding(func(v ref.Val) ref.Val {
				out, err := hex.DecodeString(string(v.(types.String)))
				if err != nil {
					return types.NewErr("not hexadecimal: %v", err)
				}
				return types.Bytes(out)
			}))),
		cel.Function("uuid5", cel.Overload("uuid5_string_string", []*cel.Type{cel.StringType, cel.StringType}, cel.StringType,
			cel.BinaryBinding(func(space, name ref.Val) ref.Val {
				return uuid5(string(space.(types.String)), string(name.(types.String)))
			}))),
		cel.Function("isUuid", cel.MemberOverload("string_is_uuid", []*cel.Type{cel.StringType}, cel.BoolType,
			cel.UnaryBinding(func(v ref.Val) ref.Val { return types.Bool(ValidUUID(string(v.(types.String)))) }))),

		cel.Function("truncate",
			cel.MemberOverload("timestamp_truncate_string", []*cel.Type{cel.TimestampType, cel.StringType}, cel.TimestampType,
				cel.BinaryBinding(func(t, unit ref.Val) ref.Val { return truncate(t.(types.Timestamp).Time, string(unit.(types.String))) })),
			cel.MemberOverload("timestamp_truncate_duration", []*cel.Type{cel.TimestampType, cel.DurationType}, cel.TimestampType,
				cel.BinaryBinding(func(t, d ref.Val) ref.Val { return window(t.(types.Timestamp).Time, d.(types.Duration).Duration) }))),
		cel.Function("format", cel.MemberOverload("timestamp_format_string", []*cel.Type{cel.TimestampType, cel.StringType}, cel.StringType,
			cel.BinaryBinding(func(t, layout ref.Val) ref.Val {
				return formatTime(t.(types.Timestamp).Time, string(layout.(types.String)))
			}))),
		cel.Function("parseTime", cel.Overload("parse_time_string_string", []*cel.Type{cel.StringType, cel.StringType}, cel.TimestampType,
			cel.BinaryBinding(func(s, layout ref.Val) ref.Val {
				return parseTime(string(s.(types.String)), string(layout.(types.String)))
			}))),
		cel.Function("unixMillis", cel.Overload("unix_millis_timestamp", []*cel.Type{cel.TimestampType}, cel.IntType,
			cel.UnaryBinding(func(t ref.Val) ref.Val { return types.Int(t.(types.Timestamp).UnixMilli()) }))),
		cel.Function("fromUnixMillis", cel.Overload("from_unix_millis_int", []*cel.Type{cel.IntType}, cel.TimestampType,
			cel.UnaryBinding(func(v ref.Val) ref.Val {
				return inRange(time.UnixMilli(int64(v.(types.Int))).UTC())
			}))),

		cel.Function("first", cel.MemberOverload("list_first", []*cel.Type{list}, a,
			cel.UnaryBinding(func(v ref.Val) ref.Val { return itemAt(v.(traits.Lister), false) }))),
		cel.Function("last", cel.MemberOverload("list_last", []*cel.Type{list}, a,
			cel.UnaryBinding(func(v ref.Val) ref.Val { return itemAt(v.(traits.Lister), true) }))),
		cel.Function("with", cel.MemberOverload("map_with", []*cel.Type{dict, a, b}, dict,
			cel.FunctionBinding(func(args ...ref.Val) ref.Val { return mapWith(args[0].(traits.Mapper), args[1], args[2]) }))),
		cel.Function("without", cel.MemberOverload("map_without", []*cel.Type{dict, a}, dict,
			cel.BinaryBinding(func(m, key ref.Val) ref.Val { return mapWith(m.(traits.Mapper), key, nil) }))),
		cel.Function(Ordered, cel.Overload("ordered_any", []*cel.Type{a}, a, cel.UnaryBinding(inOrder))),
	}
	// A call costs one step plus a scan of its argument.
	var models []cost.OverloadModel
	for _, name := range []string{"hash", "xxhash", "crc32", "md5", "sha256"} {
		for _, of := range []string{"_string", "_bytes"} {
			models = append(models, cost.Overload(name+of, scans(cost.Arg(0))))
		}
	}
	models = append(models,
		cost.Overload("hex_encode_bytes", scans(cost.Arg(0))), cost.Overload("hex_decode_string", scans(cost.Arg(0))),
		cost.Overload("uuid5_string_string", scans(cost.Arg(1))), cost.Overload("parse_time_string_string", scans(cost.Arg(0))),
		cost.MemberOverload("timestamp_format_string", scans(cost.Arg(0))),
		cost.MemberOverload("map_with", cost.EvalCost(cost.Sum(cost.Const(1), cost.Length(cost.Target())))),
		cost.MemberOverload("map_without", cost.EvalCost(cost.Sum(cost.Const(1), cost.Length(cost.Target())))),
		cost.Overload("ordered_any", cost.EvalCost(cost.Const(1))),
	)
	return append(options, cel.CostModel(models...))
}

// scans is the cost of one step plus a scan of a string.
func scans(arg cost.QuantityExpr) cost.OverloadModelOption {
	return cost.EvalCost(cost.Sum(cost.Const(1), cost.StringScan(cost.Length(arg))))
}

// onText returns the overloads of a function that accepts a string or bytes.
func onText(name string, result *cel.Type, f func([]byte) ref.Val) []cel.FunctionOpt {
	return []cel.FunctionOpt{
		cel.Overload(name+"_string", []*cel.Type{cel.StringType}, result, cel.UnaryBinding(func(v ref.Val) ref.Val { return f([]byte(v.(types.String))) })),
		cel.Overload(name+"_bytes", []*cel.Type{cel.BytesType}, result, cel.UnaryBinding(func(v ref.Val) ref.Val { return f(v.(types.Bytes)) })),
	}
}

// uuid5 returns the version 5 UUID (RFC 9562) of a name. The namespace is a UUID
// or the name of a namespace in the RFC.
func uuid5(space, name string) ref.Val {
	var id uuid.UUID
	switch space {
	case "dns":
		id = uuid.NameSpaceDNS
	case "url":
		id = uuid.NameSpaceURL
	case "oid":
		id = uuid.NameSpaceOID
	case "x500":
		id = uuid.NameSpaceX500
	default:
		if !ValidUUID(space) {
			return types.NewErr("the namespace %q is not a UUID, dns, url, oid or x500", space)
		}
		id = uuid.MustParse(space)
	}
	return types.String(uuid.NewSHA1(id, []byte(name)).String())
}

// truncate returns the start of the unit that contains t, in UTC.
func truncate(t time.Time, unit string) ref.Val {
	year, month, day := t.Date()
	switch unit {
	case "second":
		return types.Timestamp{Time: t.Truncate(time.Second)}
	case "minute":
		return types.Timestamp{Time: t.Truncate(time.Minute)}
	case "hour":
		return types.Timestamp{Time: t.Truncate(time.Hour)}
	case "day":
	case "week": // starts on Monday
		day -= (int(t.Weekday()) + 6) % 7
	case "month":
		day = 1
	case "quarter":
		month, day = month-(month-1)%3, 1
	case "year":
		month, day = 1, 1
	default:
		return types.NewErr("unknown unit %q: use second, minute, hour, day, week, month, quarter or year", unit)
	}
	return inRange(time.Date(year, month, day, 0, 0, 0, 0, time.UTC))
}

// window returns the start of the window of length d that contains t. Windows are
// consecutive; one starts at 1970-01-01T00:00:00Z.
func window(t time.Time, d time.Duration) ref.Val {
	if d <= 0 {
		return types.NewErr("the window length %v is not positive", d)
	}
	sec, nano := t.Unix(), int64(t.Nanosecond())
	if d%time.Second == 0 { // arithmetic in seconds cannot overflow
		in := sec % int64(d/time.Second)
		if in < 0 {
			in += int64(d / time.Second)
		}
		return inRange(time.Unix(sec-in, 0).UTC())
	}
	if sec > math.MaxInt64/1_000_000_000-1 || sec < math.MinInt64/1_000_000_000+1 {
		return types.NewErr("a window with a fraction of a second needs a time in the years 1678 to 2262")
	}
	in := (sec*1e9 + nano) % int64(d)
	if in < 0 {
		in += int64(d)
	}
	return inRange(t.Add(-time.Duration(in)))
}

func inRange(t time.Time) ref.Val {
	if s := t.Unix(); s < MinSecond || s > MaxSecond {
		return types.WrapErr(ErrTimestamp)
	}
	return types.Timestamp{Time: t}
}

// A timeField is a part of a time in a layout. Its name is that of strftime.
type timeField struct {
	name   byte
	digits int
	layout string // of package time
}

var timeFields = []timeField{
	{'Y', 4, "2006"}, {'m', 2, "01"}, {'d', 2, "02"}, {'H', 2, "15"}, {'M', 2, "04"}, {'S', 2, "05"},
	{'L', 3, ".000"}, {'f', 6, ".000000"}, {'j', 3, "002"},
}

var errLayout = errors.New("invalid layout: use %Y %m %d %H %M %S, %L (milliseconds), %f (microseconds), %j (day of the year), %% and other text")

// eachPart calls do for each part of a layout: a field, or, if f is nil, one byte
// of text. It stops when do returns false.
func eachPart(layout string, do func(f *timeField, text byte) bool) error {
	for i := 0; i < len(layout); i++ {
		c := layout[i]
		var field *timeField
		if c == '%' {
			i++
			if i == len(layout) {
				return errLayout
			}
			c = layout[i]
			at := slices.IndexFunc(timeFields, func(f timeField) bool { return f.name == c })
			if at < 0 && c != '%' {
				return errLayout
			}
			if at >= 0 {
				field = &timeFields[at]
			}
		}
		if !do(field, c) {
			return nil
		}
	}
	return nil
}

func formatTime(t time.Time, layout string) ref.Val {
	var out []byte
	err := eachPart(layout, func(f *timeField, text byte) bool {
		if f == nil {
			out = append(out, text)
		} else {
			out = append(out, strings.TrimPrefix(t.Format(f.layout), ".")...)
		}
		return true
	})
	if err != nil {
		return types.WrapErr(err)
	}
	return types.String(out)
}

// parseTime is the inverse of formatTime. Fields that are not in the layout are
// those of 1970-01-01T00:00:00Z.
func parseTime(s, layout string) ref.Val {
	rest, fits := s, true
	got := map[byte]int{'Y': 1970, 'm': 1, 'd': 1}
	err := eachPart(layout, func(f *timeField, text byte) bool {
		if f == nil {
			fits = rest != "" && rest[0] == text
			if fits {
				rest = rest[1:]
			}
			return fits
		}
		var v uint64
		if fits = len(rest) >= f.digits; fits {
			var err error
			v, err = strconv.ParseUint(rest[:f.digits], 10, 32)
			fits = err == nil
			got[f.name] = int(v)
			rest = rest[f.digits:]
		}
		return fits
	})
	if err != nil {
		return types.WrapErr(err)
	}
	t := time.Date(got['Y'], time.Month(got['m']), got['d'], got['H'], got['M'], got['S'], got['L']*1e6+got['f']*1e3, time.UTC)
	// time.Date accepts the 31st of February and returns the 3rd of March.
	fits = fits && rest == "" && t.Day() == got['d'] && int(t.Month()) == got['m'] && t.Hour() == got['H'] && t.Minute() == got['M'] && t.Second() == got['S']
	if day, ok := got['j']; ok && fits {
		t = t.AddDate(0, 0, day-t.YearDay())
		fits = t.Year() == got['Y']
	}
	if !fits {
		return types.NewErr("%q is not a time in the layout %q", s, layout)
	}
	return inRange(t)
}

func itemAt(list traits.Lister, last bool) ref.Val {
	size := list.Size().(types.Int)
	switch {
	case size == 0:
		return types.NewErr("the list is empty")
	case last:
		return list.Get(size - 1)
	}
	return list.Get(types.IntZero)
}

// mapWith returns a copy of the map with the key set to the value, or without the
// key if the value is nil.
func mapWith(m traits.Mapper, key, value ref.Val) ref.Val {
	out := map[ref.Val]ref.Val{}
	for it := m.Iterator(); it.HasNext() == types.True; {
		k := it.Next()
		out[k] = m.Get(k)
	}
	if value == nil {
		delete(out, key)
	} else {
		out[key] = value
	}
	return types.NewRefValMap(types.DefaultTypeAdapter, out)
}

// inOrder returns the map with an iterator in the order of its keys. The order of
// a Go map is random, so the same event would not always give the same list.
func inOrder(v ref.Val) ref.Val {
	m, ok := v.(traits.Mapper)
	if !ok {
		return v
	}
	var keys []ref.Val
	for it := m.Iterator(); it.HasNext() == types.True; {
		keys = append(keys, it.Next())
	}
	slices.SortFunc(keys, func(a, b ref.Val) int {
		if c, ok := a.(traits.Comparer); ok {
			if by, ok := c.Compare(b).(types.Int); ok {
				return int(by)
			}
		}
		return strings.Compare(a.Type().TypeName(), b.Type().TypeName())
	})
	return &orderedMap{m, keys}
}

// An orderedMap is a map that iterates over its keys in a given order.
type orderedMap struct {
	traits.Mapper
	keys []ref.Val
}

func (m *orderedMap) Iterator() traits.Iterator {
	return types.NewRefValList(types.DefaultTypeAdapter, m.keys).Iterator()
}

// ValidUUID reports whether s is a UUID in the text form of RFC 9562.
func ValidUUID[T string | []byte](s T) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return false
			}
			continue
		}
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}
