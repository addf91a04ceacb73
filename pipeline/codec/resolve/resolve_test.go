package resolve

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/avro"
	"millrace/pipeline"
	"millrace/pipeline/codec"
)

func mustParse(t testing.TB, text string) *codec.Schema {
	t.Helper()
	s, err := codec.ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fieldSchema returns a schema of a record with one field v of the type.
func fieldSchema(t testing.TB, typ string) *codec.Schema {
	t.Helper()
	return mustParse(t, `{"type":"record","name":"R","fields":[{"name":"v","type":`+typ+`}]}`)
}

func decodeJSON(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func readSchema(t testing.TB, name string) *codec.Schema {
	t.Helper()
	text, err := os.ReadFile("../../../schemas/" + name + ".avsc")
	if err != nil {
		t.Fatal(err)
	}
	return mustParse(t, string(text))
}

const orderEvent = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","type":"OrderCreated","timestamp":"1997-01-01T00:00:00.050Z","version":1,
	"metadata":{"source":"cdnow"},"data":{"id":"o-000001","user_id":"u-00001","items":[{"product_id":"cd","quantity":1,"price":11.77}],"total_amount":11.77}}`

func encodeEvent(t testing.TB, s *codec.Schema, text string) []byte {
	t.Helper()
	enc, err := codec.EncodeJSON(s, decodeJSON(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

// resolutions holds pairs of types, a value of the writer's type, and the value of the
// reader's type or, after "! ", the error.
var resolutions = []struct{ writer, reader, value, want string }{
	{`"int"`, `"int"`, `7`, `7`},
	{`"int"`, `"long"`, `-7`, `-7`},
	{`"int"`, `"float"`, `7`, `7`},
	{`"int"`, `"double"`, `7`, `7`},
	{`"long"`, `"float"`, `16777216`, `16777216`},
	{`"long"`, `"double"`, `-1`, `-1`},
	{`"float"`, `"double"`, `0.5`, `0.5`},
	{`"string"`, `"bytes"`, `"ab"`, `"YWI="`},
	{`"bytes"`, `"string"`, `"YWI="`, `"ab"`},
	{`"bytes"`, `"string"`, `"/w=="`, `! v: bytes that are not UTF-8 cannot become a string: byte 0 (0xff) is not UTF-8`},
	{`{"type":"array","items":"int"}`, `{"type":"array","items":"long"}`, `[1,2]`, `[1,2]`},
	{`{"type":"map","values":"int"}`, `{"type":"map","values":["null","double"]}`, `{"a":1}`, `{"a":1}`},
	{`"int"`, `["null","long"]`, `7`, `7`},
	{`"int"`, `["null","long","int"]`, `7`, `{"int":7}`}, // the same type has precedence over a promotion
	{`["int","long"]`, `"double"`, `{"long":7}`, `7`},
	{`["null","int"]`, `["double","null"]`, `null`, `null`},
	{`["null","int","string"]`, `["null","string","long"]`, `{"int":7}`, `7`},
	{`["string","int"]`, `["int","string"]`, `{"string":"x"}`, `"x"`},
	{`["null","string",{"type":"fixed","name":"F#","size":1}]`, `["null","int","string",{"type":"fixed","name":"F#","size":1}]`, `{"F#":"gA=="}`, `{"F#":"gA=="}`},
	{`{"type":"enum","name":"E#","symbols":["a","b"]}`, `{"type":"enum","name":"E#","symbols":["x","b","a"]}`, `"b"`, `"b"`},
	{`{"type":"enum","name":"E#","symbols":["a","b"]}`, `{"type":"enum","name":"E#","symbols":["x","a"],"default":"x"}`, `"b"`, `"x"`},
	{`{"type":"record","name":"R#","fields":[{"name":"a","type":"int"},{"name":"gone","type":{"type":"array","items":"string"}},{"name":"b","type":"string"}]}`,
		`{"type":"record","name":"R#","fields":[{"name":"c","type":"string","aliases":["b"]},{"name":"new","type":["null","string"],"default":null},{"name":"a","type":"double"},{"name":"n","type":"int","default":3}]}`,
		`{"a":1,"gone":["x","y"],"b":"z"}`, `{"c":"z","new":null,"a":1,"n":3}`},
	{`{"type":"record","name":"Old#","fields":[{"name":"a","type":"int"}]}`, `{"type":"record","name":"New#","aliases":["Old#"],"fields":[{"name":"a","type":"long"}]}`, `{"a":1}`, `{"a":1}`},
	{`{"type":"record","name":"L#","fields":[{"name":"v","type":"int"},{"name":"next","type":["null","L#"]}]}`,
		`{"type":"record","name":"L#","fields":[{"name":"next","type":["null","L#"]},{"name":"v","type":"long"}]}`,
		`{"v":1,"next":{"v":2,"next":null}}`, `{"next":{"next":null,"v":2},"v":1}`},
	{`{"type":"long","logicalType":"timestamp-millis"}`, `{"type":"long","logicalType":"timestamp-micros"}`, `"2026-01-31T12:00:00.123Z"`, `"2026-01-31T12:00:00.123Z"`},
	{`{"type":"long","logicalType":"timestamp-micros"}`, `{"type":"long","logicalType":"timestamp-millis"}`, `"1969-12-31T23:59:59.999999Z"`, `"1969-12-31T23:59:59.999Z"`},
	{`{"type":"int","logicalType":"time-millis"}`, `{"type":"long","logicalType":"time-micros"}`, `"10:00:00.123"`, `"10:00:00.123"`},
	{`{"type":"long","logicalType":"timestamp-millis"}`, `{"type":"long","logicalType":"timestamp-nanos"}`, `"9999-01-01T00:00:00Z"`, `! v: the time 253370764800000 is out of range in the finer unit`},

	// Decided per value.
	{`{"type":"enum","name":"E#","symbols":["a","new"]}`, `{"type":"enum","name":"E#","symbols":["a"]}`, `"a"`, `"a"`},
	{`{"type":"enum","name":"E#","symbols":["a","new"]}`, `{"type":"enum","name":"E#","symbols":["a"]}`, `"new"`, `! v: E# has no symbol "new", and no default`},
	{`["null","string"]`, `"string"`, `"x"`, `"x"`},
	{`["null","string"]`, `"string"`, `null`, `! v: null cannot become string`},
	{`["null","int"]`, `"double"`, `7`, `7`},
	{`["null","string","int"]`, `["null","int"]`, `{"int":7}`, `7`},
	{`["null","string","int"]`, `["null","int"]`, `{"string":"x"}`, `! v: string matches no branch of null or int`},
	{`{"type":"array","items":"string"}`, `{"type":"array","items":"boolean"}`, `[]`, `[]`},
	{`{"type":"array","items":["null","string"]}`, `{"type":"array","items":"string"}`, `["x",null]`, `! v[1]: null cannot become string`},
	{`{"type":"map","values":["null","string"]}`, `{"type":"map","values":"string"}`, `{"k 1":null}`, `! v["k 1"]: null cannot become string`},
	{`{"type":"record","name":"Q#","fields":[{"name":"in","type":["null",{"type":"record","name":"P#","fields":[{"name":"e","type":{"type":"enum","name":"E#","symbols":["a","new"]}}]}]}]}`,
		`{"type":"record","name":"Q#","fields":[{"name":"in","type":["null",{"type":"record","name":"P#","fields":[{"name":"e","type":{"type":"enum","name":"E#","symbols":["a"]}}]}]}]}`,
		`{"in":{"e":"new"}}`, `! v.in.e: E# has no symbol "new", and no default`},

	// Decimals keep their exact value.
	{decimalSchema("bytes", 6, 2), decimalSchema("bytes", 9, 4), `"-12.50"`, `"-12.5000"`},
	{decimalSchema("bytes", 6, 2), decimalSchema("bytes", 6, 1), `"12.50"`, `"12.5"`},
	{decimalSchema("bytes", 6, 2), decimalSchema("bytes", 6, 1), `"12.55"`, `! v: a decimal(6,2) with more than 1 digits after the point`},
	{decimalSchema("bytes", 6, 2), decimalSchema("bytes", 4, 2), `"99.99"`, `"99.99"`},
	{decimalSchema("bytes", 6, 2), decimalSchema("bytes", 4, 2), `"-100.00"`, `! v: a decimal(6,2) with more digits than decimal(4,2) has`},
	{decimalSchema("bytes", 6, 2), `{"type":"fixed","name":"D#","size":4,"logicalType":"decimal","precision":9,"scale":2}`, `"-1.28"`, `"-1.28"`},
	{`{"type":"fixed","name":"D#","size":4,"logicalType":"decimal","precision":9,"scale":2}`, decimalSchema("bytes", 9, 2), `"-1.28"`, `"-1.28"`},
	{`{"type":"fixed","name":"D#","size":4,"logicalType":"decimal","precision":9,"scale":0}`, `{"type":"fixed","name":"D#","size":2,"logicalType":"decimal","precision":4,"scale":0}`, `"-9999"`, `"-9999"`},
	{decimalSchema("bytes", 6, 2), `"bytes"`, `"1.00"`, `"ZA=="`},
	{`["null",` + decimalSchema("bytes", 6, 2) + `]`, `["null",` + decimalSchema("bytes", 8, 3) + `]`, `"1.25"`, `"1.250"`},

	// Names.
	{`{"type":"record","name":"dev.db.New#","fields":[{"name":"a","type":"int"}]}`, `{"type":"record","name":"prod.db.New#","fields":[{"name":"a","type":"int"}]}`, `{"a":1}`, `{"a":1}`},
	{`{"type":"enum","name":"dev.E#","symbols":["a","b"]}`, `{"type":"enum","name":"prod.Other#","aliases":["dev.E#"],"symbols":["b","a"]}`, `"a"`, `"a"`},
	{`["null",{"type":"record","name":"dev.A#","fields":[{"name":"a","type":"int"}]},{"type":"record","name":"dev.B#","fields":[{"name":"a","type":"int"}]}]`,
		`["null",{"type":"record","name":"prod.B#","fields":[{"name":"a","type":"int"}]},{"type":"record","name":"prod.A#","fields":[{"name":"a","type":"int"}]}]`,
		`{"dev.A#":{"a":1}}`, `{"prod.A#":{"a":1}}`},
	{`{"type":"record","name":"x.N#","fields":[{"name":"a","type":"int"}]}`,
		`[{"type":"record","name":"y.N#","fields":[{"name":"a","type":"int"}]},{"type":"record","name":"z.N#","aliases":["x.N#"],"fields":[{"name":"a","type":"int"}]}]`,
		`{"a":1}`, `{"z.N#":{"a":1}}`},
}

