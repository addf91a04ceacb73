package expr

import (
	"bytes"
	"cmp"
	"math"
	"regexp"
	"strconv"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
	"millrace/pipeline/expr/library"
)

// call1 compiles a function of one argument, which is not null. An operand
// without a function means that the interpreter must evaluate the call.
func call1(name string, a operand) operand {
	switch name {
	case operators.LogicalNot:
		if a.b != nil {
			return operand{kind: types.BoolKind, b: then(a.b, func(v bool) (bool, error) { return !v, nil })}
		}
	case operators.Negate:
		switch a.kind {
		case types.IntKind:
			return operand{kind: types.IntKind, i: then(a.i, func(v int64) (int64, error) { return subtract(0, v) })}
		case types.DoubleKind:
			return operand{kind: types.DoubleKind, d: then(a.d, func(v float64) (float64, error) { return -v, nil })}
		}
		if a.kind == decimalKind {
			return operand{kind: decimalKind, x: then(a.x, func(v decimal.Decimal) (decimal.Decimal, error) { return v.Neg(), nil })}
		}
	case overloads.Size:
		switch a.kind {
		case types.StringKind:
			return operand{kind: types.IntKind, i: then(a.s, func(v []byte) (int64, error) { return int64(utf8.RuneCount(v)), nil })}
		case types.BytesKind:
			return operand{kind: types.IntKind, i: then(a.s, func(v []byte) (int64, error) { return int64(len(v)), nil })}
		}
	case overloads.TypeConvertString:
		return operand{kind: types.StringKind, s: toText(a)}
	case overloads.TypeConvertInt:
		return operand{kind: types.IntKind, i: toInt(a)}
	case overloads.TypeConvertDouble:
		switch a.kind {
		case types.DoubleKind:
			return a
		case types.IntKind:
			return operand{kind: types.DoubleKind, d: then(a.i, func(v int64) (float64, error) { return float64(v), nil })}
		case decimalKind:
			return operand{kind: types.DoubleKind, d: then(a.x, func(v decimal.Decimal) (float64, error) { return v.Float(), nil })}
		}
	case "lowerAscii":
		if a.kind == types.StringKind {
			return operand{kind: types.StringKind, s: mapped(a.s, 'A', 'Z', 'a'-'A')}
		}
	case "upperAscii":
		if a.kind == types.StringKind {
			return operand{kind: types.StringKind, s: mapped(a.s, 'a', 'z', 'A'-'a')}
		}
	}
	return decimalCall(name, []operand{a})
}

// call2 is call1 for a function of two arguments.
func call2(name string, a, b operand) operand {
	switch name {
	case operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals:
		return operand{kind: types.BoolKind, b: ordered(name, a, b)}
	case operators.Add, operators.Subtract, operators.Multiply, operators.Divide, operators.Modulo:
		return arithmetic(name, a, b)
	case overloads.StartsWith, overloads.EndsWith, overloads.Contains:
		if a.kind == types.StringKind && b.kind == types.StringKind {
			test := map[string]func(s, part []byte) bool{
				overloads.StartsWith: bytes.HasPrefix, overloads.EndsWith: bytes.HasSuffix, overloads.Contains: bytes.Contains,
			}[name]
			return operand{kind: types.BoolKind, b: both(a.s, b.s, func(x, y []byte) (bool, error) { return test(x, y), nil })}
		}
	case overloads.Matches:
		if a.kind == types.StringKind && b.kind == types.StringKind && b.konst {
			pattern, _ := b.s(&Scope{})
			if re, err := regexp.Compile(string(pattern)); err == nil {
				return operand{kind: types.BoolKind, b: then(a.s, func(v []byte) (bool, error) { return re.Match(v), nil })}
			}
		}
	}
	return operand{}
}

func ordered(name string, a, b operand) fn[bool] {
	switch {
	case a.kind == types.IntKind && b.kind == types.DoubleKind:
		return compared(name, a.i, b.d, func(x int64, y float64) int { return -compareMixed(y, x) })
	case a.kind == types.DoubleKind && b.kind == types.IntKind:
		return compared(name, a.d, b.i, compareMixed)
	case a.kind != b.kind:
		return nil
	}
	switch a.kind {
	case types.IntKind, types.DurationKind:
		if a.raw != nil && b.konst {
			return comparedWith(name, a.raw, b)
		}
		return compared(name, a.i, b.i, cmp.Compare[int64])
	case types.DoubleKind:
		return compared(name, a.d, b.d, compareFloats)
	case decimalKind:
		return compared(name, a.x, b.x, decimal.Decimal.Cmp)
	case types.StringKind, types.BytesKind:
		return compared(name, a.s, b.s, bytes.Compare)
	case types.TimestampKind:
		return compared(name, a.t, b.t, instant.compare)
	}
	return nil
}

