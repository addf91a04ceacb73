package cases

import (
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
)

// pipelineCoverage collects which stages and types of a pipeline the cases reach.
type pipelineCoverage struct {
	decode pipeline.StageCounts   // decoding, which comes before all stages
	stages []pipeline.StageCounts // by index of the stage
	types  map[string]bool        // full names of the types of input events
}

// coverageOf is the coverage of a pipeline in the report.
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

// printCoverage prints the counts of the stages, and the stages and types that no
// case reaches.
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
			p.Line("  no case has an event of type %s", strings.Join(c.NoTypes, ", "))
		}
		p.Line("")
	}
}

// covered returns the coverage of all cases that ran so far.
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
