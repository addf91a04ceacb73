package expr

import (
	"strings"
	"testing"

	"millrace/pipeline/codec"
)

func TestRootsWithoutANameShareTheTopLevel(t *testing.T) {
	event := parse(t, `{"type":"record","name":"E","fields":[{"name":"id","type":"string"},{"name":"n","type":"long"}]}`)
	beside := codec.RecordSchema("beside", codec.Field{Name: "item", Type: &codec.Node{Kind: codec.String}}, codec.Field{Name: "index", Type: &codec.Node{Kind: codec.Long}})
	env := newEnv(t, Root{Schema: event}, Root{Schema: beside, View: 1})
	p, err := env.Compile("id + item + string(n + index)", Value(&codec.Node{Kind: codec.String}, "x", "E"))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := p.Paths(0), p.Paths(1); len(a) != 2 || len(b) != 2 {
		t.Errorf("paths %v in view 0 and %v in view 1, want two each", a, b)
	}
	bind(p, event, beside)
	first := view(t, event, encodeJSON(t, event, `{"id":"a","n":1}`))
	second := view(t, beside, codec.AppendLong(codec.AppendString(nil, "b"), 2))
	enc, err := p.Append(nil, first, second)
	if text, _, _ := codec.ReadText(enc); err != nil || string(text) != "ab3" {
		t.Errorf("%q, %v", text, err)
	}
	if target, err := env.Target("n"); err != nil || target.Path[0] != "n" {
		t.Errorf("target n, a field of the first root: %v", err)
	}
	if _, err := env.Target("index"); err == nil {
		t.Error("target index, a field of the second root, is accepted")
	}
	if _, err := NewEnv(Root{Schema: event}, Root{Schema: codec.RecordSchema("other", codec.Field{Name: "n", Type: &codec.Node{Kind: codec.Long}}), View: 1}); err == nil || !strings.Contains(err.Error(), "field n is in both E and other") {
		t.Errorf("two roots at top level with a field n: got %v", err)
	}
}
