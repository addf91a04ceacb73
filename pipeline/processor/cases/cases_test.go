package cases

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
)

// The cases next to the repository's topologies and the larger ones in testdata pass.
func TestShippedCasesPass(t *testing.T) {
	topologies := []string{harness.RepoFile("topology.yaml"), "testdata/cases/topology.yaml", "testdata/rows/topology.yaml"}
	examples, err := filepath.Glob(harness.RepoFile("examples", "*", "*.test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range examples {
		if _, err := os.Stat(filepath.Join(filepath.Dir(file), "main.go")); err == nil {
			continue // has stages in Go, and tests of its own
		}
		topologies = append(topologies, filepath.Join(filepath.Dir(file), "topology.yaml"))
	}
	for _, file := range slices.Compact(topologies) {
		var out, errs bytes.Buffer
		env := &cli.Env{Stdout: &out, Stderr: &errs}
		if code := env.Main([]string{"test", "-v", "--topology", file}, harness.Program("processor", Command)); code != cli.ExitOK {
			t.Errorf("%s: exit code %d\n%s%s", file, code, &out, &errs)
		}
	}
}

func TestRewritingAnUnchangedFileKeepsItsText(t *testing.T) {
	files, err := filepath.Glob("testdata/cases/*.test.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no case files: %v", err)
	}
	for _, file := range files {
		f, err := (&tester{}).files([]string{file})
		if err != nil {
			t.Fatal(err)
		}
		again, err := f[0].rewritten()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, f[0].text) {
			t.Errorf("rewriting %s changed it to\n%s", file, again)
		}
	}
}

// Any text either parses as a case file, and can then be rewritten, or gives faults
// that can be printed.
func FuzzCases(f *testing.F) {
	f.Add([]byte("cases: [{name: a, events: [{in: {}, out: []}]}]"))
	f.Add([]byte("cases:\n  - name: a\n    events:\n      - raw: {hex: 00, text: x}\n        filtered: [1]\n"))
	f.Add([]byte("cases: &a [*a]\n"))
	f.Add([]byte("cases: [{name: a, projection: p, tables: {t: {k: &r {a: .nan, b: 0x10}, l: *r}}, events: [{in: *r, snapshot: {state: *r}}]}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := parseCases("f", text)
		if err != nil {
			var faults topology.Faults
			if !errors.As(err, &faults) || len(faults) == 0 {
				t.Errorf("the error is a %T, not faults", err)
			}
			_ = faults.Error()
			return
		}
		for _, c := range file.cases {
			for _, e := range c.events {
				if e.in != nil {
					_ = cli.CompactJSON(yamlValue(e.in))
				}
			}
		}
		if _, err := file.rewritten(); err != nil {
			t.Errorf("cannot rewrite the file: %v", err)
		}
	})
}
