package fold

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/keyformat"
)

// scanSpec is a fold of events with and without an envelope, over records with keys of a
// format.
func scanSpec(t testing.TB, keys keyformat.Format, bare *expr.Bare) Spec {
	s := Spec{
		Name:  "scans",
		Types: []*codec.Schema{parse(t, `{"type":"record","name":"Scanned","fields":[{"name":"id","type":"string"},{"name":"n","type":"long"}]}`)},
		State: parse(t, `{"type":"record","name":"Scans","fields":[{"name":"key","type":"string","default":""},{"name":"number","type":"long","default":0},{"name":"source","type":"string","default":""},{"name":"all","type":{"type":"map","values":"string"},"default":{}}]}`),
		Key:   src("id"), Keys: keys, Bare: bare,
		On: []On{{}},
	}
	if bare != nil {
		s.Key, bare.RecordKey = src(""), metadata.KeyOf(keys)
	}
	return s
}

func scanned(n int64) []byte { return codec.AppendLong(codec.AppendString(nil, "s-1"), n) }

// keyOf returns the key as a worker reads it from the record.
func keyOf(t testing.TB, f keyformat.Format, in *pipeline.Record) *keyformat.Key {
	t.Helper()
	if f.IsText() {
		return nil
	}
	key, err := keyformat.NewReader(f, "scans", only{f.Schema}).Read(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Every expression of a fold can read the key, the headers and event, with the types that
// they have in stages, for every format of keys.
func TestEveryExpressionOfAFoldReadsTheRecord(t *testing.T) {
	avro := keyformat.Format{Kind: keyformat.Avro, Schema: parse(t, `{"type":"record","name":"K","fields":[{"name":"tenant","type":"string"},{"name":"n","type":"long"}]}`)}
	in := func(key string) *pipeline.Record {
		return &pipeline.Record{Key: []byte(key), Headers: []pipeline.Header{{Key: "source", Value: []byte("shop")}, {Key: "raw", Value: []byte{0xff}}, {Key: "none"}}}
	}
	for _, test := range []struct {
		format     keyformat.Format
		key        string
		text, long string // expressions over the key: a text and a number
		want       string
	}{
		{keyformat.Format{}, "k-7", "key", "size(key)", `"k-7" 3`},
		{keyformat.Format{Kind: keyformat.Long}, "\x00\x00\x00\x00\x00\x00\x01\x00", "string(key)", "key", `"256" 256`},
		{keyformat.Format{Kind: keyformat.Int}, "\xff\xff\xff\xff", "string(key)", "key", `"-1" -1`},
		{keyformat.Format{Kind: keyformat.UUID}, "0123456789abcdef", "key", "size(key)", `"30313233-3435-3637-3839-616263646566" 36`},
		{keyformat.Format{Kind: keyformat.Bytes}, "\x00\xff", "key", "size(key)", `"00ff" 4`},
		{avro, "\x00\x00\x00\x00\x01\x04t1\x0e", "key.tenant", "key.n", `"t1" 7`},
	} {
		apply := func(place string, spec Spec) (id string, a Aggregate, f *Folder) {
			t.Helper()
			f = compile(t, spec).NewFolder()
			r := in(test.key)
			got, err := f.Read(0, scanned(1), OriginOf(r, keyOf(t, test.format, r)))
			if err != nil {
				t.Fatalf("%s, %s: %v", test.format, place, err)
			}
			if _, err := f.Apply(&a); err != nil {
				t.Fatalf("%s, %s: %v", test.format, place, err)
			}
			return string(got), a, f
		}

		spec := scanSpec(t, test.format, nil)
		spec.On[0].Set = []Set{{src("key"), src(test.text)}, {src("number"), src(test.long)}, {src("source"), src("headers.source")}, {src("all"), src("headers")}}
		_, a, f := apply("set", spec)
		state := map[string]any{}
		out, err := codec.AppendJSON(nil, f.State().Root(), a.State)
		if err != nil || json.Unmarshal(out, &state) != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%q %v", state["key"], state["number"]); got != test.want {
			t.Errorf("%s: the key is %s, want %s", test.format, got, test.want)
		}
		if all := fmt.Sprint(state["source"], state["all"]); all != "shopmap[source:shop]" {
			t.Errorf("%s: the headers are %s", test.format, all)
		}

		// Conditions, true and false.
		is := fmt.Sprintf("%s == %s && headers.source == 'shop' && event.id == 's-1'", test.text, test.want[:strings.IndexByte(test.want, ' ')])
		for when, version := range map[string]int64{is: 1, "!(" + is + ")": 0} {
			spec = scanSpec(t, test.format, nil)
			spec.On = []On{{When: src(when)}}
			if _, a, _ = apply("when", spec); a.Version != version {
				t.Errorf("%s: when %s gives version %d, want %d", test.format, when, a.Version, version)
			}
			spec = scanSpec(t, test.format, nil)
			spec.On[0].DeleteIf = src(when)
			if _, a, _ = apply("delete", spec); a.Deleted != (version == 1) {
				t.Errorf("%s: delete %s: deleted is %v", test.format, when, a.Deleted)
			}
			spec.On = []On{{When: src(when), Delete: true}, {Revive: true}}
			if _, a, _ = apply("rules", spec); a.Deleted != (version == 1) {
				t.Errorf("%s: rules with %s: deleted is %v", test.format, when, a.Deleted)
			}
		}

		// The expressions in place of an envelope.
		id, a, f := apply("bare", scanSpec(t, test.format, &expr.Bare{
			ID: src("headers.source + '/' + " + test.text), Time: src("timestamp(" + test.long + " + event.n)"), Key: src("event.id + '/' + " + test.text + " + headers['source']"),
		}))
		var text string
		var number int64
		if _, err := fmt.Sscanf(test.want, "%q %d", &text, &number); err != nil {
			t.Fatal(err)
		}
		if id != "s-1/"+text+"shop" || string(a.EventID) != "shop/"+text || f.Time() != (number+1)*1e6 {
			t.Errorf("%s: bare: aggregate %q, event %q at %d", test.format, id, a.EventID, f.Time())
		}
	}
}

// only is a registry with one schema.
type only struct{ schema *codec.Schema }

func (o only) Schema(context.Context, codec.SchemaRef) (*codec.Schema, error) { return o.schema, nil }

// A fold with the parts of a record that Metadata returns computes what it computes with
// the record, and Metadata returns no more than what the expressions name.
func TestMetadataIsWhatAFoldReadsOfARecord(t *testing.T) {
	headers := []pipeline.Header{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("2")}, {Key: "a", Value: []byte("3")}, {Key: "a", Value: []byte{0xff}}, {Key: "c"}}
	for value, want := range map[string]string{
		"event.id":                               "- []",
		"key":                                    "k []",
		"headers.a":                              "- [a=1 a=3]",
		"headers['b']":                           "- [b=2]",
		"has(headers.c) ? 'c' : key":             "k []",
		"'a' in headers ? 'x' : headers.b":       "- [a=1 b=2 a=3]",
		"string(headers.size())":                 "- [a=1 b=2 a=3]",
		"headers.exists(h, h == 'b') ? 'b' : ''": "- [a=1 b=2 a=3]",
		"headers[event.id == 's-1' ? 'a' : 'b']": "- [a=1 b=2 a=3]",
		"['b'].map(h, headers[h])[0]":            "- [a=1 b=2 a=3]",
		"headers.b + (headers == {'a': '1'} ? 'same' : 'other')": "- [a=1 b=2 a=3]",
		"true ? 'x' : key": "k []",
	} {
		spec := scanSpec(t, keyformat.Format{}, nil)
		spec.On[0].Set = []Set{{src("source"), src(value)}}
		f := compile(t, spec).NewFolder()
		fold := func(from Origin) string {
			var a Aggregate
			if _, err := f.Read(0, scanned(1), from); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Apply(&a); err != nil {
				t.Fatalf("%s: %v", value, err)
			}
			return string(a.State)
		}
		whole := fold(OriginOf(&pipeline.Record{Key: []byte("k"), Headers: headers}, nil))
		m, ok := f.Metadata()
		got := "-"
		if m.Key != nil {
			got = string(m.Key)
		}
		var read []string
		for _, h := range m.Headers {
			read = append(read, h.Key+"="+string(h.Value))
		}
		if got = fmt.Sprint(got, " ", read); got != want || ok != (want != "- []") {
			t.Errorf("%s reads %s, %v; want %s", value, got, ok, want)
		}
		if part := fold(Origin{RawKey: m.Key, Headers: m.Headers}); part != whole {
			t.Errorf("%s: %q with what it reads, %q with the whole record", value, part, whole)
		}
	}
}

