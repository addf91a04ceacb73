package keyformat_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/keyformat"
)

func show(t interface{ Fatal(...any) }, f keyformat.Format, schemas keyformat.Schemas, r *pipeline.Record) string {
	got, err := keyformat.NewReader(f, "in", schemas).AppendText(context.Background(), []byte("x"), r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(string(got), "x")
}

// The bytes of a key and its text form convert into each other.
func TestKeysConvertToTextAndBack(t *testing.T) {
	sizes := map[keyformat.Kind]int{keyformat.Long: 8, keyformat.Int: 4, keyformat.UUID: 16, keyformat.Bytes: 3}
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]keyformat.Kind{keyformat.Text, keyformat.Long, keyformat.Int, keyformat.UUID, keyformat.Bytes}).Draw(t, "kind")
		key := rapid.SliceOfN(rapid.Byte(), sizes[kind], sizes[kind]).Draw(t, "key")
		if kind == keyformat.Text {
			key = []byte(rapid.StringMatching(`[^\x00]+`).Draw(t, "text"))
		}
		f := keyformat.Format{Kind: kind}
		shown := show(t, f, nil, &pipeline.Record{Key: key})
		back, err := f.AppendKey([]byte{7}, []byte(shown))
		if err != nil || !bytes.Equal(back, append([]byte{7}, key...)) {
			t.Fatalf("%x is %q, which is %x, %v", key, shown, back, err)
		}
		if f.Show(key) != shown {
			t.Fatalf("%x is shown as %q, want %q", key, f.Show(key), shown)
		}
	})
}

// The text form of an Avro key determines the key, if it has the declared schema.
func TestAvroKeysConvertToTextAndBack(t *testing.T) {
	types := map[string]func(*rapid.T) any{
		`"string"`:           func(t *rapid.T) any { return rapid.String().Draw(t, "v") },
		`["null", "string"]`: func(t *rapid.T) any { return rapid.String().Draw(t, "v") },
		`"long"`:             func(t *rapid.T) any { return json.Number(strconv.FormatInt(rapid.Int64().Draw(t, "v"), 10)) },
		`"int"`:              func(t *rapid.T) any { return json.Number(strconv.FormatInt(int64(rapid.Int32().Draw(t, "v")), 10)) },
		`"boolean"`:          func(t *rapid.T) any { return rapid.Bool().Draw(t, "v") },
		`"bytes"`: func(t *rapid.T) any {
			return base64.StdEncoding.EncodeToString(rapid.SliceOf(rapid.Byte()).Draw(t, "v"))
		},
		`{"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}`: func(t *rapid.T) any {
			return rapid.StringMatching(`[0-9]{3}e[0-9]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`).Draw(t, "v")
		},
		`{"type": "enum", "name": "E", "symbols": ["A", "null", "true"]}`: func(t *rapid.T) any { return rapid.SampledFrom([]string{"A", "null", "true"}).Draw(t, "v") },
		`{"type": "long", "logicalType": "timestamp-millis"}`: func(t *rapid.T) any {
			return time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "v")).UTC().Format(time.RFC3339Nano)
		},
	}
	names := slices.Sorted(maps.Keys(types))
	rapid.Check(t, func(t *rapid.T) {
		typ := rapid.SampledFrom(names).Draw(t, "type")
		text, value := typ, types[typ](t)
		switch rapid.SampledFrom([]string{"primitive", "one", "two"}).Draw(t, "form") {
		case "one":
			text, value = `{"type": "record", "name": "One", "fields": [{"name": "v", "type": `+typ+`}]}`, map[string]any{"v": value}
		case "two":
			text, value = `{"type": "record", "name": "Two", "fields": [{"name": "v", "type": `+typ+`}, {"name": "n", "type": "int"}]}`, map[string]any{"v": value, "n": 1}
		}
		s, err := codec.ParseSchema(text)
		if err != nil {
			t.Fatal(err)
		}
		f := keyformat.Format{Kind: keyformat.Avro, Schema: s}
		body, err := codec.EncodeJSON(s, value)
		if err != nil {
			t.Fatal(err)
		}
		key := append(codec.AppendFrame(nil, 5), body...)
		shown := show(t, f, eventtest.Schemas{5: s}, &pipeline.Record{Key: key})
		back, err := f.Encode(shown, func(*codec.Schema) int { return 5 })
		if err != nil || !bytes.Equal(back, key) {
			t.Fatalf("%x of %s is %q, which is %x, %v", key, text, shown, back, err)
		}
		if f.Show(key) != shown {
			t.Fatalf("%x of %s is shown as %q, want %q", key, text, f.Show(key), shown)
		}
	})
}

