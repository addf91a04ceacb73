package cli_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
)

// program is a program with one command, which has flags of several types.
func program(e *cli.Env) *cobra.Command {
	root := &cobra.Command{Use: "program", Short: "A program"}
	send := &cobra.Command{Use: "send [PIPELINE...]", Args: cobra.ArbitraryArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		cmd.Println("sent")
		return nil
	}}
	flags := send.Flags()
	flags.IntP("limit", "n", 0, "send at most `n` events")
	flags.Float64("rate", 0, "events per second")
	flags.Duration("wait", 0, "how long to wait")
	flags.Bool("all", false, "send all events")
	flags.Uint64("seed", 0, "`n` of the generator")
	flags.StringSlice("pipeline", nil, "only these `pipelines`")
	flags.StringSlice("stage", nil, "only these `stages`")
	e.TopologyFlags(flags)
	e.BindEnv(flags, "limit")
	e.CompletePipelines(send)
	get := &cobra.Command{Use: "get NAME ID", Run: func(*cobra.Command, []string) {}}
	e.CompleteProjection(get)
	root.AddCommand(send, get)
	return root
}

// run runs the program and returns what it prints.
func run(env map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	e := &cli.Env{
		Stdout: &out, Stderr: &errs, Now: time.Now,
		LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		Build:     cli.Build{Version: "v1.2.3", Commit: "0123456789abcdef+dirty", Go: "go1.26", Platform: "linux/amd64"},
	}
	code = e.Main(args, program)
	return code, out.String(), errs.String()
}

func TestVersionIsACommandAndAFlag(t *testing.T) {
	const want = "program v1.2.3 0123456789ab+dirty go1.26 linux/amd64\n"
	for _, arg := range []string{"version", "--version"} {
		if code, out, errs := run(nil, arg); code != cli.ExitOK || out != want || errs != "" {
			t.Errorf("%s: exit code %d, %q, %q; want %q", arg, code, out, errs, want)
		}
	}
	if code, out, _ := run(nil, "version", "--json"); code != cli.ExitOK || !strings.Contains(out, `"commit": "0123456789abcdef+dirty"`) {
		t.Errorf("--json: exit code %d, %s", code, out)
	}
}

func TestErrorsOfTheCommandLineAreClear(t *testing.T) {
	for _, test := range []struct{ args, env, want string }{
		{"send --limt 3", "", "unknown flag --limt; did you mean --limit?"},
		{"send --topolgy x", "", "unknown flag --topolgy; did you mean --topology?"},
		{"send --something", "", "unknown flag --something"},
		{"send -z", "", "unknown flag -z"},
		{"send --limit", "", "--limit needs a value: --limit n"},
		{"send -n", "", "--limit needs a value: --limit n"},
		{"send --limit x", "", `--limit: "x" is not a whole number such as 10`},
		{"send -n 2.5", "", `--limit: "2.5" is not a whole number such as 10`},
		{"send -n 99999999999999999999", "", "--limit: 99999999999999999999 is too large or too small"},
		{"send --seed -1", "", `--seed: "-1" is not a whole number that is not negative, such as 10`},
		{"send --rate fast", "", `--rate: "fast" is not a number such as 2.5`},
		{"send --wait 5", "", `--wait: "5" is not a duration with a unit, such as 500ms, 30s or 1h30m`},
		{"send --all=maybe", "", `--all: "maybe" is not true or false`},
		{"send", "x", `MILLRACE_LIMIT: "x" is not a whole number such as 10`},
		{"sned", "", `unknown command "sned" for "program"; did you mean send?`},
	} {
		code, _, errs := run(map[string]string{"MILLRACE_LIMIT": test.env}, strings.Fields(test.args)...)
		first, rest, _ := strings.Cut(errs, "\n")
		if code != cli.ExitUsage || first != "program: "+test.want || !strings.HasPrefix(rest, "Run 'program") {
			t.Errorf("%s: exit code %d, %s\nwant %s", test.args, code, errs, test.want)
		}
	}
}

const namesTopology = `name: t
topics: {in: {partitions: 1, types: [Click], envelope: none}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines:
  clean: {from: in, to: out, dead_letter: dead, stages: [{filter: {name: known, keep: "id != ''"}}]}
  copy: {from: in, to: out, dead_letter: dead, stages: [{filter: {name: known, keep: "id != ''"}}, {filter: {name: short, keep: "size(id) < 9"}}]}
projections:
  click: {from: in, key: id, state: Click, on: {Click: {set: {id: id}}}, snapshots: snapshots}
`

func TestCompletionReadsNamesFromTheTopology(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "shop.yaml")
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, namesTopology)
	write(filepath.Join(dir, "schemas", "Click.avsc"), `{"type": "record", "name": "Click", "fields": [{"name": "id", "type": "string", "default": ""}]}`)
	write(filepath.Join(dir, "broken.yaml"), "name: [")
	env := map[string]string{"MILLRACE_TOPOLOGY": file}
	for _, test := range []struct {
		args []string
		env  map[string]string
		want string
	}{
		{[]string{"send", "-t", file, "--pipeline", ""}, nil, "clean copy"},
		{[]string{"send", "--pipeline", ""}, env, "clean copy"},
		{[]string{"send", "-t", file, "--stage", ""}, nil, "known short"},
		{[]string{"send", "-t", file, ""}, nil, "clean copy"},
		{[]string{"send", "-t", file, "copy", ""}, nil, "clean"},
		{[]string{"get", ""}, env, "click"},
		{[]string{"get", "click", ""}, env, ""},
		{[]string{"get", ""}, nil, ""},
		{[]string{"send", "-t", filepath.Join(dir, "broken.yaml"), "--pipeline", ""}, nil, ""},
	} {
		code, out, _ := run(test.env, append([]string{"__complete"}, test.args...)...)
		names, _, _ := strings.Cut(out, ":4\n") // 4 disables the completion of file names
		if got := strings.Join(strings.Fields(names), " "); code != cli.ExitOK || got != test.want {
			t.Errorf("%q: exit code %d, completes to %q, want %q", test.args, code, got, test.want)
		}
	}
}

func TestTheCollectorsTargetIsThreeHundredUnlessGOGCIsSet(t *testing.T) {
	for gogc, want := range map[string]int{"": 300, "100": 0, "off": 0} {
		got := 0
		e := &cli.Env{
			LookupEnv:    func(name string) (string, bool) { return gogc, name == "GOGC" && gogc != "" },
			SetGCPercent: func(percent int) int { got = percent; return 100 },
		}
		if e.TuneGC(); got != want {
			t.Errorf("GOGC=%s: set to %d, want %d (0 is not set)", gogc, got, want)
		}
	}
	(&cli.Env{}).TuneGC() // the environment of a test, without the function
}