// unordered is the result of a comparison with NaN: every relation is false.
const unordered = 2

func compareFloats(x, y float64) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	case x == y:
		return 0
	}
	return unordered
}

// compareMixed compares a double with an int as CEL does: it converts the int to
// a double, unless the double is outside the range of an int.
func compareMixed(x float64, y int64) int {
	switch {
	case x != x:
		return unordered
	case x < math.MinInt64:
		return -1
	case x > math.MaxInt64:
		return 1
	}
	return compareFloats(x, float64(y))
}

func compared[A, B any](name string, a fn[A], b fn[B], compare func(A, B) int) fn[bool] {
	switch name {
	case operators.Less:
		return both(a, b, func(x A, y B) (bool, error) { return compare(x, y) == -1, nil })
	case operators.LessEquals:
		return both(a, b, func(x A, y B) (bool, error) { return compare(x, y) <= 0 && compare(x, y) != -unordered, nil })
	case operators.Greater:
		return both(a, b, func(x A, y B) (bool, error) { return compare(x, y) == 1, nil })
	}
	return both(a, b, func(x A, y B) (bool, error) { c := compare(x, y); return c == 0 || c == 1, nil })
}

// comparedWith compares an int or long field with a constant. raw returns the
// encoding of the field.
func comparedWith(name string, raw fn[[]byte], konst operand) fn[bool] {
	want, _ := konst.i(&Scope{})
	// The numbers that satisfy the comparison are the interval [from, to].
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	switch {
	case name == operators.Less && want == from, name == operators.Greater && want == to:
		from, to = 1, 0 // empty
	case name == operators.Less:
		to = want - 1
	case name == operators.LessEquals:
		to = want
	case name == operators.Greater:
		from = want + 1
	default:
		from = want
	}
	return func(s *Scope) (bool, error) {
		b, err := raw(s)
		if err != nil {
			return false, err
		}
		v, _, err := codec.ReadLong(b)
		return err == nil && from <= v && v <= to, err
	}
}

func arithmetic(name string, a, b operand) operand {
	o := operand{kind: a.kind}
	switch {
	case a.kind == types.IntKind && b.kind == types.IntKind:
		o.i = both(a.i, b.i, map[string]func(x, y int64) (int64, error){
			operators.Add: add, operators.Subtract: subtract, operators.Multiply: multiply, operators.Divide: divide, operators.Modulo: modulo,
		}[name])
	case a.kind == types.DoubleKind && b.kind == types.DoubleKind:
		switch name {
		case operators.Add:
			o.d = both(a.d, b.d, func(x, y float64) (float64, error) { return x + y, nil })
		case operators.Subtract:
			o.d = both(a.d, b.d, func(x, y float64) (float64, error) { return x - y, nil })
		case operators.Multiply:
			o.d = both(a.d, b.d, func(x, y float64) (float64, error) { return x * y, nil })
		case operators.Divide:
			o.d = both(a.d, b.d, func(x, y float64) (float64, error) { return x / y, nil })
		}
	case a.kind == decimalKind && b.kind == decimalKind:
		switch name {
		case operators.Add:
			o.x = both(a.x, b.x, decimal.Decimal.Add)
		case operators.Subtract:
			o.x = both(a.x, b.x, decimal.Decimal.Sub)
		case operators.Multiply:
			o.x = both(a.x, b.x, decimal.Decimal.Mul)
		}
	case a.kind == types.StringKind && b.kind == types.StringKind && name == operators.Add,
		a.kind == types.BytesKind && b.kind == types.BytesKind && name == operators.Add:
		f, g := a.s, b.s
		o.s = func(s *Scope) ([]byte, error) {
			x, err := f(s)
			if err != nil {
				return nil, err
			}
			y, err := g(s)
			if err != nil {
				return nil, err
			}
			n := len(s.mem)
			if n+len(x)+len(y) > maxMem {
				return nil, errLong
			}
			s.mem = append(append(s.mem, x...), y...)
			return s.mem[n:len(s.mem):len(s.mem)], nil
		}
	case a.kind == types.TimestampKind && b.kind == types.DurationKind && name == operators.Add:
		o.t = both(a.t, b.i, moved)
	case a.kind == types.DurationKind && b.kind == types.TimestampKind && name == operators.Add:
		o.kind = types.TimestampKind
		o.t = both(a.i, b.t, func(d int64, t instant) (instant, error) { return moved(t, d) })
	case a.kind == types.TimestampKind && b.kind == types.DurationKind && name == operators.Subtract:
		o.t = both(a.t, b.i, func(t instant, d int64) (instant, error) {
			if d == math.MinInt64 {
				return instant{}, errSpan
			}
			return moved(t, -d)
		})
	case a.kind == types.TimestampKind && b.kind == types.TimestampKind && name == operators.Subtract:
		o.kind = types.DurationKind
		o.i = both(a.t, b.t, func(x, y instant) (int64, error) {
			sec, err := multiply(x.sec-y.sec, int64(time.Second))
			if err != nil {
				return 0, errSpan
			}
			return add(sec, int64(x.nano-y.nano))
		})
	case a.kind == types.DurationKind && b.kind == types.DurationKind && name == operators.Add:
		o.i = both(a.i, b.i, add)
	case a.kind == types.DurationKind && b.kind == types.DurationKind && name == operators.Subtract:
		o.i = both(a.i, b.i, subtract)
	}
	return o
}

