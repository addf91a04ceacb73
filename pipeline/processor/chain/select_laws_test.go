package chain_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// How a record is in its field.
const (
	plain = iota
	nullFirst
	nullLast
	items   // of an array
	several // of a union with a string and null
	ways
)

// A drawnRecord is a random record, its value and what a select does with its fields.
type drawnRecord struct {
	name   string
	fields []*drawnField
}

type drawnField struct {
	name, to string       // its name before and after; no name after: the new type lacks it
	record   *drawnRecord // nil: a long
	way      int
	set      bool   // to one more
	moves    string // the dotted path of the new type to which it moves
	null     bool   // the new field: what it holds moves here, or null does
}

// drawRecord draws a record. Paths end with a point. They are "" where a rename cannot reach.
func (w *selectWorld) drawRecord(t *rapid.T, depth int, from, to string) *drawnRecord {
	w.types++
	r := &drawnRecord{name: fmt.Sprint("T", w.types)}
	for i := range rapid.IntRange(1, 4).Draw(t, "fields") {
		f := &drawnField{name: fmt.Sprint("f", i)}
		f.to = f.name
		reach, inItems := from != "", strings.Contains(from, "[]")
		if reach && rapid.IntRange(0, 2).Draw(t, "rename") == 0 {
			f.to = f.name + "r"
			w.renames = append(w.renames, fmt.Sprintf("%q: %q", from[1:]+f.name, to[1:]+f.to))
		}
		if depth > 0 && rapid.Bool().Draw(t, "record") {
			f.way = rapid.IntRange(0, ways-1).Draw(t, "way")
			below := map[int]string{items: "[]."}[f.way]
			if below == "" {
				below = "."
			}
			if f.way == several {
				f.record = w.drawRecord(t, depth-1, "", "")
			} else if reach {
				f.record = w.drawRecord(t, depth-1, from+f.name+below, to+f.to+below)
			} else {
				f.record = w.drawRecord(t, depth-1, "", "")
			}
		} else if reach && !inItems && f.to == f.name {
			switch rapid.IntRange(0, 3).Draw(t, "change") {
			case 0:
				f.set = true
				w.sets = append(w.sets, fmt.Sprintf("%s: %s + 1", to[1:]+f.to, from[1:]+f.name))
			case 1:
				w.moving, w.sources = append(w.moving, f), append(w.sources, from[1:]+f.name)
			case 2:
				if i > 0 {
					f.to = ""
				}
			}
		}
		r.fields = append(r.fields, f)
	}
	if from != "" && !strings.Contains(from, "[]") {
		w.places, w.records = append(w.places, to), append(w.records, r)
	}
	return r
}

type selectWorld struct {
	types         int
	renames, sets []string
	moving        []*drawnField
	sources       []string
	places        []string // where fields can move to
	records       []*drawnRecord
}

// schema returns the schema of the record before or after.
func (r *drawnRecord) schema(after bool) string {
	var fields []string
	for _, f := range r.fields {
		name, typ := f.name, `"long"`
		if after {
			name = f.to
		}
		switch {
		case f.null && !after, name == "":
			continue
		case f.null:
			typ = `["long","null"]`
		case f.record != nil:
			typ = fmt.Sprintf(map[int]string{plain: "%s", nullFirst: `["null",%s]`, nullLast: `[%s,"null"]`, items: `{"type":"array","items":%s}`, several: `["string",%s,"null"]`}[f.way], f.record.schema(after))
		}
		fields = append(fields, fmt.Sprintf(`{"name":%q,"type":%s}`, name, typ))
	}
	return fmt.Sprintf(`{"type":"record","name":%q,"fields":[%s]}`, r.name, strings.Join(fields, ","))
}

