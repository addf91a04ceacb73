package processor_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

// With --registry, explain lists the writers' schemas of each input type and how they are
// read. Without a registry that answers, it says so and shows the rest.
func TestExplainShowsHowWritersAreRead(t *testing.T) {
	side, err := sandbox.New(sandbox.Config{NoBroker: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = side.Close() })
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{side.RegistryURL()}})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range [][2]string{
		{"in-Click", string(harness.ClickSchemas["Click.avsc"].Data)},
		{"in-Click", `{"type":"record","name":"Click","fields":[{"name":"id","type":"string"},{"name":"n","type":"int"},{"name":"segment","type":["null","string"],"default":null}]}`},
		{"in-value", `[{"type":"record","name":"web.Click","fields":[{"name":"id","type":["null","string"]},{"name":"n","type":"long"}]},{"type":"record","name":"Other","fields":[]}]`},
		{"Click", `{"type":"record","name":"Click","fields":[{"name":"id","type":"string"}]}`},
		{"elsewhere", `{"type":"record","name":"Click","fields":[{"name":"n","type":"string"}]}`},
	} {
		schema, err := codec.ParseSchema(s[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := registry.SetCompatibility(t.Context(), s[0], "NONE"); err != nil {
			t.Fatal(err)
		}
		if _, err := registry.Register(t.Context(), s[0], schema); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "schemas"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, file := range harness.ClickSchemas {
		harness.Write(t, filepath.Join(dir, "schemas", name), file.Data)
	}
	harness.Write(t, filepath.Join(dir, "topology.yaml"), []byte(`
name: t
topics: {in: {partitions: 1, types: [Click], envelope: none}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines: {p: {from: in, to: out, dead_letter: dead}}
projections: {pages: {from: in, key: id, state: Page, on: {Click: {set: {title: id}}}, snapshots: pages}}
`))
	explain := func(args ...string) (stdout, stderr string) {
		var out, errs bytes.Buffer
		env := &cli.Env{Stdout: &out, Stderr: &errs, Now: time.Now}
		if code := env.Main(append([]string{"explain", "-t", filepath.Join(dir, "topology.yaml")}, args...), programs.Processor); code != cli.ExitOK {
			t.Fatalf("exit code %d: %s", code, &errs)
		}
		return out.String(), errs.String()
	}
	got, errs := explain("-r", side.RegistryURL())
	_, projections, _ := strings.Cut(got, "\nprojection pages reads in\n")
	for _, part := range []string{"    read     in-Click\n", "    writer   in-Click version 2 (id 2): resolved\n               dropped   segment: null or string\n"} {
		if !strings.Contains(projections, part) {
			t.Errorf("the projection lacks %q:\n%s", part, projections)
		}
	}
	_, got, _ = strings.Cut(got, "Schemas\n")
	got, _, _ = strings.Cut(got, "\n\n")
	const want = `  Click
    read     in-Click
    written  out-Click
    writer   in-value version 1 (id 3): resolved
               rejected  id: null cannot become string
    writer   in-Click version 1 (id 1): identical
    writer   in-Click version 2 (id 2): resolved
               dropped   segment: null or string
               converted n: int becomes long
    writer   Click version 1 (id 4): unreadable: Click.n has no default, and the writer's schema lacks it`
	if got != want || errs != "" {
		t.Errorf("got\n%s\n%s\nwant\n%s", got, errs, want)
	}
	if asJSON, _ := explain("-r", side.RegistryURL(), "--json"); !strings.Contains(asJSON, `"dropped": [`) || !strings.Contains(asJSON, `"reading": "unreadable"`) {
		t.Errorf("in JSON: %s", asJSON)
	}
	if out, errs := explain(); strings.Contains(out, "writer ") || errs != "" {
		t.Errorf("without a registry: %s%s", out, errs)
	}
	if out, errs := explain("-r", "http://127.0.0.1:1"); !strings.Contains(out, "out-Click") || !strings.HasPrefix(errs, "the writers' schemas are not shown: ") {
		t.Errorf("with a registry that is down: %s%s", out, errs)
	}
}
