// Package decimal is exact decimal arithmetic: an unscaled integer of any size and
// a scale, as in Avro's logical type decimal.
//
// The scale of a result: that of + and - is the larger scale of the operands, that
// of * is the sum of both scales, and that of Div and Round is an argument. Values
// compare by number: 1.0 equals 1.00.
//
// A value whose unscaled integer fits in 64 bits takes no allocation, nor does an
// operation on such values if its result fits, too. All others use math/big.
package decimal

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"strconv"
)

// MaxDigits is the largest number of digits, and the largest scale, of a result.
// It bounds the work of one operation.
const MaxDigits = 1000

// Errors of operations.
var (
	ErrDigits   = fmt.Errorf("a decimal of more than %d digits", MaxDigits)
	ErrZero     = errors.New("division by zero")
	ErrFraction = errors.New("not a whole number")
	ErrInt      = errors.New("not in the range of an int")
)

// A Decimal is the number unscaled / 10^scale. It is immutable. The zero value is
// 0 with a scale of 0.
type Decimal struct {
	small int64    // the unscaled integer, if big is nil
	big   *big.Int // an unscaled integer that does not fit in small
	scale int32
}

// FromInt returns an integer, with a scale of 0.
func FromInt(v int64) Decimal { return Decimal{small: v} }

// FromFloat returns the shortest decimal that is read back as f: 0.1 for 0.1. It
// fails for a number that is not finite.
func FromFloat(f float64) (Decimal, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return Decimal{}, fmt.Errorf("%g is not a decimal", f)
	}
	return Parse(strconv.FormatFloat(f, 'f', -1, 64))
}

// FromBytes returns the number of Avro's encoding of a decimal: unscaled is big-endian
// in two's complement. It has no limit of digits, because the caller has the bytes
// already. The result does not refer to unscaled.
func FromBytes(unscaled []byte, scale int) Decimal {
	b := unscaled
	for len(b) > 1 && (b[0] == 0 && b[1] < 0x80 || b[0] == 0xff && b[1] >= 0x80) {
		b = b[1:] // repeats the sign
	}
	if len(b) <= 8 {
		v := int64(0)
		if len(b) > 0 && b[0] >= 0x80 {
			v = -1
		}
		for _, c := range b {
			v = v<<8 | int64(c)
		}
		return Decimal{small: v, scale: int32(scale)}
	}
	if b[0] < 0x80 {
		return Decimal{big: new(big.Int).SetBytes(b), scale: int32(scale)}
	}
	inverse := make([]byte, len(b)) // the bits of -v-1
	for i := range b {
		inverse[i] = ^b[i]
	}
	v := new(big.Int).SetBytes(inverse)
	return Decimal{big: v.Not(v), scale: int32(scale)}
}

// FromBig returns v / 10^scale, without a limit of digits. The caller must not change
// v after that.
func FromBig(v *big.Int, scale int) Decimal {
	if v.IsInt64() {
		return Decimal{small: v.Int64(), scale: int32(scale)}
	}
	return Decimal{big: v, scale: int32(scale)}
}

// limited is FromBig with a check of the number of digits.
func limited(v *big.Int, scale int) (Decimal, error) {
	if scale > MaxDigits || v.CmpAbs(maxUnscaled) >= 0 {
		return Decimal{}, ErrDigits
	}
	return FromBig(v, scale), nil
}

// Scale returns the number of digits after the point.
func (d Decimal) Scale() int { return int(d.scale) }

// Sign returns -1, 0 or 1.
func (d Decimal) Sign() int {
	if d.big != nil {
		return d.big.Sign()
	}
	switch {
	case d.small < 0:
		return -1
	case d.small > 0:
		return 1
	}
	return 0
}

// Digits returns the number of digits of the unscaled integer: 3 for 1.50, 1 for 0.
func (d Decimal) Digits() int {
	if d.big == nil {
		var room [20]byte
		return len(strconv.AppendUint(room[:0], magnitude(d.small), 10))
	}
	// The number of bits determines the number of digits, or leaves two.
	n := int(float64(d.big.BitLen()-1)*math.Log10(2)) + 1
	if d.big.CmpAbs(power(n)) >= 0 {
		n++
	}
	return n
}

// Cmp returns -1 if d < e, 0 if they are the same number, and 1 if d > e.
func (d Decimal) Cmp(e Decimal) int {
	if d.big == nil && e.big == nil {
		if x, y, ok := aligned(d, e); ok {
			switch {
			case x < y:
				return -1
			case x > y:
				return 1
			}
			return 0
		}
	}
	if s, t := d.Sign(), e.Sign(); s != t {
		if s < t {
			return -1
		}
		return 1
	}
	x, y := alignedBig(d, e)
	return x.Cmp(y)
}

// Neg returns -d.
func (d Decimal) Neg() Decimal {
	if d.big == nil && d.small != math.MinInt64 {
		return Decimal{small: -d.small, scale: d.scale}
	}
	v := d.unscaled()
	return FromBig(v.Neg(v), int(d.scale))
}

