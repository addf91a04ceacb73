package expr

import (
	"strings"
	"testing"

	"millrace/pipeline/codec"
)

// For each Avro type, one expression reads a field v, and another writes a field w
// of the same type. Both run as closures and in the interpreter.
func TestEveryTypeIsReadAndWritten(t *testing.T) {
	const (
		decimal  = `{"type":"bytes","logicalType":"decimal","precision":12,"scale":2}`
		fixedDec = `{"type":"fixed","name":"D","size":6,"logicalType":"decimal","precision":12,"scale":3}`
		longDec  = `{"type":"bytes","logicalType":"decimal","precision":30,"scale":2}`
		fixed    = `{"type":"fixed","name":"F","size":3}`
		enum     = `{"type":"enum","name":"E","symbols":["red","blue"]}`
		uuid     = `{"type":"string","logicalType":"uuid"}`
		fixedID  = `{"type":"fixed","name":"U","size":16,"logicalType":"uuid"}`
		id       = `"0197e0a1-0000-7000-8000-00000000000a"`
	)
	of := func(kind, logical string) string { return `{"type":"` + kind + `","logicalType":"` + logical + `"}` }
	for _, test := range []struct {
		typ, value string
		sees       string // a condition that is true; value is v as JSON
		writes     string // an expression for w
		written    string // w as JSON; or "! " and a part of the error
	}{
		{`"boolean"`, `true`, `v`, `!v`, `false`},
		{`"int"`, `-2147483648`, `v == -2147483648`, `-(v + 1)`, `2147483647`},
		{`"int"`, `-2147483648`, `v < 0`, `v - 1`, `! -2147483649 is out of range for an Avro int`},
		{`"long"`, `9223372036854775807`, `v == 9223372036854775807`, `v - 1`, `9223372036854775806`},
		{`"long"`, `9223372036854775807`, `v > 0`, `v + 1`, `! integer overflow`},
		{`"float"`, `0.5`, `v == 0.5`, `v * 3.0`, `1.5`},
		{`"float"`, `1`, `v > 0.0`, `v * 1e300`, `! is out of range for an Avro float`},
		{`"double"`, `0.1`, `v == 0.1`, `v + 0.2`, `0.30000000000000004`},
		{`"double"`, `"NaN"`, `v != v`, `0.0 / 0.0`, `"NaN"`},
		{`"double"`, `2`, `v == 2.0`, `7`, `7`},
		{`"double"`, `2`, `v == 2.0`, `9007199254740993`, `! 9007199254740993 is not exact as a double; to round it, write double(x)`},
		{`"double"`, `2`, `v == 2.0`, `9223372036854775807`, `! is not exact as a double`},
		{`"double"`, `2`, `v == 2.0`, `double(9007199254740993)`, `9007199254740992`},
		{`"double"`, `2`, `v == 2.0`, `-9223372036854775808`, `-9223372036854776000`},
		{`"float"`, `2`, `v == 2.0`, `16777217`, `! 16777217 is not exact as a float`},
		{`"string"`, `"é€"`, `v.size() == 2`, `v + '!'`, `"é€!"`},
		{`"bytes"`, `"/wA="`, `v == b'\xff\x00' && v.size() == 2`, `v + b'a'`, `"/wBh"`},
		{`"null"`, `null`, `v == null`, `null`, `null`},
		{fixed, `"YWJj"`, `v == b'abc'`, `b'xyz'`, `"eHl6"`},
		{fixed, `"YWJj"`, `v.size() == 3`, `v + v`, `! 6 bytes do not fit into F, which has 3`},
		{enum, `"blue"`, `v == 'blue'`, `v == 'red' ? 'blue' : 'red'`, `"red"`},
		{enum, `"blue"`, `v in ['red', 'blue']`, `v + 's'`, `! "blues" is not one of red, blue`},
		{uuid, id, `v.startsWith('0197')`, `v.upperAscii()`, strings.ToUpper(id)},
		{uuid, id, `v.isUuid()`, `v + 'x'`, `! is not a UUID`},
		{fixedID, id, `v == ` + strings.ReplaceAll(id, `"`, `'`), `v.replace('a', 'b')`, strings.ReplaceAll(id, "a", "b")},
		{fixedID, id, `v.isUuid()`, `v.substring(1)`, `! is not a UUID`},

		{decimal, `"1234567890.12"`, `v == decimal('1234567890.12') && v != decimal('1234567890.13')`, `v + decimal('0.01')`, `"1234567890.13"`},
		{decimal, `"-0.01"`, `v == decimal('-0.010')`, `v * 100`, `"-1.00"`},
		{decimal, `"0.00"`, `v == 0 && 0 == v`, `decimal('0.125')`, `! 0.125 has more digits after the point than the 2 of the decimal`},
		{decimal, `"0.00"`, `v >= 0 && -1 < v`, `decimal('-0.125').round(2, 'half_up')`, `"-0.13"`},
		{decimal, `"0.05"`, `v in [decimal('0.05'), 7] && !(v in [1, 2])`, `decimal('0.12500') - decimal('0.00500')`, `"0.12"`},
		{decimal, `"9999999999.99"`, `v > 1000000000`, `v + 1`, `! 10000000000.99 has more than the 12 digits of the decimal`},
		{decimal, `"1.00"`, `v == 1`, `v.div(0, 2, 'up')`, `! division by zero`},
		{decimal, `"1.00"`, `string(v) == '1.00' && int(v) == 1 && double(v) == 1.0`, `3`, `"3.00"`},
		{decimal, `"1.00"`, `type(v) == type(decimal(1))`, `9007199254740993`, `! has more than the 12 digits of the decimal`},
		{decimal, `"2.50"`, `-v == decimal('-2.5') && math.abs(-v) == v && math.sign(-v) == -1`, `v.div(3, 2, 'floor')`, `"0.83"`},
		{decimal, `"2.50"`, `math.greatest(v, 3) == 3 && math.least(3, v) == v && math.greatest(1, v, 2) == v`, `int(v)`, `! 2.50 is not a whole number; to drop its fraction, write int(x.round(0, 'down'))`},
		{decimal, `"2.50"`, `[v, 1, decimal('1.5')].sort() == [decimal(1), decimal('1.5'), v]`, `[v, 1].sum()`, `"3.50"`},
		{decimal, `"2.50"`, `[v, decimal('2.5'), 2].distinct() == [v, 2] && sets.contains([v], [decimal('2.500')])`, `v == 2 ? v : 1`, `"1.00"`},
		{decimal, `"2.50"`, `'%s'.format([v]) == '2.50' && decimal(0.1) == decimal('0.1')`, `decimal('x' + string(v))`, `! "x2.50" is not a decimal`},
		{fixedDec, `"-999999999.999"`, `v == decimal('-999999999.999')`, `v + 1000000000`, `"0.001"`},
		{longDec, `"12345678901234567.89"`, `v != decimal('12345678901234567.88') && v > decimal('12345678901234567.88')`, `v + 0`, `"12345678901234567.89"`},
		{longDec, `"90071992547409.93"`, `string(v) == '90071992547409.93'`, `v + decimal('100000000000000.01')`, `"190071992547409.94"`},
		{longDec, `"-90071992547409.93"`, `v < -90071992547409`, `v > 0 ? decimal(0) : v`, `"-90071992547409.93"`},

		{of("int", "date"), `"2026-01-31"`, `v == timestamp('2026-01-31T00:00:00Z')`, `v + duration('25h')`, `"2026-02-01"`},
		{of("int", "date"), `"1969-12-31"`, `v.getFullYear() == 1969`, `v - duration('1s')`, `"1969-12-30"`},
		{of("long", "timestamp-millis"), `"1969-12-31T23:59:59.999Z"`, `v < timestamp(0)`, `v + duration('1ms')`, `"1970-01-01T00:00:00.000Z"`},
		{of("long", "timestamp-micros"), `"2026-01-31T12:00:00.000001Z"`, `v > timestamp('2026-01-31T12:00:00Z')`, `v.truncate('day')`, `"2026-01-31T00:00:00.000Z"`},
		{of("long", "timestamp-micros"), `"2026-01-31T12:00:00Z"`, `v.getHours() == 12`, `now()`, `"2026-11-24T14:21:00.123456Z"`},
		{of("long", "timestamp-nanos"), `"2026-01-31T12:00:00.000000001Z"`, `v > timestamp('2026-01-31T12:00:00Z')`, `v - duration('2ns')`, `"2026-01-31T11:59:59.999999999Z"`},
		{of("long", "timestamp-nanos"), `"2026-01-31T12:00:00Z"`, `v > timestamp(0)`, `timestamp('2300-01-01T00:00:00Z')`, `! timestamp-nanos holds years 1678 to 2262`},
		{of("long", "local-timestamp-millis"), `"2026-01-31T12:00:00"`, `v == timestamp('2026-01-31T12:00:00Z')`, `v + duration('1h')`, `"2026-01-31T13:00:00.000"`},
		{of("long", "local-timestamp-micros"), `"2026-01-31T12:00:00"`, `v.getHours() == 12`, `v`, `"2026-01-31T12:00:00.000"`},
		{of("int", "time-millis"), `"12:30:00"`, `v == duration('12h30m')`, `v + duration('1500us')`, `"12:30:00.001"`},
		{of("int", "time-millis"), `"12:30:00"`, `v.getMinutes() == 750`, `v + v`, `! 25h0m0s is not a time of day`},
		{of("long", "time-micros"), `"23:59:59.999999"`, `v < duration('24h')`, `v - duration('24h')`, `! is not a time of day`},
		{of("long", "time-micros"), `"00:00:00"`, `v == duration('0s')`, `duration('1us')`, `"00:00:00.000001"`},

		{`["null","string"]`, `null`, `v == null`, `v`, `null`},
		{`["null","string"]`, `"x"`, `v == 'x' && v != null`, `v == null ? 'none' : v + '!'`, `"x!"`},
		{`["long","null"]`, `5`, `v == 5`, `v == 5 ? null : 1`, `null`},
		{`["long","null"]`, `null`, `!(v == 5)`, `v + 1`, `! is null`},
		{`["null",` + decimal + `]`, `"1.50"`, `v == decimal('1.5') && v != null && v != 1`, `v * 2`, `"3.00"`},
		{`["null",` + decimal + `]`, `null`, `v == null && v != 1`, `v + 1`, `! is null`},
		{`["null",` + longDec + `]`, `"12345678901234567.89"`, `v == decimal('12345678901234567.89')`, `v`, `"12345678901234567.89"`},
		{`["long",` + decimal + `]`, `{"long":3}`, `v == decimal(3) && decimal('3.0') == v && v < decimal('3.5')`, `v == decimal(3) ? decimal('4.00') : decimal(1)`, `"4.00"`},
		{`{"type":"map","values":` + longDec + `}`, `{"a":"12345678901234567.89"}`, `v['a'] == v.a && v.a != 1`, `v.with('b', 1).with('c', v.a)`, `{"a":"12345678901234567.89","b":"1.00","c":"12345678901234567.89"}`},
		{`{"type":"array","items":` + longDec + `}`, `["12345678901234567.89","0.01"]`, `v.sum() == decimal('12345678901234567.90') && v.exists(x, x < 1) && decimal('0.010') in v`, `v.sort() + [1] + v.map(x, x - 1)`, `["0.01","12345678901234567.89","1.00","12345678901234566.89","-0.99"]`},
		{`{"type":"array","items":["null",` + longDec + `]}`, `["12345678901234567.89",null]`, `v[0] != null && v[1] == null`, `v.filter(x, x != null)`, `["12345678901234567.89"]`},
		{`{"type":"array","items":{"type":"record","name":"E","fields":[{"name":"a","type":` + longDec + `}]}}`, `[{"a":"12345678901234567.89"}]`, `v[0].a > 1 && v.map(x, x.a).sum() == v[0].a`, `[{'a': v[0].a}, {'a': 2}]`, `[{"a":"12345678901234567.89"},{"a":"2.00"}]`},
		{`["null",` + enum + `]`, `"red"`, `v == 'red'`, `'blue'`, `"blue"`},
		{`["null",` + of("long", "timestamp-millis") + `]`, `"2026-01-31T12:00:00Z"`, `v != null`, `timestamp(0)`, `"1970-01-01T00:00:00.000Z"`},
		{`["null",{"type":"array","items":"long"}]`, `[1,2]`, `v[1] == 2 && v.size() == 2`, `v + [3]`, `[1,2,3]`},

		{`["null","string","long"]`, `{"long":7}`, `v == 7`, `'seven'`, `"seven"`},
		{`["null","string","long"]`, `{"string":"x"}`, `v == 'x'`, `7`, `7`},
		{`["null","string","long"]`, `null`, `v == null`, `v == null ? 1 : 2`, `1`},
		{`["null","string","long"]`, `null`, `v == null`, `v == null ? true : false`, `! but this is a bool`},
		{`["double","string"]`, `{"double":1.5}`, `v == 1.5`, `dyn(v)`, `1.5`},
		{`{"type":"map","values":["null","double"]}`, `{"a":1.5,"b":null}`, `v['a'] == 1.5 && v['b'] == null && !('c' in v)`, `v.with('b', 2.0)`, `{"a":1.5,"b":2}`},
		{`{"type":"array","items":` + enum + `}`, `["red"]`, `v[0] == 'red'`, `v + ['blue']`, `["red","blue"]`},
		{`{"type":"array","items":` + fixedID + `}`, `[` + id + `]`, `v[0].isUuid()`, `v + v`, `[` + id + `,` + id + `]`},
	} {
		again := test.typ
		for _, name := range []string{"D", "F", "E", "U"} { // a named type is defined once
			again = strings.Replace(again, `"name":"`+name+`"`, `"name":"`+name+`2"`, 1)
		}
		s := parse(t, `{"type":"record","name":"R","fields":[{"name":"v","type":`+test.typ+`},{"name":"w","type":`+again+`}]}`)
		env := newEnv(t, Root{Schema: s})
		v := view(t, s, append(encodeJSON(t, parse(t, `{"type":"record","name":"R","fields":[{"name":"v","type":`+test.typ+`}]}`), `{"v":`+test.value+`}`), zeroOf(t, again)...))
		n := s.Root().Field("w").Type
		for _, fast := range []bool{true, false} {
			p, err := env.compile(test.sees, Condition("a test"), fast)
			if err != nil {
				t.Errorf("%s: %s: %v", test.typ, test.sees, err)
				break
			}
			bind(p, s)
			if ok, err := p.Bool(v); err != nil || !ok {
				t.Errorf("%s: %s is %v, %v; want true (closures: %v)", test.typ, test.sees, ok, err, fast)
			}
			want := Value(n, "w", "R")
			want.lenient = true
			p, err = env.compile(test.writes, want, fast)
			var enc []byte
			if err == nil {
				bind(p, s)
				enc, err = p.Append(nil, v)
			}
			if text, bad := strings.CutPrefix(test.written, "! "); bad {
				if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "F2", "F"), text) {
					t.Errorf("%s: %s gives %x, %v; want %s (closures: %v)", test.typ, test.writes, enc, err, text, fast)
				}
				continue
			}
			if err == nil {
				err = codec.Validate(n, enc)
			}
			if err != nil {
				t.Errorf("%s: %s: %v (closures: %v)", test.typ, test.writes, err, fast)
				continue
			}
			got, err := codec.AppendJSON(nil, n, enc)
			if err != nil || string(got) != test.written {
				t.Errorf("%s: %s gives %s, %v; want %s (closures: %v)", test.typ, test.writes, got, err, test.written, fast)
			}
		}
	}
}

// zeroOf returns a value of a type: the first branch, the first symbol, 0, and so on.
func zeroOf(t *testing.T, typ string) []byte {
	return zeroBody(parse(t, `{"type":"record","name":"R","fields":[{"name":"w","type":`+typ+`}]}`).Root())
}

func zeroBody(n *codec.Node) []byte {
	switch n.Kind {
	case codec.Null:
		return nil
	case codec.Float:
		return make([]byte, 4)
	case codec.Double:
		return make([]byte, 8)
	case codec.Fixed:
		return make([]byte, n.Size)
	case codec.Union:
		return append([]byte{0}, zeroBody(n.Branches[0])...)
	case codec.Record:
		var out []byte
		for i := range n.Fields {
			out = append(out, zeroBody(n.Fields[i].Type)...)
		}
		return out
	}
	return []byte{0}
}