func decimalSchema(typ string, precision, scale int) string {
	return fmt.Sprintf(`{"type":%q,"logicalType":"decimal","precision":%d,"scale":%d}`, typ, precision, scale)
}

// Each value of the table resolves as expected, alone and within an array, a map and a
// record, and twmb/avro agrees.
func TestResolutionOfEachKind(t *testing.T) {
	for i, test := range resolutions {
		for _, wrap := range [][3]string{
			{"%s", "%s", ""}, {`{"type":"array","items":%s}`, "[%s]", "[0]"}, {`{"type":"map","values":%s}`, `{"k":%s}`, `["k"]`},
			{`{"type":"record","name":"Around","fields":[{"name":"x","type":%s}]}`, `{"x":%s}`, ".x"},
		} {
			named := func(s string) string { return strings.ReplaceAll(s, "#", fmt.Sprint(i)) }
			writer := fieldSchema(t, fmt.Sprintf(wrap[0], named(test.writer)))
			reader := mustParse(t, `{"type":"record","name":"R","fields":[{"name":"first","type":"string","default":"f"},{"name":"v","type":`+fmt.Sprintf(wrap[0], named(test.reader))+`}]}`)
			r, err := New(writer, reader)
			if err != nil {
				t.Errorf("%s as %s: %v", test.writer, test.reader, err)
				continue
			}
			body, err := codec.EncodeJSON(writer, decodeJSON(t, `{"v":`+fmt.Sprintf(wrap[1], named(test.value))+`}`))
			if err != nil {
				t.Fatal(err)
			}
			out, err := r.Append(nil, body)
			if why, bad := strings.CutPrefix(test.want, "! v"); bad {
				why = "bad_schema: R cannot be read with our schema: v" + wrap[2] + named(why)
				if pipeline.ClassOf(err) != pipeline.ClassReject || err == nil || err.Error() != why || out != nil {
					t.Errorf("%s as %s: got %x, %v; want %s", test.writer, test.reader, out, err, why)
				}
				continue
			}
			if err == nil {
				err = codec.Validate(reader.Root(), out)
			}
			if err != nil {
				t.Errorf("%s as %s: %v", test.writer, test.reader, err)
				continue
			}
			got, err := codec.AppendJSON(nil, reader.Root(), out)
			if want := `{"first":"f","v":` + fmt.Sprintf(wrap[1], named(test.want)) + `}`; err != nil || string(got) != want {
				t.Errorf("%s as %s\ngot  %s, %v\nwant %s", test.writer, test.reader, got, err, want)
			}
			resolved, err := avro.Resolve(writer.Avro(), reader.Avro())
			if err != nil || strings.Contains(test.writer, `"time`) { // it decides per schema, and copies times
				continue
			}
			var native any
			if _, err := resolved.Decode(body, &native, avro.TaggedUnions()); err != nil {
				t.Errorf("%s as %s: twmb/avro: %v", test.writer, test.reader, err)
				continue
			}
			theirs, err := reader.Avro().Encode(native)
			if err != nil || !bytes.Equal(theirs, out) {
				t.Errorf("%s as %s: got %x, but twmb/avro gives %x, %v", test.writer, test.reader, out, theirs, err)
			}
		}
	}
}

