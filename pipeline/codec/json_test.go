package codec

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/linkedin/goavro/v2"
	"pgregory.net/rapid"

	"millrace/schemas"
)

func decodeJSON(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func mustParse(t testing.TB, text string) *Schema {
	t.Helper()
	s, err := ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func shopSchema(t testing.TB, name string) *Schema {
	t.Helper()
	text, err := schemas.FS.ReadFile(name + ".avsc")
	if err != nil {
		t.Fatal(err)
	}
	return mustParse(t, string(text))
}

const orderJSON = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","type":"OrderCreated","timestamp":"1997-01-01T00:00:00.050Z","version":1,` +
	`"metadata":{"source":"cdnow"},"data":{"id":"o-000001","user_id":"u-00001","items":[{"product_id":"cd","quantity":1,"price":11.77},` +
	`{"product_id":"<lp> & more","quantity":2,"price":14.665}],"total_amount":41.1}}`

func TestJSONOfAnEventRoundTrips(t *testing.T) {
	s := shopSchema(t, "OrderCreated")
	enc, err := EncodeJSON(s, decodeJSON(t, orderJSON))
	if err != nil {
		t.Fatal(err)
	}
	got, err := AppendJSON(nil, s.Root(), enc)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != orderJSON {
		t.Errorf("got  %s\nwant %s", got, orderJSON)
	}
}

func TestBadEventNamesThePathAndWhatWasExpected(t *testing.T) {
	const e = `"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","timestamp":"1997-01-01T00:00:00Z"`
	order := func(data string) string { return "{" + e + `,"data":` + data + "}" }
	for _, test := range []struct{ in, want string }{
		{`[]`, `expected shop.OrderCreated, found array`},
		{`{` + e + `}`, `data: missing; expected shop.OrderCreatedData`},
		{`{` + e + `,"date":{}}`, `date: unknown field; did you mean "data"?`},
		{order(`{"id":"o","user_id":"u","items":[],"totl_amount":1}`), `data.totl_amount: unknown field; did you mean "total_amount"?`},
		{order(`{"id":"o","user_id":"u","items":[],"total_amount":1,"colour":"red"}`), `data.colour: unknown field; shop.OrderCreatedData has id, user_id, items, total_amount`},
		{order(`{"id":"o","user_id":"u","items":[],"total_amount":"1"}`), `data.total_amount: expected double, found string "1"`},
		{order(`{"id":7,"user_id":"u","items":[],"total_amount":1}`), `data.id: expected string, found number 7`},
		{order(`{"id":"o","user_id":null,"items":[],"total_amount":1}`), `data.user_id: expected string, found null`},
		{order(`{"id":"o","user_id":"u","items":{},"total_amount":1}`), `data.items: expected array of shop.Item, found object`},
		{order(`{"id":"o","user_id":"u","items":[{"product_id":"a","quantity":1,"price":1},{"product_id":"a","quantity":1,"price":true}],"total_amount":1}`),
			`data.items[1].price: expected double, found true`},
		{order(`{"id":"o","user_id":"u","items":[{"product_id":"a","quantity":1.5,"price":1}],"total_amount":1}`), `data.items[0].quantity: expected int, found number 1.5`},
		{order(`{"id":"o","user_id":"u","items":[{"product_id":"a","quantity":2147483648,"price":1}],"total_amount":1}`),
			`data.items[0].quantity: expected int (-2147483648 to 2147483647), found number 2147483648`},
		{order(`{"id":"o","user_id":"u","items":[],"total_amount":1e999}`), `data.total_amount: expected double, found number 1e999, which is out of range`},
		{`{` + strings.Replace(e, "4707dafd-", "", 1) + `}`, `id: expected string (uuid), found string "3ce1-5973-9f7b-1c9c452822e7"`},
		{`{` + strings.Replace(e, "00Z", "00", 1) + `}`,
			`timestamp: expected long (timestamp-micros), found string "1997-01-01T00:00:00" (RFC 3339, as in 2006-01-02T15:04:05.999Z; it lacks the zone: Z for UTC)`},
		{`{` + e + `,"metadata":{"a":1}}`, `metadata.a: expected string, found number 1`},
		{`{` + e + `,"metadata":{"a b":1}}`, `metadata["a b"]: expected string, found number 1`},
	} {
		_, err := EncodeJSON(shopSchema(t, "OrderCreated"), decodeJSON(t, test.in))
		var path *PathError
		if !asPathError(err, &path) || err.Error() != test.want {
			t.Errorf("%s\ngot  %v\nwant %s", test.in, err, test.want)
		}
	}
}

func asPathError(err error, to **PathError) bool {
	e, ok := err.(*PathError)
	*to = e
	return ok
}

// TestValues runs the files of testdata/json. The first line of a file is a type. Each
// other line is a JSON value, followed by " = " and the value that reads back, if it
// differs, or by " ! " and the error.
func TestValues(t *testing.T) {
	files, err := filepath.Glob("testdata/json/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no files in testdata/json", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		s := fieldSchema(t, lines[0])
		for i, line := range lines[1:] {
			if line == "" {
				continue
			}
			in, wantErr, bad := strings.Cut(line, " ! ")
			in, want, differs := strings.Cut(in, " = ")
			if !differs {
				want = in
			}
			enc, err := EncodeJSON(s, map[string]any{"v": decodeJSON(t, in)})
			switch {
			case bad && err == nil:
				t.Errorf("%s:%d: %s: no error", file, i+2, in)
			case bad:
				if got := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "v: "), "v"); got != wantErr {
					t.Errorf("%s:%d: %s:\ngot  %s\nwant %s", file, i+2, in, got, wantErr)
				}
			case err != nil:
				t.Errorf("%s:%d: %s: %v", file, i+2, in, err)
			default:
				got, err := AppendJSON(nil, s.Root().Fields[0].Type, enc)
				if err != nil || string(got) != want {
					t.Errorf("%s:%d: %s reads back as %s, %v; want %s", file, i+2, in, got, err, want)
				}
			}
		}
	}
}

