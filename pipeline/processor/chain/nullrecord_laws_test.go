package chain_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// A drawn record is a random type with a value: the schema, the value as JSON, and a path to
// each of its long fields.
type drawn struct {
	types int
	longs []string        // dotted
	texts []string        // dotted
	mixed map[string]bool // the paths of records that are in a union with another record
}

// record draws a record with depth levels of records below. A nested record is plain or in a
// union, in which null, a string or another record can be, too.
func (d *drawn) record(t *rapid.T, depth int, path string) (schema string, value map[string]any) {
	d.types++
	name := fmt.Sprint("T", d.types)
	value = map[string]any{}
	var fields []string
	field := func(name, schema string, v any) {
		fields = append(fields, fmt.Sprintf(`{"name":%q,"type":%s}`, name, schema))
		value[name] = v
	}
	for i := range rapid.IntRange(1, 4).Draw(t, "fields") {
		f := fmt.Sprint("f", i)
		kind := rapid.IntRange(0, 6).Draw(t, "kind")
		if depth == 0 {
			kind %= 3
		}
		switch kind {
		case 0:
			field(f, `"string"`, rapid.StringN(0, 20, -1).Draw(t, "text"))
			d.texts = append(d.texts, path+f)
		case 1, 2:
			field(f, `"long"`, json.Number(fmt.Sprint(rapid.Int64Range(-1<<50, 1<<50).Draw(t, "long"))))
			d.longs = append(d.longs, path+f)
		case 3:
			inner, v := d.record(t, depth-1, path+f+".")
			field(f, inner, v)
		default:
			inner, v := d.record(t, depth-1, path+f+".")
			d.types++
			other := fmt.Sprint("T", d.types)
			branches := rapid.SampledFrom([][]string{{`"null"`, inner}, {inner, `"null"`}, {`"string"`, inner, `"null"`},
				{`{"type":"record","name":"` + other + `","fields":[{"name":"other","type":"int"}]}`, `"null"`, inner}}).Draw(t, "union")
			held := any(map[string]any{typeName(inner): v})
			if len(branches) == 2 {
				held = v
			}
			d.mixed[path+f+"."] = strings.HasPrefix(branches[0], "{") && branches[0] != inner
			switch rapid.IntRange(0, 4).Draw(t, "branch") {
			case 0:
				held = nil
			case 1:
				if len(branches) == 3 && strings.HasPrefix(branches[0], "{") {
					held = map[string]any{other: map[string]any{"other": json.Number("1")}}
				} else if len(branches) == 3 {
					held = map[string]any{"string": "x"}
				}
			}
			field(f, "["+strings.Join(branches, ",")+"]", held)
		}
	}
	return fmt.Sprintf(`{"type":"record","name":%q,"fields":[%s]}`, name, strings.Join(fields, ",")), value
}

func typeName(schema string) string {
	var s struct{ Name string }
	if err := json.Unmarshal([]byte(schema), &s); err != nil {
		panic(err)
	}
	return s.Name
}

// holder returns the record that holds the field at a path, and the field's name; nil if a
// record on the way is null or another branch.
func holder(value map[string]any, path string) (map[string]any, string) {
	steps := strings.Split(path, ".")
	for _, step := range steps[:len(steps)-1] {
		next, ok := value[step].(map[string]any)
		if !ok {
			return nil, ""
		}
		if inner := branch(next); inner != nil {
			next = inner
		}
		value = next
	}
	name := steps[len(steps)-1]
	if _, ok := value[name]; !ok && !strings.HasPrefix(name, "new") || value["other"] != nil {
		return nil, ""
	}
	return value, name
}

// branch returns the record in the JSON form of a union of several types.
func branch(v map[string]any) map[string]any {
	if len(v) != 1 {
		return nil
	}
	for name, inner := range v {
		if record, ok := inner.(map[string]any); ok && strings.HasPrefix(name, "T") {
			return record
		}
	}
	return nil
}

