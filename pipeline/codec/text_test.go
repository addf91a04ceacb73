package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// encodeText encodes a text in both ways: token by token, and as the tree of Go values
// that encoding/json decodes.
func encodeText(t testing.TB, s *Schema, text string) (tokens, tree []byte, tokensErr, treeErr error) {
	t.Helper()
	var j JSON
	if err := j.Parse([]byte(text)); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	tokens, tokensErr = j.AppendAvro(nil, s)
	tree, treeErr = EncodeJSON(s, decodeJSON(t, text))
	return tokens, tree, tokensErr, treeErr
}

func TestTokensAndTreeEncodeAlike(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var g sampler
		typ := g.draw(rt, 3, false)
		schema, err := json.Marshal(map[string]any{"type": "record", "name": "Root", "fields": []any{map[string]any{"name": "v", "type": typ.schema}}})
		if err != nil {
			rt.Fatal(err)
		}
		ours, _ := typ.value(rt)
		text, err := json.Marshal(map[string]any{"v": ours})
		if err != nil {
			rt.Fatal(err)
		}
		tokens, tree, tokensErr, treeErr := encodeText(t, mustParse(t, string(schema)), string(text))
		if tokensErr != nil || treeErr != nil || !bytes.Equal(tokens, tree) {
			rt.Fatalf("%s\n%s\ntokens %x, %v\ntree   %x, %v", schema, text, tokens, tokensErr, tree, treeErr)
		}
	})
}

func TestTokensAndTreeEncodeUnusualTextsAlike(t *testing.T) {
	s := mustParse(t, `{"type":"record","name":"R","fields":[
		{"name":"s","type":"string","default":"none"},
		{"name":"n","type":["null","long"],"default":null},
		{"name":"m","type":{"type":"map","values":"double"},"default":{}},
		{"name":"r","type":["null","R"],"default":null},
		{"name":"e","type":{"type":"enum","name":"E","symbols":["A","B"]},"default":"B"}]}`)
	for _, text := range []string{
		`{}`,
		` { "s" : "" , "n" : -0 } `,
		`{"e":"A","r":{"s":"inner"},"m":{"b":1,"a":2.5e3,"":0},"n":9223372036854775807,"s":"outer"}`,
		`{"\u0073":"a key with an escape","m":{"\u00e9":1,"é2":2}}`,
		`{"s":"\ud83d\ude00 a pair"}`,
		`{"n":3.0,"r":{"n":{"long":4}}}`,
		`{"n":9223372036854775808}`,
		`{"r":{"r":{"m":{"x":"NaN","y":"not a number"}}}}`,
		`{"r":{"R":{"s":"tagged"}}}`,
		`{"e":"C"}`,
		`{"S":"misspelled"}`,
		`{"s":1,"t":2}`,
	} {
		tokens, tree, tokensErr, treeErr := encodeText(t, s, text)
		if tokensErr != nil || treeErr != nil {
			if tokensErr == nil || treeErr == nil || tokensErr.Error() != treeErr.Error() {
				t.Errorf("%s\ntokens %v\ntree   %v", text, tokensErr, treeErr)
			}
		} else if !bytes.Equal(tokens, tree) {
			t.Errorf("%s\ntokens %x\ntree   %x", text, tokens, tree)
		}
	}
}

func TestDuplicateKeyIsAnError(t *testing.T) {
	s := shopSchema(t, "OrderCreated")
	for old, twice := range map[string]struct{ text, want string }{
		`"version":1`:      {`"version":1,"version":2`, `version: duplicate key`},
		`"source":"cdnow"`: {`"source":"a","source":"b"`, `metadata.source: duplicate key`},
		`"quantity":1`:     {`"quantity":1,"quantity":1`, `data.items[0].quantity: duplicate key`},
	} {
		var j JSON
		if err := j.Parse([]byte(strings.Replace(orderJSON, old, twice.text, 1))); err != nil {
			t.Fatal(err)
		}
		if _, err := j.AppendAvro(nil, s); err == nil || err.Error() != twice.want {
			t.Errorf("%s: %v", twice.text, err)
		}
	}
}

