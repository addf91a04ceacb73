package resolve

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline/codec"
)

// A projection copies the fields that stay byte for byte, whatever their types and their
// order, and gives the others their defaults or the given values.
func TestProjectionCopiesFieldsByteForByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := &samples{t: t}
		var fields, target []any
		var body []byte
		values := map[string][]byte{}
		for i := range rapid.IntRange(1, 6).Draw(t, "fields") {
			s := g.draw(2, false)
			name := fmt.Sprint("f", i)
			fields = append(fields, object{"name": name, "type": s.writer})
			body, values[name] = append(body, s.value...), s.value
		}
		for _, f := range fields {
			if rapid.Bool().Draw(t, "keep") {
				target = append(target, f)
			}
		}
		target = append(target, object{"name": "given", "type": "string"}, object{"name": "preset", "type": "long", "default": 3})
		values["given"], values["preset"] = codec.AppendString(nil, "x"), codec.AppendLong(nil, 3)
		target = rapid.Permutation(target).Draw(t, "order")
		w, r := recordOf(t, "W", fields), recordOf(t, "R", target)
		p, gaps := NewProjection(w.Root(), r.Root(), nil, []string{"given"})
		if len(gaps) > 0 {
			t.Fatalf("%s to %s: %v", w, r, gaps)
		}
		var scratch Scratch
		for range 2 { // the second time, memory is reused
			got, err := p.Append([]byte("before"), body, [][]byte{values["given"]}, &scratch)
			want := []byte("before")
			for _, f := range r.Root().Fields {
				want = append(want, values[f.Name]...)
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s to %s: %x becomes %x, %v; want %x", w, r, body, got, err, want)
			}
			if err := codec.Validate(r.Root(), got[len("before"):]); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func recordOf(t *rapid.T, name string, fields []any) *codec.Schema {
	text, err := json.Marshal(object{"type": "record", "name": name, "fields": slices.Clone(fields)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := codec.ParseSchema(string(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s
}

// A projection allocates nothing when its memory has grown.
func TestProjectionAllocatesNothing(t *testing.T) {
	w, err := codec.ParseSchema(`{"type":"record","name":"W","fields":[{"name":"a","type":"string"},{"name":"b","type":"int"},{"name":"c","type":["null","string"]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	r, err := codec.ParseSchema(`{"type":"record","name":"R","fields":[{"name":"c","type":["null","string"]},{"name":"b","type":"long"},{"name":"a","type":"string"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	p, gaps := NewProjection(w.Root(), r.Root(), nil, nil)
	if len(gaps) > 0 {
		t.Fatal(gaps)
	}
	var scratch Scratch
	body := []byte{2, 'x', 4, 2, 2, 'y'}
	dst := make([]byte, 0, 100)
	if n := testing.AllocsPerRun(100, func() {
		if dst, err = p.Append(dst[:0], body, nil, &scratch); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if want := []byte{2, 2, 'y', 4, 2, 'x'}; !bytes.Equal(dst, want) {
		t.Errorf("got %x, want %x", dst, want)
	}
}
