package codec_test

import (
	"fmt"
	"strings"
	"testing"

	"millrace/pipeline/codec"
)

const taggedRecord = `{"type":"record","name":"E","fields":[
	{"name":"id","type":"string"},
	{"name":"email","type":"string","millrace.pii":true},
	{"name":"off","type":"int","millrace.pii":false},
	{"name":"data","type":{"type":"record","name":"D","fields":[
		{"name":"photo","type":["null","bytes"],"millrace.pii":"picture"},
		{"name":"plain","type":"string"}]}}]}`

func TestTaggedFieldsAreFoundThroughRecords(t *testing.T) {
	s, err := codec.ParseSchema(taggedRecord)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := s.Tagged()
	if err != nil || fmt.Sprint(paths) != "[[email] [data photo]]" {
		t.Errorf("got %v, %v", paths, err)
	}
	// Adding fields keeps the tags.
	grown, err := s.With([]codec.NewField{{Path: []string{"data", "more"}, Type: "string"}})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := grown.Tagged(); err != nil || fmt.Sprint(again) != fmt.Sprint(paths) {
		t.Errorf("with an added field: %v, %v", again, err)
	}
	if got := grown.Root().Field("data").Type.Field("photo").Type.Tag; got != "picture" {
		t.Errorf("the tag is %q", got)
	}
}

func TestTagsOnFieldsThatCannotBeEncryptedAreErrors(t *testing.T) {
	for typ, want := range map[string]string{
		`"int"`:                                                  `f is tagged millrace.pii, but it is int`,
		`["null","long"]`:                                        `null or long`,
		`["null","string","bytes"]`:                              `null or string or bytes`,
		`{"type":"array","items":"string"}`:                      `array of string`,
		`{"type":"map","values":"string"}`:                       `map of string`,
		`{"type":"fixed","name":"F","size":4}`:                   `it is F`,
		`{"type":"enum","name":"N","symbols":["a"]}`:             `it is N`,
		`{"type":"string","logicalType":"uuid"}`:                 `string (uuid)`,
		`{"type":"bytes","logicalType":"decimal","precision":4}`: `bytes (decimal)`,
		`{"type":"record","name":"R","fields":[]}`:               `it is R`,
	} {
		s, err := codec.ParseSchema(`{"type":"record","name":"E","fields":[{"name":"f","type":` + typ + `,"millrace.pii":true}]}`)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Tagged(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", typ, err, want)
		}
		if tag := s.Root().Fields[0].Type.Tag; tag != "" {
			t.Errorf("%s: the type has the tag %q", typ, tag)
		}
	}
	inner := `{"type":"record","name":"R","fields":[{"name":"x","type":"string","millrace.pii":true}]}`
	for typ, want := range map[string]string{
		`["null",` + inner + `]`:                 "f.x is tagged",
		`{"type":"array","items":` + inner + `}`: "f[].x is tagged",
		`{"type":"map","values":` + inner + `}`:  "f[].x is tagged",
	} {
		s, err := codec.ParseSchema(`{"type":"record","name":"E","fields":[{"name":"f","type":` + typ + `}]}`)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Tagged(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "plain records") {
			t.Errorf("%s: %v", typ, err)
		}
	}
	for _, tag := range []string{`""`, `3`, `{}`} {
		s, err := codec.ParseSchema(`{"type":"record","name":"E","fields":[{"name":"f","type":"string","millrace.pii":` + tag + `}]}`)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Tagged(); err == nil || !strings.Contains(err.Error(), "must be true or a name") {
			t.Errorf("%s: %v", tag, err)
		}
	}
}

func TestErrorsDoNotShowPersonalData(t *testing.T) {
	s, err := codec.ParseSchema(taggedRecord)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`{"id":"1","email":5551234,"off":1,"data":{"photo":null,"plain":"x"}}`,
		`{"id":"1","email":["5551234"],"off":1,"data":{"photo":null,"plain":"x"}}`,
		`{"id":"1","email":"a","off":1,"data":{"photo":"5551234!","plain":"x"}}`,
		`{"id":"1","email":"a","off":1,"data":{"photo":5551234,"plain":"x"}}`,
		`{"id":"1","email":"a","off":1,"data":{"photo":{"bytes":"5551234!"},"plain":"x"}}`,
	} {
		var j codec.JSON
		if err := j.Parse([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if _, err := j.AppendAvro(nil, s); err == nil || strings.Contains(err.Error(), "5551234") {
			t.Errorf("%s: %v", line, err)
		}
	}
}
