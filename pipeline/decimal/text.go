package decimal

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Parse reads plain notation, such as -12.50: digits, at most one point between
// digits, at most one sign, no exponent. The scale is the number of digits after the point.
func Parse(text string) (Decimal, error) {
	whole, fraction, point := strings.Cut(strings.TrimPrefix(text, "-"), ".")
	if !isDigits(whole) || point && !isDigits(fraction) {
		return Decimal{}, fmt.Errorf("%q is not a decimal", shortened(text))
	}
	if len(fraction) > MaxDigits || len(strings.TrimLeft(whole+fraction, "0")) > MaxDigits {
		return Decimal{}, ErrDigits
	}
	digits := whole + fraction
	if text[0] == '-' {
		digits = "-" + digits
	}
	if v, err := strconv.ParseInt(digits, 10, 64); err == nil {
		return Decimal{small: v, scale: int32(len(fraction))}, nil
	}
	v, _ := new(big.Int).SetString(digits, 10)
	return FromBig(v, len(fraction)), nil
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// shortened returns the start of a long text, for messages.
func shortened(text string) string {
	if runes := []rune(text); len(runes) > 100 {
		return string(runes[:100]) + "..."
	}
	return text
}

// String returns plain notation with all digits of the scale: 12.50.
func (d Decimal) String() string { return string(d.AppendText(nil)) }

// AppendText appends String.
func (d Decimal) AppendText(dst []byte) []byte {
	if d.Sign() < 0 {
		dst = append(dst, '-')
	}
	var room [24]byte
	var digits []byte
	if d.big == nil {
		digits = strconv.AppendUint(room[:0], magnitude(d.small), 10)
	} else {
		digits = new(big.Int).Abs(d.big).Append(nil, 10)
	}
	point := len(digits) - d.Scale()
	if point <= 0 {
		dst = append(dst, "0."...)
		for ; point < 0; point++ {
			dst = append(dst, '0')
		}
		return append(dst, digits...)
	}
	dst = append(dst, digits[:point]...)
	if d.scale > 0 {
		dst = append(append(dst, '.'), digits[point:]...)
	}
	return dst
}

// AppendBytes appends the unscaled integer, big-endian in two's complement: the
// shortest form, or, if size is positive, exactly size bytes. ok is false if it
// needs more; then dst is unchanged.
func (d Decimal) AppendBytes(dst []byte, size int) (_ []byte, ok bool) {
	need := d.Size()
	switch {
	case size <= 0:
		size = need
	case need > size:
		return dst, false
	}
	if d.big == nil {
		for i := size - 1; i >= 0; i-- {
			dst = append(dst, byte(d.small>>min(8*i, 63)))
		}
		return dst, true
	}
	v := d.big
	if v.Sign() < 0 {
		v = new(big.Int).Add(v, new(big.Int).Lsh(big.NewInt(1), uint(8*size)))
	}
	n := len(dst)
	dst = append(dst, make([]byte, size)...)
	v.FillBytes(dst[n:])
	return dst, true
}

// Size returns the number of bytes of the shortest form of AppendBytes.
func (d Decimal) Size() int {
	if d.big == nil {
		v := d.small
		if v < 0 {
			v = ^v
		}
		n := 1
		for ; v >= 0x80; v >>= 8 {
			n++
		}
		return n
	}
	if d.big.Sign() < 0 {
		return new(big.Int).Not(d.big).BitLen()/8 + 1
	}
	return d.big.BitLen()/8 + 1
}