// FuzzResolve resolves random bytes with every resolution of the table. The output must
// be a valid body of the reader's schema.
func FuzzResolve(f *testing.F) {
	type resolution struct {
		*Resolver
		reader *codec.Schema
	}
	var list []resolution
	for _, test := range resolutions {
		named := func(s string) string { return strings.ReplaceAll(s, "#", "0") }
		writer, reader := fieldSchema(f, named(test.writer)), fieldSchema(f, named(test.reader))
		r, err := New(writer, reader)
		if err != nil {
			f.Fatal(err)
		}
		body, err := codec.EncodeJSON(writer, decodeJSON(f, `{"v":`+named(test.value)+`}`))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		if r != nil {
			list = append(list, resolution{r, reader})
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, r := range list {
			out, err := r.Append(nil, body)
			if err == nil {
				err = codec.Validate(r.reader.Root(), out)
			} else if pipeline.ClassOf(err) == pipeline.ClassReject {
				continue
			}
			if err != nil {
				t.Fatalf("%x as %s: %x, %v", body, r.reader, out, err)
			}
		}
	})
}

// Only schemas of which no value fits are refused, with the field and the reason.
func TestNewRefusesSchemasThatDoNotResolve(t *testing.T) {
	for _, test := range []struct{ writer, reader, want string }{
		{`"string"`, `"int"`, "v: string cannot become int"},
		{`"long"`, `"int"`, "v: long cannot become int"},
		{`{"type":"fixed","name":"F","size":2}`, `{"type":"fixed","name":"F","size":3}`, "v: F has 2 bytes, and F has 3"},
		{`{"type":"record","name":"Q","fields":[]}`, `{"type":"record","name":"Q","fields":[{"name":"new","type":"int"}]}`, "v: Q.new has no default, and the writer's schema lacks it"},
		{`"string"`, `["null","int"]`, "v: string matches no branch of null or int"},
		{`["null","string"]`, `"long"`, "v: no branch of null or string can become long"},
		{`{"type":"enum","name":"E","symbols":["a"]}`, `{"type":"enum","name":"E","symbols":["b"]}`, "v: E has none of the symbols of E (a), and no default"},
		{`{"type":"fixed","name":"F","size":2}`, `"bytes"`, "v: F cannot become bytes"},
		{`{"type":"record","name":"Q","fields":[{"name":"x","type":{"type":"record","name":"Z","fields":[{"name":"y","type":"int"}]}}]}`,
			`{"type":"record","name":"Q","fields":[{"name":"x","type":{"type":"record","name":"Z","fields":[{"name":"y","type":"string"}]}}]}`, "v.x.y: int cannot become string"},
		{`{"type":"record","name":"a.Q","fields":[]}`, `{"type":"record","name":"b.Other","fields":[]}`, "v: a.Q is not b.Other: the names differ, and it is no alias"},
		{`{"type":"record","name":"a.Q","fields":[]}`, `{"type":"record","name":"b.Other","aliases":["c.Q"],"fields":[]}`, "v: a.Q is not b.Other: the names differ, and it is no alias"},
		{`{"type":"record","name":"a.Q","fields":[]}`, `[{"type":"record","name":"b.Q","fields":[]},{"type":"record","name":"c.Q","fields":[]}]`, "v: a.Q is ambiguous: it matches 2 branches of b.Q or c.Q; add an alias to one of them"},
		{`{"type":"int","logicalType":"date"}`, `{"type":"long","logicalType":"timestamp-millis"}`, "v: int (date) is not long (timestamp-millis)"},
		{`{"type":"record","name":"Q","fields":[{"name":"a","type":"int"},{"name":"b","type":"int"}]}`,
			`{"type":"record","name":"Q","fields":[{"name":"a","type":"int","aliases":["b"]}]}`, "v: the writer's fields a and b are both a, by alias"},
	} {
		if _, err := New(fieldSchema(t, test.writer), fieldSchema(t, test.reader)); err == nil || err.Error() != test.want {
			t.Errorf("%s as %s: got %v, want %s", test.writer, test.reader, err, test.want)
		}
	}
}

