package codec

import "testing"

func TestSchemaTreeFollowsReferencesAndNames(t *testing.T) {
	s, err := ParseSchema(`{"type":"record","name":"Tree","namespace":"x","fields":[
		{"name":"label","type":["null","string"],"default":null},
		{"name":"color","type":{"type":"enum","name":"Color","symbols":["red","blue"]}},
		{"name":"other","type":"Color"},
		{"name":"at","type":{"type":"long","logicalType":"timestamp-micros"}},
		{"name":"children","type":{"type":"array","items":"Tree"}}]}`)
	if err != nil {
		t.Fatal(err)
	}
	root := s.Root()
	if s.Name() != "x.Tree" {
		t.Errorf("name %q, want x.Tree", s.Name())
	}
	if root.Field("children").Type.Elem != root {
		t.Error("a reference to the record is not the record itself")
	}
	if root.Field("color").Type != root.Field("other").Type {
		t.Error("a reference to the enum is not the enum itself")
	}
	if other, null, branch, ok := root.Field("label").Type.Nullable(); !ok || other.Kind != String || null != 0 || branch != 1 {
		t.Errorf("label: nullable = %v, %d, %d, %v", other, null, branch, ok)
	}
	for field, want := range map[string]string{"label": "null or string", "color": "x.Color", "at": "long (timestamp-micros)", "children": "array of x.Tree"} {
		if got := root.Field(field).Type.String(); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
}
