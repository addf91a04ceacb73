// Package cases implements `processor test`: it runs the events of case files
// through pipelines and projections and compares their outcomes with the expected
// ones.
//
// Start at [Command] and tester.run in command.go. In the order of a run:
//
//   - cases.go holds the format of a case file and parses it; values.go converts
//     YAML nodes to and from JSON values.
//   - run.go runs a case through a pipeline, fold.go through a projection; fakes.go
//     replaces the registry and the services that stages call.
//   - outcome.go is the outcome of an event, and compare.go compares it.
//   - update.go rewrites a file for --update.
//   - coverage.go is the report for --coverage.
//
// A single goroutine runs everything here. Handlers of pipelines may start others,
// see the chain package.
package cases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// caseSuffix is the end of the name of a case file.
const caseSuffix = ".test.yaml"

// Command returns `processor test`.
func Command(e *cli.Env) *cobra.Command {
	t := &tester{env: e}
	cmd := &cobra.Command{
		Use:   "test [FILE...]",
		Short: "Run test cases: input events and their expected outcomes",
		Long: `Run test cases through the stages and folds of the topology. The code is that of
the workers, but test uses no Kafka, no registry and no clock: the case sets now().

Cases are in files *.test.yaml next to the topology, or in the directory tests
there. FILE is such a file or a directory with such files.

  cases:
    - name: a paid order is stamped
      pipeline: enrich                # or projection: NAME
      now: 2026-01-31T12:00:00Z
      tables: {users: {u-1: {id: u-1, name: Ada}}}
      http: [{url: http://scores/u-1, status: 200, body: {score: 7}}]
      events:
        - in: {type: OrderPaid, data: {id: o-1, payment_id: p-1}}
          out:
            - {topic: shop.enriched, event: {metadata: {pipeline: enrich}}}
        - raw: {hex: 00 ff}           # or base64, text; null is a tombstone
          dead_letter: {stage: decode, reason: bad_frame}

The outcome of an event in a pipeline is one of
  out          the written records, in order: topic, key, headers, event (only the
               given fields are compared; exact: true compares all fields)
  filtered     the stage that filtered the event
  dead_letter  stage, reason, and a part of the error
  stopped      the stage that stopped the worker (on_error: stop)
and in a projection, one of
  snapshot     id, version, status and state after the event
  ignored, late, duplicate: true
  rejected     the reason

An event can leave out id, timestamp, version and metadata; test fills them in.
The default of key is data.id, and of time the event's timestamp. type sets the
event's type if the event has no field type. writer sets an older schema, such as
OrderCreated.v1.

Exit code 0 if all outcomes are as expected; 1 if not; 2 if the topology, a case
file or the command line is wrong.`,
		Example: `  processor test
  processor test --run 'dead letter' --coverage
  processor test --update tests/orders.test.yaml`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, files []string) error { return t.run(cmd.Context(), files) },
	}
	flags := cmd.Flags()
	t.topology = e.TopologyFlags(flags)
	flags.StringVar(&t.filter, "run", "", "run only the cases whose names match this regular `expression`")
	flags.BoolVar(&t.update, "update", false, "rewrite the files to expect the actual outcomes; keep comments")
	flags.BoolVar(&t.coverage, "coverage", false, "show the counts of each stage, and the stages and types that no case reaches")
	flags.BoolVar(&t.asJSON, "json", false, "print results as JSON")
	flags.BoolVarP(&t.verbose, "verbose", "v", false, "also list the cases that pass")
	return cmd
}

// A tester holds the flags of the command.
type tester struct {
	env      *cli.Env
	topology *cli.TopologyFlags
	filter   string
	update   bool
	coverage bool
	asJSON   bool
	verbose  bool
}

// testReport is the output of --json.
type testReport struct {
	Cases    int          `json:"cases"`
	Events   int          `json:"events"`
	Failed   int          `json:"failed"` // cases
	Updated  []string     `json:"updated,omitempty"`
	Failures []failure    `json:"failures"`
	Coverage []coverageOf `json:"coverage,omitempty"`
}

// failure is an event with another outcome than its case expects.
type failure struct {
	File       string     `json:"file"`
	Line       int        `json:"line"` // of the event
	Case       string     `json:"case"`
	Event      int        `json:"event"` // from 1
	Mismatches []mismatch `json:"mismatches"`
}

func (t *tester) run(ctx context.Context, names []string) error {
	match, err := regexp.Compile(t.filter)
	if err != nil {
		return cli.Usagef("--run: %v", err)
	}
	runner, err := newCaseRunner(t.env, t.topology)
	if err != nil {
		return err
	}
	files, err := t.files(names)
	if err != nil {
		return err
	}
	report := testReport{Failures: []failure{}}
	for _, f := range files {
		if err := t.runFile(ctx, runner, f, match, &report); err != nil {
			return err
		}
	}
	if report.Cases == 0 {
		return cli.Usagef("--run %q matches no case in %s", t.filter, cli.Plural(len(files), "file"))
	}
	if t.coverage {
		report.Coverage = runner.covered()
	}
	if t.asJSON {
		err = cli.PrintJSON(t.env.Stdout, report)
	} else {
		err = t.print(report)
	}
	if err == nil && report.Failed > 0 {
		err = &cli.ExitError{Code: cli.ExitFailure}
	}
	return err
}

