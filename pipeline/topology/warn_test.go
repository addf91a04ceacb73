package topology_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/pipeline/topology"
	"millrace/schemas"
)

// A topology that loads but is suspicious yields the warnings in its .txt file.
func TestWarnings(t *testing.T) {
	for _, name := range names(t, "warn") {
		t.Run(name, func(t *testing.T) {
			plan, err := load(t, "warn", name)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, w := range plan.Warnings() {
				got.WriteString(w.Error() + " [" + w.Rule + "]\n  " + w.Hint + "\n")
			}
			golden(t, "warn", name, got.String())
		})
	}
}

// The topologies of the repository have no warnings, so a warning is worth reading.
func TestTheExamplesHaveNoWarnings(t *testing.T) {
	files, err := filepath.Glob("../../examples/*/topology.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	loaded := 0
	for _, file := range append(files, "../../topology.yaml") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := topology.Load(topology.Source{Name: file, Text: text}, topology.Options{Schemas: schemas.FS, LookupEnv: environment, Clock: clock,
			File: func(path string) ([]byte, error) { return os.ReadFile(filepath.Join(filepath.Dir(file), path)) }})
		if err != nil {
			t.Logf("%s: %v", file, err) // it needs a stage in Go
			continue
		}
		loaded++
		for _, w := range plan.Warnings() {
			t.Errorf("%s: %s [%s]", file, w.Error(), w.Rule)
		}
	}
	if loaded < 3 {
		t.Errorf("only %d topologies load", loaded)
	}
}
