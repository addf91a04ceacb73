package expr

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
)

// everything is a record with a field of every type that an expression can read.
const everything = `{"type":"record","name":"Everything","namespace":"test","fields":[
	{"name":"b","type":"boolean"},
	{"name":"i","type":"int"},
	{"name":"l","type":"long"},
	{"name":"f","type":"float"},
	{"name":"d","type":"double"},
	{"name":"s","type":"string"},
	{"name":"color","type":{"type":"enum","name":"Color","symbols":["red","blue","a"]}},
	{"name":"by","type":"bytes"},
	{"name":"fx","type":{"type":"fixed","name":"Four","size":4}},
	{"name":"id","type":{"type":"string","logicalType":"uuid"}},
	{"name":"uid","type":{"type":"fixed","name":"UID","size":16,"logicalType":"uuid"}},
	{"name":"dec","type":{"type":"bytes","logicalType":"decimal","precision":12,"scale":2}},
	{"name":"fdec","type":{"type":"fixed","name":"Money","size":9,"logicalType":"decimal","precision":20,"scale":4}},
	{"name":"day","type":{"type":"int","logicalType":"date"}},
	{"name":"tms","type":{"type":"long","logicalType":"timestamp-millis"}},
	{"name":"tus","type":{"type":"long","logicalType":"timestamp-micros"}},
	{"name":"tns","type":{"type":"long","logicalType":"timestamp-nanos"}},
	{"name":"ltus","type":{"type":"long","logicalType":"local-timestamp-micros"}},
	{"name":"oms","type":{"type":"int","logicalType":"time-millis"}},
	{"name":"ous","type":{"type":"long","logicalType":"time-micros"}},
	{"name":"nb","type":["null","boolean"]},
	{"name":"nl","type":["null","long"]},
	{"name":"nd","type":["double","null"]},
	{"name":"ns","type":["null","string"]},
	{"name":"nt","type":["null",{"type":"long","logicalType":"timestamp-millis"}]},
	{"name":"m","type":{"type":"map","values":"string"}},
	{"name":"ml","type":{"type":"map","values":["null","long"]}},
	{"name":"list","type":{"type":"array","items":"long"}},
	{"name":"items","type":{"type":"array","items":{"type":"record","name":"Item","fields":[{"name":"sku","type":"string"},{"name":"n","type":"int"}]}}},
	{"name":"nlist","type":["null",{"type":"array","items":"string"}]},
	{"name":"sub","type":["null",{"type":"record","name":"Sub","fields":[{"name":"q","type":"int"},{"name":"note","type":["null","string"]}]}]},
	{"name":"any","type":["null","string","long"]},
	{"name":"rec","type":{"type":"record","name":"Rec","fields":[{"name":"x","type":"long"},{"name":"y","type":"string"}]}},
	{"name":"ndec","type":["null",{"type":"bytes","logicalType":"decimal","precision":30,"scale":3}]},
	{"name":"prices","type":{"type":"array","items":{"type":"record","name":"Price","fields":[{"name":"dec","type":{"type":"bytes","logicalType":"decimal","precision":30,"scale":2}}]}}}
]}`

var (
	someTexts  = []string{"", "a", "ab", "Abc", "é€", "k", "red", "1", "true", "2026-01-31T12:00:00Z"}
	someInts   = []int64{0, 1, -1, 2, 7, 100, 1 << 40, math.MaxInt64, math.MinInt64}
	someFloats = []float64{0, 1, -1, 0.5, 2.5, 7, 1e6, 1e21, 9.3e18, -9.3e18, math.Inf(1), math.NaN(), math.Copysign(0, -1)}
	someTimes  = []int64{0, 1, -1, 1769860800000, 1769860800123, -62135596800000, 253402300799999, 253402300800000}
)

