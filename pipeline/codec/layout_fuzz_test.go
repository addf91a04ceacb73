package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/linkedin/goavro/v2"
	"github.com/twmb/avro"
	"pgregory.net/rapid"

	"millrace/pipeline"
)

// walkLaws draws a schema and a body (valid, damaged or random) and checks the
// properties of a walk: it agrees with Validate, loses no bytes, and accepts only
// bodies that other decoders accept.
func walkLaws(t *rapid.T) {
	var g sampler
	typ := g.draw(t, 3, false)
	text, err := json.Marshal(map[string]any{"type": "record", "name": "Root", "fields": []any{map[string]any{"name": "v", "type": typ.schema}, map[string]any{"name": "end", "type": "string"}}})
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
	ours, _ := typ.value(t)
	body, err := EncodeJSON(s, map[string]any{"v": ours, "end": "."})
	if err != nil {
		t.Fatal(err)
	}
	damage := rapid.IntRange(0, 3).Draw(t, "damage") // 0: none
	switch damage {
	case 1:
		body = body[:rapid.IntRange(0, len(body)-1).Draw(t, "cut")]
	case 2:
		body = bytes.Clone(body)
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			body[rapid.IntRange(0, len(body)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "byte")
		}
	case 3:
		body = rapid.SliceOf(rapid.Byte()).Draw(t, "body")
	}
	var leaves [][]string
	if s.Root().Field("v").Type.Kind != Record {
		leaves = [][]string{{"v"}}
	}
	layout, err := NewLayout(s, append(leaves, []string{"end"}))
	if err != nil {
		t.Fatal(err)
	}
	var v pipeline.View
	err = layout.Walk(body, &v)
	if alone := Validate(s.Root(), body); (alone == nil) != (err == nil) {
		t.Fatalf("%s\n%x: Walk returns %v, Validate %v", text, body, err, alone)
	}
	if err != nil {
		var walk *WalkError
		if damage == 0 || pipeline.ClassOf(err) != pipeline.ClassReject || !errors.As(err, &walk) || walk.Offset < 0 || walk.Offset > len(body) {
			t.Fatalf("%s\n%x: %v", text, body, err)
		}
		return
	}
	// The slots have the right spans, and splicing their own values into the body
	// does not change it.
	end, rest, err := ReadText(v.Get(layout.Slot("end")))
	if err != nil || len(rest) > 0 || !bytes.HasSuffix(body, end) {
		t.Fatalf("%s\n%x: the field end is %q", text, body, end)
	}
	for i := range layout.Len() {
		if err := Validate(layout.Node(i), v.Get(i)); err != nil {
			t.Fatalf("%s\n%x: slot %s: %v", text, body, layout.Path(i), err)
		}
		v.Set(i, bytes.Clone(v.Get(i)))
	}
	if out := v.Append(nil); !bytes.Equal(out, body) {
		t.Fatalf("%s\n%x: spliced with its own values, it is %x", text, body, out)
	}
	// Other decoders accept every body that Walk accepts, and Walk accepts every body
	// that they encode.
	var native any
	if rest, err := s.Avro().Decode(body, &native, avro.TaggedUnions()); err != nil || len(rest) > 0 {
		t.Fatalf("%s\n%x: Walk accepts it; twmb/avro: %v, %d bytes left", text, body, err, len(rest))
	}
	if _, rest, err := reference.NativeFromBinary(body); err != nil && !refusedByGoavro(err) || len(rest) > 0 {
		t.Fatalf("%s\n%x: Walk accepts it; goavro: %v, %d bytes left", text, body, err, len(rest))
	}
	again, err := s.Avro().Encode(native)
	if err != nil {
		if damage == 0 {
			t.Fatalf("%s\n%x: twmb/avro cannot encode its decoded value: %v", text, body, err)
		}
		return // a logical value out of range
	}
	if err := layout.Walk(again, &v); err != nil {
		t.Fatalf("%s\n%x: twmb/avro encodes it; Walk: %v", text, again, err)
	}
}

