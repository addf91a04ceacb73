package decimal

import (
	"math/big"
)

// A Mode determines how a quotient is rounded.
type Mode uint8

// The modes. A tie is a quotient exactly between two results.
const (
	HalfUp   Mode = iota // to the nearest; a tie away from zero
	HalfEven             // to the nearest; a tie to the even digit
	HalfDown             // to the nearest; a tie towards zero
	Up                   // away from zero
	Down                 // towards zero
	Ceiling              // towards positive infinity
	Floor                // towards negative infinity
)

// Modes lists the names of all modes, in the order of the constants.
var Modes = []string{"half_up", "half_even", "half_down", "up", "down", "ceiling", "floor"}

// ModeOf returns the mode of a name.
func ModeOf(name string) (_ Mode, ok bool) {
	for i := range Modes {
		if Modes[i] == name {
			return Mode(i), true
		}
	}
	return 0, false
}

// Round returns d with the given scale, from 0 to MaxDigits. The error is ErrDigits.
func (d Decimal) Round(scale int, m Mode) (Decimal, error) {
	if scale < 0 || scale > MaxDigits {
		return Decimal{}, ErrDigits
	}
	by := d.Scale() - scale
	switch {
	case by <= 0:
		out, _ := d.Rescale(scale)
		if out.big != nil && out.big.CmpAbs(maxUnscaled) >= 0 {
			return Decimal{}, ErrDigits
		}
		return out, nil
	case d.big == nil && by < len(powers):
		return Decimal{small: quotient(d.small, powers[by], m), scale: int32(scale)}, nil
	}
	return limited(bigQuotient(d.unscaled(), power(by), m), scale)
}

// Div returns d / e, rounded once, with the given scale, from 0 to MaxDigits. The
// error is ErrZero or ErrDigits.
func (d Decimal) Div(e Decimal, scale int, m Mode) (Decimal, error) {
	switch {
	case e.Sign() == 0:
		return Decimal{}, ErrZero
	case scale < 0 || scale > MaxDigits:
		return Decimal{}, ErrDigits
	}
	// d / e = d.unscaled * 10^by / e.unscaled, at the given scale.
	by := scale + e.Scale() - d.Scale()
	if d.big == nil && e.big == nil && by > -len(powers) && by < len(powers) {
		x, okX := product(d.small, powers[max(by, 0)])
		y, okY := product(e.small, powers[max(-by, 0)])
		if okX && okY {
			if y < 0 { // a product is never the least int64
				x, y = -x, -y
			}
			return Decimal{small: quotient(x, y, m), scale: int32(scale)}, nil
		}
	}
	x, y := d.unscaled(), e.unscaled()
	if by >= 0 {
		x.Mul(x, power(by))
	} else {
		y.Mul(y, power(-by))
	}
	if y.Sign() < 0 {
		x.Neg(x)
		y.Neg(y)
	}
	return limited(bigQuotient(x, y, m), scale)
}

// quotient returns x / y, rounded. y is positive.
func quotient(x, y int64, m Mode) int64 {
	q, r := x/y, x%y
	if r == 0 {
		return q
	}
	sign := int64(1)
	if x < 0 {
		sign = -1
	}
	half := 0 // compares 2|r| with y
	switch rest := magnitude(r); {
	case rest < uint64(y)-rest:
		half = -1
	case rest > uint64(y)-rest:
		half = 1
	}
	if m.away(int(sign), half, q&1 != 0) {
		q += sign
	}
	return q
}

// bigQuotient is quotient for integers of any size.
func bigQuotient(x, y *big.Int, m Mode) *big.Int {
	sign := x.Sign()
	q, r := new(big.Int).QuoRem(x, y, new(big.Int))
	if r.Sign() == 0 {
		return q
	}
	half := r.Lsh(r.Abs(r), 1).Cmp(y)
	if m.away(sign, half, q.Bit(0) != 0) {
		q.Add(q, big.NewInt(int64(sign)))
	}
	return q
}

// away reports whether an inexact quotient of the given sign is rounded away from
// zero. half compares the dropped part with one half; odd is about the last digit.
func (m Mode) away(sign, half int, odd bool) bool {
	switch m {
	case HalfUp:
		return half >= 0
	case HalfEven:
		return half > 0 || half == 0 && odd
	case HalfDown:
		return half > 0
	case Up:
		return true
	case Ceiling:
		return sign > 0
	case Floor:
		return sign < 0
	}
	return false
}