// The hash of a fold that reads no records is that of earlier releases. A name that is no
// field any more, but a part of the record, has another meaning and so another hash.
func TestTheHashCoversThePartsOfRecords(t *testing.T) {
	for name, test := range map[string]struct {
		spec Spec
		want string
	}{
		"an envelope": {noteSpec(t), "24528ad65185dd90c501b4cd9c6512ae"},
		"bare":        {visitSpec(t, expr.Bare{ID: src("ref"), Key: src("user")}), "1ac0109d30852420003e59d3757ec58b"},
	} {
		if got := compile(t, test.spec).Hash(); got != test.want {
			t.Errorf("%s: hash %s, was %s", name, got, test.want)
		}
	}
	for _, name := range []string{"key", "headers.x"} {
		seen := map[string]bool{}
		for _, field := range []string{"", `{"name":"key","type":"string"},`, `{"name":"headers","type":{"type":"map","values":"string"}},`} {
			spec := noteSpecOf(t, field+`{"name":"id","type":"string"}`, `{"name":"text","type":"string","default":""}`)
			spec.On[0].Set[0].Value = src(name)
			seen[compile(t, spec).Hash()] = true
		}
		if len(seen) != 2 {
			t.Errorf("%s as a field and as a part of the record: %d hashes, want 2", name, len(seen))
		}
	}
}

