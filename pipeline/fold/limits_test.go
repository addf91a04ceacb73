package fold

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// treeSpec folds trees: each is kept as it is, and within a list of a list.
func treeSpec(t testing.TB) Spec {
	const tree = `{"type":"record","name":"Tree","fields":[{"name":"v","type":"int"},{"name":"kid","type":["null","Tree"],"default":null}]}`
	event := parse(t, `{"type":"record","name":"Grown","fields":[{"name":"id","type":"string"},
		{"name":"data","type":{"type":"record","name":"Data","fields":[{"name":"id","type":"string"},{"name":"tree","type":["null",`+tree+`]},{"name":"list","type":"boolean"}]}}]}`)
	state := parse(t, `{"type":"record","name":"Forest","fields":[
		{"name":"n","type":"long","default":0},
		{"name":"tree","type":["null",`+tree+`],"default":null},
		{"name":"lists","type":{"type":"array","items":{"type":"array","items":["null","Tree"]}},"default":[]}]}`)
	return Spec{
		Name: "forest", Types: []*codec.Schema{event}, Key: src("data.id"), State: state,
		On: []On{{Type: 0, Set: []Set{
			{src("n"), src("state.n + 1")}, {src("tree"), src("data.list ? null : data.tree")}, {src("lists"), src("data.list ? [[data.tree]] : []")},
		}}},
	}
}

func grown(depth int, list bool) []byte {
	body := codec.AppendString(codec.AppendString(nil, "e"), "t-1")
	body = append(body, strings.Repeat("\x02\x0e", depth)+"\x00"...)
	return codec.AppendBool(body, list)
}

// Each state that a fold returns is in a snapshot that it can read again. An event whose
// state cannot be read is rejected, and its aggregate stays as it was.
func TestEveryStateCanBeReadFromItsSnapshot(t *testing.T) {
	f := compile(t, treeSpec(t))
	folder := f.NewFolder()
	applied, rejected := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		var a Aggregate
		for range rapid.IntRange(1, 3).Draw(t, "events") {
			body := grown(rapid.IntRange(24, 36).Draw(t, "depth"), rapid.Bool().Draw(t, "in a list"))
			_, err := folder.Read(0, body, Origin{})
			if err == nil {
				before := string(a.State)
				if _, err = folder.Apply(&a); err != nil && string(a.State) != before {
					t.Fatalf("the state changed, but: %v", err)
				}
			}
			if err != nil {
				if rejected++; pipeline.ClassOf(err) != pipeline.ClassReject || !strings.Contains(err.Error(), "values nested more than 64 deep") {
					t.Fatalf("%v", err)
				}
				continue
			}
			applied++
			var again Aggregate
			if err := f.ReadSnapshot(f.AppendSnapshot(nil, []byte("t-1"), &a), []byte("t-1"), &again); err != nil || string(again.State) != string(a.State) {
				t.Fatalf("the snapshot of %x: %v", a.State, err)
			}
			if _, err := codec.AppendJSON(nil, f.State().Root(), again.State); err != nil {
				t.Fatal(err)
			}
		}
	})
	if applied == 0 || rejected == 0 {
		t.Errorf("%d events were applied and %d rejected", applied, rejected)
	}
}

// A record key that is not UTF-8 is no aggregate id: no snapshot could have it.
func TestRecordKeyThatIsNotTextIsRejected(t *testing.T) {
	spec := treeSpec(t)
	spec.Key = src("")
	spec.Bare = &expr.Bare{}
	folder := compile(t, spec).NewFolder()
	_, err := folder.Read(0, grown(1, false), Origin{Key: []byte("ab\xff\xfe")})
	if pipeline.ClassOf(err) != pipeline.ClassReject || err == nil || !strings.Contains(err.Error(), "byte 2 (0xff) is not UTF-8") {
		t.Errorf("got %v", err)
	}
}
