package deploy_test

import (
	"flag"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/access"
	"millrace/pipeline/cli"
	"millrace/pipeline/kafka/properties"
)

var update = flag.Bool("update", false, "regenerate the tables in docs/operations.md and kubernetes/topology.yaml")

// checkSection compares the part of docs/operations.md between the comments
// <!-- name --> and <!-- /name --> with the generated text. -update replaces it.
func checkSection(t *testing.T, name, want string) {
	t.Helper()
	checkSectionOf(t, "../docs/operations.md", name, want)
}

func checkSectionOf(t *testing.T, path, name, want string) {
	t.Helper()
	doc := readFile(t, path)
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	before, rest, ok := strings.Cut(doc, begin)
	have, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no section between %q and %q", path, strings.TrimSpace(begin), end)
	}
	if have == want {
		return
	}
	if !*update {
		t.Fatalf("the section %q of %s differs from the code; go test ./deploy -update rewrites it:\n%s", name, path, want)
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The flags, variables, files and headings that the documents name exist.
func TestDocumentsHaveNoDanglingReferences(t *testing.T) {
	flags, env := map[string]bool{}, map[string]bool{}
	var collect func(cmd *cobra.Command)
	collect = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags["--"+f.Name] = true })
		maps.Copy(env, variables(t, cmd))
		for _, sub := range cmd.Commands() {
			collect(sub)
		}
	}
	for _, program := range binaries {
		collect(program(&cli.Env{}))
	}
	env["MILLRACE_TEST_KAFKA"] = true // read by the tests
	millrace := regexp.MustCompile("(?:producer|processor|projector) [a-z]+ [^`\n]*")
	for _, doc := range []string{"../docs/operations.md", "../docs/docker.md", "../docs/security.md"} {
		text := readFile(t, doc)
		for _, v := range variableForm.FindAllString(text, -1) {
			if !env[v] {
				t.Errorf("%s: no program reads the variable %s", doc, v)
			}
		}
		for _, line := range millrace.FindAllString(text, -1) {
			for _, f := range regexp.MustCompile(`(?:^| )(--[a-z-]+)`).FindAllStringSubmatch(line, -1) {
				if !flags[f[1]] && f[1] != "--help" {
					t.Errorf("%s: no program has the flag %s: %s", doc, f[1], line)
				}
			}
		}
	}
}

// The table of routes in docs/security.md is generated from the one that the servers enforce.
func TestSecurityListsTheRolesOfAllRoutes(t *testing.T) {
	var b strings.Builder
	b.WriteString("| program | route | role |\n| --- | --- | --- |\n")
	for _, r := range access.Routes() {
		program, role := r.Program, string(r.Role)
		if program == "" {
			program = "all"
		}
		if r.Role == access.Public {
			role = "none"
		}
		b.WriteString("| " + program + " | `" + r.Pattern + "` | " + role + " |\n")
	}
	checkSectionOf(t, "../docs/security.md", "routes", b.String())
}

// The table of flags in docs/operations.md is generated from the help of the workers.
func TestOperationsListsTheFlags(t *testing.T) {
	rows := map[string]string{}
	for _, name := range []string{"processor", "projector"} {
		run, _, err := binaries[name](&cli.Env{}).Find([]string{"run"})
		if err != nil {
			t.Fatal(err)
		}
		run.Flags().VisitAll(func(f *pflag.Flag) {
			value, usage := pflag.UnquoteUsage(f)
			variable := ""
			if v := properties.EnvName(f.Name); variables(t, run)[v] {
				variable = "`" + v + "`"
				usage = strings.NewReplacer(" (env "+v+")", "", "env "+v+"; ", "").Replace(usage)
			}
			def := f.DefValue
			switch {
			case f.Name == "listen":
				def = "127.0.0.1:9101, 9102"
			case def == "[]" || def == "false" || strings.Contains(usage, "(default: "):
				def = ""
			}
			long := strings.TrimSpace("--" + f.Name + " " + value)
			if f.Shorthand != "" {
				long = "-" + f.Shorthand + ", " + long
			}
			rows[f.Name] = "| `" + long + "` | " + variable + " | " + strings.Trim(def, "[]") + " | " + strings.ReplaceAll(usage, "|", `\|`) + " |\n"
		})
	}
	delete(rows, "help")
	var b strings.Builder
	b.WriteString("| flag | variable | default | meaning |\n| --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		b.WriteString(rows[name])
	}
	checkSection(t, "flags", b.String())
}