// Abs returns the absolute value.
func (d Decimal) Abs() Decimal {
	if d.Sign() < 0 {
		return d.Neg()
	}
	return d
}

// Add returns d + e, or ErrDigits.
func (d Decimal) Add(e Decimal) (Decimal, error) {
	if d.big == nil && e.big == nil {
		if x, y, ok := aligned(d, e); ok {
			if z := x + y; (z > x) == (y > 0) {
				return Decimal{small: z, scale: max(d.scale, e.scale)}, nil
			}
		}
	}
	x, y := alignedBig(d, e)
	return limited(x.Add(x, y), max(d.Scale(), e.Scale()))
}

// Sub returns d - e, or ErrDigits.
func (d Decimal) Sub(e Decimal) (Decimal, error) {
	if d.big == nil && e.big == nil {
		if x, y, ok := aligned(d, e); ok {
			if z := x - y; (z < x) == (y > 0) {
				return Decimal{small: z, scale: max(d.scale, e.scale)}, nil
			}
		}
	}
	x, y := alignedBig(d, e)
	return limited(x.Sub(x, y), max(d.Scale(), e.Scale()))
}

// Mul returns d * e, or ErrDigits.
func (d Decimal) Mul(e Decimal) (Decimal, error) {
	scale := d.Scale() + e.Scale()
	if d.big == nil && e.big == nil && scale <= MaxDigits {
		if z, ok := product(d.small, e.small); ok {
			return Decimal{small: z, scale: int32(scale)}, nil
		}
	}
	x := d.unscaled()
	return limited(x.Mul(x, e.unscaled()), scale)
}

// Rescale returns the same number with another scale. ok is false if that would
// drop digits that are not zero.
func (d Decimal) Rescale(scale int) (_ Decimal, ok bool) {
	by := scale - d.Scale()
	switch {
	case by == 0:
		return d, true
	case by > 0:
		if d.big == nil && by < len(powers) {
			if v, ok := product(d.small, powers[by]); ok {
				return Decimal{small: v, scale: int32(scale)}, true
			}
		}
		v := d.unscaled()
		return FromBig(v.Mul(v, power(by)), scale), true
	case d.big == nil && -by < len(powers):
		p := powers[-by]
		return Decimal{small: d.small / p, scale: int32(scale)}, d.small%p == 0
	}
	q, r := new(big.Int).QuoRem(d.unscaled(), power(-by), new(big.Int))
	return FromBig(q, scale), r.Sign() == 0
}

// Int returns the number as an int64. The error is ErrFraction or ErrInt.
func (d Decimal) Int() (int64, error) {
	whole, ok := d.Rescale(0)
	switch {
	case !ok:
		return 0, ErrFraction
	case whole.big != nil:
		return 0, ErrInt
	}
	return whole.small, nil
}

// Float returns the nearest float64.
func (d Decimal) Float() float64 {
	if d.big == nil && -1<<53 <= d.small && d.small <= 1<<53 && d.scale <= 22 {
		return float64(d.small) / math.Pow10(int(d.scale)) // both are exact, so the quotient is correctly rounded
	}
	f, _ := new(big.Rat).SetFrac(d.unscaled(), power(d.Scale())).Float64()
	return f
}

// unscaled returns a new big.Int with the unscaled integer.
func (d Decimal) unscaled() *big.Int {
	if d.big != nil {
		return new(big.Int).Set(d.big)
	}
	return big.NewInt(d.small)
}

// aligned returns the unscaled integers of d and e at the larger scale. ok is false
// if one does not fit in 64 bits.
func aligned(d, e Decimal) (x, y int64, ok bool) {
	x, y = d.small, e.small
	switch by := int(d.scale) - int(e.scale); {
	case by == 0:
		return x, y, true
	case by > 0 && by < len(powers):
		y, ok = product(y, powers[by])
	case by < 0 && -by < len(powers):
		x, ok = product(x, powers[-by])
	}
	return x, y, ok
}

// alignedBig is aligned for integers of any size. The caller may change x, not y.
func alignedBig(d, e Decimal) (x, y *big.Int) {
	x, y = d.unscaled(), e.unscaled()
	switch by := d.Scale() - e.Scale(); {
	case by > 0:
		y.Mul(y, power(by))
	case by < 0:
		x.Mul(x, power(-by))
	}
	return x, y
}

// product returns x * y. ok is false if it does not fit in 64 bits.
func product(x, y int64) (_ int64, ok bool) {
	hi, lo := bits.Mul64(magnitude(x), magnitude(y))
	if hi != 0 || lo > math.MaxInt64 {
		return 0, false
	}
	if (x < 0) != (y < 0) {
		return -int64(lo), true
	}
	return int64(lo), true
}

// magnitude returns |v|.
func magnitude(v int64) uint64 {
	if v < 0 {
		return -uint64(v)
	}
	return uint64(v)
}

// powers holds the powers of ten that fit in 64 bits.
var powers = [...]int64{
	1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
}

var maxUnscaled = power(MaxDigits)

// power returns 10^n.
func power(n int) *big.Int { return new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil) }