// Two texts are not the same key, except for a UUID or hexadecimal text in upper case.
func TestOnlyTheTextFormIsAKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]keyformat.Kind{keyformat.Long, keyformat.Int, keyformat.UUID, keyformat.Bytes}).Draw(t, "kind")
		given := rapid.StringMatching(`[+-]?0{0,2}[0-9]{1,20}|[0-9a-fA-F]{0,6}|[0-9A-Fa-f-]{36}`).Draw(t, "text")
		f := keyformat.Format{Kind: kind}
		key, err := f.AppendKey(nil, []byte(given))
		if err == nil && f.Show(key) != given && (kind != keyformat.UUID && kind != keyformat.Bytes || f.Show(key) != strings.ToLower(given)) {
			t.Fatalf("%q is the %s %x, whose text form is %q", given, kind, key, f.Show(key))
		}
	})
}

func TestTextFormsAreThoseOfTheContract(t *testing.T) {
	record := eventtest.Schema(t, `{"type": "record", "name": "K", "fields": [{"name": "b", "type": "string"}, {"name": "a", "type": "long"}]}`)
	single := eventtest.Schema(t, `{"type": "record", "name": "One", "fields": [{"name": "id", "type": "long"}]}`)
	plain := eventtest.Schema(t, `"string"`)
	schemas := eventtest.Schemas{1: record, 2: single, 3: plain}
	framed := func(id int, body []byte) []byte { return append(codec.AppendFrame(nil, id), body...) }
	for _, test := range []struct {
		format keyformat.Format
		key    []byte
		want   string
	}{
		{keyformat.Format{}, []byte("u-1"), "u-1"},
		{keyformat.Format{Kind: keyformat.Long}, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe}, "-2"},
		{keyformat.Format{Kind: keyformat.Int}, []byte{0, 0, 1, 0}, "256"},
		{keyformat.Format{Kind: keyformat.UUID}, bytes.Repeat([]byte{0xAB}, 16), "abababab-abab-abab-abab-abababababab"},
		{keyformat.Format{Kind: keyformat.Bytes}, []byte{0, 0xFF}, "00ff"},
		{keyformat.Format{Kind: keyformat.Avro, Schema: record}, framed(1, codec.AppendLong(codec.AppendString(nil, "x"), 5)), `{"b":"x","a":5}`},
		{keyformat.Format{Kind: keyformat.Avro, Schema: single}, framed(2, codec.AppendLong(nil, 7)), "7"},
		{keyformat.Format{Kind: keyformat.Avro, Schema: plain}, framed(3, codec.AppendString(nil, `a"b`)), `a"b`},
	} {
		r := &pipeline.Record{Key: test.key}
		if got := show(t, test.format, schemas, r); got != test.want {
			t.Errorf("%s %x is %q, want %q", test.format, test.key, got, test.want)
		}
		if got := test.format.Show(test.key); got != test.want {
			t.Errorf("%s %x is shown as %q, want %q", test.format, test.key, got, test.want)
		}
	}
	// The schema id can be in a header.
	r := &pipeline.Record{Key: codec.AppendLong(nil, 7), Headers: []pipeline.Header{{Key: "__key_schema_id", Value: framed(2, nil)}}}
	if got := show(t, keyformat.Format{Kind: keyformat.Avro, Schema: single}, schemas, r); got != "7" {
		t.Errorf("the key with its schema id in a header is %q", got)
	}
}