// body draws a random value of type n.
func body(t *rapid.T, n *codec.Node) []byte {
	pick := func(v []int64) int64 { return rapid.SampledFrom(v).Draw(t, "int") }
	switch n.Kind {
	case codec.Null:
		return nil
	case codec.Boolean:
		return codec.AppendBool(nil, rapid.Bool().Draw(t, "bool"))
	case codec.Int, codec.Long:
		v := pick(someInts)
		switch unitOf(n) {
		case days:
			v = pick([]int64{0, 1, -1, 20484, -719162, 2932896})
		case millis:
			v = pick(someTimes)
		case micros:
			v = pick(someTimes) * 1000
		case nanos:
			v = pick([]int64{0, 1, -1, 1769860800123456789, math.MaxInt64, math.MinInt64})
		case timeMillis:
			v = pick([]int64{0, 1, 86399999})
		case timeMicros, timeNanos:
			v = pick([]int64{0, 1, 86399999999})
		}
		if n.Kind == codec.Int {
			v = int64(int32(v))
		}
		return codec.AppendLong(nil, v)
	case codec.Float:
		return codec.AppendFloat(nil, float32(rapid.SampledFrom(someFloats).Draw(t, "float")))
	case codec.Double:
		return codec.AppendDouble(nil, rapid.SampledFrom(someFloats).Draw(t, "double"))
	case codec.String:
		if n.Logical == "uuid" {
			return codec.AppendString(nil, "0197e0a1-0000-7000-8000-00000000000a")
		}
		return codec.AppendString(nil, rapid.SampledFrom(someTexts).Draw(t, "text"))
	case codec.Enum:
		return codec.AppendLong(nil, int64(rapid.IntRange(0, len(n.Symbols)-1).Draw(t, "symbol")))
	case codec.Bytes:
		if n.Logical == "decimal" {
			return codec.AppendString(nil, rapid.SampledFrom([]string{"\x00", "a", "\xff\x01", "\x7f\xff\xff", "\x16\x5b\x02\x2b", "\xe9\xa4\xfd\xd5"}).Draw(t, "decimal"))
		}
		return codec.AppendString(nil, rapid.SampledFrom([]string{"", "a", "\xff\x01", "\x7f\xff\xff"}).Draw(t, "bytes"))
	case codec.Fixed:
		if n.Logical == "decimal" { // within its precision
			sign := rapid.SampledFrom([]byte{0, 0xff}).Draw(t, "sign")
			rest := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0xff}), 0, n.Size-1).Draw(t, "decimal")
			return append(bytes.Repeat([]byte{sign}, n.Size-len(rest)), rest...)
		}
		return rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0xff}), n.Size, n.Size).Draw(t, "fixed")
	case codec.Union:
		branch := rapid.IntRange(0, len(n.Branches)-1).Draw(t, "branch")
		return append(codec.AppendLong(nil, int64(branch)), body(t, n.Branches[branch])...)
	case codec.Record:
		var out []byte
		for i := range n.Fields {
			out = append(out, body(t, n.Fields[i].Type)...)
		}
		return out
	}
	var out []byte
	for range rapid.IntRange(0, 2).Draw(t, "blocks") {
		count := int64(rapid.IntRange(1, 2).Draw(t, "count"))
		var block []byte
		for range count {
			if n.Kind == codec.Map {
				block = append(block, codec.AppendString(nil, rapid.SampledFrom([]string{"k", "a", "", "é€"}).Draw(t, "key"))...)
			}
			block = append(block, body(t, n.Elem)...)
		}
		if rapid.Bool().Draw(t, "sized") {
			out = codec.AppendLong(codec.AppendLong(out, -count), int64(len(block)))
		} else {
			out = codec.AppendLong(out, count)
		}
		out = append(out, block...)
	}
	return append(out, 0)
}

