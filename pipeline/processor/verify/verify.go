// Package verify implements `processor verify`: it runs the input of pipelines
// again and compares every record with what was written.
//
// Start at [Command]; compare.go is the algorithm.
package verify

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/trace"
	"millrace/pipeline/worker"
)

func Command(e *cli.Env) *cobra.Command {
	v := &verify{env: e}
	cmd := &cobra.Command{
		Use:   "verify [PIPELINE...]",
		Short: "Compare what pipelines wrote with what they had to write, record by record",
		Long: `Runs the committed events of each pipeline's source once more by the code of
workers, and compares the result with the committed records of its topics: those
that are missing, too many, there twice, different, or out of order within their
key. In = out + filtered + dead letters has to hold. Nothing is written, and the
workers may go on meanwhile: events whose offsets are not committed yet may have
come out or not.

Records are matched by key and by what is in them; no headers are needed but
those of dead letters. Headers and timestamps are not compared, and neither are
fields that follow from now(), from a table or from a service: the report names
them. Of a key that has one record too few and one too many, the two are reported
as one that is different. Where the source has lost its beginning, records before
the first that matches are not reported, and the same holds for lost output.

Every 48 bytes of --memory hold one expected record. If that is too little, input
and output are read several times, each time for another part of the keys. The
records of one key have to fit.

Exit code 0 if all agrees; 1 with the disagreements if not; 2 if the command line
or the topology is wrong.`,
		Example: `  processor verify
  processor verify enrich --since 24h --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, names []string) error { return v.run(cmd.Context(), names) },
	}
	flags := cmd.Flags()
	v.remote = worker.AddRemoteFlags(e, flags)
	flags.DurationVar(&v.since, "since", 0, "compare only events that are not older than this `duration`, by their timestamps (default: all)")
	flags.IntVar(&v.memory, "memory", 256, "`MiB` for records that are expected")
	flags.IntVar(&v.samples, "samples", 10, "how many disagreements to show of each pipeline")
	flags.BoolVar(&v.json, "json", false, "print JSON, one object for each pipeline")
	return cmd
}

type verify struct {
	env     *cli.Env
	remote  *worker.RemoteFlags
	since   time.Duration
	memory  int // MiB
	samples int
	json    bool
}

func (v *verify) run(ctx context.Context, names []string) error {
	if v.memory < 1 || v.samples < 0 || v.since < 0 {
		return cli.Usagef("--memory has to be at least 1, and --samples and --since not negative")
	}
	w, err := v.remote.Open()
	if err != nil {
		return err
	}
	pipelines, err := v.remote.Select(w, names)
	if err != nil {
		return err
	}
	var topics, groups []string
	for _, t := range w.Topology.Topics {
		topics = append(topics, t.Name)
	}
	for _, pl := range w.Topology.Pipelines {
		groups = append(groups, w.Topology.Group(pl))
		for _, s := range chain.StateTopics(w.Topology, pl, 0) {
			topics = append(topics, s.Name)
		}
	}
	cluster, err := kafka.Describe(ctx, w.Kafka, topics, groups, nil)
	if err != nil {
		return err
	}
	var since time.Time
	if v.since > 0 {
		since = v.env.Now().Add(-v.since)
	}
	agreed := true
	out := cli.Printer{Out: v.env.Stdout}
	err = chain.WithTables(ctx, w, cluster, pipelines, func(ctx context.Context) error {
		for _, pl := range pipelines {
			c := &comparison{Worker: w, cluster: cluster, pl: pl, since: since, memory: v.memory << 20, most: v.samples}
			if err := c.run(ctx); err != nil {
				return fmt.Errorf("pipeline %s: %w", pl.Name, err)
			}
			agreed = agreed && c.report.Agrees
			if v.json {
				out.Line("%s", cli.CompactJSON(c.report))
			} else {
				c.report.print(&out)
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case out.Err != nil:
		return out.Err
	case !agreed:
		return &cli.ExitError{Code: cli.ExitFailure}
	}
	return nil
}

// verifyReport is what a comparison found.
type verifyReport struct {
	Pipeline  string `json:"pipeline"`
	Agrees    bool   `json:"agrees"`
	Conserved bool   `json:"conserved"` // in = out + filtered + dead letters

	In          int `json:"in"`           // events that are committed
	Out         int `json:"out"`          // of which something was written
	Filtered    int `json:"filtered"`     // of which nothing had to be
	DeadLetters int `json:"dead_letters"` // that are there, by the place of their events

	Expected   int `json:"expected"` // records, dead letters included
	Matched    int `json:"matched"`
	Missing    int `json:"missing"`
	Extra      int `json:"extra"`
	Duplicated int `json:"duplicated"`
	Different  int `json:"different"`
	OutOfOrder int `json:"out_of_order"`

	Passes  int            `json:"passes"` // over input and output
	Ignored []string       `json:"ignored"`
	Notes   []string       `json:"notes"`
	Samples []disagreement `json:"samples"`
}

// disagreement is one that is shown. In is the event, Found the record.
type disagreement struct {
	Kind   string       `json:"kind"`
	Topic  string       `json:"topic"`
	Key    string       `json:"key"`
	In     *trace.Place `json:"in,omitempty"`
	Found  *trace.Place `json:"found,omitempty"`
	Text   []string     `json:"text,omitempty"`
	wanted *expecting   // what was to be there
}

func (r *verifyReport) print(p *cli.Printer) {
	p.Line("pipeline %s", r.Pipeline)
	p.Line("  %s in = %d out + %d filtered + %s%s", cli.Plural(r.In, "event"), r.Out, r.Filtered, cli.Plural(r.DeadLetters, "dead letter"), map[bool]string{false: ": these do not add up"}[r.Conserved])
	p.Line("  %s expected, %d found as they have to be", cli.Plural(r.Expected, "record"), r.Matched)
	for _, line := range []struct {
		n    int
		what string
	}{{r.Missing, "missing"}, {r.Extra, "too many"}, {r.Duplicated, "there twice"}, {r.Different, "different"}, {r.OutOfOrder, "out of order"}} {
		if line.n > 0 {
			p.Line("  %d %s", line.n, line.what)
		}
	}
	if len(r.Ignored) > 0 {
		p.Item("  not compared:", 16, strings.Join(r.Ignored, ", "))
	}
	for _, note := range r.Notes {
		p.Item("  note:", 16, note)
	}
	for _, d := range r.Samples {
		text := fmt.Sprintf("  %s on %s, key %s", d.Kind, d.Topic, cli.Quote(d.Key))
		if d.In != nil {
			text += ", of the event " + d.In.String()
		}
		if d.Found != nil {
			text += ", at " + d.Found.String()
		}
		p.Line("%s", text)
		for _, line := range d.Text {
			p.Line("    %s", line)
		}
	}
	if r.Agrees {
		p.Line("  all agrees")
	} else {
		p.Line("  it does NOT agree")
	}
}