// refusedByGoavro reports whether the error is one that goavro returns for valid Avro:
// it refuses a duplicate key in a map.
func refusedByGoavro(err error) bool { return strings.Contains(err.Error(), "duplicate key") }

func TestWalkLaws(t *testing.T) { rapid.Check(t, walkLaws) }

func FuzzWalk(f *testing.F) { f.Fuzz(rapid.MakeFuzz(walkLaws)) }

// FuzzWalkBody validates random bytes with schemas that use every type. No input may
// cause a panic, or be accepted if another decoder refuses it.
func FuzzWalkBody(f *testing.F) {
	order := shopSchema(f, "OrderCreated")
	enc, err := EncodeJSON(order, decodeJSON(f, orderJSON))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(enc)
	for _, h := range hostile() {
		if len(h.body) < 1000 {
			f.Add(h.body)
		}
	}
	list := []*Schema{order, mustParse(f, everything)}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, s := range list {
			if Validate(s.Root(), body) != nil {
				continue
			}
			var native any
			if rest, err := s.Avro().Decode(body, &native); err != nil || len(rest) > 0 {
				t.Fatalf("%x: Validate accepts it; twmb/avro: %v, %d bytes left", body, err, len(rest))
			}
		}
	})
}

type hostileBody struct {
	name, typ string // typ is the type of the field v
	body      []byte
	want      string
}

// hostile returns bodies that have crashed decoders, most of them a few bytes that claim
// a large size.
func hostile() []hostileBody {
	huge := AppendLong(nil, 1<<40)
	least := AppendLong(nil, -1<<63)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	return []hostileBody{
		{"array of 2^40 items", `{"type":"array","items":"long"}`, join(huge, []byte{0}), "the body ends within a number"},
		{"array of -2^63 items", `{"type":"array","items":"long"}`, join(least, []byte{2, 0, 0}), "a block of -9223372036854775808 items"},
		{"block of 2^40 bytes", `{"type":"array","items":"long"}`, join([]byte{1}, huge, []byte{0, 0}), "a block of 1099511627776 bytes, but only 2 are left"},
		{"block of -1 bytes", `{"type":"array","items":"long"}`, []byte{1, 1, 0, 0}, "a block of -1 bytes"},
		{"block with a wrong size", `{"type":"array","items":"long"}`, []byte{1, 4, 2, 0}, "a block's size in bytes is wrong"},
		{"map of 2^40 entries", `{"type":"map","values":"null"}`, join(huge, []byte{0}), "the body ends within a number"},
		{"string of 2^40 bytes", `"string"`, join(huge, []byte("abc")), "a length of 1099511627776, but only 3 bytes are left"},
		{"string of negative length", `"string"`, join(AppendLong(nil, -1<<40), []byte("abc")), "a length of -1099511627776"},
		{"bytes of -2^63", `"bytes"`, least, "a length of -9223372036854775808"},
		{"10^9 items of zero bytes", `{"type":"array","items":"null"}`, join(AppendLong(nil, 1e9), []byte{0}), "more than 4096 items of zero bytes"},
		{"2^40 empty records", `{"type":"array","items":{"type":"record","name":"Empty","fields":[]}}`, join(huge, []byte{0}), "more than 4096 items of zero bytes"},
		{"500,000 blocks of 1,000 nulls", `{"type":"array","items":"null"}`, join(bytes.Repeat(AppendLong(nil, 1000), 500_000), []byte{0}), "more than 4096 items of zero bytes"},
		{"arrays within arrays", `{"type":"array","items":{"type":"array","items":"null"}}`, bytes.Repeat(AppendLong(nil, 1<<40), 100), "more than 4096 items of zero bytes"},
		{"50 million levels", `{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}`, bytes.Repeat([]byte{2}, 50_000_000), "values nested more than 64 deep"},
		{"trailing bytes", `"long"`, []byte{2, 0}, "1 bytes follow the end of the record"},
		{"a string that is not UTF-8", `"string"`, []byte{4, 0xff, 0xfe}, "a string that is not UTF-8"},
		{"a key that is not UTF-8", `{"type":"map","values":"null"}`, []byte{2, 2, 0xff, 0}, "a string that is not UTF-8"},
		{"a surrogate", `"string"`, []byte{6, 0xed, 0xa0, 0x80}, "a string that is not UTF-8"},
		{"a boolean of 2", `"boolean"`, []byte{2}, "a boolean is 0 or 1, not 2"},
		{"a union's branch out of range", `["null","string"]`, []byte{4}, "branch 2 of a union of 2"},
		{"a negative branch", `["null","string"]`, []byte{1}, "branch -1 of a union of 2"},
		{"an unknown symbol", `{"type":"enum","name":"E","symbols":["A"]}`, []byte{2}, "symbol 1 of enum E, which has 1"},
		{"an int of 33 bits", `"int"`, AppendLong(nil, 1<<32), "4294967296 does not fit an int"},
		{"a number of 65 bits", `"long"`, bytes.Repeat([]byte{0xff}, 11), "a number of more than 64 bits"},
		{"a number without end", `"long"`, bytes.Repeat([]byte{0x80}, 9), "the body ends within a number"},
		{"a decimal of a million digits", `{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}`, AppendBytes(nil, bytes.Repeat([]byte{1}, 415_000)), "a decimal of 415000 bytes"},
		{"a truncated double", `"double"`, []byte{1, 2, 3}, "the body ends within a value of 8 bytes"},
		{"a fixed of 2^31-1 bytes", `{"type":"fixed","name":"F","size":2147483647}`, []byte{1}, "the body ends within a value of 2147483647 bytes"},
		{"no bytes", `"long"`, nil, "the body ends within a number"},
	}
}

