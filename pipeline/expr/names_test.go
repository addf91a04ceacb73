package expr

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/escape"
)

// hostileNames are legal names of Avro fields that mean something in an expression.
func hostileNames() []string {
	names := []string{
		"now", "state", "prev", "row", "old", "response", "window", "event", "item", "index", "key", "headers", "type", "id", "result", "__result__", "x", "i", "null_", "_0", "_1", "_", "a", "in_",
		"as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop", "package", "namespace", "null", "return", "true", "var", "void", "while",
		"int", "uint", "double", "bool", "string", "bytes", "list", "map", "timestamp", "duration", "null_type", "dyn", "google",
		"all", "exists", "exists_one", "filter", "has", "size", "matches", "math", "strings", "lists", "sets", "base64", "hex", "cel", "bind",
	}
	for _, f := range Functions() {
		name, _, _ := strings.Cut(f.Name, ".")
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// A record may have a field of any name that Avro allows: it compiles, event.NAME
// returns the field, and NAME does so too unless it is a root of the place.
func TestEveryFieldCanBeReadWhateverItsName(t *testing.T) {
	hostile := hostileNames()
	of := func(n codec.Kind) *codec.Node { return &codec.Node{Kind: n} }
	state := codec.RecordSchema("State", codec.Field{Name: "total", Type: of(codec.Long)})
	extra := codec.RecordSchema("extra", codec.Field{Name: "item", Type: of(codec.String)}, codec.Field{Name: "index", Type: of(codec.Long)})
	places := map[string][]Root{
		"filter": nil,
		"fold":   {{Name: "state", Schema: state, View: 1}},
		"lookup": {{Name: "row", Schema: state, View: 1}},
		"split":  {{Schema: extra, View: 1}},
	}
	text := Value(of(codec.String), "x", "E")
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.SampledFrom(hostile), rapid.StringMatching(`[A-Za-z_][A-Za-z0-9_]{0,6}`)).Draw(t, "name")
		inside := rapid.SampledFrom(hostile).Draw(t, "inside")
		place := rapid.SampledFrom([]string{"filter", "fold", "lookup", "split"}).Draw(t, "place")
		// NAME is a string, and so are other.INSIDE and the item others[0].INSIDE.
		record := &codec.Node{Kind: codec.Record, Name: "Inside", Fields: []codec.Field{{Name: inside, Type: of(codec.String)}}}
		other := "other_" + name
		event := codec.RecordSchema("E",
			codec.Field{Name: name, Type: of(codec.String)},
			codec.Field{Name: other, Type: record},
			codec.Field{Name: other + "s", Type: &codec.Node{Kind: codec.Array, Elem: record}})
		env, err := NewEnv(append([]Root{{Schema: event}}, places[place]...)...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		body := codec.AppendString(nil, "top")
		body = codec.AppendString(body, "inside")
		body = append(codec.AppendString(append(body, 2), "item"), 0)
		views := []*pipeline.View{view(t, event, body), view(t, state, codec.AppendLong(nil, 1))}
		if place == "split" {
			views[1] = view(t, extra, codec.AppendLong(codec.AppendString(nil, "?"), 1))
		}
		eval := func(src, want string) *Program {
			p, err := env.Compile(src, text)
			if err != nil {
				t.Fatalf("%s: %s: %v", place, src, err)
			}
			if len(views) == 2 && place != "filter" {
				bind(p, event, places[place][0].Schema)
			} else {
				bind(p, event)
			}
			enc, err := p.Append(nil, views...)
			if got, _, _ := codec.ReadText(enc); err != nil || string(got) != want {
				t.Fatalf("%s: %s is %q, %v; want %q", place, src, got, err, want)
			}
			return p
		}
		eval("event."+name, "top")
		eval("event."+other+"."+inside, "inside")
		eval(other+"."+inside, "inside")
		eval("event."+other+"s[0]."+inside, "item")
		eval("[1].exists(v, event."+name+" == 'top') ? event."+name+" : ''", "top")
		eval(other+"s.filter(v, v."+inside+" == 'item')[0]."+inside, "item")

		root := name == "event" || place == "fold" && name == "state" || place == "lookup" && name == "row" || place == "split" && (name == "item" || name == "index")
		switch p, err := env.Compile(name, text); {
		case escape.IsKeyword(name):
		case root && err != nil: // a whole record, or an int
			if !strings.Contains(err.Error(), "event."+name) && name != "index" {
				t.Fatalf("%s: %s: the error shows no event.%s: %v", place, name, name, err)
			}
		case root:
			if w := p.Warnings(); len(w) != 1 || !strings.Contains(w[0].Hint, "event."+name) {
				t.Fatalf("%s: %s is a root and a field: warnings %v", place, name, w)
			}
		default:
			eval(name, "top")
		}
	})
}

// An event whose field type names another record than its schema is rejected where an
// expression relies on the name, and only there.
func TestTheNameOfARecordIsCheckedWhereAnExpressionReliesOnIt(t *testing.T) {
	schema := parse(t, `{"type":"record","name":"OrderCreated","namespace":"shop","fields":[{"name":"type","type":"string"},{"name":"n","type":"long"}]}`)
	env := newEnv(t, Root{Schema: schema, Consts: map[string]string{"type": "OrderCreated"}})
	layoutOf := func(p *Program) *codec.Layout {
		l, err := codec.NewLayout(schema, p.Paths(0))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Bind(l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	walk := func(l *codec.Layout, typ string) *pipeline.View {
		v := new(pipeline.View)
		if err := l.Walk(codec.AppendLong(codec.AppendString(nil, typ), 5), v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, test := range []struct {
		src    string
		relies bool
		result bool
	}{
		{"type == 'OrderCreated'", true, true},
		{"type == 'OrderCreated' && n > 1", true, true},
		{"type != 'OrderCreated' || n > 1", true, true},
		{"n > 1", false, true},
		{"event.type.size() > 0", false, true},
	} {
		p, err := env.Compile(test.src, Condition("a filter"))
		if err != nil {
			t.Fatal(err)
		}
		l := layoutOf(p)
		for _, typ := range []string{"OrderCreated", "shop.OrderCreated", "order_created"} {
			if got, err := p.Bool(walk(l, typ)); err != nil || got != test.result {
				t.Errorf("%s, type %s: %v, %v", test.src, typ, got, err)
			}
		}
		_, err = p.Bool(walk(l, "order.created"))
		if test.relies && (pipeline.ClassOf(err) != pipeline.ClassReject || !strings.Contains(err.Error(), `the field type is "order.created"`) || !strings.Contains(err.Error(), "event.type")) {
			t.Errorf("%s: an event with another type: %v", test.src, err)
		}
		if !test.relies && err != nil {
			t.Errorf("%s: %v", test.src, err)
		}
	}
	p, err := env.Compile("type", Value(&codec.Node{Kind: codec.String}, "x", "E"))
	if err != nil || p.Fixed() != nil {
		t.Fatalf("%v; a program that checks the event has the fixed value %q", err, p.Fixed())
	}
	l := layoutOf(p)
	if enc, err := p.Append([]byte("a"), walk(l, "x")); err == nil || string(enc) != "a" {
		t.Errorf("got %q, %v; want dst unchanged and an error", enc, err)
	}
	if enc, err := p.Append(nil, walk(l, "order_created")); err != nil || string(enc[1:]) != "OrderCreated" {
		t.Errorf("got %q, %v", enc, err)
	}
}