func TestKeyOfAnotherFormatIsRejectedWithTheLikelyFormat(t *testing.T) {
	single := eventtest.Schema(t, `{"type": "record", "name": "One", "fields": [{"name": "id", "type": "long"}]}`)
	other := eventtest.Schema(t, `{"type": "record", "name": "Two", "fields": [{"name": "name", "type": "string"}]}`)
	schemas := eventtest.Schemas{1: single, 2: other}
	for _, test := range []struct {
		kind keyformat.Kind
		key  []byte
		want string
	}{
		{keyformat.Text, []byte{0, 0, 0, 0, 0, 0, 0, 1}, "it seems to be long"},
		{keyformat.Text, []byte{0, 0, 0, 0, 1, 2, 3}, "it seems to be avro"},
		{keyformat.Text, []byte{0xff, 0xfe, 0}, "the key fffe00 (3 bytes) is not text, the key_format of in; it seems to be bytes"},
		{keyformat.Text, bytes.Repeat([]byte{0xf1}, 16), "it seems to be uuid"},
		{keyformat.Long, []byte{0, 0, 0, 1}, "it seems to be int"},
		{keyformat.Long, []byte{}, `the key "" (0 bytes) is not long, the key_format of in`},
		{keyformat.Avro, []byte{}, `the key "" (0 bytes) is not avro, the key_format of in`},
		{keyformat.UUID, []byte("abababab-abab-abab-abab-abababababab"), `the key "abababab-abab-abab-abab-abababababab" (36 bytes) is not uuid, the key_format of in; it seems to be text`},
		{keyformat.Long, nil, "the record has no key"},
		{keyformat.Avro, []byte("u-1"), "it seems to be text"},
		{keyformat.Avro, []byte{0, 0, 0, 0, 1, 2, 3}, "not valid Avro"},
		{keyformat.Avro, []byte{0, 0, 0, 0, 2, 2, 'a'}, "cannot be read as key_schema"},
	} {
		err := keyformat.NewReader(keyformat.Format{Kind: test.kind, Schema: single}, "in", schemas).Check(t.Context(), &pipeline.Record{Key: test.key})
		if pipeline.ReasonOf(err) != keyformat.ReasonBadKey || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s, %x: %v, want %q", test.kind, test.key, err, test.want)
		}
	}
	for kind, bad := range map[keyformat.Kind]string{keyformat.Long: "1.5", keyformat.Int: "3000000000", keyformat.UUID: "u-1", keyformat.Bytes: "xy", keyformat.Avro: "1"} {
		if got, err := (keyformat.Format{Kind: kind}).AppendKey(nil, []byte(bad)); pipeline.ReasonOf(err) != keyformat.ReasonBadKey {
			t.Errorf("%q became the %s %x, %v", bad, kind, got, err)
		}
	}
}

// A key with an older schema is read with the declared one, as expressions read it. Its
// text form stays that of the writer's schema.
func TestAnAvroKeyIsReadWithTheDeclaredSchema(t *testing.T) {
	old := eventtest.Schema(t, `{"type": "record", "name": "K", "fields": [{"name": "id", "type": "int"}]}`)
	now := eventtest.Schema(t, `{"type": "record", "name": "K", "fields": [{"name": "tenant", "type": "string", "default": "t"}, {"name": "id", "type": "long"}]}`)
	f := keyformat.Format{Kind: keyformat.Avro, Schema: now}
	r := keyformat.NewReader(f, "in", eventtest.Schemas{1: old, 2: now})
	for _, test := range []struct {
		key  []byte
		text string
	}{
		{codec.AppendLong(codec.AppendFrame(nil, 1), 7), "7"},
		{codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, 2), "t"), 7), `{"tenant":"t","id":7}`},
	} {
		in := &pipeline.Record{Key: test.key}
		got, err := r.AppendText(t.Context(), nil, in)
		if err != nil || string(got) != test.text || r.Show(t.Context(), in) != test.text {
			t.Errorf("%x is %q, %v, want %q", test.key, got, err, test.text)
		}
		value, err := f.AppendValue(nil, test.key, r.Body())
		if want := codec.AppendLong(codec.AppendString(nil, "t"), 7); err != nil || !bytes.Equal(value, want) {
			t.Errorf("%x is read as %x, %v, want %x", test.key, value, err, want)
		}
	}
}