func TestParseErrorsGiveTheColumn(t *testing.T) {
	for text, want := range map[string]string{
		"":                 "the JSON ends too early",
		`{"a":`:            "the JSON ends too early",
		`{"a":1}}`:         "column 8: more text after the end of the JSON",
		`{"a":1} x`:        "column 9: more text after the end of the JSON",
		`{"a":01}`:         "column 7: invalid character '1' after object key:value pair",
		`{"a":tru}`:        "column 9: invalid character '}' in literal true (expecting 'e')",
		"{\"a\":\"\x00\"}": "column 7: invalid character '\\x00' in string literal",
		"\x00":             "column 1: invalid character '\\x00' looking for beginning of value",
		"{\"a\":\"\xff\"}": "column 7: not UTF-8: byte 0xff",
		`{a:1}`:            "column 2: invalid character 'a' looking for beginning of object key string",
		`["\u12g4"]`:       "column 7: invalid character 'g' in \\u hexadecimal character escape",
	} {
		var j JSON
		if err := j.Parse([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
	}
	var j JSON
	if err := j.Parse([]byte(strings.Repeat("[", maxNested+1) + strings.Repeat("]", maxNested+1))); err == nil || !strings.Contains(err.Error(), "max depth") {
		t.Errorf("nested too deep: %v", err)
	}
}

func TestSetReplacesAndAddsMembers(t *testing.T) {
	s := shopSchema(t, "OrderPaid")
	var j JSON
	if err := j.Parse([]byte(`{"id":"x","metadata":{"a":"b","c":"d"},"data":{"id":"o"},"ty\u0070e":"paid"}`)); err != nil {
		t.Fatal(err)
	}
	if typ, ok := j.Text("type"); !ok || string(typ) != "paid" {
		t.Errorf("type %q, %v", typ, ok)
	}
	if j.Has("timestamp") || !j.Has("metadata") {
		t.Error("Has finds timestamp, or does not find metadata")
	}
	if _, ok := j.Text("data"); ok {
		t.Error("Text returns an object")
	}
	j.Set("id", `"4707dafd-3ce1-5973-9f7b-1c9c452822e7"`)
	j.Set("metadata", `{"é":"1","z":"2","y":"3"}`) // more tokens than before
	j.Set("timestamp", `"1997-01-01T00:00:00.050Z"`)
	j.Set("type", `"OrderPaid"`)
	j.Set("metadata", `{}`) // fewer tokens
	got, err := j.AppendAvro(nil, s)
	if err != nil {
		t.Fatal(err)
	}
	text, err := AppendJSON(nil, s.Root(), got)
	const want = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","type":"OrderPaid","timestamp":"1997-01-01T00:00:00.050Z","version":1,"metadata":{},"data":{"id":"o"}}`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
}

// FuzzJSON checks that Parse agrees with encoding/json, and that tokens and tree encode
// to the same bytes, or return the same error.
func FuzzJSON(f *testing.F) {
	f.Add(orderJSON)
	f.Add(`{"b":true,"f":"NaN","t":"2026-01-02T03:04:05.123456789Z","l":"2026-01-02T03:04:05","d":"2026-01-02","tm":"03:04:05","dec":"-1.5","fd":"2.25",
		"u":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","bytes":"/w==","many":[null,3,{"map":{"k":{"b":1}}}],"void":[null],"next":null}`)
	f.Add(`{"b":true,"t":"0","b":null}`) // a duplicate key after another error
	f.Add(`[-0.5e+7,1E-2,"\ud83d\ude00\/",true,false,null,{}]`)
	f.Add(`{"u":` + nested(20, `{"x":"","next":`, "null", "}") + "}")
	list := []*Schema{shopSchema(f, "OrderCreated"), shopSchema(f, "UserUpdated"), mustParse(f, everything), mustParse(f, twins)}
	f.Fuzz(func(t *testing.T, text string) {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var v any
		err := d.Decode(&v)
		if err == nil {
			if _, err = d.Token(); err == io.EOF {
				err = nil
			} else {
				err = io.ErrNoProgress
			}
		}
		var j JSON
		parsed := j.Parse([]byte(text))
		if (parsed == nil) != (err == nil && utf8.ValidString(text)) {
			t.Fatalf("%q: Parse returns %v, encoding/json %v", text, parsed, err)
		}
		if parsed != nil {
			return
		}
		_, duplicate := j.tree(0) // encoding/json uses the last of two equal keys
		for _, s := range list {
			tokens, tokensErr := j.AppendAvro(nil, s)
			tree, treeErr := EncodeJSON(s, v)
			switch {
			case duplicate != nil && tokensErr != nil:
			case tokensErr != nil && treeErr != nil && tokensErr.Error() == treeErr.Error():
			case duplicate != nil || tokensErr != nil || treeErr != nil || !bytes.Equal(tokens, tree):
				t.Fatalf("%q\ntokens %x, %v\ntree   %x, %v", text, tokens, tokensErr, tree, treeErr)
			}
		}
	})
}

func BenchmarkJSON(b *testing.B) {
	s := shopSchema(b, "OrderCreated")
	text := []byte(orderJSON)
	b.ReportAllocs()
	var j JSON
	var dst []byte
	for b.Loop() {
		if err := j.Parse(text); err != nil {
			b.Fatal(err)
		}
		var err error
		if dst, err = j.AppendAvro(dst[:0], s); err != nil {
			b.Fatal(err)
		}
	}
}

// twins is a schema with a union of records that differ only in nested fields.
const twins = `{"type":"record","name":"Root","fields":[{"name":"u","type":["null",
	{"type":"record","name":"A","fields":[{"name":"next","type":["null","A",{"type":"record","name":"B","fields":[
		{"name":"next","type":["null","A","B"]},{"name":"x","type":"string"}]}],"default":null},{"name":"x","type":"int"}]},
	"B",
	{"type":"record","name":"C","fields":[{"name":"next","type":["null","A","B","C"],"default":null},{"name":"y","type":"int"}]},
	{"type":"map","values":["null","A","B","C"]}]}]}`

func nested(depth int, open, leaf, shut string) string {
	return strings.Repeat(open, depth) + leaf + strings.Repeat(shut, depth)
}

// The field names usually determine the branch of a union without a search. If they do
// not, the search is bounded.
func TestSearchForTheBranchOfAUnionIsBounded(t *testing.T) {
	s := mustParse(t, twins)
	const deep = 28
	for _, test := range []struct{ name, text, err string }{
		{"determined by the fields", `{"u":` + nested(deep, `{"y":1,"next":`, "null", "}") + "}", ""},
		{"determined by the fields, with an error inside", `{"u":` + nested(deep, `{"y":1,"next":`, "7", "}") + "}", "u" + strings.Repeat(".next", deep) + ": expected null or A or B or C, found number 7"},
		{"determined by tags", `{"u":` + nested(deep, `{"B":{"x":"","next":`, "null", "}}") + "}", ""},
		{"a search with immediate success", `{"u":` + nested(deep, `{"x":1,"next":`, "null", "}") + "}", ""},
		{"a short search", `{"u":` + nested(4, `{"x":"","next":`, "null", "}") + "}", ""},
		{"a search beyond the limit", `{"u":` + nested(deep, `{"x":"","next":`, "null", "}") + "}", `too many ways to read this as branches of unions: name the branch, as in {"branch": value}`},
		{"a search without success", `{"u":` + nested(deep, `{"x":true,"next":`, "null", "}") + "}", `too many ways`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var j JSON
			if err := j.Parse([]byte(test.text)); err != nil {
				t.Fatal(err)
			}
			enc, err := j.AppendAvro(nil, s)
			tree, treeErr := EncodeJSON(s, decodeJSON(t, test.text))
			if fmt.Sprint(err) != fmt.Sprint(treeErr) || !bytes.Equal(enc, tree) && err == nil {
				t.Errorf("tokens %x, %v\ntree   %x, %v", enc, err, tree, treeErr)
			}
			switch {
			case test.err == "" && err != nil, test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
				t.Errorf("got %v, want %s", err, test.err)
			}
		})
	}
}