// files parses the case files. It reports the faults of all files in one error.
func (t *tester) files(names []string) ([]*caseFile, error) {
	paths, err := t.paths(names)
	if err != nil {
		return nil, err
	}
	var files []*caseFile
	var faults topology.Faults
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
		}
		f, err := parseCases(path, text)
		var found topology.Faults
		switch {
		case errors.As(err, &found):
			faults = append(faults, found...)
		case err != nil:
			return nil, err
		default:
			files = append(files, f)
		}
	}
	if len(faults) > 0 {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("invalid test cases\n%w", faults)}
	}
	return files, nil
}

// paths returns the case files that the arguments name. Without arguments, these
// are the files next to the topology and in the directory tests.
func (t *tester) paths(names []string) (paths []string, err error) {
	byDefault := len(names) == 0
	if byDefault {
		dir := filepath.Dir(t.topology.File)
		names = []string{dir, filepath.Join(dir, "tests")}
	}
	for _, name := range names {
		info, err := os.Stat(name)
		switch {
		case byDefault && errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return nil, cli.Usagef("%v", err)
		case !info.IsDir():
			paths = append(paths, name)
			continue
		}
		found, err := filepath.Glob(filepath.Join(escapeGlob(name), "*"+caseSuffix))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 && !byDefault {
			return nil, cli.Usagef("there is no file *%s in %s", caseSuffix, name)
		}
		paths = append(paths, found...)
	}
	if len(paths) == 0 {
		return nil, cli.Usagef("there is no file *%s next to %s, nor in the directory tests there", caseSuffix, t.topology.File)
	}
	return paths, nil
}

// escapeGlob returns a glob pattern that matches only this path.
func escapeGlob(path string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(path)
}

// runFile runs the selected cases of a file, adds them to the report, and updates
// the file if asked to.
func (t *tester) runFile(ctx context.Context, runner *caseRunner, f *caseFile, match *regexp.Regexp, report *testReport) error {
	changed := false
	for _, c := range f.cases {
		if !match.MatchString(c.name) {
			continue
		}
		outcomes, fault := runner.run(ctx, c)
		if err := ctx.Err(); err != nil {
			return err
		}
		if fault != nil {
			return &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("invalid test cases\n%w", topology.Faults{*fault})}
		}
		report.Cases++
		before := len(report.Failures)
		for i, got := range outcomes {
			e := c.events[i]
			report.Events++
			if t.update && e.update(got) {
				changed = true
				continue
			}
			var d differ
			if d.outcome(e, got); len(d.found) > 0 {
				report.Failures = append(report.Failures, failure{f.name, e.at.Line, c.name, i + 1, d.found})
			}
		}
		if len(report.Failures) > before {
			report.Failed++
		} else if t.verbose && !t.asJSON {
			if _, err := fmt.Fprintf(t.env.Stdout, "ok    %s:%d: %s\n", f.name, c.at.Line, c.name); err != nil {
				return err
			}
		}
	}
	if !changed {
		return nil
	}
	text, err := f.rewritten()
	if err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	if bytes.Equal(text, f.text) {
		return nil
	}
	report.Updated = append(report.Updated, f.name)
	return os.WriteFile(f.name, text, 0o600) //nolint:forbidigo // a file of the user, which exists and keeps its mode
}

func (t *tester) print(r testReport) error {
	p := cli.Printer{Out: t.env.Stdout}
	for _, f := range r.Failures {
		p.Line("FAIL  %s:%d: %s, event %d", f.File, f.Line, f.Case, f.Event)
		for _, m := range f.Mismatches {
			p.Line("        %s", strings.TrimSpace(fmt.Sprintf("%s:%d:%d %s", f.File, m.Line, m.Col, m.Path)))
			p.Line("          want  %s", m.Want)
			p.Line("          got   %s", m.Got)
		}
	}
	for _, name := range r.Updated {
		p.Line("updated %s", name)
	}
	result := "all as expected"
	if r.Failed > 0 {
		result = cli.Plural(r.Failed, "case") + " failed"
		if !t.update {
			result += "; --update makes them expect the actual outcomes"
		}
	}
	if len(r.Coverage) > 0 {
		printCoverage(&p, r.Coverage)
	}
	p.Line("%s, %s: %s", cli.Plural(r.Cases, "case"), cli.Plural(r.Events, "event"), result)
	return p.Err
}
