package reshape

import (
	"fmt"
	"testing"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

const target = `{"type":"record","name":"Out","fields":[{"name":"city","type":["null","string"]},{"name":"row","type":["null",{"type":"record","name":"Row","fields":[{"name":"id","type":"string"},{"name":"mail","type":"string"},{"name":"n","type":"int"}]}]}]}`

// A renamed field stays in its record, also if that has a new name; a field that moves does
// not. What depends on a field of the event follows it.
func TestMappingFollowsRenamedAndMovedFields(t *testing.T) {
	out, err := codec.ParseSchema(target)
	if err != nil {
		t.Fatal(err)
	}
	m := Mapping{From: []string{"data"}, Out: out.Root()}
	m.Rename([]Moved{{"after", "row"}, {"after.email", "row.mail"}, {"after.at.city", "city"}, {"count", "row.n"}})
	if got := fmt.Sprint(m.Names, m.Moves); got != "map[after:row after.at.city: after.email:mail count:] [{after.at.city city} {count row.n}]" {
		t.Error(got)
	}
	m.Given = [][]string{{"city"}, {"row", "n"}}
	for _, test := range []struct {
		of   []string
		want string
	}{
		{[]string{"data", "after", "email"}, "[[row mail]] false"},
		{[]string{"data", "after", "id"}, "[[row id]] false"},
		{[]string{"data", "after", "at"}, "[[city]] false"},
		{[]string{"data", "after", "at", "city"}, "[[city]] false"},
		{[]string{"data", "after"}, "[[row] [city]] false"},
		{[]string{"data", "count"}, "[[row n]] false"},
		{[]string{"data", "none"}, "[] false"},
		{[]string{"other"}, "[] false"},
		{[]string{"data"}, "[[city] [row n] [row]] true"},
	} {
		fields, record := m.Follow([][]string{test.of})
		if got := fmt.Sprint(fields, record); got != test.want {
			t.Errorf("%v: %s, want %s", test.of, got, test.want)
		}
	}
	record, err := codec.ParseSchema(`{"type":"record","name":"In","fields":[{"name":"after","type":["null",{"type":"record","name":"Row","fields":[{"name":"id","type":"string"}]}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(m.Origins(record.Root(), []string{"row", "city", "row.id", "row.none"})); got != "[after after.id]" {
		t.Error(got)
	}
}

func TestOverlapsOfSources(t *testing.T) {
	list := func(paths ...string) (out []expr.Source) {
		for _, p := range paths {
			out = append(out, expr.Source{Text: p})
		}
		return out
	}
	for _, test := range []struct {
		given, copied []expr.Source
		want          string
	}{
		{list("a.x", "a.y"), list("a", "a.z"), "[]"},
		{list("a", "a.x"), nil, "[a and a.x overlap]"},
		{list("a.x", "a"), nil, "[a.x and a overlap]"},
		{list("a.x", "a.x"), nil, "[a.x is set twice]"},
		{list("a"), list("a.x"), "[a.x and a overlap]"},
		{nil, list("b", "b"), "[b is set twice]"},
		{list("ab"), list("a"), "[]"},
	} {
		got := []string{}
		for _, f := range Overlaps(test.given, test.copied) {
			got = append(got, f.Msg)
		}
		if fmt.Sprint(got) != test.want {
			t.Errorf("%v, %v: %v, want %s", test.given, test.copied, got, test.want)
		}
	}
}
