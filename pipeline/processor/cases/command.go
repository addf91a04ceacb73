// Package cases implements `processor test`: it runs events that a YAML file
// declares through pipelines and projections and compares the outcome.
//
// Start at [Command]. cases.go parses a file, run.go runs a case, compare.go
// compares and rewrites expectations.
package cases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/topology"
)

// caseSuffix is how the names of files of cases end.
const caseSuffix = ".test.yaml"

func Command(e *cli.Env) *cobra.Command {
	t := &tester{env: e}
	cmd := &cobra.Command{
		Use:   "test [FILE...]",
		Short: "Run the cases beside a topology: events in, what becomes of them out",
		Long: `Runs cases through the stages and folds of the topology, by the code that workers
run, without Kafka, a registry or a clock: now() is what the case says.

Cases are in files *.test.yaml beside the topology, or in a directory tests there;
FILE may be such a file or a directory of them.

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

An event becomes one of
  out          a list of records, in order: topic, key, headers, event (the fields
               that are named; all of them with exact: true)
  filtered     by the stage of that name
  dead_letter  stage, reason, and a part of the error
  stopped      the worker, by the stage of that name (on_error: stop)
and, of a projection,
  snapshot     id, version, status, state after the event
  ignored, late, duplicate: true
  rejected     for that reason

What an event may leave out is filled in: id, timestamp, version and metadata.
key is data.id if it is not given, time the event's timestamp. type names its
record where the event does not, writer an older schema (OrderCreated.v1).

Exit code 0 if everything is as expected; 1 if not; 2 if the topology, a file of
cases or the command line is wrong.`,
		Example: `  processor test
  processor test --run 'dead letter' --coverage
  processor test --update tests/orders.test.yaml`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, files []string) error { return t.run(cmd.Context(), files) },
	}
	flags := cmd.Flags()
	t.topology = e.TopologyFlags(flags)
	flags.StringVar(&t.filter, "run", "", "run only the cases whose names match a regular `expression`")
	flags.BoolVar(&t.update, "update", false, "rewrite the files to expect what comes; comments stay")
	flags.BoolVar(&t.coverage, "coverage", false, "show what each stage did in the cases, and what no case shows")
	flags.BoolVar(&t.asJSON, "json", false, "print results as JSON")
	flags.BoolVarP(&t.verbose, "verbose", "v", false, "name the cases that are as expected, too")
	return cmd
}

type tester struct {
	env      *cli.Env
	topology *cli.TopologyFlags
	filter   string
	update   bool
	coverage bool
	asJSON   bool
	verbose  bool
}

// testReport is what --json prints.
type testReport struct {
	Cases    int          `json:"cases"`
	Events   int          `json:"events"`
	Failed   int          `json:"failed"` // cases
	Updated  []string     `json:"updated,omitempty"`
	Failures []failure    `json:"failures"`
	Coverage []coverageOf `json:"coverage,omitempty"`
}

// failure is an event that did not become what its case expects.
type failure struct {
	File       string     `json:"file"`
	Line       int        `json:"line"` // of the event
	Case       string     `json:"case"`
	Event      int        `json:"event"` // from 1
	Mismatches []mismatch `json:"mismatches"`
}

// coverageOf is what the cases have shown of a pipeline.
type coverageOf struct {
	Pipeline string          `json:"pipeline"`
	Stages   []stageCoverage `json:"stages"`
	NoTypes  []string        `json:"types_without_case"`
}

type stageCoverage struct {
	Stage    string `json:"stage"`
	In       int    `json:"in"`
	Passed   int    `json:"passed"`
	Filtered int    `json:"filtered"`
	Rejected int    `json:"rejected"`
	Skipped  int    `json:"skipped"`
	Added    int    `json:"added"`
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
		return cli.Usagef("--run %q matches none of the cases in %s", t.filter, cli.Plural(len(files), "file"))
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

// files reads the files of cases. What is wrong with them is an error for all.
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
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("the cases are not right\n%w", faults)}
	}
	return files, nil
}

// paths returns the files that names stand for.
func (t *tester) paths(names []string) (paths []string, err error) {
	beside := len(names) == 0
	if beside {
		dir := filepath.Dir(t.topology.File)
		names = []string{dir, filepath.Join(dir, "tests")}
	}
	for _, name := range names {
		info, err := os.Stat(name)
		switch {
		case beside && errors.Is(err, os.ErrNotExist):
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
		if len(found) == 0 && !beside {
			return nil, cli.Usagef("there is no file *%s in %s", caseSuffix, name)
		}
		paths = append(paths, found...)
	}
	if len(paths) == 0 {
		return nil, cli.Usagef("there is no file *%s beside %s, or in tests there", caseSuffix, t.topology.File)
	}
	return paths, nil
}

// escapeGlob returns a path as a pattern that matches it alone.
func escapeGlob(path string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(path)
}

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
			return &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("the cases are not right\n%w", topology.Faults{*fault})}
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
	return os.WriteFile(f.name, text, 0o644) // which keeps the mode of a file that is there
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
			result += "; --update takes what came for what is expected"
		}
	}
	if len(r.Coverage) > 0 {
		printCoverage(&p, r.Coverage)
	}
	p.Line("%s, %s: %s", cli.Plural(r.Cases, "case"), cli.Plural(r.Events, "event"), result)
	return p.Err
}

// printCoverage prints what the stages did, and what no case shows.
func printCoverage(p *cli.Printer, all []coverageOf) {
	for _, c := range all {
		width := len("stage")
		for _, s := range c.Stages {
			width = max(width, len(s.Stage))
		}
		p.Line("pipeline %s", c.Pipeline)
		p.Line("  %-*s %7s %7s %8s %8s %7s %5s", width, "stage", "in", "passed", "filtered", "rejected", "skipped", "added")
		for _, s := range c.Stages {
			p.Line("  %-*s %7s %7s %8s %8s %7s %5s", width, s.Stage, cli.DashIfZero(s.In), cli.DashIfZero(s.Passed), cli.DashIfZero(s.Filtered), cli.DashIfZero(s.Rejected), cli.DashIfZero(s.Skipped), cli.DashIfZero(s.Added))
		}
		for _, s := range c.Stages {
			if s.In == 0 {
				p.Line("  no case reaches stage %s", s.Stage)
			}
		}
		if len(c.NoTypes) > 0 {
			p.Line("  no case has an event %s", strings.Join(c.NoTypes, ", "))
		}
		p.Line("")
	}
}

// covered returns what the cases have shown so far.
func (r *caseRunner) covered() (all []coverageOf) {
	for _, pl := range r.topology.Pipelines {
		have := r.coverage[pl.Name]
		c := coverageOf{Pipeline: pl.Name, Stages: []stageCoverage{}, NoTypes: []string{}}
		add := func(stage string, n pipeline.StageCounts) {
			rejected := 0
			for _, count := range n.Rejected {
				rejected += count
			}
			c.Stages = append(c.Stages, stageCoverage{stage, n.In, n.Passed, n.Filtered, rejected, n.Skipped, n.Added})
		}
		add(deadletter.StageDecode, have.decode)
		for i, s := range pl.Stages {
			add(s.Name, have.stages[i])
		}
		for _, s := range pl.Types {
			if !have.types[s.Name()] {
				c.NoTypes = append(c.NoTypes, s.ShortName())
			}
		}
		slices.Sort(c.NoTypes)
		all = append(all, c)
	}
	return all
}
