package topology_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// compile returns the compiled JSON Schema for these kinds of stages.
func compile(t *testing.T, kinds map[string]stage.Kind) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(topology.JSONSchema(kinds)))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("topology.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("topology.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// values returns the values of a YAML file, as a validator in an editor sees them.
func values(t *testing.T, path string) any {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Load(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSchemaForEditorsIsUpToDate(t *testing.T) {
	const path = "../../docs/topology.schema.json"
	got := topology.JSONSchema(stage.Builtin())
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from the grammar and the stages; go test ./pipeline/topology -update rewrites it", path)
	}
}

func TestSchemaAcceptsValidTopologies(t *testing.T) {
	if err := compile(t, stage.Builtin()).Validate(values(t, "../../topology.yaml")); err != nil {
		t.Errorf("the shipped topology: %v", err)
	}
	s := compile(t, kinds())
	for _, name := range names(t, "good") {
		if err := s.Validate(values(t, filepath.Join("testdata", "good", name+".yaml"))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Faults in the structure of a file are visible in an editor.
func TestSchemaRejectsFaultyStructure(t *testing.T) {
	s := compile(t, kinds())
	for _, name := range []string{
		"add-faults", "cases", "every-form", "guarantee", "many-faults", "no-dead-letter", "no-name", "no-to", "no-topics",
		"not-a-mapping", "on", "on-error", "partitions", "projection-faults", "projection-incomplete", "set-faults", "stage-names",
		"stage-shapes", "stage-unknown-parameter", "syntax-in-expressions", "type-twice", "types-not-a-list",
		"unknown-key-without-a-neighbour", "unknown-stage", "unknown-top-level-key",
	} {
		if s.Validate(values(t, filepath.Join("testdata", "bad", name+".yaml"))) == nil {
			t.Errorf("the schema accepts %s", name)
		}
	}
}
