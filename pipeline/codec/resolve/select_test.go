package resolve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline/codec"
)

// A selection within nullable records, arrays and maps copies what stays byte for byte.
func TestASelectionWithinRecordsCopiesTheRestByteForByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := &samples{t: t}
		var fields []any
		var row, rest []byte
		left := map[string]bool{}
		for i := range rapid.IntRange(2, 5).Draw(t, "fields") {
			s, name := g.draw(2, false), fmt.Sprint("f", i)
			fields = append(fields, object{"name": name, "type": s.writer})
			row = append(row, s.value...)
			if left[name] = rapid.Bool().Draw(t, "left out"); !left[name] {
				rest = append(rest, s.value...)
			}
		}
		if len(rest) == 0 || !slices.ContainsFunc(fields, func(f any) bool { return left[f.(object)["name"].(string)] }) {
			t.Skip()
		}
		w := recordOf(t, "W", []any{
			object{"name": "before", "type": []any{"null", object{"type": "record", "name": "V", "fields": fields}}, "default": nil},
			object{"name": "after", "type": []any{"null", "V"}},
			object{"name": "rows", "type": object{"type": "array", "items": "V"}},
			object{"name": "by", "type": object{"type": "map", "values": []any{"V", "null"}}},
		})
		body := func(v []byte) (out []byte) {
			out = append(codec.AppendLong(nil, 1), v...) // before
			out = append(out, 0)                         // after
			out = append(append(codec.AppendLong(out, 2), v...), v...)
			out = append(out, 0) // the end of rows
			out = append(codec.AppendString(codec.AppendLong(out, 1), "k"), 0)
			return append(append(out, v...), 0)
		}
		s, err := w.Select(codec.Selection{Keep: func(path string) codec.Part {
			name := path[strings.LastIndexByte(path, '.')+1:]
			switch {
			case name == path:
				return codec.Some
			case left[name]:
				return codec.None
			}
			return codec.Whole
		}})
		if err != nil {
			t.Fatal(err)
		}
		p, gaps := NewProjection(w.Root(), s.Root(), nil, nil)
		if len(gaps) > 0 {
			t.Fatalf("%s to %s: %v", w, s, gaps)
		}
		var scratch Scratch
		if got, err := p.Append(nil, body(row), nil, &scratch); err != nil || !bytes.Equal(got, body(rest)) {
			t.Fatalf("%s to %s: %x becomes %x, %v; want %x", w, s, body(row), got, err, body(rest))
		}
	})
}

func TestSelectionsWithinRecords(t *testing.T) {
	const rows = `{"name":"a","type":["null",{"type":"record","name":"V","fields":[{"name":"x","type":"int","default":7},{"name":"y","type":"string"}]}],"default":null},{"name":"b","type":"V","default":{"x":1,"y":""}},{"name":"c","type":{"type":"array","items":"V"},"default":[]}`
	w := mustParse(t, `{"type":"record","name":"W","fields":[`+rows+`]}`)
	parts := func(some, none []string) func(string) codec.Part {
		return func(path string) codec.Part {
			switch {
			case slices.Contains(none, path):
				return codec.None
			case slices.Contains(some, path):
				return codec.Some
			}
			return codec.Whole
		}
	}
	got, err := w.Select(codec.Selection{Keep: parts([]string{"a", "b", "c"}, []string{"a.y", "b.y", "c[].y"}), Names: map[string]string{"a.x": "n", "b.x": "n", "c[].x": "n"}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"type":"record","name":"W","fields":[{"name":"a","type":["null",{"type":"record","name":"V","fields":[{"name":"n","type":"int","default":7,"aliases":["x"]}]}],"default":null},{"name":"b","type":"V"},{"name":"c","type":{"type":"array","items":"V"},"default":[]}]}`
	if !sameJSON(t, got.String(), want) {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := w.Select(codec.Selection{Keep: parts([]string{"a"}, []string{"a.y"})}); err == nil || !strings.Contains(err.Error(), "V") {
		t.Errorf("fields are left out of one of three uses of a type: %v", err)
	}
	if _, err := w.Select(codec.Selection{Keep: parts([]string{"b"}, []string{"a", "c", "b.x", "b.y"})}); !errors.Is(err, codec.ErrNoField) {
		t.Errorf("no field of b stays: %v", err)
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(x) == fmt.Sprint(y)
}