// values draws a value and returns it before and after. Fields that move are in moved, by
// their path.
func (r *drawnRecord) values(t *rapid.T, moved map[string]any) (before, after map[string]any) {
	before, after = map[string]any{}, map[string]any{}
	for _, f := range r.fields {
		switch {
		case f.null:
			after[f.to] = f.moves // replaced when all values are known
			continue
		case f.record == nil:
			n := rapid.Int64Range(-1<<40, 1<<40).Draw(t, "long")
			if before[f.name] = n; f.moves != "" {
				moved[f.moves] = n
			}
			if f.set {
				n++
			}
			after[f.to] = n
		case f.way == items:
			list, out := []any{}, []any{}
			for range rapid.IntRange(0, 2).Draw(t, "items") {
				b, a := f.record.values(t, moved)
				list, out = append(list, b), append(out, a)
			}
			before[f.name], after[f.to] = list, out
		case f.way != plain && rapid.IntRange(0, 2).Draw(t, "null") == 0:
			before[f.name], after[f.to] = nil, nil
		case f.way == several:
			b, a := f.record.values(t, moved)
			before[f.name], after[f.to] = map[string]any{f.record.name: b}, map[string]any{f.record.name: a}
		default:
			before[f.name], after[f.to] = f.record.values(t, moved)
		}
	}
	delete(after, "")
	return before, after
}

// settle replaces the paths of moved fields by their values.
func settle(v any, moved map[string]any) any {
	switch v := v.(type) {
	case map[string]any:
		for name := range v {
			v[name] = settle(v[name], moved)
		}
	case []any:
		for i := range v {
			v[i] = settle(v[i], moved)
		}
	case string:
		return moved[v]
	}
	return v
}

// Over random schemas and values, a select to another type gives the bytes of the value that
// a plain program computes: fields are set and renamed within records that can be null and
// within items, they move between records, and a null stays null.
func TestSelectWithinRecordsAgreesWithDecodedValues(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &selectWorld{}
		root := w.drawRecord(rt, 3, ".", ".")
		for i, f := range w.moving {
			at := rapid.IntRange(0, len(w.places)-1).Draw(rt, "place")
			f.to, f.moves = "", fmt.Sprint("m", i)
			name := "new" + f.moves
			w.records[at].fields = append(w.records[at].fields, &drawnField{to: name, moves: f.moves, null: true})
			w.renames = append(w.renames, fmt.Sprintf("%q: %q", w.sources[i], w.places[at][1:]+name))
		}
		in, out := root.schema(false), strings.Replace(root.schema(true), `"name":"`+root.name+`"`, `"name":"Out"`, 1)
		if len(w.renames)+len(w.sets) == 0 || strings.Contains(out, `"fields":[]`) {
			rt.Skip()
		}
		moved := map[string]any{}
		before, after := root.values(rt, moved)
		settle(after, moved)
		stages := fmt.Sprintf("{select: {to: Out, rename: {%s}, set: {%s}}}", strings.Join(w.renames, ", "), strings.Join(w.sets, ", "))
		r, pl := offline(t, fmt.Sprintf(`
name: t
topics: {in: {partitions: 1, types: [%s], envelope: none}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines:
  p: {from: in, to: out, dead_letter: dead, stages: [%s]}
`, root.name, stages), map[string]string{root.name + ".avsc": in, "Out.avsc": strings.Replace(out, `{"type"`, `{"namespace":"x","type"`, 1)})
		encode := func(s *codec.Schema, v any) []byte {
			text, err := json.Marshal(v)
			if err != nil {
				rt.Fatal(err)
			}
			var j codec.JSON
			if err := j.Parse(text); err != nil {
				rt.Fatal(err)
			}
			body, err := j.AppendAvro(codec.AppendFrame(nil, 0), s)
			if err != nil {
				rt.Fatalf("%s\n%s: %v", s, text, err)
			}
			return body
		}
		rec := &pipeline.Record{Topic: "in", Key: []byte("k"), Value: encode(pl.Types[0], before), Time: time.UnixMilli(0)}
		for range 2 { // the second time, memory is reused
			got, err := r.Run(t.Context(), rec)
			if err != nil || len(got) != 1 || got[0].Schema == nil {
				rt.Fatalf("%s\n%s\n%v: %d records, %v", in, stages, before, len(got), err)
			}
			if want := encode(pl.Output[0], after)[codec.FrameSize:]; !slices.Equal(got[0].Body, want) {
				rt.Fatalf("%s\n%s\n%s\n%v\ngot  %x\nwant %x, %v", in, out, stages, before, got[0].Body, want, after)
			}
		}
	})
}