// text draws a random expression of a type.
func text(t *rapid.T, kind string, depth int) string {
	one := func(options ...string) string { return rapid.SampledFrom(options).Draw(t, kind) }
	if depth <= 0 {
		switch kind {
		case "bool":
			return one("b", "nb", "true", "false", "ns == null", "nl != null", "has(nt)", "has(m.k)", "nlist == null", "sub != null", "any == null")
		case "int":
			return one("i", "l", "nl", "0", "1", "-1", "7", "9223372036854775807", "-9223372036854775808", "rec.x", "ml.k", "list[0]", "list.size()", "sub.q")
		case "double":
			return one("f", "d", "nd", "0.0", "1.0", "-1.5", "1e300")
		case "decimal":
			return one("dec", "fdec", "ndec", "prices[0].dec", "decimal('0.00')", "decimal('1.10')", "decimal('-7')", "decimal('922337203685477.5807')", "decimal('12345678901234567890.1')")
		case "string":
			return one("s", "color", "ns", "id", "uid", "rec.y", "m.k", "m['é€']", "''", "'a'", "'Abc'", "'é€'", "sub.note", "nlist[0]")
		case "time":
			return one("day", "tms", "tus", "tns", "ltus", "nt", "now()", "timestamp('2026-01-31T12:00:00Z')", "timestamp(0)")
		case "list":
			return one("list", "list", "[]", "[i]", "[1, l]", "[nl]", "list.map(x, x)", "[list[0]]")
		case "span":
			return one("oms", "ous", "duration('1h')", "duration('-1ns')", "duration('2500000h')")
		}
		return one("by", "fx", "b'a'", "b''")
	}
	sub := func(kind string) string { return "(" + text(t, kind, depth-1) + ")" }
	any := func() string {
		return one("int", "double", "decimal", "string", "time", "span", "bytes", "bool")
	}
	common := []func() string{
		func() string { return text(t, kind, 0) },
		func() string { return sub("bool") + " ? " + sub(kind) + " : " + sub(kind) },
	}
	var forms []func() string
	switch kind {
	case "bool":
		forms = []func() string{
			func() string { return sub("bool") + one(" && ", " || ") + sub("bool") },
			func() string { return sub("bool") + one(" && ", " || ") + sub("bool") },
			func() string { return "!" + sub("bool") },
			func() string { k := any(); return sub(k) + one(" == ", " != ") + sub(k) },
			func() string {
				k := any()
				return sub(k) + one(" < ", " <= ", " > ", " >= ") + sub(k)
			},
			func() string { return sub("int") + one(" < ", " <= ", " > ", " >= ") + sub("double") },
			func() string { return sub("double") + one(" < ", " <= ", " > ", " >= ") + sub("int") },
			func() string { return sub("int") + one(" < ", " <= ", " > ", " >= ", " == ", " != ") + sub("decimal") },
			func() string { return sub("decimal") + one(" < ", " <= ", " > ", " >= ", " == ", " != ") + sub("int") },
			func() string { return sub("decimal") + " in [1, decimal('1.100'), 7]" },
			func() string { return "prices.exists(x, x.dec > " + sub("decimal") + ")" },
			func() string { return sub("string") + one(".startsWith", ".endsWith", ".contains") + sub("string") },
			func() string { return sub("string") + ".matches('^[a-zA]+')" },
			func() string { return sub("string") + " in ['a', 'k', 'red']" },
			func() string { return sub("string") + " in ['a', s]" },
			func() string { return sub("int") + " in [1, 7, 9]" },
			func() string { return sub("string") + one(" in m", " in ml") },
			func() string { return sub(any()) + one(" == null", " != null") },
			func() string { return "items.exists(x, x.n > " + sub("int") + ")" },
		}
	case "int":
		forms = []func() string{
			func() string { return sub("int") + one(" + ", " - ", " * ", " / ", " % ") + sub("int") },
			func() string { return sub("int") + one(" + ", " - ", " * ", " / ", " % ") + sub("int") },
			func() string { return "-" + sub("int") },
			func() string { return "size(" + text(t, "string", depth-1) + ")" },
			func() string { return sub("bytes") + ".size()" },
			func() string { return "int(" + text(t, one("int", "double", "decimal", "time", "span"), depth-1) + ")" },
			func() string { return "ml[" + text(t, "string", depth-1) + "]" },
		}
	case "double":
		forms = []func() string{
			func() string { return sub("double") + one(" + ", " - ", " * ", " / ") + sub("double") },
			func() string { return "-" + sub("double") },
			func() string { return "double(" + text(t, one("int", "decimal"), depth-1) + ")" },
		}
	case "decimal":
		mode := func() string { return ", " + one("0", "2", "5") + ", '" + one(decimal.Modes...) + "')" }
		forms = []func() string{
			func() string { return sub("decimal") + one(" + ", " - ", " * ") + sub("decimal") },
			func() string { return sub("decimal") + one(" + ", " - ", " * ") + sub("int") },
			func() string { return sub("int") + one(" + ", " - ", " * ") + sub("decimal") },
			func() string { return "-" + sub("decimal") },
			func() string { return "decimal(" + text(t, one("int", "double", "decimal"), depth-1) + ")" },
			func() string { return "math.abs(" + text(t, "decimal", depth-1) + ")" },
			func() string { return sub("decimal") + ".div(" + text(t, one("int", "decimal"), depth-1) + mode() },
			func() string { return sub("decimal") + ".round(" + strings.TrimPrefix(mode(), ", ") },
			func() string { return sub("bool") + " ? " + sub("decimal") + " : " + sub("int") },
			func() string { return "(prices.map(x, x.dec) + [" + text(t, "decimal", depth-1) + "]).sum()" },
		}
	case "string":
		forms = []func() string{
			func() string { return sub("string") + " + " + sub("string") },
			func() string {
				return "string(" + text(t, one("int", "double", "decimal", "time", "span", "bool", "string"), depth-1) + ")"
			},
			func() string { return sub("string") + one(".lowerAscii()", ".upperAscii()", ".trim()") },
			func() string { return "m[" + text(t, "string", depth-1) + "]" },
		}
	case "time":
		forms = []func() string{
			func() string { return sub("time") + one(" + ", " - ") + sub("span") },
			func() string { return sub("span") + " + " + sub("time") },
		}
	case "span":
		forms = []func() string{
			func() string { return sub("time") + " - " + sub("time") },
			func() string { return sub("span") + one(" + ", " - ") + sub("span") },
		}
	case "list":
		forms = []func() string{
			func() string { return sub("list") + " + " + sub("list") },
			func() string { return sub("list") + " + [" + text(t, "int", depth-1) + "]" },
			func() string { return sub("list") + ".filter(x, x > " + sub("int") + ")" },
		}
	case "bytes":
		forms = []func() string{func() string { return sub("bytes") + " + " + sub("bytes") }}
	}
	forms = append(forms, common...)
	return forms[rapid.IntRange(0, len(forms)-1).Draw(t, "form")]()
}

