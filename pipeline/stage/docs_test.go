package stage_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline/stage"
)

var update = flag.Bool("update", false, "rewrite docs/stages.md")

// builtin returns the built-in kinds, with a registered function for the example of go.
func builtin() map[string]stage.Kind { return withGo(tier) }

func TestExamplesOfKindsLoad(t *testing.T) {
	for name, k := range builtin() {
		t.Run(name, func(t *testing.T) {
			if k.Name != name || k.Doc == "" || k.Example == "" {
				t.Errorf("kind %q under the name %q has doc %q and example %q", k.Name, name, k.Doc, k.Example)
			}
			newRunnerOf(t, example(k), nil, builtin())
		})
	}
}

func TestDocumentationIsUpToDate(t *testing.T) {
	const path = "../../docs/stages.md"
	got := document()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is out of date; rewrite it with go test ./pipeline/stage -run Documentation -update", path)
	}
}

// example returns a kind's example as an item of stages.
func example(k stage.Kind) string {
	return "- " + k.Name + ":\n    " + strings.ReplaceAll(k.Example, "\n", "\n    ")
}

// document returns docs/stages.md.
func document() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	kinds := stage.Builtin()
	names := slices.Sorted(maps.Keys(kinds))
	p("# Stages\n")
	p("The stages of a pipeline, listed under `stages` in `topology.yaml`. This page is generated from the descriptions in `pipeline/stage`.")
	p("The examples use the events of the shop and are tested.\n")
	p("Every stage also takes `name` (used in metrics, dead letters and saved state; default: the kind), `on` (the event types that it handles;")
	p("events of other types pass unchanged) and `on_error` (the handling of events that it rejects: `dead_letter`, `skip` or `stop`).")
	p("Expressions are CEL; `processor functions` lists the available functions.\n")
	for _, name := range names {
		first, _, _ := strings.Cut(kinds[name].Doc, ". ")
		p("- [%s](#%s): %s", name, name, strings.TrimSuffix(first, "."))
	}
	for _, name := range names {
		k := kinds[name]
		p("\n## %s\n\n%s\n\n```yaml\n%s\n```\n", name, k.Doc, example(k))
		p("| parameter | value | description |")
		p("| --- | --- | --- |")
		rows(p, "", k.Params)
	}
	return b.String()
}

// rows writes the table rows of parameters, each followed by its nested parameters.
func rows(p func(string, ...any), at string, params []stage.Param) {
	for _, param := range params {
		value := formWords[param.Form]
		if len(param.Values) > 0 {
			value = "`" + strings.Join(param.Values, "`, `") + "`"
		}
		if param.Form == stage.Number {
			value += fmt.Sprintf(", %d to %d", param.Min, param.Max)
		}
		switch {
		case param.Required:
			value += "; required"
		case param.Default != "":
			value += "; default `" + param.Default + "`"
		}
		p("| `%s` | %s | %s |", at+param.Name, value, strings.NewReplacer("|", `\|`, "*", `\*`).Replace(param.Doc))
		inside := map[stage.Form]string{stage.Group: ".", stage.Named: ".NAME.", stage.Cases: "[].", stage.Choices: "[]."}[param.Form]
		rows(p, at+param.Name+inside, param.Params)
	}
}

var formWords = map[stage.Form]string{
	stage.Expression: "an expression", stage.Assignments: "a mapping from paths to expressions", stage.Word: "a name or a string", stage.Words: "a list of names",
	stage.Number: "an integer", stage.Duration: "a duration, such as `10m`", stage.Flag: "`true` or `false`", stage.Texts: "a mapping from names to strings",
	stage.Group: "a mapping", stage.Named: "a mapping by name", stage.Cases: "a list of mappings", stage.Choices: "a list of mappings with one key each",
}
