package keyformat_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/keyformat"
)

func text(t interface{ Fatal(...any) }, f keyformat.Format, schemas keyformat.Schemas, r *pipeline.Record) string {
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
		shown := text(t, f, nil, &pipeline.Record{Key: key})
		back, err := f.AppendKey([]byte{7}, []byte(shown))
		if err != nil || !bytes.Equal(back, append([]byte{7}, key...)) {
			t.Fatalf("%x is %q, which is %x, %v", key, shown, back, err)
		}
		if f.Show(key) != shown {
			t.Fatalf("%x is shown as %q, want %q", key, f.Show(key), shown)
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
		if got := text(t, test.format, schemas, r); got != test.want {
			t.Errorf("%s %x is %q, want %q", test.format, test.key, got, test.want)
		}
		if got := test.format.Show(test.key); got != test.want {
			t.Errorf("%s %x is shown as %q, want %q", test.format, test.key, got, test.want)
		}
	}
	// The schema id can be in a header.
	r := &pipeline.Record{Key: codec.AppendLong(nil, 7), Headers: []pipeline.Header{{Key: "__key_schema_id", Value: framed(2, nil)}}}
	if got := text(t, keyformat.Format{Kind: keyformat.Avro, Schema: single}, schemas, r); got != "7" {
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
