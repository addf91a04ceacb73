package docs_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline/topology"
	"millrace/schemas"
)

var update = flag.Bool("update", false, "rewrite the tables of topology.md")

// A property is a value in docs/topology.schema.json.
type property struct {
	Ref         string               `json:"$ref"`
	Type        any                  `json:"type"`
	Description string               `json:"description"`
	Default     any                  `json:"default"`
	Enum        []any                `json:"enum"`
	Minimum     *int64               `json:"minimum"`
	Maximum     *int64               `json:"maximum"`
	Pattern     string               `json:"pattern"`
	AnyOf       []property           `json:"anyOf"`
	Items       *property            `json:"items"`
	Properties  map[string]*property `json:"properties"`
	Required    []string             `json:"required"`
	Additional  json.RawMessage      `json:"additionalProperties"`
}

// additional returns the schema of the values of a mapping with free names, else nil.
func (p *property) additional(t *testing.T) *property {
	t.Helper()
	if text := string(p.Additional); text == "" || text == "false" {
		return nil
	}
	var a property
	if err := json.Unmarshal(p.Additional, &a); err != nil {
		t.Fatal(err)
	}
	return &a
}

// value describes the value of a property for people.
func (p *property) value(t *testing.T) string {
	t.Helper()
	var words []string
	for _, e := range p.Enum {
		words = append(words, fmt.Sprintf("`%v`", e))
	}
	named := p.additional(t)
	switch {
	case p.Ref == "#/$defs/expression":
		return "expression"
	case len(p.AnyOf) > 0:
		for _, one := range p.AnyOf {
			if one.Ref != "#/$defs/variable" {
				words = append(words, one.value(t))
			}
		}
		return strings.Join(words, " or ")
	case words != nil:
		return strings.Join(words, " or ")
	case p.Type == "integer":
		return fmt.Sprintf("%s to %s", grouped(*p.Minimum), grouped(*p.Maximum))
	case p.Type == "boolean":
		return "`true` or `false`"
	case p.Type == "array" && p.Items.Type == "object":
		return "list of stages"
	case p.Type == "array":
		return "list of names"
	case strings.HasPrefix(p.Pattern, "^[0-9.]"):
		return "duration"
	case named != nil && named.Ref != "":
		return "paths and expressions"
	case named != nil && named.Properties == nil:
		return "names and texts"
	case named != nil:
		return "mapping by name"
	case p.Properties != nil:
		return "mapping"
	case p.Type == "string":
		return "text"
	}
	t.Fatalf("topology.md has no word for the value %+v", *p)
	return ""
}

// grouped returns a number with commas between groups of three digits.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// table returns the keys of a mapping as a table.
func (p *property) table(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| key | value | | meaning |\n| --- | --- | --- | --- |\n")
	names := slices.Sorted(maps.Keys(p.Properties))
	slices.SortStableFunc(names, func(a, b string) int { // required keys first
		return boolInt(slices.Contains(p.Required, b)) - boolInt(slices.Contains(p.Required, a))
	})
	for _, name := range names {
		key := p.Properties[name]
		note := ""
		if slices.Contains(p.Required, name) {
			note = "required"
		} else if key.Default != nil {
			note = fmt.Sprintf("default `%v`", key.Default)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, key.value(t), note, strings.ReplaceAll(key.Description, "|", `\|`))
	}
	return b.String()
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// mapping returns the schema at a path of keys, where "*" is any name in a mapping.
func (p *property) mapping(t *testing.T, path ...string) *property {
	t.Helper()
	for _, name := range path {
		switch {
		case name == "*":
			p = p.additional(t)
		case name == "[]":
			p = p.Items
		default:
			p = p.Properties[name]
		}
		if p == nil {
			t.Fatalf("topology.schema.json has no %v", path)
		}
		for _, one := range p.AnyOf { // a mapping, or a word in its place
			if one.Properties != nil {
				p = &one
			}
		}
	}
	return p
}

// The tables of topology.md are generated from topology.schema.json, which is generated from
// the grammar.
func TestTopologyPageHasTheKeysOfTheSchema(t *testing.T) {
	text, err := os.ReadFile("topology.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var root property
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	// The parameters of a stage that all stages have.
	stage := *root.mapping(t, "pipelines", "*", "stages", "[]", "filter")
	own := stage.Properties
	stage.Properties = map[string]*property{}
	for _, name := range []string{"name", "on", "on_error"} {
		stage.Properties[name] = own[name]
	}
	sections := []struct {
		name string
		keys *property
	}{
		{"file", &root},
		{"topics", root.mapping(t, "topics", "*")},
		{"tables", root.mapping(t, "tables", "*")},
		{"pipelines", root.mapping(t, "pipelines", "*")},
		{"stages", &stage},
		{"projections", root.mapping(t, "projections", "*")},
		{"on", root.mapping(t, "projections", "*", "on", "*")},
		{"window", root.mapping(t, "projections", "*", "window")},
		{"publish", root.mapping(t, "projections", "*", "publish")},
		{"encryption", root.mapping(t, "encryption")},
	}
	for _, s := range sections {
		checkSection(t, "topology.md", s.name, s.keys.table(t))
	}
}

func TestTopologyPageHasTheWarnings(t *testing.T) {
	text, err := os.ReadFile("topology.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range []string{topology.RuleUnusedTopic, topology.RuleUnusedTable, topology.RuleShortRetention, topology.RuleNothingComes, topology.RuleOtherKey, topology.RuleKeyFormat, topology.RuleLongDelay, topology.RuleTombstones, topology.RuleInternalTopic} {
		if !strings.Contains(string(text), "| `"+rule+"` |") {
			t.Errorf("topology.md does not list the warning %s", rule)
		}
	}
}

// checkSection compares the part of a document between the comments <!-- name --> and
// <!-- /name --> with the generated text. -update replaces it.
func checkSection(t *testing.T, path, name, want string) {
	t.Helper()
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	before, rest, ok := strings.Cut(string(doc), begin)
	have, after, ok2 := strings.Cut(rest, end)
	switch {
	case !ok || !ok2:
		t.Fatalf("%s has no section between %q and %q", path, strings.TrimSpace(begin), end)
	case have == want:
	case !*update:
		t.Errorf("the section %q of %s differs from the code; go test ./docs -update rewrites it:\n%s", name, path, want)
	default:
		if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Whole topologies that documents show load without warnings.
func TestTopologiesInDocumentsLoad(t *testing.T) {
	for document, least := range map[string]int{"../README.md": 1, "topology.md": 1, "projections.md": 4} {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, b := range blocks(string(text)) {
			if b.lang != "yaml" || !slices.ContainsFunc(b.lines, func(l string) bool { return strings.HasPrefix(l, "name: ") }) {
				continue
			}
			n++
			plan, err := topology.Load(topology.Source{Name: document, Text: []byte(strings.Join(b.lines, "\n"))}, topology.Options{Schemas: schemas.FS})
			var faults topology.Faults
			if errors.As(err, &faults) {
				t.Errorf("%s, block at line %d:\n%v", document, b.line, err)
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			for _, w := range plan.Warnings() {
				if document != "../README.md" { // the short form leaves out the retention
					t.Errorf("%s, block at line %d: %s", document, b.line, w.Error())
				}
			}
		}
		if n < least {
			t.Errorf("%s has %d topologies, want at least %d", document, n, least)
		}
	}
}
