package expr

import (
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// The schemas of the tests below: Added events are folded into a Basket.
const (
	addedEvent = `{"type":"record","name":"Added","namespace":"shop","fields":[
		{"name":"tag","type":"string"},
		{"name":"note","type":["null","string"]},
		{"name":"n","type":"int"},
		{"name":"item","type":["null",{"type":"record","name":"Line","fields":[
			{"name":"product_id","type":"string"},{"name":"quantity","type":"int"},{"name":"gift","type":["null","string"],"default":null}]}]},
		{"name":"items","type":{"type":"array","items":"Line"}},
		{"name":"old","type":{"type":"array","items":{"type":"record","name":"OldLine","fields":[
			{"name":"quantity","type":"int"},{"name":"product_id","type":"string"},{"name":"colour","type":"string"}]}}}]}`
	basketState = `{"type":"record","name":"Basket","namespace":"shop","fields":[
		{"name":"tags","type":{"type":"array","items":"string"}},
		{"name":"notes","type":{"type":"array","items":["null","string"]}},
		{"name":"counts","type":{"type":"map","values":"long"}},
		{"name":"count","type":"long"},
		{"name":"sum","type":"double"},
		{"name":"recent","type":["null",{"type":"array","items":"string"}]},
		{"name":"lines","type":{"type":"array","items":{"type":"record","name":"Line","fields":[
			{"name":"product_id","type":"string"},{"name":"quantity","type":"int"},{"name":"gift","type":["null","string"],"default":null}]}}},
		{"name":"by_tag","type":{"type":"map","values":"Line"}},
		{"name":"top","type":["null","Line"]}]}`
	addedBody  = `{"tag":"new","note":null,"n":3,"item":{"product_id":"p-3","quantity":9,"gift":"wrap"},"items":[{"product_id":"p-1","quantity":2,"gift":null},{"product_id":"p-4","quantity":1,"gift":null}],"old":[{"quantity":5,"product_id":"p-5","colour":"red"}]}`
	basketBody = `{"tags":["a","b"],"notes":["x",null],"counts":{"b":2,"a":1},"count":7,"sum":1.5,"recent":null,"lines":[{"product_id":"p-1","quantity":1,"gift":null},{"product_id":"p-2","quantity":2,"gift":"bow"}],"by_tag":{},"top":null}`
)

func basketEnv(t testing.TB) (env *Env, event, state *codec.Schema, views []*pipeline.View) {
	event, state = parse(t, addedEvent), parse(t, basketState)
	env = newEnv(t, Root{Schema: event}, Root{Name: "state", Schema: state, View: 1})
	env.Clock = nil
	return env, event, state, []*pipeline.View{view(t, event, encodeJSON(t, event, addedBody)), view(t, state, encodeJSON(t, state, basketBody))}
}

func TestExpressionsReturnListsMapsAndRecords(t *testing.T) {
	env, event, state, views := basketEnv(t)
	for _, test := range []struct{ field, src, want string }{
		{"tags", "state.tags + [tag]", `["a","b","new"]`},
		{"tags", "[tag] + state.tags + ['z']", `["new","a","b","z"]`},
		{"tags", "tag in state.tags ? state.tags : state.tags + [tag]", `["a","b","new"]`},
		{"tags", "state.tags.filter(x, x != 'a')", `["b"]`},
		{"tags", "(state.tags + [tag]).slice(1, 3)", `["b","new"]`},
		{"tags", "[]", `[]`},
		{"tags", "note == null ? [] : [note]", `[]`},
		{"tags", "items.map(i, i.product_id)", `["p-1","p-4"]`},
		{"tags", "state.counts.map(k, k)", `["a","b"]`},
		{"notes", "state.notes + [note, tag, null]", `["x",null,null,"new",null]`},
		{"counts", "state.counts.with(tag, n)", `{"a":1,"b":2,"new":3}`},
		{"counts", "state.counts.with('a', ('a' in state.counts ? state.counts['a'] : 0) + 1)", `{"a":2,"b":2}`},
		{"counts", "state.counts.without('a')", `{"b":2}`},
		{"counts", "state.counts.without('z')", `{"a":1,"b":2}`},
		{"counts", "state.counts.transformMap(k, v, v > 1, v * 10)", `{"b":20}`},
		{"counts", "{'only': n, tag: 1}", `{"new":1,"only":3}`},
		{"counts", "{}", `{}`},
		{"count", "state.count + 1", `8`},
		{"count", "state.count + items.size()", `9`},
		{"sum", "state.sum + double(n) * 0.5", `3`},
		{"recent", "state.tags + [tag]", `["a","b","new"]`},
		{"recent", "n > 100 ? [tag] : null", `null`},
		{"lines", "state.lines.filter(l, l.product_id != 'p-1')", `[{"product_id":"p-2","quantity":2,"gift":"bow"}]`},
		{"lines", "items", `[{"product_id":"p-1","quantity":2,"gift":null},{"product_id":"p-4","quantity":1,"gift":null}]`},
		{"lines", "state.lines.slice(0, 1) + items.filter(i, i.quantity > 1)", `[{"product_id":"p-1","quantity":1,"gift":null},{"product_id":"p-1","quantity":2,"gift":null}]`},
		{"lines", "[{'quantity': n, 'product_id': tag}]", `[{"product_id":"new","quantity":3,"gift":null}]`},
		{"lines", "state.lines + [{'product_id': tag, 'quantity': n + 1, 'gift': note}]",
			`[{"product_id":"p-1","quantity":1,"gift":null},{"product_id":"p-2","quantity":2,"gift":"bow"},{"product_id":"new","quantity":4,"gift":null}]`},
		{"lines", "state.lines.map(l, l.product_id == 'p-1' ? {'product_id': l.product_id, 'quantity': l.quantity + n} : l)",
			`[{"product_id":"p-1","quantity":4,"gift":null},{"product_id":"p-2","quantity":2,"gift":"bow"}]`},
		{"lines", "old", `[{"product_id":"p-5","quantity":5,"gift":null}]`}, // another record type, converted by field name
		{"by_tag", "state.by_tag.with(tag, {'product_id': 'p', 'quantity': 1})", `{"new":{"product_id":"p","quantity":1,"gift":null}}`},
		{"by_tag", "{tag: items[0]}", `{"new":{"product_id":"p-1","quantity":2,"gift":null}}`},
		{"top", "item", `{"product_id":"p-3","quantity":9,"gift":"wrap"}`},
		{"top", "items[1]", `{"product_id":"p-4","quantity":1,"gift":null}`},
		{"top", "items.size() > 5 ? null : {'product_id': 'p', 'quantity': 1, 'gift': tag}", `{"product_id":"p","quantity":1,"gift":"new"}`},
	} {
		n := state.Root().Field(test.field).Type
		for _, fast := range []bool{true, false} {
			p, err := env.compile(test.src, Value(n, test.field, "shop.Basket"), fast)
			if err != nil {
				t.Errorf("%s = %s: %v", test.field, test.src, err)
				break
			}
			bind(p, event, state)
			enc, err := p.Append(nil, views...)
			if err == nil {
				err = codec.Validate(n, enc)
			}
			if err != nil {
				t.Errorf("%s = %s: %v", test.field, test.src, err)
				continue
			}
			got, err := codec.AppendJSON(nil, n, enc)
			if err != nil || string(got) != test.want {
				t.Errorf("%s = %s (closures: %v)\ngot  %s, %v\nwant %s", test.field, test.src, fast, got, err, test.want)
			}
		}
	}
}

func TestCollectionsThatDoNotFitTheFieldAreErrors(t *testing.T) {
	env, event, state, views := basketEnv(t)
	for _, test := range []struct{ field, src, want string }{
		{"lines", "[{'product_id': dyn(1), 'quantity': 1}]", "product_id of shop.Line: an int does not fit into string"},
		{"lines", "[{'product_id': tag, 'quantity': n * 1000000000 * 1000000000 * 1000000000}]", "integer overflow"},
		{"lines", "[{'product_id': tag, 'quantity': n * 1000000000}]", "3000000000 is out of range for an Avro int"},
		{"tags", "dyn([1])", "tags in shop.Basket: an int does not fit into string"},
		{"tags", "[dyn(n)]", "item 1: an int does not fit into string"},
		{"counts", "{1: 1}.with(2, 3)", "the keys of an Avro map are strings"},
		{"top", "items.map(i, dyn({'product_id': 'p', 'colour': 1}))[0]", "shop.Line has no field colour"},
		{"tags", "[state.tags[7]]", "index out of bounds: 7"},
	} {
		n := state.Root().Field(test.field).Type
		p, err := env.Compile(test.src, Value(n, test.field, "shop.Basket"))
		if err == nil {
			bind(p, event, state)
			_, err = p.Append(nil, views...)
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s = %s: got %v, want %s", test.field, test.src, err, test.want)
		}
	}
}

// Appending an item to a list, a common fold, does not allocate.
func TestAppendingToAListDoesNotAllocate(t *testing.T) {
	env, event, state, views := basketEnv(t)
	for _, src := range []string{"state.tags + [tag]", "state.tags + ['x', tag]"} {
		p, err := env.Compile(src, Value(state.Root().Field("tags").Type, "tags", "shop.Basket"))
		if err != nil {
			t.Fatal(err)
		}
		bind(p, event, state)
		var s Scope
		dst := make([]byte, 0, 256)
		if n := testing.AllocsPerRun(100, func() {
			s.Reset(time.Time{}, views...)
			if _, err := p.AppendIn(&s, dst); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", src, n)
		}
	}
}