// fieldSchema returns a schema of a record with one field v of the type.
func fieldSchema(t testing.TB, typ string) *Schema {
	return mustParse(t, `{"type":"record","name":"R","fields":[{"name":"v","type":`+typ+`}]}`)
}

func TestMissingFieldsTakeDefaults(t *testing.T) {
	s := mustParse(t, `{"type":"record","name":"R","fields":[
		{"name":"i","type":"int","default":7},
		{"name":"d","type":"double","default":2.5},
		{"name":"f","type":"float","default":0.1},
		{"name":"s","type":"string","default":"x"},
		{"name":"b","type":"bytes","default":"\u00ff"},
		{"name":"n","type":["null","string"],"default":null},
		{"name":"u","type":["string","null"],"default":"y"},
		{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]},"default":"B"},
		{"name":"a","type":{"type":"array","items":"long"},"default":[1,2]},
		{"name":"m","type":{"type":"map","values":"string"},"default":{"k":"v"}},
		{"name":"t","type":{"type":"long","logicalType":"timestamp-millis"},"default":1},
		{"name":"r","type":{"type":"record","name":"Q","fields":[{"name":"x","type":"int","default":3}]},"default":{}}]}`)
	enc, err := EncodeJSON(s, map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := AppendJSON(nil, s.Root(), enc)
	const want = `{"i":7,"d":2.5,"f":0.1,"s":"x","b":"/w==","n":null,"u":"y","e":"B","a":[1,2],"m":{"k":"v"},"t":"1970-01-01T00:00:00.001Z","r":{"x":3}}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

func TestAppendJSONRefusesInvalidBytes(t *testing.T) {
	for _, test := range []struct{ typ, enc, want string }{
		{`"string"`, "", `expected string, found the end of the input`},
		{`"string"`, "\x06ab", `expected string, found a length of 3 with 2 bytes left`},
		{`"string"`, "\x01", `expected string, found a length of -1 with 0 bytes left`},
		{`"string"`, "\x02\xff", `expected string, found text that is not UTF-8`},
		{`"string"`, "\x02a\x00", `1 bytes after the end of the string`},
		{`"long"`, strings.Repeat("\xff", 10) + "\x01", `expected long, found a number of more than 64 bits`},
		{`"int"`, "\x80\x80\x80\x80\x10", `expected int, found 2147483648, which is out of range`},
		{`"boolean"`, "\x02", `expected boolean, found byte 0x02`},
		{`"double"`, "1234567", `expected double, found 7 of its 8 bytes`},
		{`["null","string"]`, "\x04", `expected null or string, found branch number 2 of 2`},
		{`{"type":"enum","name":"E","symbols":["A"]}`, "\x02", `expected E, found symbol number 1 of 1`},
		{`{"type":"array","items":"null"}`, "\x80\x80\x80\x80\x80\x80\x80\x80\x40\x00", `expected array of null, found too many items of zero bytes`},
		{`{"type":"array","items":"long"}`, "\x80\x80\x80\x80\x80\x80\x80\x80\x40\x00", `[1]: expected long, found the end of the input`},
		{`{"type":"array","items":"long"}`, "\x01\x0a\x00", `expected array of long, found a block of 1 items in 5 bytes with 1 left`},
		{`{"type":"array","items":"long"}`, "\x01\x04\x02\x00", `expected array of long, found a block whose size in bytes is wrong`},
		{`{"type":"map","values":"long"}`, "\x20\x02a\x02", `expected map of long, found 16 entries in 3 bytes`},
		{`{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}`, "\x80\x20" + strings.Repeat("1", 2048), `expected bytes (decimal), found 2048 bytes`},
		{`{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}`, strings.Repeat("\x02", 1000) + "\x00", `nested more than 64 deep`},
	} {
		_, err := AppendJSON(nil, fieldSchema(t, test.typ).Root().Fields[0].Type, []byte(test.enc))
		if err == nil || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%s %q: got %v, want %s", test.typ, test.enc, err, test.want)
		}
	}
}

func TestEncodeJSONLimitsNesting(t *testing.T) {
	s := mustParse(t, `{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}`)
	var v any
	for range 1000 {
		v = map[string]any{"next": v}
	}
	if _, err := EncodeJSON(s, v); err == nil || !strings.HasSuffix(err.Error(), "nested more than 64 deep") {
		t.Errorf("got %v", err)
	}
}

func TestAppendJSONReadsBlocksWithSizes(t *testing.T) {
	n := fieldSchema(t, `{"type":"array","items":"int"}`).Root().Fields[0].Type
	got, err := AppendJSON(nil, n, []byte("\x03\x04\x02\x04\x02\x06\x00")) // [-2 items in 2 bytes: 1 2] [1 item: 3]
	if err != nil || string(got) != "[1,2,3]" {
		t.Errorf("got %s, %v", got, err)
	}
}

// A sampleType is a random type: its schema, and a generator of values in two forms,
// JSON for this package and Go values for goavro.
type sampleType struct {
	schema any
	name   string // goavro's name of the type as a branch
	value  func(t *rapid.T) (ours, theirs any)
}

var anyText = rapid.StringOf(rapid.OneOf(rapid.RuneFrom([]rune{'a', 'B', '"', '\\', '\n', 0, '<', '\u2028', 'é', '世', '😀'}), rapid.Rune())).
	Filter(utf8.ValidString)

type sampler struct{ names int }

func (g *sampler) name() string { g.names++; return "N" + strconv.Itoa(g.names) }

func logical(kind, logical string) map[string]any {
	return map[string]any{"type": kind, "logicalType": logical}
}

func (g *sampler) draw(t *rapid.T, depth int, inUnion bool) sampleType {
	most := 20
	if depth == 0 {
		most = 16
	} else if inUnion {
		most = 19
	}
	switch rapid.IntRange(0, most).Draw(t, "type") {
	case 0:
		return sampleType{"boolean", "boolean", func(t *rapid.T) (any, any) { v := rapid.Bool().Draw(t, "v"); return v, v }}
	case 1:
		return sampleType{"int", "int", func(t *rapid.T) (any, any) {
			v := rapid.Int32().Draw(t, "v")
			return json.Number(strconv.Itoa(int(v))), v
		}}
	case 2:
		return sampleType{"long", "long", func(t *rapid.T) (any, any) {
			v := rapid.Int64().Draw(t, "v")
			return json.Number(strconv.FormatInt(v, 10)), v
		}}
	case 3:
		return sampleType{"float", "float", func(t *rapid.T) (any, any) {
			v := rapid.Float32().Draw(t, "v")
			return jsonFloat(float64(v), 32), v
		}}
	case 4:
		return sampleType{"double", "double", func(t *rapid.T) (any, any) {
			v := rapid.OneOf(rapid.Float64(), rapid.Just(math.Inf(1)), rapid.Just(math.Inf(-1)), rapid.Just(math.NaN()), rapid.Just(math.Copysign(0, -1))).Draw(t, "v")
			return jsonFloat(v, 64), v
		}}
	case 5, 6:
		return sampleType{"string", "string", func(t *rapid.T) (any, any) { v := anyText.Draw(t, "v"); return v, v }}
	case 7:
		return sampleType{"bytes", "bytes", func(t *rapid.T) (any, any) {
			v := rapid.SliceOf(rapid.Byte()).Draw(t, "v")
			return base64.StdEncoding.EncodeToString(v), v
		}}
	case 8:
		name, size := g.name(), rapid.IntRange(1, 9).Draw(t, "size")
		return sampleType{map[string]any{"type": "fixed", "name": name, "size": size}, name, func(t *rapid.T) (any, any) {
			v := rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "v")
			return base64.StdEncoding.EncodeToString(v), v
		}}
	case 9:
		name, symbols := g.name(), []string{"red", "green", "NaN"}
		return sampleType{map[string]any{"type": "enum", "name": name, "symbols": symbols}, name, func(t *rapid.T) (any, any) {
			v := rapid.SampledFrom(symbols).Draw(t, "v")
			return v, v
		}}
	case 10:
		return sampleType{logical("long", "timestamp-micros"), "long.timestamp-micros", func(t *rapid.T) (any, any) {
			v := time.UnixMicro(rapid.Int64Range(minSeconds*1e6, maxSeconds*1e6).Draw(t, "v")).UTC()
			return v.Format(time.RFC3339Nano), v
		}}
	case 11:
		return sampleType{logical("long", "timestamp-millis"), "long.timestamp-millis", func(t *rapid.T) (any, any) {
			v := time.UnixMilli(rapid.Int64Range(minSeconds*1e3, (maxSeconds-3600)*1e3).Draw(t, "v"))
			return v.In(time.FixedZone("", 3600)).Format(time.RFC3339Nano), v.UTC()
		}}
	case 12:
		return sampleType{logical("long", "timestamp-nanos"), "long", func(t *rapid.T) (any, any) {
			v := rapid.Int64Range(minNanoSeconds*1e9, maxNanoSeconds*1e9).Draw(t, "v")
			return time.Unix(0, v).UTC().Format(time.RFC3339Nano), v
		}}
	case 13:
		return sampleType{logical("int", "date"), "int.date", func(t *rapid.T) (any, any) {
			v := time.Unix(86400*rapid.Int64Range(minSeconds/86400, maxSeconds/86400).Draw(t, "v"), 0).UTC()
			return v.Format(time.DateOnly), v
		}}
	case 14:
		return sampleType{logical("int", "time-millis"), "int.time-millis", func(t *rapid.T) (any, any) {
			v := time.Duration(rapid.Int64Range(0, 86400e3-1).Draw(t, "v")) * time.Millisecond
			return time.Unix(0, int64(v)).UTC().Format("15:04:05.999"), v
		}}
	case 15:
		return sampleType{logical("long", "time-micros"), "long.time-micros", func(t *rapid.T) (any, any) {
			v := time.Duration(rapid.Int64Range(0, 86400e6-1).Draw(t, "v")) * time.Microsecond
			return time.Unix(0, int64(v)).UTC().Format("15:04:05.999999"), v
		}}
	case 16:
		schema := map[string]any{"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 3}
		return sampleType{schema, "bytes.decimal", func(t *rapid.T) (any, any) {
			v := rapid.Int64Range(-999999999999, 999999999999).Draw(t, "v")
			rat := big.NewRat(v, 1000)
			return rat.FloatString(3), rat
		}}
	case 17:
		elem := g.draw(t, depth-1, false)
		return sampleType{map[string]any{"type": "array", "items": elem.schema}, "array", func(t *rapid.T) (any, any) {
			ours, theirs := []any{}, []any{}
			for range rapid.IntRange(0, 3).Draw(t, "len") {
				o, h := elem.value(t)
				ours, theirs = append(ours, o), append(theirs, h)
			}
			return ours, theirs
		}}
	case 18:
		elem := g.draw(t, depth-1, false)
		return sampleType{map[string]any{"type": "map", "values": elem.schema}, "map", func(t *rapid.T) (any, any) {
			ours, theirs := map[string]any{}, map[string]any{}
			for range rapid.IntRange(0, 1).Draw(t, "len") { // at most one entry: goavro writes entries in random order
				key := rapid.OneOf(anyText, rapid.SampledFrom([]string{"string", "map", "N1"})).Draw(t, "key")
				ours[key], theirs[key] = elem.value(t)
			}
			return ours, theirs
		}}
	case 19:
		name := g.name()
		var fields []any
		var types []sampleType
		names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "string", "long", "map"}), 0, 4, rapid.ID[string]).Draw(t, "fields")
		for _, field := range names {
			types = append(types, g.draw(t, depth-1, false))
			fields = append(fields, map[string]any{"name": field, "type": types[len(types)-1].schema})
		}
		return sampleType{map[string]any{"type": "record", "name": name, "fields": append([]any{}, fields...)}, name, func(t *rapid.T) (any, any) {
			ours, theirs := map[string]any{}, map[string]any{}
			for i, field := range names {
				ours[field], theirs[field] = types[i].value(t)
			}
			return ours, theirs
		}}
	}
	branches := []sampleType{{"null", "null", func(*rapid.T) (any, any) { return nil, nil }}}
	kinds := map[string]bool{"null": true}
	for range rapid.IntRange(1, 4).Draw(t, "branches") {
		b := g.draw(t, depth-1, true)
		kind, _, _ := strings.Cut(b.name, ".")
		if !kinds[kind] {
			kinds[kind] = true
			branches = append(branches, b)
		}
	}
	var schema []any
	for _, b := range branches {
		schema = append(schema, b.schema)
	}
	return sampleType{schema, "", func(t *rapid.T) (any, any) {
		b := branches[rapid.IntRange(0, len(branches)-1).Draw(t, "branch")]
		ours, theirs := b.value(t)
		if b.name == "null" {
			return nil, nil
		}
		if len(branches) > 2 {
			kind, _, _ := strings.Cut(b.name, ".")
			ours = map[string]any{kind: ours}
		}
		return ours, goavro.Union(b.name, theirs)
	}}
}

func jsonFloat(f float64, bits int) any {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	return json.Number(strconv.FormatFloat(f, 'g', -1, bits))
}

// Over values of random schemas, EncodeJSON gives the same bytes as goavro, and reads
// back the output of AppendJSON.
func TestEncodeJSONAgreesWithGoavroAndRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var g sampler
		typ := g.draw(t, 3, false)
		text, err := json.Marshal(map[string]any{"type": "record", "name": "Root", "fields": []any{map[string]any{"name": "v", "type": typ.schema}}})
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseSchema(string(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		reference, err := goavro.NewCodec(string(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		ours, theirs := typ.value(t)
		got, err := EncodeJSON(s, map[string]any{"v": ours})
		if err != nil {
			t.Fatalf("%s\n%#v: %v", text, ours, err)
		}
		want, err := reference.BinaryFromNative(nil, map[string]any{"v": theirs})
		if err != nil {
			t.Fatalf("%s\n%#v: goavro: %v", text, theirs, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s\n%#v\ngot    %x\ngoavro %x", text, ours, got, want)
		}
		written, err := AppendJSON(nil, s.Root(), got)
		if err != nil {
			t.Fatalf("%s\n%x: %v", text, got, err)
		}
		if !json.Valid(written) {
			t.Fatalf("not JSON: %s", written)
		}
		d := json.NewDecoder(bytes.NewReader(written))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		again, err := EncodeJSON(s, v)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%s\n%s reads back as %x, %v; want %x", text, written, again, err, got)
		}
	})
}

// everything is a schema with every kind, logical type and form of union.
const everything = `{"type":"record","name":"x.R","fields":[
	{"name":"b","type":["boolean","int","string"]},
	{"name":"f","type":["null","float","double","string",{"type":"enum","name":"E","symbols":["A","NaN"]}]},
	{"name":"t","type":{"type":"long","logicalType":"timestamp-nanos"}},
	{"name":"l","type":{"type":"long","logicalType":"local-timestamp-micros"}},
	{"name":"d","type":{"type":"int","logicalType":"date"}},
	{"name":"tm","type":{"type":"long","logicalType":"time-micros"}},
	{"name":"dec","type":{"type":"bytes","logicalType":"decimal","precision":9,"scale":4}},
	{"name":"fd","type":{"type":"fixed","name":"F","size":5,"logicalType":"decimal","precision":9,"scale":4}},
	{"name":"u","type":{"type":"fixed","name":"U","size":16,"logicalType":"uuid"}},
	{"name":"bytes","type":"bytes"},
	{"name":"many","type":{"type":"array","items":["null","long",{"type":"map","values":"R"},"R"]}},
	{"name":"void","type":{"type":"array","items":"null"}},
	{"name":"next","type":["null","R"]}]}`

func FuzzAppendJSON(f *testing.F) {
	order, err := EncodeJSON(shopSchema(f, "OrderCreated"), decodeJSON(f, orderJSON))
	if err != nil {
		f.Fatal(err)
	}
	all := mustParse(f, everything)
	value := `{"b":true,"f":"NaN","t":"2026-01-02T03:04:05.123456789Z","l":"2026-01-02T03:04:05","d":"2026-01-02","tm":"03:04:05","dec":"-1.5","fd":"2.25",
		"u":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","bytes":"/w==","many":[null,3,{"map":{}}],"void":[null],"next":null}`
	enc, err := EncodeJSON(all, decodeJSON(f, value))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(order)
	f.Add(enc)
	list := []*Schema{shopSchema(f, "OrderCreated"), all}
	f.Fuzz(func(t *testing.T, enc []byte) {
		for _, s := range list {
			text, err := AppendJSON(nil, s.Root(), enc)
			if err != nil {
				continue
			}
			if !json.Valid(text) {
				t.Fatalf("%x gives invalid JSON: %s", enc, text)
			}
			// EncodeJSON may refuse the value (an invalid UUID, too many digits, a
			// duplicate key). If it accepts the value, it must read back as the same JSON.
			again, err := EncodeJSON(s, decodeJSON(t, string(text)))
			if err != nil {
				continue
			}
			text, err = AppendJSON(nil, s.Root(), again)
			if err != nil {
				t.Fatal(err)
			}
			twice, err := EncodeJSON(s, decodeJSON(t, string(text)))
			if err != nil || !bytes.Equal(again, twice) {
				t.Fatalf("%s reads back as %x, %v; want %x", text, twice, err, again)
			}
		}
	})
}

func FuzzEncodeJSON(f *testing.F) {
	f.Add(orderJSON)
	f.Add(`{"data":{"items":[{"price":1e-999999999}]}}`)
	f.Add(`{"dec":1e999999999,"t":9223372036854775807.0}`)
	list := []*Schema{shopSchema(f, "OrderCreated"), mustParse(f, everything)}
	f.Fuzz(func(t *testing.T, text string) {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var v any
		if d.Decode(&v) != nil {
			return
		}
		for _, s := range list {
			enc, err := EncodeJSON(s, v)
			if err != nil {
				if _, ok := err.(*PathError); !ok {
					t.Fatalf("%T", err)
				}
				continue
			}
			if _, err := AppendJSON(nil, s.Root(), enc); err != nil {
				t.Fatalf("%s gives %x: %v", text, enc, err)
			}
		}
	})
}

func BenchmarkEncodeJSON(b *testing.B) {
	s := shopSchema(b, "OrderCreated")
	v := decodeJSON(b, orderJSON)
	b.Run("direct", func(b *testing.B) {
		b.ReportAllocs()
		var dst []byte
		for b.Loop() {
			var err error
			if dst, err = AppendAvro(dst[:0], s, v); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("goavro", func(b *testing.B) { // after a conversion without checks
		codec, err := goavro.NewCodec(s.String())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		var dst []byte
		for b.Loop() {
			if dst, err = codec.BinaryFromNative(dst[:0], toGoavro(b, s.Root(), v)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("with-parsing", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := EncodeJSON(s, decodeJSON(b, orderJSON)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// toGoavro converts a JSON value to goavro's Go types, for the kinds in OrderCreated.
func toGoavro(b *testing.B, n *Node, v any) any {
	var err error
	switch n.Kind {
	case Record:
		out := make(map[string]any, len(n.Fields))
		for i := range n.Fields {
			out[n.Fields[i].Name] = toGoavro(b, n.Fields[i].Type, v.(map[string]any)[n.Fields[i].Name])
		}
		return out
	case Array:
		out := make([]any, len(v.([]any)))
		for i, item := range v.([]any) {
			out[i] = toGoavro(b, n.Elem, item)
		}
		return out
	case Int:
		if v, err = v.(json.Number).Int64(); err != nil {
			b.Fatal(err)
		}
	case Double:
		if v, err = v.(json.Number).Float64(); err != nil {
			b.Fatal(err)
		}
	case Long:
		if v, err = time.Parse(time.RFC3339, v.(string)); err != nil {
			b.Fatal(err)
		}
	}
	return v
}

func BenchmarkAppendJSON(b *testing.B) {
	s := shopSchema(b, "OrderCreated")
	enc, err := EncodeJSON(s, decodeJSON(b, orderJSON))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var dst []byte
	for b.Loop() {
		if dst, err = AppendJSON(dst[:0], s.Root(), enc); err != nil {
			b.Fatal(err)
		}
	}
}
