package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/linkedin/goavro/v2"
	"pgregory.net/rapid"

	"millrace/pipeline"
)

func TestWithAddsFieldsAtTheEndOfTheirRecords(t *testing.T) {
	s := readSchema(t, "OrderCreated")
	fields := []NewField{
		{Path: []string{"data", "region"}, Type: "string", Default: `"eu"`, Doc: "Destination of the shipment."},
		{Path: []string{"score"}, Type: "double"},
		{Path: []string{"data", "best"}, Type: `{"type":"array","items":"Item"}`, Default: "[]"},
	}
	derived, err := s.With(fields)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.With(fields)
	if err != nil || again.String() != derived.String() {
		t.Errorf("With is not deterministic: %v\n%s\n%s", err, derived, again)
	}
	data := derived.Root().Field("data").Type
	if last := data.Fields[len(data.Fields)-2]; last.Name != "region" || last.Doc != "Destination of the shipment." || last.Default != "eu" {
		t.Errorf("the second to last field of data is %+v", last)
	}
	if got := derived.Root().Field("score").Type.String(); got != "null or double" {
		t.Errorf("a field without a default has the type %s", got)
	}
	if items := data.Field("items").Type.Elem; data.Field("best").Type.Elem != items {
		t.Error("the added field does not share the existing record shop.Item")
	}
	if got := derived.Root().Field("timestamp"); got.Doc != "When it happened." || got.Type.Logical != "timestamp-micros" || derived.Root().Doc != s.Root().Doc {
		t.Error("docs or logical types are lost")
	}

	body := encodeEvent(t, s, orderEvent)
	l, err := NewDerivedLayout(s, derived, [][]string{{"data", "total_amount"}})
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 4 || l.Slot("data", "total_amount") != 0 || l.Slot("data", "region") != 1 || l.Slot("data", "best") != 2 || l.Slot("score") != 3 {
		t.Fatalf("%d slots, not in the order of the body", l.Len())
	}
	var v pipeline.View
	if err := l.Walk(body, &v); err != nil {
		t.Fatal(err)
	}
	v.Set(0, AppendDouble(nil, 12))
	v.Set(3, append(AppendLong(nil, 1), AppendDouble(nil, 0.5)...))
	got, err := AppendJSON(nil, derived.Root(), v.Append(nil))
	want := strings.Replace(orderEvent, `"total_amount":11.77}}`, `"total_amount":12,"region":"eu","best":[]},"score":0.5}`, 1)
	if err != nil || string(got) != strings.ReplaceAll(want, "\n\t", "") {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

func TestWithRefusesInvalidFields(t *testing.T) {
	s := mustParse(t, `{"type":"record","name":"E","fields":[
		{"name":"a","type":{"type":"record","name":"Part","fields":[{"name":"x","type":"int"}]}},
		{"name":"parts","type":{"type":"array","items":"Part"}},
		{"name":"sub","type":["null",{"type":"record","name":"Sub","fields":[{"name":"x","type":"int"}]}]},
		{"name":"two","type":["Part","Sub"]}]}`)
	for _, test := range []struct{ path, typ, def, want string }{
		{"a.x", "int", "", "adding a.x to E: the field already exists"},
		{"b.x", "int", "", "adding b.x to E: there is no record b"},
		{"sub.x", "int", "", "adding sub.x to E: the field already exists"},
		{"sub.y.z", "int", "", "adding sub.y.z to E: there is no record sub.y"},
		{"parts.y", "int", "", "adding parts.y to E: parts is array of Part, not a record"},
		{"two.y", "int", "", "adding two.y to E: two is Part or Sub, which has several records"},
		{"n", "int", "1.5", "default"},
		{"n", "int", "nope", "adding n to E: the default nope is not JSON"},
		{"n", "Unknown", "1", "Unknown"},
		{"not-a-name", "int", "1", "not-a-name"},
	} {
		_, err := s.With([]NewField{{Path: strings.Split(test.path, "."), Type: test.typ, Default: test.def}})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", test.path, err, test.want)
		}
	}
	if _, err := s.With([]NewField{{Path: []string{"n"}, Type: "int"}, {Path: []string{"n"}, Type: "int"}}); err == nil {
		t.Error("adding a field twice was accepted")
	}
	if _, err := s.With([]NewField{{Path: []string{"a", "n"}, Type: "int"}, {Path: []string{"sub", "n"}, Type: "int"}}); err != nil {
		t.Error(err)
	}
}

// A field can be added through unions, and to a record type that is defined elsewhere or
// contains itself. The document defines each type once. A layout can only splice the field
// in where no union, array or map is around it.
func TestWithAddsFieldsToSharedAndNullableRecords(t *testing.T) {
	s := mustParse(t, `{"type":"record","name":"E","namespace":"x.y","fields":[
		{"name":"a","type":{"type":"record","name":"Plain","fields":[]}},
		{"name":"b","type":"Plain"},
		{"name":"before","type":["null",{"type":"record","name":"Row","namespace":"z","doc":"A row.","fields":[{"name":"v","type":"int"},{"name":"kid","type":["Row","null"]}]}]},
		{"name":"after","type":["z.Row","string","null"]}]}`)
	for _, test := range []struct {
		path    string
		splices bool
	}{{"b.n", true}, {"after.n", false}, {"after.kid.kid.n", false}} {
		derived, err := s.With([]NewField{{Path: strings.Split(test.path, "."), Type: "int"}})
		if err != nil {
			t.Fatalf("%s: %v", test.path, err)
		}
		if Splices(s, derived) != test.splices {
			t.Errorf("%s: Splices is %t", test.path, !test.splices)
		}
		if got := strings.ReplaceAll(derived.String(), " ", ""); strings.Count(got, `"fields"`) != 3 || strings.Count(got, `"name":"n"`) != 1 {
			t.Errorf("%s: %s", test.path, derived)
		}
		row, plain := derived.Root().Field("after").Type.Branches[0], derived.Root().Field("a").Type
		if row != derived.Root().Field("before").Type.Branches[1] || row.Field("kid").Type.Branches[0] != row || plain != derived.Root().Field("b").Type {
			t.Errorf("%s: the uses of a type differ: %s", test.path, derived)
		}
		if (row.Field("n") != nil) == (plain.Field("n") != nil) || row.Name != "z.Row" || row.Doc != "A row." || plain.Name != "x.y.Plain" {
			t.Errorf("%s: %s", test.path, derived)
		}
	}
}

// addable holds field types with a default and another value, in the JSON form of
// this package.
var addable = []struct{ typ, def, other string }{
	{"null", "null", "null"},
	{"boolean", "true", "false"},
	{"int", "-7", "2147483647"},
	{"long", "0", "-9007199254740993"},
	{"float", "0.5", "1"},
	{"double", "2.5", "-1"},
	{"string", `"é"`, `""`},
	{`{"type":"long","logicalType":"timestamp-micros"}`, "0", `"2026-01-02T03:04:05Z"`},
	{`["null","string"]`, "null", `"x"`},
	{`["string","null"]`, `"d"`, "null"},
	{`{"type":"array","items":"int"}`, "[1,2,3]", "[]"},
	{`{"type":"map","values":"string"}`, `{"a":"b"}`, "{}"},
	{`{"type":"record","name":"Added%d","fields":[{"name":"x","type":"int","default":3},{"name":"y","type":"string"}]}`, `{"y":"z"}`, `{"x":1,"y":"w"}`},
}

// Over random schemas and values, a walk with a derived layout gives the same bytes as
// encoding the value with the derived schema, and goavro and twmb/avro decode them.
func TestDerivedLayoutGivesTheBytesOfTheDerivedSchema(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var g sampler
		one, two, three := g.draw(t, 2, false), g.draw(t, 2, false), g.draw(t, 1, false)
		record := func(name string, fields ...any) map[string]any {
			return map[string]any{"type": "record", "name": name, "fields": append([]any{}, fields...)}
		}
		field := func(name string, typ any) map[string]any { return map[string]any{"name": name, "type": typ} }
		text, err := json.Marshal(record("Root", field("one", one.schema),
			field("sub", record("Sub", field("two", two.schema), field("deep", record("Deep")))), field("three", three.schema)))
		if err != nil {
			t.Fatal(err)
		}
		base, err := ParseSchema(string(text))
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		v1, _ := one.value(t)
		v2, _ := two.value(t)
		v3, _ := three.value(t)
		deep := map[string]any{}
		sub := map[string]any{"two": v2, "deep": deep}
		value := map[string]any{"one": v1, "sub": sub, "three": v3}
		body, err := EncodeJSON(base, value)
		if err != nil {
			t.Fatal(err)
		}

		var fields []NewField
		type change struct {
			path []string
			in   map[string]any
			json string
		}
		var changes []change
		for i := range rapid.IntRange(1, 5).Draw(t, "fields") {
			name := fmt.Sprintf("new%d", i)
			kind := rapid.SampledFrom(addable).Draw(t, "added")
			at := rapid.IntRange(0, 2).Draw(t, "record")
			path := append([]string{"sub", "deep"}[:at:at], name)
			typ := kind.typ
			if strings.Contains(typ, "%d") {
				typ = fmt.Sprintf(typ, i)
			}
			fields = append(fields, NewField{Path: path, Type: typ, Default: kind.def})
			if rapid.Bool().Draw(t, "set") && !strings.Contains(kind.typ, "record") {
				changes = append(changes, change{path, []map[string]any{value, sub, deep}[at], kind.other})
			}
		}
		derived, err := base.With(fields)
		if err != nil {
			t.Fatalf("%s\n%+v: %v", text, fields, err)
		}
		layout, err := NewDerivedLayout(base, derived, nil)
		if err != nil {
			t.Fatalf("%s: %v", derived, err)
		}
		var view pipeline.View
		if err := layout.Walk(body, &view); err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			var v any
			d := json.NewDecoder(strings.NewReader(c.json))
			d.UseNumber()
			if err := d.Decode(&v); err != nil {
				t.Fatal(err)
			}
			c.in[c.path[len(c.path)-1]] = v
			slot := layout.Slot(c.path...)
			enc, err := appendJSONValue(layout.Node(slot), v)
			if err != nil {
				t.Fatal(err)
			}
			view.Set(slot, enc)
		}
		got := view.Append(nil)
		want, err := EncodeJSON(derived, value)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s\n%+v\ngot  %x\nwant %x", text, fields, got, want)
		}
		if err := Validate(derived.Root(), got); err != nil {
			t.Fatalf("%s: %v", derived, err)
		}
		var native any
		if rest, err := derived.Avro().Decode(got, &native); err != nil || len(rest) > 0 {
			t.Fatalf("twmb/avro: %s\n%x: %v, %d bytes left", derived, got, err, len(rest))
		}
		reference, err := goavro.NewCodec(derived.String())
		if err != nil {
			t.Fatalf("goavro: %s: %v", derived, err)
		}
		if _, rest, err := reference.NativeFromBinary(got); err != nil || len(rest) > 0 {
			t.Fatalf("goavro: %s\n%x: %v, %d bytes left", derived, got, err, len(rest))
		}
	})
}

// appendJSONValue encodes a JSON value as type n.
func appendJSONValue(n *Node, v any) ([]byte, error) {
	s := &Schema{root: &Node{Kind: Record, Name: "One", Fields: []Field{{Name: "v", Type: n}}}}
	return EncodeJSON(s, map[string]any{"v": v})
}

func TestWalkingForAddedFieldsAllocatesNothing(t *testing.T) {
	s := readSchema(t, "OrderCreated")
	derived, err := s.With([]NewField{{Path: []string{"data", "region"}, Type: "string", Default: `"eu"`}, {Path: []string{"data", "n"}, Type: "long"}})
	if err != nil {
		t.Fatal(err)
	}
	layout, err := NewDerivedLayout(s, derived, [][]string{{"data", "total_amount"}})
	if err != nil {
		t.Fatal(err)
	}
	body := encodeEvent(t, s, orderEvent)
	var v pipeline.View
	out := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() {
		if err := layout.Walk(body, &v); err != nil {
			t.Fatal(err)
		}
		out = v.Append(out[:0])
	}); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}