// Over random schemas and values, setting and adding fields within records, plain, nullable
// or in other unions, gives the bytes of the value that a plain program computes from JSON.
func TestSetAndAddWithinRecordsAgreeWithDecodedValues(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := drawn{mixed: map[string]bool{}}
		schema, value := d.record(rt, 3, "")
		if len(d.longs) == 0 {
			rt.Skip("no field to set")
		}
		text := func() string {
			out, err := json.Marshal(value)
			if err != nil {
				rt.Fatal(err)
			}
			return string(out)
		}
		in := text()
		var stages []string
		added := map[string]bool{}
		for i := range rapid.IntRange(1, 3).Draw(rt, "stages") {
			var sets, adds []string
			for _, path := range rapid.SliceOfNDistinct(rapid.SampledFrom(d.longs), 1, 3, rapid.ID).Draw(rt, "paths") {
				record, name := holder(value, path)
				if d.mixed[path[:strings.LastIndexByte(path, '.')+1]] || rapid.Bool().Draw(rt, "set") {
					sets = append(sets, fmt.Sprintf("%s: %s + 1", path, path))
					if record != nil {
						n, err := record[name].(json.Number).Int64()
						if err != nil {
							rt.Fatal(err)
						}
						record[name] = json.Number(fmt.Sprint(n + 1))
					}
					continue
				}
				at := path[:strings.LastIndexByte(path, '.')+1] + fmt.Sprint("new", i)
				if added[at] {
					continue
				}
				added[at] = true
				adds = append(adds, at+": {type: long, value: 5}")
				if record != nil {
					record[fmt.Sprint("new", i)] = json.Number("5")
				}
			}
			stages = append(stages, fmt.Sprintf("{enrich: {set: {%s}, add: {%s}}}", strings.Join(sets, ", "), strings.Join(adds, ", ")))
		}
		name := typeName(schema)
		r, pl := oneType(t, name, schema, strings.Join(stages, ", "))
		encode := func(s *codec.Schema, text string) []byte {
			var j codec.JSON
			if err := j.Parse([]byte(text)); err != nil {
				rt.Fatal(err)
			}
			out, err := j.AppendAvro(codec.AppendFrame(nil, 0), s)
			if err != nil {
				rt.Fatalf("%s\n%s: %v", s, text, err)
			}
			return out
		}
		rec := &pipeline.Record{Topic: "in", Key: []byte("k"), Value: encode(pl.Types[0], in), Time: time.UnixMilli(0)}
		out, err := r.Run(t.Context(), rec)
		if err != nil || len(out) != 1 || out[0].Schema == nil {
			rt.Fatalf("%s\n%s\n%s: %d records, %v", schema, stages, in, len(out), err)
		}
		want := encode(pl.Output[0], text())[len(codec.AppendFrame(nil, 0)):]
		if string(out[0].Body) != string(want) {
			rt.Fatalf("%s\n%s\n%s\ngot  %x\nwant %x, %s", schema, stages, in, out[0].Body, want, text())
		}
	})
}

// Over random schemas and values, a mask of fields within records, plain, nullable or in
// other unions, gives the bytes of the value that a plain program computes from JSON.
func TestMaskWithinRecordsAgreesWithDecodedValues(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := drawn{mixed: map[string]bool{}}
		schema, value := d.record(rt, 3, "")
		if len(d.texts) == 0 {
			rt.Skip("no field to mask")
		}
		encode := func(s *codec.Schema) []byte {
			text, err := json.Marshal(value)
			if err != nil {
				rt.Fatal(err)
			}
			var j codec.JSON
			if err := j.Parse(text); err != nil {
				rt.Fatal(err)
			}
			out, err := j.AppendAvro(codec.AppendFrame(nil, 0), s)
			if err != nil {
				rt.Fatalf("%s\n%s: %v", s, text, err)
			}
			return out
		}
		s, err := codec.ParseSchema(schema)
		if err != nil {
			rt.Fatal(err)
		}
		in := encode(s)
		var fields []string
		for _, path := range rapid.SliceOfNDistinct(rapid.SampledFrom(d.texts), 1, 4, rapid.ID).Draw(rt, "paths") {
			fields = append(fields, path+": redact")
			if record, name := holder(value, path); record != nil {
				record[name] = "***"
			}
		}
		r, pl := oneType(t, typeName(schema), schema, "{mask: {fields: {"+strings.Join(fields, ", ")+"}}}")
		want := encode(pl.Output[0])[codec.FrameSize:]
		for range 2 { // the second time, memory is reused
			out, err := r.Run(t.Context(), &pipeline.Record{Topic: "in", Key: []byte("k"), Value: in, Time: time.UnixMilli(0)})
			if err != nil || len(out) != 1 || out[0].Schema == nil || string(out[0].Body) != string(want) {
				rt.Fatalf("%s\n%s\n%x: %d records, %v\ngot  %x\nwant %x", schema, fields, in, len(out), err, out[0].Body, want)
			}
		}
	})
}
