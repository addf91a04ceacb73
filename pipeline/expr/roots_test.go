package expr

import (
	"strings"
	"testing"

	"millrace/pipeline"
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
	one := codec.RecordSchema("one", codec.Field{Name: "n", Type: &codec.Node{Kind: codec.Long}})
	if _, err := NewEnv(Root{Schema: event}, Root{Schema: one, View: 1}, Root{Schema: one, View: 2}); err == nil || !strings.Contains(err.Error(), "field n is in both one and one") {
		t.Errorf("two roots beside the event with a field n: got %v", err)
	}
}

// The fields of the event that a root hides are still readable, as event.NAME.
func TestEventReadsTheFieldsThatARootHides(t *testing.T) {
	event := parse(t, `{"type":"record","name":"E","fields":[
		{"name":"index","type":"string"},
		{"name":"state","type":{"type":"record","name":"S","fields":[{"name":"n","type":"long"},{"name":"of","type":"string"}]}},
		{"name":"event","type":{"type":"record","name":"Inner","fields":[{"name":"index","type":"string"},{"name":"only","type":"string"}]}},
		{"name":"type","type":"string"},
		{"name":"prev","type":"long"}]}`)
	state := parse(t, `{"type":"record","name":"State","fields":[{"name":"n","type":"long"},{"name":"event","type":"string"}]}`)
	beside := codec.RecordSchema("beside", codec.Field{Name: "index", Type: &codec.Node{Kind: codec.Long}})
	env := newEnv(t, Root{Schema: event, Consts: map[string]string{"type": "E"}, Later: []string{"prev"}}, Root{Name: "state", Schema: state, View: 1}, Root{Schema: beside, View: 2})
	views := []*pipeline.View{
		view(t, event, encodeJSON(t, event, `{"index":"i","state":{"n":1,"of":"o"},"event":{"index":"ei","only":"x"},"type":"e","prev":7}`)),
		view(t, state, encodeJSON(t, state, `{"n":2,"event":"se"}`)),
		view(t, beside, codec.AppendLong(nil, 3)),
	}
	for _, test := range []struct{ src, want, warns string }{
		{"event.index", "i", "write event.event"}, // event.event.index exists, too
		{"string(index)", "3", "write event.index"},
		{"string(event.state.n)", "1", ""},
		{"string(state.n)", "2", "write event.state"},
		{"event.state.of", "o", ""},
		{"state.event", "se", ""},
		{"event.event.index", "ei", ""},
		{"event.event.only", "x", ""},
		{"string(prev)", "7", "write event.prev"},
		{"string(event.prev)", "7", ""},
		{"type", "E", ""},
		{"event.type", "e", ""},
		{"[1].map(event, string(event))[0]", "1", ""},
		{"[1].map(i, event.type + string(i))[0]", "e1", ""},
	} {
		p, err := env.Compile(test.src, Value(&codec.Node{Kind: codec.String}, "x", "E"))
		if err != nil {
			t.Errorf("%s: %v", test.src, err)
			continue
		}
		if warns := p.Warnings(); test.warns == "" && len(warns) > 0 || test.warns != "" && (len(warns) != 1 || !strings.Contains(warns[0].Hint, test.warns)) {
			t.Errorf("%s: warnings %v, want %q", test.src, warns, test.warns)
		}
		bind(p, event, state, beside)
		enc, err := p.Append(nil, views...)
		if text, _, _ := codec.ReadText(enc); err != nil || string(text) != test.want {
			t.Errorf("%s gives %q, %v; want %q", test.src, text, err, test.want)
		}
	}
	for src, hint := range map[string]string{
		"event.only": "event is the event here; for the field event of the event, write event.event.only",
		"state.of":   "state is the record state here; for the field state of the event, write event.state.of",
		"event":      "for the field event of the event, write event.event",
		"state":      "for the field state of the event, write event.state",
	} {
		_, err := env.Compile(src, Value(&codec.Node{Kind: codec.String}, "x", "E"))
		if err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: got %v, want the hint %q", src, err, hint)
		}
	}
}
