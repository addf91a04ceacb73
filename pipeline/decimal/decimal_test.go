package decimal

import (
	"bytes"
	"errors"
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// generated draws a decimal: often one near the limits of 64 bits, where the fast
// paths end.
func generated(t *rapid.T, name string) Decimal {
	scale := rapid.IntRange(0, 30).Draw(t, name+" scale")
	v := new(big.Int)
	switch rapid.IntRange(0, 3).Draw(t, name+" kind") {
	case 0:
		v.SetInt64(rapid.Int64Range(-200, 200).Draw(t, name))
	case 1:
		v.SetInt64(rapid.Int64().Draw(t, name))
	case 2:
		v.SetInt64(rapid.SampledFrom([]int64{math.MinInt64, math.MinInt64 + 1, -1, 0, 1, math.MaxInt64 - 1, math.MaxInt64}).Draw(t, name))
		v.Add(v, big.NewInt(rapid.Int64Range(-2, 2).Draw(t, name+" off by")))
	case 3:
		v.SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, name))
		if rapid.Bool().Draw(t, name+" negative") {
			v.Neg(v)
		}
	}
	return FromBig(v, scale)
}

func (d Decimal) rat() *big.Rat { return new(big.Rat).SetFrac(d.unscaled(), power(d.Scale())) }

func TestArithmeticIsThatOfRationalNumbers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := generated(t, "a"), generated(t, "b")
		for _, op := range []struct {
			name  string
			do    func(Decimal, Decimal) (Decimal, error)
			exact func(z, x, y *big.Rat) *big.Rat
			scale int
		}{
			{"+", Decimal.Add, (*big.Rat).Add, max(a.Scale(), b.Scale())},
			{"-", Decimal.Sub, (*big.Rat).Sub, max(a.Scale(), b.Scale())},
			{"*", Decimal.Mul, (*big.Rat).Mul, a.Scale() + b.Scale()},
		} {
			got, err := op.do(a, b)
			if want := op.exact(new(big.Rat), a.rat(), b.rat()); err != nil || got.rat().Cmp(want) != 0 || got.Scale() != op.scale {
				t.Fatalf("%v %s %v = %v, %v with scale %d; want %v with scale %d", a, op.name, b, got, err, got.Scale(), want, op.scale)
			}
			if (got.big != nil) == got.unscaled().IsInt64() {
				t.Fatalf("%v %s %v is not in its one form", a, op.name, b)
			}
		}
		if got, want := a.Cmp(b), a.rat().Cmp(b.rat()); got != want {
			t.Fatalf("%v compared with %v = %d, want %d", a, b, got, want)
		}
		if got, want := a.Neg().rat(), new(big.Rat).Neg(a.rat()); got.Cmp(want) != 0 {
			t.Fatalf("-%v = %v", a, got)
		}
		if got, want := a.Abs().rat(), new(big.Rat).Abs(a.rat()); got.Cmp(want) != 0 {
			t.Fatalf("|%v| = %v", a, got)
		}
		if got := a.Sign(); got != a.rat().Sign() {
			t.Fatalf("sign of %v = %d", a, got)
		}
		digits := len(new(big.Int).Abs(a.unscaled()).String())
		if got := a.Digits(); got != digits {
			t.Fatalf("digits of %v = %d, want %d", a, got, digits)
		}
		if f, _ := a.rat().Float64(); a.Float() != f {
			t.Fatalf("%v as a double = %g, want %g", a, a.Float(), f)
		}
		whole, err := a.Int()
		switch isInt := a.rat().IsInt(); {
		case isInt && a.rat().Num().IsInt64():
			if err != nil || whole != a.rat().Num().Int64() {
				t.Fatalf("int(%v) = %d, %v", a, whole, err)
			}
		case isInt && !errors.Is(err, ErrInt), !isInt && !errors.Is(err, ErrFraction):
			t.Fatalf("int(%v) = %d, %v", a, whole, err)
		}
	})
}

