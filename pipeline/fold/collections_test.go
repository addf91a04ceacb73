package fold

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// cartSchemas returns the event types and the state of a cart. All fields of the
// state are collections.
func cartSchemas(t testing.TB) (types []*codec.Schema, state *codec.Schema) {
	t.Helper()
	parse := func(text string) *codec.Schema {
		s, err := codec.ParseSchema(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, name := range []string{"LineAdded", "LineRemoved"} {
		types = append(types, parse(fmt.Sprintf(`{"type":"record","name":"%s","fields":[
			{"name":"id","type":"string"},
			{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-micros"}},
			{"name":"data","type":{"type":"record","name":"%sData","fields":[
				{"name":"id","type":"string"},{"name":"product","type":"string"},{"name":"n","type":"long","default":0}]}}]}`, name, name)))
	}
	state = parse(`{"type":"record","name":"Cart","fields":[
		{"name":"lines","default":[],"type":{"type":"array","items":{"type":"record","name":"Line","fields":[
			{"name":"product","type":"string"},{"name":"n","type":"long"}]}}},
		{"name":"totals","default":{},"type":{"type":"map","values":"long"}},
		{"name":"seen","default":[],"type":{"type":"array","items":"string"}}]}`)
	return types, state
}

const (
	lineAdded = iota
	lineRemoved
)

func cartSpec(t testing.TB) Spec {
	types, state := cartSchemas(t)
	return Spec{
		Name: "cart", Types: types, Key: src("data.id"), State: state,
		On: []On{
			{Type: lineAdded, Set: []Set{
				{src("lines"), src("state.lines + [{'product': data.product, 'n': data.n}]")},
				{src("totals"), src("state.totals.with(data.product, data.n + (data.product in state.totals ? state.totals[data.product] : 0))")},
				{src("seen"), src("data.product in state.seen ? state.seen : state.seen + [data.product]")},
			}},
			{Type: lineRemoved, Set: []Set{
				{src("lines"), src("state.lines.filter(l, l.product != data.product)")},
				{src("totals"), src("state.totals.without(data.product)")},
			}},
		},
	}
}

func cartEvent(t testing.TB, spec Spec, typ, n int, product string, count int) []byte {
	t.Helper()
	return event(t, spec.Types[typ], n, fmt.Sprintf(`{"id":"c","product":%q,"n":%d}`, product, count))
}

// A fold appends to lists, filters them and sets map entries. A snapshot restores
// the collections.
func TestFoldUpdatesListsAndMaps(t *testing.T) {
	spec := cartSpec(t)
	f := compile(t, spec)
	folder := f.NewFolder()
	var a Aggregate
	for i, step := range []struct {
		typ     int
		product string
		n       int
		want    string
	}{
		{lineAdded, "cd", 2, `{"lines":[{"product":"cd","n":2}],"totals":{"cd":2},"seen":["cd"]}`},
		{lineAdded, "book", 1, `{"lines":[{"product":"cd","n":2},{"product":"book","n":1}],"totals":{"book":1,"cd":2},"seen":["cd","book"]}`},
		{lineAdded, "cd", 3, `{"lines":[{"product":"cd","n":2},{"product":"book","n":1},{"product":"cd","n":3}],"totals":{"book":1,"cd":5},"seen":["cd","book"]}`},
		{lineRemoved, "cd", 0, `{"lines":[{"product":"book","n":1}],"totals":{"book":1},"seen":["cd","book"]}`},
		{lineRemoved, "none", 0, `{"lines":[{"product":"book","n":1}],"totals":{"book":1},"seen":["cd","book"]}`},
	} {
		if _, err := folder.Read(step.typ, cartEvent(t, spec, step.typ, i, step.product, step.n), Origin{}); err != nil {
			t.Fatal(err)
		}
		if _, err := folder.Apply(&a); err != nil {
			t.Fatal(err)
		}
		kept := f.AppendSnapshot(nil, []byte("c"), &a)
		a = Aggregate{}
		if err := f.ReadSnapshot(kept, []byte("c"), &a); err != nil {
			t.Fatal(err)
		}
		if got := text(t, f.State().Root(), a.State); got != step.want {
			t.Errorf("step %d: %s\nwant    %s", i, got, step.want)
		}
	}
}

// For random events, the collections equal those of a model with Go slices and maps.
func TestListsAndMapsEqualAModelInGo(t *testing.T) {
	spec := cartSpec(t)
	f := compile(t, spec)
	rapid.Check(t, func(rt *rapid.T) {
		folder := f.NewFolder()
		var a Aggregate
		var lines []string
		totals := map[string]int{}
		for i := range rapid.IntRange(1, 20).Draw(rt, "events") {
			typ, product, n := rapid.IntRange(lineAdded, lineRemoved).Draw(rt, "type"), rapid.SampledFrom([]string{"a", "b", "", "ü"}).Draw(rt, "product"), rapid.IntRange(0, 200).Draw(rt, "n")
			if typ == lineAdded {
				lines = append(lines, fmt.Sprintf(`{"product":%q,"n":%d}`, product, n))
				totals[product] += n
			} else {
				lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, fmt.Sprintf(`{"product":%q,`, product)) })
				delete(totals, product)
			}
			if _, err := folder.Read(typ, cartEvent(t, spec, typ, i, product, n), Origin{}); err != nil {
				rt.Fatal(err)
			}
			if _, err := folder.Apply(&a); err != nil {
				rt.Fatal(err)
			}
		}
		got := text(t, f.State().Root(), a.State)
		if want := `{"lines":[` + strings.Join(lines, ",") + `],`; !strings.HasPrefix(got, want) {
			rt.Errorf("state is %s, want it to start with %s", got, want)
		}
		for _, product := range slices.Sorted(maps.Keys(totals)) {
			if want := fmt.Sprintf(`%q:%d`, product, totals[product]); !strings.Contains(got, want) {
				rt.Errorf("state is %s, want it to contain %s", got, want)
			}
		}
		if err := codec.Validate(f.State().Root(), a.State); err != nil {
			rt.Error(err)
		}
	})
}

// An event that makes the state larger than MaxState is rejected, and the aggregate
// is unchanged.
func TestApplyRejectsAStateThatIsTooLarge(t *testing.T) {
	spec := cartSpec(t)
	spec.MaxState = 200
	f := compile(t, spec)
	if f.Hash() == compile(t, cartSpec(t)).Hash() {
		t.Error("MaxState is not in the hash, but it determines which events are applied")
	}
	folder := f.NewFolder()
	var a Aggregate
	for i := range 100 {
		before := fmt.Sprint(a)
		if _, err := folder.Read(lineAdded, cartEvent(t, spec, lineAdded, i, fmt.Sprintf("product %d", i), 1), Origin{}); err != nil {
			t.Fatal(err)
		}
		_, err := folder.Apply(&a)
		if err == nil {
			continue
		}
		if pipeline.ReasonOf(err) != pipeline.ReasonTooLarge || !strings.Contains(err.Error(), "the limit is 200") {
			t.Errorf("event %d: %v, want a rejection with the limit", i, err)
		}
		if i == 0 || len(a.State) > 200 || fmt.Sprint(a) != before {
			t.Errorf("event %d changed the aggregate: %v, before %v", i, a, before)
		}
		// An event that makes the state smaller is applied.
		if _, err := folder.Read(lineRemoved, cartEvent(t, spec, lineRemoved, 100, "product 0", 0), Origin{}); err != nil {
			t.Fatal(err)
		}
		if _, err := folder.Apply(&a); err != nil {
			t.Error(err)
		}
		return
	}
	t.Error("100 lines fit into 200 bytes")
}
