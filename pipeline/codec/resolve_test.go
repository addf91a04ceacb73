package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/avro"
	"pgregory.net/rapid"

	"millrace/pipeline"
)

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
	{`"bytes"`, `"string"`, `"/w=="`, `! bytes that are not UTF-8`},
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
}

// Each value of the table resolves as expected, alone and within an array, a map and a
// record, and twmb/avro agrees.
func TestResolutionOfEachKind(t *testing.T) {
	for i, test := range resolutions {
		for _, wrap := range [][2]string{
			{"%s", "%s"}, {`{"type":"array","items":%s}`, "[%s]"}, {`{"type":"map","values":%s}`, `{"k":%s}`},
			{`{"type":"record","name":"Around","fields":[{"name":"x","type":%s}]}`, `{"x":%s}`},
		} {
			named := func(s string) string { return strings.ReplaceAll(s, "#", fmt.Sprint(i)) }
			writer := fieldSchema(t, fmt.Sprintf(wrap[0], named(test.writer)))
			reader := mustParse(t, `{"type":"record","name":"R","fields":[{"name":"first","type":"string","default":"f"},{"name":"v","type":`+fmt.Sprintf(wrap[0], named(test.reader))+`}]}`)
			r, err := NewResolver(writer, reader)
			if err != nil {
				t.Errorf("%s as %s: %v", test.writer, test.reader, err)
				continue
			}
			body, err := EncodeJSON(writer, decodeJSON(t, `{"v":`+fmt.Sprintf(wrap[1], named(test.value))+`}`))
			if err != nil {
				t.Fatal(err)
			}
			out, err := r.Append(nil, body)
			if why, bad := strings.CutPrefix(test.want, "! "); bad {
				if pipeline.ClassOf(err) != pipeline.ClassReject || err == nil || !strings.Contains(err.Error(), why) || out != nil {
					t.Errorf("%s as %s: got %x, %v; want %s", test.writer, test.reader, out, err, why)
				}
				continue
			}
			if err == nil {
				err = Validate(reader.Root(), out)
			}
			if err != nil {
				t.Errorf("%s as %s: %v", test.writer, test.reader, err)
				continue
			}
			got, err := AppendJSON(nil, reader.Root(), out)
			if want := `{"first":"f","v":` + fmt.Sprintf(wrap[1], named(test.want)) + `}`; err != nil || string(got) != want {
				t.Errorf("%s as %s\ngot  %s, %v\nwant %s", test.writer, test.reader, got, err, want)
			}
			if strings.Contains(test.writer, "timestamp") { // see Resolver
				continue
			}
			resolved, err := avro.Resolve(writer.Avro(), reader.Avro())
			if err != nil {
				t.Fatal(err)
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
		reader *Schema
	}
	var list []resolution
	for _, test := range resolutions {
		named := func(s string) string { return strings.ReplaceAll(s, "#", "0") }
		writer, reader := fieldSchema(f, named(test.writer)), fieldSchema(f, named(test.reader))
		r, err := NewResolver(writer, reader)
		if err != nil {
			f.Fatal(err)
		}
		body, err := EncodeJSON(writer, decodeJSON(f, `{"v":`+named(test.value)+`}`))
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
				err = Validate(r.reader.Root(), out)
			} else if pipeline.ClassOf(err) == pipeline.ClassReject {
				continue
			}
			if err != nil {
				t.Fatalf("%x as %s: %x, %v", body, r.reader, out, err)
			}
		}
	})
}

func TestNewResolverRefusesSchemasThatDoNotResolve(t *testing.T) {
	for _, test := range []struct{ writer, reader string }{
		{`"string"`, `"int"`},
		{`"long"`, `"int"`},
		{`{"type":"fixed","name":"F","size":2}`, `{"type":"fixed","name":"F","size":3}`},
		{`{"type":"bytes","logicalType":"decimal","precision":6,"scale":2}`, `{"type":"bytes","logicalType":"decimal","precision":6,"scale":3}`},
		{`{"type":"record","name":"Q","fields":[]}`, `{"type":"record","name":"Q","fields":[{"name":"new","type":"int"}]}`},
		{`{"type":"array","items":"string"}`, `{"type":"array","items":"boolean"}`},
		{`"string"`, `["null","int"]`},
		{`["null","int"]`, `"long"`},
	} {
		if _, err := NewResolver(fieldSchema(t, test.writer), fieldSchema(t, test.reader)); err == nil {
			t.Errorf("%s as %s: no error", test.writer, test.reader)
		}
	}
}

func TestResolvingAllocatesNothing(t *testing.T) {
	reader := readSchema(t, "OrderCreated")
	writer, err := reader.With([]NewField{{Path: []string{"data", "region"}, Type: "string", Default: `"eu"`}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewResolver(writer, reader)
	if err != nil {
		t.Fatal(err)
	}
	body := encodeEvent(t, writer, orderEvent)
	dst := make([]byte, 0, 1024)
	st := new(resolveState)
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
	writer, err := reader.With([]NewField{{Path: []string{"data", "region"}, Type: "string", Default: `"eu"`}})
	if err != nil {
		b.Fatal(err)
	}
	r, err := NewResolver(writer, reader)
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

// A reader's schema that only adds a field before a random type does not change the bytes
// of that type, not even the branches of its unions.
func TestResolvingKeepsTheBytesOfCommonFields(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var g sampler
		typ := g.draw(t, 3, false)
		schema := func(before ...any) *Schema {
			text, err := json.Marshal(map[string]any{"type": "record", "name": "Root", "fields": append(before, map[string]any{"name": "v", "type": typ.schema})})
			if err != nil {
				t.Fatal(err)
			}
			s, err := ParseSchema(string(text))
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			return s
		}
		writer, reader := schema(), schema(map[string]any{"name": "added", "type": "string", "default": "x"})
		r, err := NewResolver(writer, reader)
		if err != nil {
			t.Fatalf("%s: %v", writer, err)
		}
		value, _ := typ.value(t)
		body, err := EncodeJSON(writer, map[string]any{"v": value})
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.Append([]byte("before"), body)
		if want := append([]byte("before\x02x"), body...); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s\n%x\ngot  %x, %v\nwant %x", writer, body, got, err, want)
		}
	})
}