// Each hostile body is rejected with the right error, and with few allocations.
func TestHostileBodiesAreRejected(t *testing.T) {
	for _, h := range hostile() {
		s := fieldSchema(t, h.typ)
		var paths [][]string
		if s.Root().Fields[0].Type.Kind != Record {
			paths = [][]string{{"v"}}
		}
		layout, err := NewLayout(s, paths)
		if err != nil && strings.Contains(err.Error(), "within themselves") {
			layout, err = NewLayout(fieldSchema(t, `["null",`+h.typ+`]`), nil)
			h.body = append([]byte{2}, h.body...)
		}
		if err != nil {
			t.Fatalf("%s: %v", h.name, err)
		}
		var v pipeline.View
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err = layout.Walk(h.body, &v)
		runtime.ReadMemStats(&after)
		var walk *WalkError
		if !errors.As(err, &walk) || pipeline.ClassOf(err) != pipeline.ClassReject || !strings.Contains(err.Error(), h.want) {
			t.Errorf("%s: got %.200v, want %s", h.name, err, h.want)
			continue
		}
		reason := pipeline.ReasonBadBody
		if h.name == "trailing bytes" {
			reason = pipeline.ReasonTrailingBytes
		} else if !strings.HasPrefix(walk.Path, "v") {
			t.Errorf("%s: the path is %q", h.name, walk.Path)
		}
		if got := pipeline.ReasonOf(err); got != reason {
			t.Errorf("%s: the reason is %s", h.name, got)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
			t.Errorf("%s: %d bytes were allocated", h.name, n)
		}
	}
}

