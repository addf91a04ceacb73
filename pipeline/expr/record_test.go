package expr

import (
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/keyformat"
)

// key and headers are the key and the headers of the record, unless the event has a
// field of that name.
func TestAnExpressionReadsTheKeyAndTheHeadersOfTheRecord(t *testing.T) {
	event := parse(t, `{"type":"record","name":"E","fields":[{"name":"id","type":"string"}]}`)
	env := newEnv(t, Root{Schema: event, Key: metadata.KeyOf(keyformat.Format{})})
	v := view(t, event, codec.AppendString(nil, "e-1"))
	v.Record = &pipeline.Record{Key: []byte("k-1"), Headers: []pipeline.Header{
		{Key: "source", Value: []byte("old")}, {Key: "source", Value: []byte("shop")}, {Key: "trace", Value: []byte{0xff}}, {Key: "none"}}}
	text := Value(&codec.Node{Kind: codec.String}, "x", "E")
	for src, want := range map[string]string{
		"key":            "k-1",
		"key + '/' + id": "k-1/e-1",
		"headers.source": "shop",
		"has(headers.source) ? headers['source'] : 'none'": "shop",
		"has(headers.trace) ? 'text' : 'none'":             "none",
		"'none' in headers ? 'text' : 'none'":              "none",
		"headers.map(h, h + '!').join('-')":                "source!",
		"key.split('-').map(k, k + key).join(',')":         "kk-1,1k-1",
	} {
		for _, fast := range []bool{true, false} {
			p, err := env.compile(src, text, fast)
			if err != nil {
				t.Errorf("%s: %v", src, err)
				continue
			}
			bind(p, event)
			enc, err := p.Append(nil, v)
			if got, _, _ := codec.ReadText(enc); err != nil || string(got) != want {
				t.Errorf("%s is %q, %v; want %q", src, got, err, want)
			}
		}
	}
	for src, want := range map[string]string{
		"headers.absent":           "has no entry",
		"key":                      "the key of the record is not UTF-8",
		"key == 'a' ? 'b' : 'c'":   "the key of the record is not UTF-8",
		"['a'].map(a, a + key)[0]": "the key of the record is not UTF-8",
		"id == 'e-1' || key == 'a' ? 'absorbed' : ''": "",
	} {
		p, err := env.Compile(src, text)
		if err != nil {
			t.Fatal(err)
		}
		bind(p, event)
		v := *v
		v.Record = &pipeline.Record{Key: []byte{0xff}}
		enc, err := p.Append([]byte("x"), &v)
		if want != "" && (pipeline.ClassOf(err) != pipeline.ClassReject || !strings.Contains(err.Error(), want) || string(enc) != "x") {
			t.Errorf("%s gives %q, %v; want the rejection %q", src, enc, err, want)
		}
	}

	// A field of the event hides them.
	event = parse(t, `{"type":"record","name":"E","fields":[{"name":"key","type":"long"}]}`)
	env = newEnv(t, Root{Schema: event, Key: metadata.KeyOf(keyformat.Format{})})
	p, err := env.Compile("string(key) + headers.source", text)
	if err != nil {
		t.Fatal(err)
	}
	bind(p, event)
	w := view(t, event, codec.AppendLong(nil, 7))
	w.Record = v.Record
	if enc, err := p.Append(nil, w); err != nil || string(enc[1:]) != "7shop" {
		t.Errorf("got %q, %v; want 7shop", enc, err)
	}
}

// A topic can give its keys another type.
func TestAKeyCanBeANumberOrARecord(t *testing.T) {
	event := parse(t, `{"type":"record","name":"E","fields":[{"name":"id","type":"string"}]}`)
	v := view(t, event, codec.AppendString(nil, "e-1"))
	read := func(key *metadata.Key, raw, src string) string {
		env := newEnv(t, Root{Schema: event, Key: key})
		p, err := env.Compile(src, Value(&codec.Node{Kind: codec.String}, "x", "E"))
		if err != nil {
			t.Fatal(err)
		}
		bind(p, event)
		v.Record = &pipeline.Record{Key: []byte(raw)}
		enc, err := p.Append(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		return string(enc[1:])
	}
	long := &metadata.Key{Node: &codec.Node{Kind: codec.Long}, Append: func(dst []byte, v *pipeline.View) ([]byte, error) {
		return codec.AppendLong(dst, int64(v.Record.Key[0])), nil
	}}
	if got := read(long, "\x07", "string(key + 1)"); got != "8" {
		t.Errorf("a number: %s", got)
	}
	record := parse(t, `{"type":"record","name":"K","fields":[{"name":"tenant","type":"string"},{"name":"of","type":{"type":"record","name":"Of","fields":[{"name":"a","type":"long"},{"name":"id","type":"string"}]}}]}`)
	body := codec.AppendString(codec.AppendLong(codec.AppendString(nil, "t"), 3), "u-1")
	avro := &metadata.Key{Node: record.Root(), Append: func(dst []byte, v *pipeline.View) ([]byte, error) { return append(dst, v.Record.Key...), nil }}
	if got := read(avro, string(body), "key.tenant + key.of.id + string(key.of.a)"); got != "tu-13" {
		t.Errorf("a record: %s", got)
	}
}

func TestAPlaceWithoutARecordHasNoKey(t *testing.T) {
	event := parse(t, `{"type":"record","name":"E","fields":[{"name":"id","type":"string"}]}`)
	_, err := newEnv(t, Root{Schema: event}).Compile("key == 'a'", Condition("a filter"))
	if err == nil || !strings.Contains(err.Error(), "there is no key here; the key and the headers are those of the record of an event, and are not known here") {
		t.Error(err)
	}
	p, err := newEnv(t, Root{Schema: event, Key: metadata.KeyOf(keyformat.Format{})}).Compile("key == 'a'", Condition("a filter"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = p.Bool(view(t, event, codec.AppendString(nil, "e-1"))); err == nil || !strings.Contains(err.Error(), errNoRecord.Error()) {
		t.Error(err)
	}
}
