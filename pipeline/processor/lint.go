package processor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/topology"
)

// LintCommand returns `processor lint`.
func LintCommand(e *cli.Env) *cobra.Command {
	l := &lint{env: e}
	cmd := &cobra.Command{
		Use:   "lint [FILE...]",
		Short: "Report all faults of a topology",
		Long: `Checks topologies with their schemas, expressions and files. It connects to nothing.
It prints each fault with its line and a hint. A warning is for a topology that runs,
but may not do what you intended.

Exit code 0 without faults; 1 with faults, or with warnings if --strict is set; 2 if
the command line is invalid or a file cannot be read.`,
		Example: `  processor lint
  processor lint --strict a/topology.yaml b/topology.yaml
  processor lint --format github`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, files []string) error { return l.run(files) },
	}
	l.topology = e.TopologyFlags(cmd.Flags())
	cmd.Flags().StringVar(&l.format, "format", "text", "`format` of the findings: text, json, or github (annotations of a workflow)")
	cmd.Flags().BoolVar(&l.strict, "strict", false, "treat warnings as faults")
	return cmd
}

type lint struct {
	env      *cli.Env
	topology *cli.TopologyFlags
	format   string
	strict   bool
}

// finding is a fault or a warning. Fault is embedded for its JSON fields.
type finding struct {
	Severity string `json:"severity"`       // error or warning
	Rule     string `json:"rule,omitempty"` // only for a warning
	topology.Fault
}

const (
	severityError   = "error"
	severityWarning = "warning"
)

// lintReport is the output of --format json.
type lintReport struct {
	Files    int       `json:"files"`
	Errors   int       `json:"errors"`
	Warnings int       `json:"warnings"`
	Findings []finding `json:"findings"`
}

func (l *lint) run(files []string) error {
	write, ok := map[string]func(io.Writer, lintReport) error{
		"text": printFindings, "json": func(w io.Writer, r lintReport) error { return cli.PrintJSON(w, r) }, "github": annotateFindings,
	}[l.format]
	if !ok {
		return cli.Usagef("--format: %q is none of text, json, github", l.format)
	}
	if len(files) == 0 {
		files = []string{l.topology.File}
	}
	report := lintReport{Files: len(files), Findings: []finding{}}
	unreadable := 0
	for _, file := range files {
		found, err := l.check(file)
		if err != nil {
			unreadable++
			found = []finding{{Severity: severityError, Fault: topology.Fault{File: file, Msg: err.Error()}}}
		}
		report.Findings = append(report.Findings, found...)
	}
	for _, f := range report.Findings {
		if f.Severity == severityError {
			report.Errors++
		} else {
			report.Warnings++
		}
	}
	if err := write(l.env.Stdout, report); err != nil {
		return err
	}
	switch {
	case unreadable > 0:
		return &cli.ExitError{Code: cli.ExitUsage}
	case report.Errors > 0 || l.strict && report.Warnings > 0:
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	return nil
}

// check returns the findings of one topology. It returns an error if the topology cannot be
// read.
func (l *lint) check(file string) (found []finding, err error) {
	flags := *l.topology
	flags.File = file
	t, err := flags.Load(l.env)
	var faults topology.Faults
	switch {
	case errors.As(err, &faults):
		for _, f := range faults {
			found = append(found, finding{Severity: severityError, Fault: f})
		}
		return found, nil
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("no such file: %s", file)
	case err != nil:
		return nil, err
	}
	for _, w := range t.Warnings() {
		found = append(found, finding{severityWarning, w.Rule, w.Fault})
	}
	for _, decl := range t.Tables { // reading the rows checks them
		if decl.Topic != nil {
			continue
		}
		if _, err := chain.FileRows(decl); err != nil {
			found = append(found, rowFaults(decl, filepath.Dir(file), err)...)
		}
	}
	return found, nil
}

// rowFaults returns the faults of the file of a table. err is the error of
// [chain.FileRows], whose faults begin with FILE:LINE. dir is the directory of the
// topology.
func rowFaults(t *topology.Table, dir string, err error) (found []finding) {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	name := t.File
	if !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	lines := strings.Split(string(t.Text), "\n")
	for _, err := range all {
		f := topology.Fault{File: name, Msg: strings.TrimPrefix(err.Error(), t.File+":")}
		if number, msg, ok := strings.Cut(f.Msg, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil && n >= 1 && n <= len(lines) {
				f.Line, f.Col, f.Msg, f.Text = n, 1, msg, strings.TrimRight(lines[n-1], "\r")
			}
		}
		f.Msg = strings.TrimSpace(f.Msg)
		found = append(found, finding{Severity: severityError, Fault: f})
	}
	return found
}

// printFindings prints findings as text, with a summary.
func printFindings(w io.Writer, r lintReport) error {
	p := cli.Printer{Out: w}
	for _, f := range r.Findings {
		shown := f.Fault
		if f.Severity == severityWarning {
			shown.Msg = "warning: " + shown.Msg + " [" + f.Rule + "]"
		}
		p.Line("%s", topology.Faults{shown}.Error())
	}
	if len(r.Findings) > 0 {
		p.Line("")
	}
	p.Line("%s: %s, %s", cli.Plural(r.Files, "file"), cli.Plural(r.Errors, "fault"), cli.Plural(r.Warnings, "warning"))
	return p.Err
}

// annotateFindings prints findings as GitHub workflow commands, which annotate lines.
// Source: "Workflow commands for GitHub Actions", and the escapes of @actions/core.
func annotateFindings(w io.Writer, r lintReport) error {
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	p := cli.Printer{Out: w}
	for _, f := range r.Findings {
		at := "file=" + property.Replace(filepath.ToSlash(f.File))
		if f.Line > 0 {
			at += fmt.Sprintf(",line=%d,col=%d", f.Line, f.Col)
		}
		msg := f.Msg
		if f.Hint != "" {
			msg += "\n" + f.Hint
		}
		title := "topology"
		if f.Rule != "" {
			title = f.Rule
		}
		p.Line("::%s %s,title=%s::%s", f.Severity, at, property.Replace(title), data.Replace(msg))
	}
	return p.Err
}