// Folds with the meaning of an earlier release have no key and headers.
func TestEarlierSemanticsReadNoRecords(t *testing.T) {
	bare := visitSpec(t, expr.Bare{ID: src("headers.id"), RecordKey: metadata.KeyOf(keyformat.Format{})})
	note := noteSpec(t)
	note.On[0].Set[0].Value = src("key")
	for _, spec := range []Spec{bare, note} {
		if spec.Semantics = 2; len(compile(t, spec).Warnings()) > 0 {
			t.Error("a warning")
		}
		spec.Semantics = 1
		if _, faults := Compile(spec); len(faults) != 1 || !strings.Contains(faults[0].Error(), "are not known here") {
			t.Errorf("semantics 1: %v", faults)
		}
	}
}

// The key of a fold may be named as in expressions.
func TestTheKeyOfAFoldMayNameTheEvent(t *testing.T) {
	for key, field := range map[string]string{"event.id": "id", "event.event": "event", "event": "event"} {
		spec := noteSpecOf(t, `{"name":"`+field+`","type":"string"},{"name":"text","type":"string"}`, `{"name":"text","type":"string","default":""}`)
		if spec.Key = src(key); key == "event.event" {
			if _, faults := Compile(spec); len(faults) == 0 {
				t.Error("event.event is a field of a field event")
			}
			continue
		}
		id, err := compile(t, spec).NewFolder().Read(0, codec.AppendString(codec.AppendString(nil, "k"), "text"), Origin{})
		if err != nil || string(id) != "k" {
			t.Errorf("%s: %q, %v", key, id, err)
		}
	}
}