// rounded is the definition of the modes: on the two neighbors of the exact value.
func rounded(exact *big.Rat, scale int, m Mode) *big.Rat {
	unit := new(big.Rat).SetFrac(big.NewInt(1), power(scale))
	steps := new(big.Rat).Quo(exact, unit)
	floor := new(big.Int).Div(steps.Num(), steps.Denom()) // Euclidean: down, as the denominator is positive
	ceiling := new(big.Int).Set(floor)
	if !steps.IsInt() {
		ceiling.Add(ceiling, big.NewInt(1))
	}
	toZero, fromZero := floor, ceiling
	if exact.Sign() < 0 {
		toZero, fromZero = ceiling, floor
	}
	low := new(big.Rat).Sub(steps, new(big.Rat).SetInt(floor))
	high := new(big.Rat).Sub(new(big.Rat).SetInt(ceiling), steps)
	nearest, tie := floor, low.Cmp(high) == 0
	if high.Cmp(low) < 0 {
		nearest = ceiling
	}
	out := map[Mode]*big.Int{Up: fromZero, Down: toZero, Ceiling: ceiling, Floor: floor, HalfUp: nearest, HalfDown: nearest, HalfEven: nearest}[m]
	if tie {
		switch {
		case m == HalfUp:
			out = fromZero
		case m == HalfDown:
			out = toZero
		case m == HalfEven && floor.Bit(0) == 0:
			out = floor
		case m == HalfEven:
			out = ceiling
		}
	}
	return new(big.Rat).Mul(new(big.Rat).SetInt(out), unit)
}

func TestDivisionAndRoundingRoundTheExactValueOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := generated(t, "a"), generated(t, "b")
		scale := rapid.IntRange(0, 40).Draw(t, "scale")
		m := Mode(rapid.IntRange(0, len(Modes)-1).Draw(t, "mode"))
		got, err := a.Round(scale, m)
		if want := rounded(a.rat(), scale, m); err != nil || got.rat().Cmp(want) != 0 || got.Scale() != scale {
			t.Fatalf("%v.round(%d, %s) = %v, %v; want %v", a, scale, Modes[m], got, err, want)
		}
		got, err = a.Div(b, scale, m)
		if b.Sign() == 0 {
			if !errors.Is(err, ErrZero) {
				t.Fatalf("%v / 0 = %v, %v", a, got, err)
			}
			return
		}
		if want := rounded(new(big.Rat).Quo(a.rat(), b.rat()), scale, m); err != nil || got.rat().Cmp(want) != 0 || got.Scale() != scale {
			t.Fatalf("%v.div(%v, %d, %s) = %v, %v; want %v", a, b, scale, Modes[m], got, err, want)
		}
	})
}

func TestModesOfRounding(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ value, results string }{
		// half_up, half_even, half_down, up, down, ceiling, floor
		{"2.5", "3 2 2 3 2 3 2"},
		{"3.5", "4 4 3 4 3 4 3"},
		{"-2.5", "-3 -2 -2 -3 -2 -2 -3"},
		{"2.4", "2 2 2 3 2 3 2"},
		{"-2.6", "-3 -3 -3 -3 -2 -2 -3"},
		{"2.0", "2 2 2 2 2 2 2"},
	} {
		d, _ := Parse(c.value)
		var got []string
		for m := range Modes {
			r, err := d.Round(0, Mode(m))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r.String())
		}
		if strings.Join(got, " ") != c.results {
			t.Errorf("%s: %v, want %s", c.value, got, c.results)
		}
	}
}

func TestTextAndBytesReadBackAsTheSameDecimal(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := generated(t, "d")
		got, err := Parse(d.String())
		if err != nil || got.Cmp(d) != 0 || got.Scale() != d.Scale() {
			t.Fatalf("Parse(%v) = %v, %v", d, got, err)
		}
		short, ok := d.AppendBytes(nil, 0)
		if !ok || len(short) != d.Size() {
			t.Fatalf("%v: % x", d, short)
		}
		if len(short) > 1 && (short[0] == 0 && short[1] < 0x80 || short[0] == 0xff && short[1] >= 0x80) {
			t.Fatalf("%v: % x is not the shortest form", d, short)
		}
		if got := FromBytes(short, d.Scale()); got.Cmp(d) != 0 {
			t.Fatalf("% x is read as %v, want %v", short, got, d)
		}
		size := rapid.IntRange(1, 50).Draw(t, "size")
		fixed, ok := d.AppendBytes([]byte("x"), size)
		switch {
		case ok != (len(short) <= size):
			t.Fatalf("%v in %d bytes: %t", d, size, ok)
		case !ok && string(fixed) != "x":
			t.Fatalf("%v: dst changed", d)
		case ok && (len(fixed) != 1+size || !bytes.HasSuffix(fixed, short) || FromBytes(fixed[1:], d.Scale()).Cmp(d) != 0):
			t.Fatalf("%v in %d bytes: % x", d, size, fixed)
		}
	})
}

func TestCmpIsATotalOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := generated(t, "a"), generated(t, "b"), generated(t, "c")
		if a.Cmp(b) != -b.Cmp(a) {
			t.Fatalf("%v and %v", a, b)
		}
		if a.Cmp(b) <= 0 && b.Cmp(c) <= 0 && a.Cmp(c) > 0 {
			t.Fatalf("%v <= %v <= %v", a, b, c)
		}
	})
}

func TestParseRefusesWhatIsNotPlainNotation(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "-", ".", "1.", ".5", "+1", "1e3", " 1", "1 ", "1,5", "--1", "1.2.3", "0x1", "NaN", "Infinity", "1_000", "１"} {
		if d, err := Parse(text); err == nil {
			t.Errorf("%q is read as %v", text, d)
		}
	}
	for text, want := range map[string]string{"0": "0", "-0.00": "0.00", "007.10": "7.10", "-.5": "", "12345678901234567890.123456789": "12345678901234567890.123456789"} {
		if d, err := Parse(text); err == nil && d.String() != want || err != nil && want != "" {
			t.Errorf("%q is read as %v, %v; want %q", text, d, err, want)
		}
	}
}

func TestResultsHaveAtMostMaxDigits(t *testing.T) {
	t.Parallel()
	most, err := Parse(strings.Repeat("9", MaxDigits))
	if err != nil {
		t.Fatal(err)
	}
	tiny, err := Parse("0." + strings.Repeat("0", MaxDigits-1) + "1")
	if err != nil {
		t.Fatal(err)
	}
	ten := FromInt(10)
	for name, do := range map[string]func() (Decimal, error){
		"parse": func() (Decimal, error) { return Parse(strings.Repeat("9", MaxDigits+1)) },
		"scale": func() (Decimal, error) { return Parse("0." + strings.Repeat("0", MaxDigits+1)) },
		"add":   func() (Decimal, error) { return most.Add(FromInt(1)) },
		"align": func() (Decimal, error) { return most.Sub(tiny) },
		"mul":   func() (Decimal, error) { return most.Mul(ten) },
		"small": func() (Decimal, error) { return tiny.Mul(tiny) },
		"round": func() (Decimal, error) { return ten.Round(MaxDigits, HalfUp) },
		"div":   func() (Decimal, error) { return most.Div(tiny, 0, HalfUp) },
		"deep":  func() (Decimal, error) { return ten.Div(ten, MaxDigits+1, HalfUp) },
		"below": func() (Decimal, error) { return ten.Round(-1, HalfUp) },
	} {
		if d, err := do(); !errors.Is(err, ErrDigits) {
			t.Errorf("%s: %d digits, %v", name, d.Digits(), err)
		}
	}
	if most.Cmp(tiny) != 1 || tiny.Neg().Cmp(most) != -1 {
		t.Error("values with 2,000 digits between them do not compare")
	}
}

func TestSmallDecimalsAllocateNothing(t *testing.T) {
	a, b := FromBytes([]byte{0x7f, 0xff, 0xff, 0xff, 0xff}, 2), FromBytes([]byte{0xff, 0x01}, 3)
	room := make([]byte, 0, 100)
	if n := testing.AllocsPerRun(100, func() {
		c, _ := a.Add(b)
		c, _ = c.Sub(a)
		c, _ = c.Mul(b)
		c, _ = c.Div(b, 2, HalfUp)
		c, _ = c.Round(1, HalfEven)
		_ = c.Neg().Cmp(a)
		room, _ = c.AppendBytes(room[:0], 0)
		_ = FromBytes(room, 2)
		room = c.AppendText(room[:0])
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestFromFloatIsTheShortestDecimal(t *testing.T) {
	t.Parallel()
	for f, want := range map[float64]string{0.1: "0.1", -2: "-2", 1e21: "1000000000000000000000", 5e-324: ""} {
		d, err := FromFloat(f)
		if err != nil || d.Float() != f || want != "" && d.String() != want {
			t.Errorf("%g: %v, %v", f, d, err)
		}
	}
	if d, err := FromFloat(math.NaN()); err == nil {
		t.Errorf("NaN is %v", d)
	}
}
