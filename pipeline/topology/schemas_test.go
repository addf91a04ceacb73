package topology_test

import (
	"errors"
	"io/fs"
	"testing"
	"testing/fstest"

	"millrace/pipeline/topology"
	"millrace/schemas"
)

// A schema file that is cut off anywhere, or that lacks any one of its bytes, either
// loads or has faults, and these have a place in the file.
func TestFaultsOfDamagedSchemasHaveAPlace(t *testing.T) {
	text, err := fs.ReadFile(schemas.FS, "OrderCreated.avsc")
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, at int, damaged []byte) {
		t.Helper()
		_, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte("name: shop\ntopics:\n  a: {partitions: 1, types: [OrderCreated]}\n")},
			topology.Options{Schemas: fstest.MapFS{"OrderCreated.avsc": {Data: damaged}}})
		var faults topology.Faults
		if err != nil && !errors.As(err, &faults) {
			t.Fatalf("%s %d: %T is not Faults", what, at, err)
		}
		for _, f := range faults {
			if f.Line == 0 || f.Col == 0 || f.Msg == "" {
				t.Errorf("%s %d: no place in %+v", what, at, f)
			}
		}
	}
	for i := range text {
		check("cut off at", i, text[:i])
		check("without byte", i, append(text[:i:i], text[i+1:]...))
	}
}
