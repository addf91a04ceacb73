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

// builtin are the kinds that come with Millrace, with a stage written in Go for
// the example of that kind.
func builtin() map[string]stage.Kind { return withGo(tier) }

func TestExamplesLoad(t *testing.T) {
	for name, k := range builtin() {
		t.Run(name, func(t *testing.T) {
			if k.Name != name || k.Doc == "" || k.Example == "" {
				t.Errorf("kind %q says %q, and shows %q", k.Name, k.Doc, k.Example)
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
		t.Errorf("%s is not what the stages say of themselves; go test ./pipeline/stage -run Documentation -update rewrites it", path)
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
	p("The stages of a pipeline, as they stand under `stages` in `topology.yaml`. This page is made from what they say of themselves in")
	p("`pipeline/stage`; the examples are over the events of the shop, and are tested.\n")
	p("Every stage also takes `name` (in metrics, dead letters and saved state; its kind if not given), `on` (the event types that it is for; the")
	p("others pass through it untouched) and `on_error` (what becomes of an event that it rejects: `dead_letter`, `skip` or `stop`).")
	p("Expressions are CEL; `processor functions` lists what they can call.\n")
	for _, name := range names {
		first, _, _ := strings.Cut(kinds[name].Doc, ". ")
		p("- [%s](#%s): %s", name, name, strings.TrimSuffix(first, "."))
	}
	for _, name := range names {
		k := kinds[name]
		p("\n## %s\n\n%s\n\n```yaml\n%s\n```\n", name, k.Doc, example(k))
		p("| parameter | is | |")
		p("| --- | --- | --- |")
		rows(p, "", k.Params)
	}
	return b.String()
}

// rows writes the rows of a table of parameters, those inside others after them.
func rows(p func(string, ...any), at string, params []stage.Param) {
	for _, param := range params {
		is := formWords[param.Form]
		if len(param.Values) > 0 {
			is = "`" + strings.Join(param.Values, "`, `") + "`"
		}
		if param.Form == stage.Number {
			is += fmt.Sprintf(", %d to %d", param.Min, param.Max)
		}
		switch {
		case param.Required:
			is += "; required"
		case param.Default != "":
			is += "; `" + param.Default + "` if not given"
		}
		p("| `%s` | %s | %s |", at+param.Name, is, strings.NewReplacer("|", `\|`, "*", `\*`).Replace(param.Doc))
		inside := map[stage.Form]string{stage.Group: ".", stage.Named: ".NAME.", stage.Cases: "[].", stage.Choices: "[]."}[param.Form]
		rows(p, at+param.Name+inside, param.Params)
	}
}

var formWords = map[stage.Form]string{
	stage.Expression: "an expression", stage.Assignments: "a mapping from paths to expressions", stage.Word: "a name or a text", stage.Words: "a list of names",
	stage.Number: "a whole number", stage.Duration: "a duration, such as `10m`", stage.Flag: "`true` or `false`", stage.Texts: "a mapping from names to texts",
	stage.Group: "a mapping", stage.Named: "a mapping by name", stage.Cases: "a list of mappings", stage.Choices: "a list of mappings of one name",
}
