package expr

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
)

func parse(t testing.TB, text string) *codec.Schema {
	t.Helper()
	s, err := codec.ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// at is the time of now() in the tests.
var at = time.Date(2026, 11, 24, 14, 21, 0, 123456789, time.UTC)

func newEnv(t testing.TB, roots ...Root) *Env {
	t.Helper()
	e, err := NewEnv(roots...)
	if err != nil {
		t.Fatal(err)
	}
	e.Clock = func() time.Time { return at }
	return e
}

// view returns a view of a body with a slot for every leaf. Programs are bound to
// these slots by bind.
func view(t interface {
	Helper()
	Fatal(...any)
}, s *codec.Schema, body []byte) *pipeline.View {
	t.Helper()
	var spans []pipeline.Span
	rest := body
	var walk func(n *codec.Node)
	walk = func(n *codec.Node) {
		if n.Kind == codec.Record {
			for i := range n.Fields {
				walk(n.Fields[i].Type)
			}
			return
		}
		start := len(body) - len(rest)
		var err error
		if rest, err = raw.Skip(n, rest); err != nil {
			t.Fatal(err)
		}
		spans = append(spans, pipeline.Span{Start: start, End: len(body) - len(rest)})
	}
	walk(s.Root())
	v := new(pipeline.View)
	v.Reset(body, len(spans))
	for i, span := range spans {
		v.SetSpan(i, span)
	}
	return v
}

// bind binds a program to the slots of view.
func bind(p *Program, schemas ...*codec.Schema) {
	for _, f := range p.refs {
		if f.view == recordView {
			continue
		}
		n := -1
		slot := 0
		var walk func(node *codec.Node, path []string)
		walk = func(node *codec.Node, path []string) {
			if node.Kind == codec.Record {
				for i := range node.Fields {
					walk(node.Fields[i].Type, append(path[:len(path):len(path)], node.Fields[i].Name))
				}
				return
			}
			if strings.Join(path, ".") == strings.Join(f.rel, ".") {
				n = slot
			}
			slot++
		}
		walk(schemas[f.view].Root(), nil)
		f.slot = n
	}
}

// encodeJSON encodes the JSON form of a record.
func encodeJSON(t testing.TB, s *codec.Schema, text string) []byte {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	enc, err := codec.EncodeJSON(s, v)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}
