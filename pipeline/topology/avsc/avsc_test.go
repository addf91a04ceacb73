package avsc

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"millrace/pipeline/codec"
)

func read(t *testing.T, files map[string]string) *Set {
	t.Helper()
	dir := fstest.MapFS{}
	for name, text := range files {
		dir[name] = &fstest.MapFile{Data: []byte(text)}
	}
	s, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// listing returns the records of each file with their fields, or the error.
func listing(s *Set) (out []string) {
	for _, f := range s.Files {
		line := f.Name + ":"
		for _, r := range f.Records {
			line += " " + r.Name() + "("
			for i := range r.Root().Fields {
				line += fmt.Sprintf(" %s %s", r.Root().Fields[i].Name, r.Root().Fields[i].Type)
			}
			line += " )"
		}
		if f.Err != nil {
			line += " " + f.Err.Error()
		}
		out = append(out, line)
	}
	return out
}

func TestFilesReferToEachOther(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"in any order and directory", map[string]string{
			"A.avsc":            `{"type":"record","name":"A","namespace":"shop","fields":[{"name":"b","type":"B"},{"name":"m","type":["null","shop.common.Money"]},{"name":"b2","type":"B"}]}`,
			"deep/er/B.avsc":    `{"type":"record","name":"B","namespace":"shop","fields":[{"name":"m","type":{"type":"array","items":"shop.common.Money"}},{"name":"s","type":"shop.common.Status"}]}`,
			"common/money.avsc": `{"type":"record","name":"Money","namespace":"shop.common","fields":[{"name":"v","type":"long"},{"name":"s","type":"Status"}]}`,
			"common/z.avsc":     `{"type":"enum","name":"shop.common.Status","symbols":["X"]}`,
			".hidden/A.avsc":    `{`,
			"notes.txt":         `{`,
		}, []string{
			"A.avsc: shop.A( b shop.B m null or shop.common.Money b2 shop.B )",
			"common/money.avsc: shop.common.Money( v long s shop.common.Status )",
			"common/z.avsc:",
			"deep/er/B.avsc: shop.B( m array of shop.common.Money s shop.common.Status )",
		}},
		{"types within types", map[string]string{
			"A.avsc": `{"type":"record","name":"a.A","fields":[{"name":"inner","type":{"type":"map","values":{"type":"record","name":"In","fields":[{"name":"x","type":"int"}]}}}]}`,
			"B.avsc": `{"type":"record","name":"b.B","fields":[{"name":"inner","type":"a.In"}]}`,
		}, []string{"A.avsc: a.A( inner map of a.In )", "B.avsc: b.B( inner a.In )"}},
		{"each refers to the other", map[string]string{
			"A.avsc": `{"type":"record","name":"A","fields":[{"name":"b","type":["null","B"]}]}`,
			"B.avsc": `{"type":"record","name":"B","fields":[{"name":"a","type":{"type":"array","items":"A"}}]}`,
		}, []string{"A.avsc: A( b null or B )", "B.avsc: B( a array of A )"}},
		{"a union of records", map[string]string{
			"Events.avsc": `[{"type":"record","name":"e.One","fields":[{"name":"x","type":{"type":"fixed","name":"F","size":1}}]},
				{"type":"record","name":"e.Two","fields":[{"name":"one","type":"e.One"},{"name":"f","type":"e.F"}]}, "e.Three"]`,
			"Three.avsc": `{"type":"record","name":"e.Three","fields":[]}`,
		}, []string{"Events.avsc: e.One( x e.F ) e.Two( one e.One f e.F ) e.Three( )", "Three.avsc: e.Three( )"}},
		{"a union with something else", map[string]string{"E.avsc": `["null",{"type":"record","name":"R","fields":[]}]`}, []string{"E.avsc: the schema is null, not a record"}},
		{"no named type", map[string]string{"E.avsc": `{"type":"array","items":"int"}`}, []string{"E.avsc: the schema is array of int, not a record"}},
		{"a type that nobody defines", map[string]string{"E.avsc": `{"type":"record","name":"R","fields":[{"name":"x","type":"Nothing"}]}`}, []string{`E.avsc: unknown type "Nothing"`}},
		{"two definitions", map[string]string{
			"A.avsc": `{"type":"record","name":"A","fields":[{"name":"x","type":{"type":"fixed","name":"F","size":1}}]}`,
			"B.avsc": `{"type":"record","name":"B","fields":[{"name":"x","type":{"type":"fixed","name":"F","size":2}}]}`,
			"C.avsc": `{"type":"record","name":"C","fields":[{"name":"x","type":"F"}]}`,
			"D.avsc": `{"type":"record","name":"D","fields":[{"name":"x","type":"A"},{"name":"y","type":"B"}]}`,
		}, []string{"A.avsc: A( x F )", "B.avsc: B( x F )", `C.avsc: "F" is ambiguous: A.avsc and B.avsc define it in different ways`, `D.avsc: "F" is ambiguous: two files define it in different ways`}},
		{"the same definition twice", map[string]string{
			"A.avsc": `{"type":"record","name":"A","fields":[{"name":"x","type":{"type":"fixed","name":"F","size":1}}]}`,
			"B.avsc": `{"type":"record","name":"B","fields":[{"name":"x","type":{"type":"fixed","size":1,"name":"F"}}]}`,
			"C.avsc": `{"type":"record","name":"C","fields":[{"name":"x","type":"A"},{"name":"y","type":"B"},{"name":"z","type":"F"}]}`,
		}, []string{"A.avsc: A( x F )", "B.avsc: B( x F )", "C.avsc: C( x A y B z F )"}},
		{"an older shape is no definition", map[string]string{
			"A.avsc":    `{"type":"record","name":"A","fields":[{"name":"x","type":"B"}]}`,
			"B.avsc":    `{"type":"record","name":"B","fields":[{"name":"new","type":"int"}]}`,
			"B.v1.avsc": `{"type":"record","name":"B","fields":[{"name":"old","type":"int"}]}`,
		}, []string{"A.avsc: A( x B )", "B.avsc: B( new int )", "B.v1.avsc: B( old int )"}},
	} {
		if got := listing(read(t, test.files)); !slices.Equal(got, test.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", test.name, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
	}
}