func TestResolvingAllocatesNothing(t *testing.T) {
	reader := readSchema(t, "OrderCreated")
	writer, err := reader.With([]codec.NewField{{Path: []string{"data", "region"}, Type: "string", Default: `"eu"`}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(writer, reader)
	if err != nil {
		t.Fatal(err)
	}
	body := encodeEvent(t, writer, orderEvent)
	dst := make([]byte, 0, 1024)
	st := new(state)
	if n := testing.AllocsPerRun(100, func() { // without the pool of states, which drops some with the race detector
		st.fields = st.fields[:0]
		if _, _, err := r.root(st, dst, body); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
	if out, err := r.Append(nil, body); err != nil || !bytes.Equal(out, encodeEvent(t, reader, orderEvent)) {
		t.Errorf("got %x, %v", out, err)
	}
}

func BenchmarkResolve(b *testing.B) {
	reader := readSchema(b, "OrderCreated")
	writer, err := reader.With([]codec.NewField{{Path: []string{"data", "region"}, Type: "string", Default: `"eu"`}})
	if err != nil {
		b.Fatal(err)
	}
	r, err := New(writer, reader)
	if err != nil {
		b.Fatal(err)
	}
	body := encodeEvent(b, writer, orderEvent)
	b.Run("bytes", func(b *testing.B) {
		b.ReportAllocs()
		var dst []byte
		for b.Loop() {
			if dst, err = r.Append(dst[:0], body); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode-and-encode", func(b *testing.B) { // with twmb/avro
		resolved, err := avro.Resolve(writer.Avro(), reader.Avro())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			var v any
			if _, err := resolved.Decode(body, &v); err != nil {
				b.Fatal(err)
			}
			if _, err := reader.Avro().Encode(v); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestResolverGivesTheSameBytesEachTime(t *testing.T) {
	schema := func(fields string) *codec.Schema {
		s, err := codec.ParseSchema(`{"type":"record","name":"E","fields":[` + fields + `]}`)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	writer := schema(`{"name":"m","type":{"type":"map","values":"int"}},{"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},{"name":"gone","type":"string"},{"name":"n","type":"int"}`)
	reader := schema(`{"name":"n","type":"long"},{"name":"m","type":{"type":"map","values":"int"}},{"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},{"name":"new","type":["null","string"],"default":null}`)
	r, err := New(writer, reader)
	if err != nil {
		t.Fatal(err)
	}
	body := encodeEvent(t, writer, `{"m":{"d":1,"a":2,"c":3,"b":4,"e":5},"at":1234567890123456,"gone":"x","n":7}`)
	first, err := r.Append(nil, body)
	if err != nil {
		t.Fatal(err)
	}
	if err := codec.Validate(reader.Root(), first); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		again, err := r.Append(nil, body)
		if err != nil || string(again) != string(first) {
			t.Fatalf("%x, then %x (%v)", first, again, err)
		}
	}
}

// 30 levels become 60 and more, because each is in a union for the reader: the limits
// hold for the output, too.
func TestResolvedBodyIsWithinTheLimits(t *testing.T) {
	writer := mustParse(t, `{"type":"record","name":"N","fields":[{"name":"next","type":{"type":"array","items":"N"}}]}`)
	reader := mustParse(t, `{"type":"record","name":"N","fields":[{"name":"next","type":{"type":"array","items":["null","N"]}}]}`)
	r, err := New(writer, reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		depth int
		ok    bool
	}{{20, true}, {21, true}, {22, false}, {31, false}} {
		body := strings.Repeat("\x02", test.depth) + "\x00" + strings.Repeat("\x00", test.depth)
		if err := codec.Validate(writer.Root(), []byte(body)); err != nil {
			t.Fatal(err)
		}
		out, err := r.Append(nil, []byte(body))
		if (err == nil) != test.ok || err != nil && !strings.Contains(err.Error(), "nested more than 64 deep") {
			t.Errorf("%d levels: %x, %v", test.depth, out, err)
		}
	}
}

// Changes name each difference once, with its path, in the order of the reader's fields.
func TestChangesNameTheDifferences(t *testing.T) {
	writer := mustParse(t, `{"type":"record","name":"R","fields":[
		{"name":"id","type":"string"},{"name":"segment","type":["null","string"]},{"name":"n","type":"int"},
		{"name":"status","type":{"type":"enum","name":"S","symbols":["a","b","c"]}},
		{"name":"a","type":{"type":"record","name":"Address","fields":[{"name":"zip","type":"string"},{"name":"new","type":"long"}]}},
		{"name":"b","type":"Address"},
		{"name":"items","type":{"type":"array","items":["null",{"type":"record","name":"I","fields":[{"name":"q","type":["null","int"]},{"name":"sku","type":"string"}]}]}}]}`)
	reader := mustParse(t, `{"type":"record","name":"R","fields":[
		{"name":"n","type":"long"},{"name":"id","type":"string"},{"name":"origin","type":"string","default":"web"},
		{"name":"status","type":{"type":"enum","name":"S","symbols":["a","b"]}},
		{"name":"a","type":{"type":"record","name":"Address","fields":[{"name":"zip","type":"string"}]}},
		{"name":"b","type":"Address"},
		{"name":"items","type":{"type":"array","items":["null",{"type":"record","name":"I","fields":[{"name":"q","type":"int"}]}]}}]}`)
	changes, err := Of(writer, reader)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		got = append(got, fmt.Sprint(c.Kind, " ", c))
	}
	want := []string{
		"converted n: int becomes long",
		`defaulted origin: "web"`,
		"partial status: S has no symbols c, and no default",
		"dropped a.new: long",
		"dropped b.new: long",
		"partial items[].q: null cannot become int",
		"dropped items[].sku: string",
		"dropped segment: null or string",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if c, err := Of(reader, reader); len(c) > 0 || err != nil {
		t.Errorf("the same schema: %v, %v", c, err)
	}
}

// Schemas that differ only in names, docs, or in what does not change the bytes need no
// resolution.
func TestNoResolverIfTheBytesStayTheSame(t *testing.T) {
	for _, test := range [][2]string{
		{`"int"`, `"long"`}, {`"string"`, `"bytes"`}, {`["null","int"]`, `["null","long","string"]`},
		{`{"type":"record","name":"a.Q","fields":[{"name":"x","type":"int"}]}`, `{"type":"record","name":"b.Q","fields":[{"name":"y","aliases":["x"],"type":"int"}]}`},
		{`{"type":"enum","name":"E","symbols":["a"]}`, `{"type":"enum","name":"E","symbols":["a","b"]}`},
	} {
		if r, err := New(fieldSchema(t, test[0]), fieldSchema(t, test[1])); r != nil || err != nil {
			t.Errorf("%s as %s: %v, %v", test[0], test[1], r, err)
		}
	}
}
