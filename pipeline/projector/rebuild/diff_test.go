package rebuild

import (
	"strings"
	"testing"

	"millrace/pipeline/projector/reader"
)

func TestADiffCountsAggregatesAndFieldsThatDiffer(t *testing.T) {
	d := &versionDiff{Fields: map[string]*fieldDiff{}, maxSamples: 1, maxIDs: 3}
	line := func(id, state string) reader.StateLine {
		return reader.StateLine{ID: id, Version: 1, State: []byte(state)}
	}
	for _, c := range []struct {
		a, b  reader.StateLine
		order int
	}{
		{line("same", `{"a":1,"b":{"c":2}}`), line("same", `{"a":1,"b":{"c":2}}`), 0},
		{line("moved", `{"a":1,"b":2}`), line("moved", `{"b":2,"a":1}`), 0},
		{line("deep", `{"a":1,"b":{"c":2}}`), line("deep", `{"a":1,"b":{"c":3}}`), 0},
		{line("deep2", `{"a":1,"b":{"c":2}}`), line("deep2", `{"a":1,"b":{"c":4},"n":null}`), 0},
		{line("old", `{}`), reader.StateLine{}, -1},
		{reader.StateLine{}, line("new", `{}`), 1},
		{reader.StateLine{ID: "moving", Unknown: true}, line("moving", `{}`), 0},
	} {
		if err := d.add(c.a, c.b, c.order); err != nil {
			t.Fatal(err)
		}
	}
	if d.Aggregates != 7 || d.Same != 2 || d.Differ != 4 || d.OnlyOld != 1 || d.OnlyNew != 1 || d.Unknown != 1 || strings.Join(d.IDs, " ") != "deep deep2 old" {
		t.Errorf("%+v", d)
	}
	if len(d.Fields) != 2 || d.Fields["b.c"].Differ != 2 || len(d.Fields["b.c"].Samples) != 1 || string(d.Fields["b.c"].Samples[0].New) != "3" || d.Fields["n"].Differ != 1 {
		t.Errorf("fields are %v", d.Fields)
	}
}
