package expr

import (
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
)

func TestMixingADecimalWithADoubleIsAFaultThatShowsTheRewrite(t *testing.T) {
	env := newEnv(t, Root{Schema: parse(t, everything)})
	const convert = "convert the double with decimal(x), or the decimal with double(x), which keeps about 16 digits"
	for src, want := range map[string]string{
		"dec > 100.0":                            "cannot compare a decimal with a double; write decimal('100.0') or 100",
		"100.50 > dec":                           "cannot compare a double with a decimal; write decimal('100.50')",
		"1e3 == dec":                             "cannot compare a double with a decimal; write decimal('1000') or 1000",
		"dec != -2.5":                            "cannot compare a decimal with a double; write decimal('-2.5')",
		"dec != d":                               "cannot compare a decimal with a double; " + convert,
		"dec + 0.5 < dec":                        "+ cannot be applied to a decimal and a double; write decimal('0.5')",
		"ndec * nd < dec":                        "* cannot be applied to a decimal and a double; " + convert,
		"dec in [1.0, 2.5]":                      "a decimal cannot be in a list of double; write decimal('1.0') or 1",
		"[dec, 1.5].size() == 2":                 "this list mixes decimals and doubles; write decimal('1.5')",
		"(b ? dec : 1.5) == dec":                 "the two results of ? : are of different types: decimal and double; write decimal('1.5')",
		"math.greatest(dec, 1.5) > dec":          "math.greatest does not accept (decimal, double); write decimal('1.5')",
		"prices.exists(p, p.dec > 0.5)":          "cannot compare a decimal with a double; write decimal('0.5')",
		"dec / 2 > 1":                            "/ cannot be applied to a decimal and an int; write x.div(y, 2, 'half_up'): the scale of the result, and how to round: half_up, half_even, half_down, up, down, ceiling, floor",
		"dec % 2 == 0":                           "% cannot be applied to a decimal and an int",
		"dec == 's'":                             "cannot compare a decimal with a string",
		"decimal('1,5') > dec":                   `"1,5" is not a decimal; write digits, with a point before a fraction: decimal('-12.50')`,
		"dec.round(2) > dec":                     "round cannot be called on a decimal with (int); use decimal.round(int, string)",
		"dec.round(2, 'half_upp') > dec":         `unknown rounding mode "half_upp": use half_up, half_even, half_down, up, down, ceiling, floor; did you mean "half_up"?`,
		"dec.div(3, 1001, 'up') > dec":           "the scale 1001 is not from 0 to 1000",
		"round(dec) > dec":                       "there is no function round; write math.round(x) for a double, x.round(2, 'half_up') for a decimal",
		"math.round(dec) > dec":                  "math.round does not accept (decimal); write x.round(0, 'half_up')",
		"sum([dec]) > dec":                       "there is no function sum; write x.sum(...), not sum(x, ...)",
		"dec.round(-1, 'up') > dec":              "the scale -1 is not from 0 to 1000",
		"decimal(b) > dec":                       "decimal does not accept (bool); use decimal(decimal) or decimal(int) or decimal(string) or decimal(double)",
		"d.round(2, 'up') > dec":                 "round cannot be called on a double with (int, string); use decimal.round(int, string)",
		"dec > '" + strings.Repeat("9", 9) + "'": "cannot compare a decimal with a string",
	} {
		if _, err := env.Compile(src, Condition("a filter")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", src, err, want)
		}
	}
}