// moved is t + d.
func moved(t instant, d int64) (instant, error) {
	sec, nano := t.sec+d/1e9, int64(t.nano)+d%1e9
	if nano < 0 {
		sec, nano = sec-1, nano+1e9
	} else if nano >= 1e9 {
		sec, nano = sec+1, nano-1e9
	}
	if sec < library.MinSecond || sec > library.MaxSecond {
		return instant{}, library.ErrTimestamp
	}
	return instant{sec, int32(nano)}, nil
}

func add(x, y int64) (int64, error) {
	if z := x + y; (z > x) == (y > 0) {
		return z, nil
	}
	return 0, errOverflow
}

func subtract(x, y int64) (int64, error) {
	if z := x - y; (z < x) == (y > 0) {
		return z, nil
	}
	return 0, errOverflow
}

func multiply(x, y int64) (int64, error) {
	if x == 0 || y == 0 {
		return 0, nil
	}
	z := x * y
	if z/y != x || x == -1 && y == math.MinInt64 || y == -1 && x == math.MinInt64 {
		return 0, errOverflow
	}
	return z, nil
}

func divide(x, y int64) (int64, error) {
	switch {
	case y == 0:
		return 0, errDivide
	case y == -1:
		return subtract(0, x)
	}
	return x / y, nil
}

func modulo(x, y int64) (int64, error) {
	switch {
	case y == 0:
		return 0, errDivide
	case y == -1 && x == math.MinInt64:
		return 0, errOverflow
	}
	return x % y, nil
}

// toText is string(x).
func toText(a operand) fn[[]byte] {
	switch a.kind {
	case types.StringKind:
		return a.s
	case types.BytesKind:
		return nil // needs a check for valid UTF-8, which the interpreter does
	case types.BoolKind:
		return written(a.b, strconv.AppendBool)
	case types.IntKind:
		return written(a.i, func(dst []byte, v int64) []byte { return strconv.AppendInt(dst, v, 10) })
	case types.DoubleKind:
		return written(a.d, func(dst []byte, v float64) []byte { return strconv.AppendFloat(dst, v, 'g', -1, 64) })
	case decimalKind:
		return written(a.x, func(dst []byte, v decimal.Decimal) []byte { return v.AppendText(dst) })
	case types.TimestampKind:
		return func(s *Scope) ([]byte, error) {
			v, err := a.t(s)
			if err != nil {
				return nil, err
			}
			n := len(s.mem)
			if n > maxMem {
				return nil, errLong
			}
			s.mem = s.text.append(s.mem, v)
			return s.mem[n:len(s.mem):len(s.mem)], nil
		}
	case types.DurationKind:
		return written(a.i, func(dst []byte, v int64) []byte {
			return append(strconv.AppendFloat(dst, time.Duration(v).Seconds(), 'f', -1, 64), 's')
		})
	}
	return nil
}

// written returns a text that write builds in the memory of the scope.
func written[T any](f fn[T], write func([]byte, T) []byte) fn[[]byte] {
	return func(s *Scope) ([]byte, error) {
		v, err := f(s)
		if err != nil {
			return nil, err
		}
		n := len(s.mem)
		if n > maxMem {
			return nil, errLong
		}
		s.mem = write(s.mem, v)
		return s.mem[n:len(s.mem):len(s.mem)], nil
	}
}

// toInt is int(x).
func toInt(a operand) fn[int64] {
	switch a.kind {
	case types.IntKind, types.DurationKind: // a duration converts to nanoseconds
		return a.i
	case types.TimestampKind:
		return then(a.t, func(v instant) (int64, error) { return v.sec, nil })
	case decimalKind:
		return then(a.x, library.WholeNumber)
	case types.DoubleKind:
		return then(a.d, func(v float64) (int64, error) {
			if v > math.MinInt64 && v < math.MaxInt64 {
				return int64(v), nil
			}
			return 0, errOverflow
		})
	}
	return nil
}

// mapped adds an offset to the letters from lo to hi.
func mapped(f fn[[]byte], lo, hi byte, by int) fn[[]byte] {
	return written(f, func(dst, v []byte) []byte {
		for _, c := range v {
			if lo <= c && c <= hi {
				c = byte(int(c) + by)
			}
			dst = append(dst, c)
		}
		return dst
	})
}