func TestUnusualButHarmlessBodiesAreAccepted(t *testing.T) {
	for _, test := range []struct {
		name, typ string
		body      []byte
	}{
		{"a duplicate key in a map", `{"type":"map","values":"long"}`, []byte{4, 2, 'a', 2, 2, 'a', 4, 0}},
		{"a varint with needless bytes", `"long"`, []byte{0x82, 0x80, 0x00}},
		{"blocks with and without sizes", `{"type":"array","items":"boolean"}`, []byte{1, 2, 1, 2, 0, 0}},
		{"4,096 nulls", `{"type":"array","items":"null"}`, append(AppendLong(nil, 4096), 0)},
		{"a time in the year 300000", `{"type":"long","logicalType":"timestamp-millis"}`, AppendLong(nil, 9_400_000_000_000_000)},
	} {
		if err := Validate(fieldSchema(t, test.typ).Root(), test.body); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// Every truncation of an order is rejected. An order with one flipped bit is rejected, or
// other decoders accept it, too.
func TestWalkOfTruncatedAndFlippedBodies(t *testing.T) {
	s := shopSchema(t, "OrderCreated")
	body, err := EncodeJSON(s, decodeJSON(t, orderJSON))
	if err != nil {
		t.Fatal(err)
	}
	layout, err := NewLayout(s, [][]string{{"data", "items"}, {"metadata"}, {"data", "total_amount"}})
	if err != nil {
		t.Fatal(err)
	}
	var v pipeline.View
	for n := range body {
		if err := layout.Walk(body[:n], &v); pipeline.ClassOf(err) != pipeline.ClassReject || err == nil {
			t.Errorf("truncated after %d of %d bytes: %v", n, len(body), err)
		}
	}
	accepted := 0
	for i := range 8 * len(body) {
		flipped := bytes.Clone(body)
		flipped[i/8] ^= 1 << (i % 8)
		if err := layout.Walk(flipped, &v); err != nil {
			continue
		}
		accepted++
		var native any
		if rest, err := s.Avro().Decode(flipped, &native); err != nil || len(rest) > 0 {
			t.Errorf("bit %d: Walk accepts it; twmb/avro: %v", i, err)
		}
	}
	if accepted == 0 || accepted == 8*len(body) {
		t.Errorf("%d of %d flipped bodies are accepted", accepted, 8*len(body))
	}
}

// Schema documents that have crashed parsers are refused.
func TestHostileSchemasAreRefused(t *testing.T) {
	nested := func(n int) string {
		return strings.Repeat(`{"type":"array","items":`, n) + `"long"` + strings.Repeat("}", n)
	}
	doubled := `{"type":"record","name":"R0","fields":[{"name":"a","type":"long"}]}`
	for i := range 60 {
		doubled = fmt.Sprintf(`{"type":"record","name":"R%d","fields":[{"name":"a","type":%s},{"name":"b","type":"R%d"}]}`, i+1, doubled, i)
	}
	for name, text := range map[string]string{
		"2^60 fields":               doubled,
		"10 MB":                     `{"type":"record","name":"R","doc":"` + strings.Repeat("x", 10<<20) + `","fields":[]}`,
		"5,000 levels":              nested(5000),
		"200,000 brackets":          strings.Repeat("[", 200_000),
		"a duplicate field":         `{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}`,
		"a duplicate type":          `{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"fixed","name":"F","size":1}},{"name":"b","type":{"type":"fixed","name":"F","size":2}}]}`,
		"an infinite record":        `{"type":"record","name":"R","fields":[{"name":"r","type":"R"}]}`,
		"an invalid default":        `{"type":"record","name":"R","fields":[{"name":"a","type":"int","default":"x"}]}`,
		"a fixed of negative size":  `{"type":"fixed","name":"F","size":-1}`,
		"an unknown type":           `{"type":"record","name":"R","fields":[{"name":"a","type":"Nothing"}]}`,
		"not JSON":                  `{"type":`,
		"more after the end":        `"long" "long"`,
		"a union in a union":        `[["null"],"string"]`,
		"a field of the wrong case": `{"Type":"record"}`,
	} {
		s, err := ParseSchema(text)
		if err == nil { // an infinite record and 2^60 fields are valid schemas without a layout
			if _, err = NewLayout(s, nil); err == nil {
				t.Errorf("%s is accepted", name)
			}
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: an error of %d bytes", name, len(fmt.Sprint(err)))
		}
	}
}