// Comments are left out, and places stay those of the file. The text of a schema without
// references to other files is that of the file.
func TestCommentsAreSpaces(t *testing.T) {
	const file = "// an event\n{\"type\": \"record\", /* a\n comment */ \"name\": \"A\", \"doc\": \"see http://x.y /* no */ \\\" // no\",\n\"fields\": [] // none\n}\n"
	f := read(t, map[string]string{"A.avsc": file}).Files[0]
	if f.Err != nil || len(f.Records) != 1 || f.Records[0].Root().Doc != `see http://x.y /* no */ " // no` {
		t.Fatalf("%+v", f)
	}
	if len(f.Text) != len(file) || strings.Count(string(f.Text), "\n") != strings.Count(file, "\n") || strings.Contains(string(f.Text), "none") {
		t.Errorf("the text is %q", f.Text)
	}
	for _, open := range []string{"/", "/* never closed", "// to the end", `"open // string`} {
		if got := blankComments([]byte(open)); len(got) != len(open) {
			t.Errorf("%q becomes %q", open, got)
		}
	}
}

// A schema with inlined references is complete: it can be parsed alone, and keeps docs,
// defaults and properties.
func TestExpandedSchemasAreComplete(t *testing.T) {
	s := read(t, map[string]string{
		"A.avsc": `{"type":"record","name":"x.A","fields":[{"name":"b","type":"y.B","doc":"the B","default":{"n":7}}]}`,
		"B.avsc": `{"type":"record","name":"y.B","doc":"a B","aliases":["Old"],"fields":[{"name":"n","type":"long","millrace.pii":false}]}`,
	})
	a := s.Files[0].Records[0]
	again, err := codec.ParseSchema(a.String())
	if err != nil || !codec.SameBytes(a, again) {
		t.Fatal(err)
	}
	for _, part := range []string{`"doc":"the B"`, `"default":{"n":7}`, `"doc":"a B"`, `"aliases":["Old"]`, `"millrace.pii":false`} {
		if !strings.Contains(a.String(), part) {
			t.Errorf("%s lacks %s", a, part)
		}
	}
}

func TestNamedFindsTypesWithinTypes(t *testing.T) {
	s := read(t, map[string]string{
		"A.avsc": `{"type":"record","name":"x.A","fields":[{"name":"b","type":{"type":"record","name":"In","fields":[{"name":"c","type":["null",{"type":"record","name":"y.C","fields":[{"name":"in","type":["null","x.In"]}]}]}]}}]}`,
		"B.avsc": `{"type":"record","name":"z.B","fields":[{"name":"b","type":{"type":"record","name":"In","fields":[]}}]}`,
	})
	for name, want := range map[string]string{"x.In": "x.In", "C": "y.C", "In": "x.In z.In", "Nothing": ""} {
		got, names, err := s.Named(name)
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case got != nil && got.Name() != want:
			t.Errorf("%s is %s", name, got.Name())
		case got == nil && strings.Join(names, " ") != want:
			t.Errorf("%s: %v", name, names)
		}
	}
}