// Closures and interpreter give the same results for random expressions and random
// events, and most expressions compile to closures.
func TestClosuresAgreeWithTheInterpreter(t *testing.T) {
	schema := parse(t, everything)
	env := newEnv(t, Root{Schema: schema})
	// A closure that only copies a field also copies values that CEL does not have,
	// such as a time after the year 9999. So no field of such a type is a target here.
	wants := map[string][]string{
		"time": {"day", "tns"},
		"int":  {"i", "l", "nl", "d", "dec"}, "double": {"d", "f", "nd"}, "decimal": {"dec", "fdec", "ndec"}, "string": {"s", "ns", "color", "id", "uid", "any"},
		"list": {"list"}, "span": {"oms", "ous"}, "bytes": {"by", "fx"}, "bool": {"b", "nb"},
	}
	// lenient: possible nulls fail at run time, not at compile time.
	fast, slow, compiled := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]string{"bool", "bool", "bool", "int", "double", "decimal", "decimal", "string", "time", "span", "bytes", "list"}).Draw(t, "kind")
		src := text(t, kind, rapid.IntRange(0, 4).Draw(t, "depth"))
		var want Want
		if kind == "bool" && rapid.Bool().Draw(t, "condition") {
			want = Condition("a test")
		} else {
			field := rapid.SampledFrom(wants[kind]).Draw(t, "field")
			want = Value(schema.Root().Field(field).Type, field, "test.Everything")
		}
		want.lenient = true
		quick, err := env.compile(src, want, true)
		if err != nil {
			if _, ok := err.(Errors); !ok {
				t.Fatalf("%s: %v", src, err)
			}
			return
		}
		plain, err := env.compile(src, want, false)
		if err != nil {
			t.Fatalf("%s: compiles to closures, but not for the interpreter: %v", src, err)
		}
		compiled++
		if quick.slow == nil {
			fast++
		} else {
			slow++
		}
		bind(quick, schema)
		bind(plain, schema)
		for range 4 {
			v := view(t, schema, body(t, schema.Root()))
			if want.node == nil {
				a, errA := quick.Bool(v)
				b, errB := plain.Bool(v)
				if a != b || (errA == nil) != (errB == nil) {
					t.Fatalf("%s: closures %v, %v; interpreter %v, %v", src, a, errA, b, errB)
				}
				continue
			}
			a, errA := quick.Append([]byte("x"), v)
			b, errB := plain.Append([]byte("x"), v)
			if want.node.Kind == codec.Array && errA == nil && errB == nil { // the blocks of an array may differ, so compare JSON
				a, errA = codec.AppendJSON(nil, want.node, a[1:])
				b, errB = codec.AppendJSON(nil, want.node, b[1:])
			}
			if !bytes.Equal(a, b) || (errA == nil) != (errB == nil) {
				t.Fatalf("%s as %s: closures %q, %v; interpreter %q, %v", src, want.node, a, errA, b, errB)
			}
		}
	})
	t.Logf("%d expressions compiled, %d of them to closures", compiled, fast)
	if fast < slow {
		t.Errorf("%d expressions compile to closures, %d need the interpreter; want more closures", fast, slow)
	}
}