func TestADoubleIsNoValueOfADecimalFieldAndTheOtherWayRound(t *testing.T) {
	s := parse(t, everything)
	env := newEnv(t, Root{Schema: s})
	for _, c := range []struct{ src, field, want string }{
		{"12.50", "dec", "dec is a decimal in R, but this is a double; write decimal('12.50')"},
		{"12.0", "fdec", "fdec is a decimal in R, but this is a double; write decimal('12.0') or 12"},
		{"d", "dec", "dec is a decimal in R, but this is a double; convert it: decimal(x).round(2, 'half_even')"},
		{"s", "dec", "dec is a decimal in R, but this is a string; convert it with decimal(x)"},
		{"dec", "d", "d is a double in R, but this is a decimal; convert it with double(x), which keeps about 16 digits"},
		{"dec", "nl", "nl is a long in R, but this is a decimal; convert it with int(x), which rejects a fraction, or int(x.round(0, 'down'))"},
		{"dec", "s", "s is a string in R, but this is a decimal; convert it with string(x)"},
		{"ndec", "dec", "ndec can be null, but dec in R cannot"},
		{"b ? ndec : 1", "dec", "ndec can be null, but dec in R cannot"},
	} {
		_, err := env.Compile(c.src, Value(s.Root().Field(c.field).Type, c.field, "R"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %s:\n got %v\nwant %s", c.field, c.src, err, c.want)
		}
	}
}

// money is a record with decimals of many shapes.
const money = `{"type":"record","name":"M","fields":[
	{"name":"a","type":{"type":"bytes","logicalType":"decimal","precision":40,"scale":2}},
	{"name":"b","type":{"type":"fixed","name":"F","size":20,"logicalType":"decimal","precision":40,"scale":5}},
	{"name":"n","type":"long"},
	{"name":"sum","type":{"type":"bytes","logicalType":"decimal","precision":400,"scale":20}},
	{"name":"copy","type":["null",{"type":"bytes","logicalType":"decimal","precision":40,"scale":2}]},
	{"name":"list","type":{"type":"array","items":{"type":"record","name":"I","fields":[{"name":"v","type":{"type":"bytes","logicalType":"decimal","precision":40,"scale":2}}]}}}
]}`

func TestExpressionsComputeDecimalsExactly(t *testing.T) {
	s := parse(t, money)
	env := newEnv(t, Root{Schema: s})
	sum := s.Root().Field("sum").Type
	rat := func(d decimal.Decimal) *big.Rat { r, _ := new(big.Rat).SetString(d.String()); return r }
	type law struct {
		src   string
		exact func(a, b, n *big.Rat) *big.Rat
	}
	laws := []law{
		{"a + b", func(a, b, _ *big.Rat) *big.Rat { return new(big.Rat).Add(a, b) }},
		{"a - b * n", func(a, b, n *big.Rat) *big.Rat { return new(big.Rat).Sub(a, new(big.Rat).Mul(b, n)) }},
		{"n + -a", func(a, _, n *big.Rat) *big.Rat { return new(big.Rat).Sub(n, a) }},
		{"a < b ? a : b", func(a, b, _ *big.Rat) *big.Rat {
			if a.Cmp(b) < 0 {
				return a
			}
			return b
		}},
		{"[a, b, n].sum()", func(a, b, n *big.Rat) *big.Rat { return new(big.Rat).Add(a, new(big.Rat).Add(b, n)) }},
		{"math.greatest(a, b, n)", func(a, b, n *big.Rat) *big.Rat {
			for _, r := range []*big.Rat{b, n} {
				if r.Cmp(a) > 0 {
					a = r
				}
			}
			return a
		}},
		{"list.map(x, x.v * 2).sum()", func(a, _, _ *big.Rat) *big.Rat { return new(big.Rat).Add(a, a) }},
		{"copy == null ? 0 : copy", func(a, _, _ *big.Rat) *big.Rat { return a }},
		{"list[0].v", func(a, _, _ *big.Rat) *big.Rat { return a }},
		{"decimal(string(a))", func(a, _, _ *big.Rat) *big.Rat { return a }},
	}
	var programs [][2]*Program
	for _, l := range laws {
		var pair [2]*Program
		for i, fast := range []bool{true, false} {
			p, err := env.compile(l.src, Value(sum, "sum", "M"), fast)
			if err != nil {
				t.Fatalf("%s: %v", l.src, err)
			}
			bind(p, s)
			pair[i] = p
		}
		programs = append(programs, pair)
	}
	rapid.Check(t, func(t *rapid.T) {
		whole := rapid.SampledFrom([]string{"0", "1", "-1", "9007199254740993", "-12345678901234567", "92233720368547758", "99999999999999999999999999999999999"})
		a, _ := decimal.Parse(whole.Draw(t, "a") + "." + rapid.SampledFrom([]string{"00", "01", "89", "99"}).Draw(t, "cents"))
		b, _ := decimal.Parse(whole.Draw(t, "b") + "." + rapid.SampledFrom([]string{"00000", "00001", "12345"}).Draw(t, "fraction"))
		n := rapid.Int64().Draw(t, "n")
		rawA, _ := a.AppendBytes(nil, 0)
		rawB, _ := b.AppendBytes(nil, 20)
		body := codec.AppendBytes(nil, rawA)
		body = append(body, rawB...)
		body = codec.AppendLong(body, n)
		body = codec.AppendBytes(body, []byte{0})
		body = codec.AppendBytes(codec.AppendLong(body, 1), rawA)
		body = append(codec.AppendBytes(codec.AppendLong(body, 1), rawA), 0)
		v := view(t, s, body)
		for i, l := range laws {
			want := l.exact(rat(a), rat(b), new(big.Rat).SetInt64(n))
			for j, p := range programs[i] {
				enc, err := p.Append(nil, v)
				if err != nil {
					t.Fatalf("%s with %v, %v, %d: %v", l.src, a, b, n, err)
				}
				raw, _, err := codec.ReadText(enc)
				if got := decimal.FromBytes(raw, 20); err != nil || rat(got).Cmp(want) != 0 {
					t.Fatalf("%s with %v, %v, %d = %v, %v; want %s (closures: %v)", l.src, a, b, n, got, err, want.FloatString(20), j == 0)
				}
			}
		}
	})
}

// A copy keeps the bytes, even if they are longer than necessary.
func TestACopyOfADecimalKeepsItsBytes(t *testing.T) {
	s := parse(t, money)
	env := newEnv(t, Root{Schema: s})
	padded := []byte{0, 0, 0, 7}
	body := codec.AppendBytes(nil, padded)
	body = append(body, make([]byte, 20)...)
	body = codec.AppendBytes(codec.AppendLong(body, 0), []byte{0})
	body = codec.AppendBytes(codec.AppendLong(body, 1), padded)
	body = append(codec.AppendBytes(codec.AppendLong(body, 1), padded), 0)
	v := view(t, s, body)
	for _, c := range []struct{ field, src, want string }{
		{"a", "a", string(codec.AppendBytes(nil, padded))},
		{"a", "n == 0 ? a : 1", string(codec.AppendBytes(nil, padded))},
		{"a", "copy != null ? copy : a", string(codec.AppendBytes(nil, padded))},
		{"copy", "a", "\x02" + string(codec.AppendBytes(nil, padded))},
		{"copy", "copy", "\x02" + string(codec.AppendBytes(nil, padded))},
		{"list", "list.filter(x, true)", "\x02" + string(codec.AppendBytes(nil, padded)) + "\x00"},
	} {
		p, err := env.Compile(c.src, Value(s.Root().Field(c.field).Type, c.field, "M"))
		if err != nil {
			t.Fatalf("%s: %v", c.src, err)
		}
		bind(p, s)
		if enc, err := p.Append(nil, v); err != nil || string(enc) != c.want {
			t.Errorf("%s = %s: %x, %v; want %x", c.field, c.src, enc, err, c.want)
		}
	}
}

func TestAResultThatDoesNotFitADecimalFieldIsARejection(t *testing.T) {
	s := parse(t, `{"type":"record","name":"R","fields":[
		{"name":"v","type":{"type":"bytes","logicalType":"decimal","precision":20,"scale":3}},
		{"name":"w","type":{"type":"fixed","name":"W","size":3,"logicalType":"decimal","precision":6,"scale":2}},
		{"name":"wide","type":{"type":"bytes","logicalType":"decimal","precision":3000,"scale":0}}]}`)
	env := newEnv(t, Root{Schema: s})
	most := strings.Repeat("9", 1000)
	for _, c := range []struct{ field, v, src, want string }{
		{"w", "1.234", "v", "1.234 has more digits after the point than the 2 of the decimal; round it with x.round(2, 'half_even')"},
		{"w", "1.230", "v", ""},
		{"w", "1.234", "v.round(2, 'half_even')", ""},
		{"w", "10000.00", "v", "10000.000 has more than the 6 digits of the decimal"},
		{"w", "-9999.99", "v", ""},
		{"w", "99999", "int(v)", "has more than the 6 digits of the decimal"},
		{"wide", "1", "decimal('" + most + "') + v * 1000", "a decimal of more than 1000 digits"},
		{"wide", "1", "decimal('" + most + "')", ""},
	} {
		for _, fast := range []bool{true, false} {
			p, err := env.compile(c.src, Value(s.Root().Field(c.field).Type, c.field, "R"), fast)
			if err != nil {
				t.Fatalf("%s: %v", c.src, err)
			}
			bind(p, s)
			d, err := decimal.Parse(c.v)
			if err != nil {
				t.Fatal(err)
			}
			d, _ = d.Rescale(3)
			raw, _ := d.AppendBytes(nil, 0)
			v := view(t, s, append(codec.AppendBytes(nil, raw), "\x00\x00\x00\x02\x00"...))
			enc, err := p.Append(nil, v)
			if c.want == "" {
				if err == nil {
					err = codec.Validate(s.Root().Field(c.field).Type, enc)
				}
				if err != nil {
					t.Errorf("%s = %s with %s: %v", c.field, c.src, c.v, err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || pipeline.ClassOf(err) != pipeline.ClassReject {
				t.Errorf("%s = %s with %s: %x, %v; want a rejection: %s", c.field, c.src, c.v, enc, err, c.want)
			}
		}
	}
}

func TestUsesDecimals(t *testing.T) {
	s := parse(t, everything)
	env := newEnv(t, Root{Schema: s})
	for src, want := range map[string]bool{
		"dec": false, "b ? dec : dec": false, "ndec != null ? dec : dec": false, "prices[0].dec": false, "i > 1 ? dec : dec": false,
		"dec + 1": true, "-dec": true, "decimal('1.5')": true, "dec > 1 ? dec : dec": true, "prices.map(p, p.dec)[0]": false,
		"prices.exists(p, p.dec > 1) ? dec : dec": true, "prices == [] ? dec : dec": true, "dec.round(1, 'up')": true, "[dec, dec].sort()[0]": true,
	} {
		p, err := env.Compile(src, Value(s.Root().Field("dec").Type, "dec", "R"))
		if err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		if got := p.UsesDecimals(); got != want {
			t.Errorf("%s uses decimals: %v, want %v", src, got, want)
		}
	}
	for src, want := range map[string]bool{"i > 1": false, "dec > 1": true, "ndec == null": false, "string(dec) == '1'": true, "s == 'a' && i in [1]": false} {
		p, err := env.Compile(src, Condition("a filter"))
		if err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		if got := p.UsesDecimals(); got != want {
			t.Errorf("%s uses decimals: %v, want %v", src, got, want)
		}
	}
}

func TestANullableDecimalIsAWarningWithAGuard(t *testing.T) {
	s := parse(t, everything)
	env := newEnv(t, Root{Schema: s})
	for src, want := range map[string]string{
		"ndec > 5":                            "ndec can be null, and then this fails; write ndec != null && ndec > 5",
		"1 + ndec == dec":                     "ndec can be null, and then this fails; write ndec != null && 1 + ndec == dec",
		"ndec == 5":                           "",
		"ndec != null && ndec > nl":           "nl can be null, and then this fails; write ndec != null && nl != null && ndec > nl",
		"(ndec != null ? ndec : 0) + 1 > dec": "",
	} {
		p, err := env.Compile(src, Condition("a filter"))
		if err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		got := ""
		if w := p.Warnings(); len(w) > 0 {
			got = w[0].Error()
		}
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", src, got, want)
		}
	}
	if _, err := env.Compile("ndec * 2", Value(s.Root().Field("dec").Type, "dec", "R")); err != nil {
		t.Error(err)
	}
	two := parse(t, `{"type":"record","name":"L","fields":[{"name":"list","type":{"type":"array","items":["null",{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}]}}]}`)
	if _, err := newEnv(t, Root{Schema: two}).Compile("list[0]", Value(s.Root().Field("dec").Type, "dec", "R")); err == nil || !strings.Contains(err.Error(), "can be null") {
		t.Errorf("a nullable item of a list as a decimal: %v", err)
	}
}

func TestIntsMixWithDecimalsWhereverValuesMeet(t *testing.T) {
	s := parse(t, `{"type":"record","name":"R","fields":[
		{"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":20,"scale":2}},
		{"name":"n","type":"long"},
		{"name":"nn","type":["null","long"]},
		{"name":"b","type":"boolean"},
		{"name":"u","type":["null","string","long",{"type":"fixed","name":"F","size":4,"logicalType":"decimal","precision":8,"scale":2}]},
		{"name":"m","type":{"type":"map","values":{"type":"bytes","logicalType":"decimal","precision":20,"scale":2}}},
		{"name":"list","type":{"type":"array","items":{"type":"record","name":"I","fields":[
			{"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":20,"scale":2}},{"name":"n","type":"int"}]}}}]}`)
	env := newEnv(t, Root{Schema: s})
	v := view(t, s, encodeJSON(t, s, `{"d":"2.50","n":3,"nn":null,"b":true,"u":{"long":3},"m":{"a":"3.00"},"list":[{"d":"7.00","n":2},{"d":"-1.5","n":4}]}`))
	for src, want := range map[string]bool{
		"n * d == decimal('7.5') && d * n == decimal('7.50')":                         true,
		"(b ? 1 : (n > 5 ? d : 2)) < d":                                               true,
		"list.map(x, x.n > 2 ? x.d : 0).sum() == decimal('-1.5')":                     true,
		"list.map(x, x.d * x.n).sum() == 8":                                           true,
		"list.sortBy(x, x.d)[0].n == 4 && list.sortBy(x, -x.d)[0].n == 2":             true,
		"list.sortBy(x, x.d * 0 + x.n)[0].n == 2":                                     true,
		"math.greatest(list.map(x, x.d)) == 7 && math.least(n, d, 1) == 1":            true,
		"7 in list.map(x, x.d) && !(8 in list.map(x, x.d)) && n in [d, decimal('3')]": true,
		"[d, n] == [decimal('2.5'), 3] && [d] != [1] && [1, 2] != [d]":                true,
		"m == {'a': 3} && m.with('b', 1) == {'a': 3, 'b': 1}":                         true,
		"sets.contains([d, 3], [n]) && sets.intersects([n], [d, 3])":                  true,
		"u == decimal(3) && d < u && u + d == decimal('5.5') && u == n":               true,
		"d == nn || nn == d": false,
		"[d, d + 0, decimal('2.500')].distinct().size() == 1":    true,
		"list.exists(x, x.d in [7, 8]) && list.all(x, x.d != n)": true,
		"'%s and %s'.format([d, [d]]) == '2.50 and [2.50]'":      true,
		"list[0] == list[0] && list[0] != list[1]":               true,
		"dyn(d) == d && dyn(d) > 2 && type(d) == type(-d)":       true,
		"[].sum() == 0 && [1].sum() == 1 && [1.5].sum() == 1.5":  true,
	} {
		for _, fast := range []bool{true, false} {
			p, err := env.compile(src, Condition("a filter"), fast)
			if err != nil {
				t.Errorf("%s: %v", src, err)
				break
			}
			bind(p, s)
			if got, err := p.Bool(v); err != nil || got != want {
				t.Errorf("%s = %v, %v; want %v (closures: %v)", src, got, err, want, fast)
			}
		}
	}
}
