// Package verify implements `processor verify`: it runs the input of pipelines
// through their stages again and compares every output record with the written one.
//
// Start at [Command], then read comparison.run in compare.go, which is the algorithm:
//
//   - normal.go determines the fields that cannot be compared, and removes them.
//   - compare.go runs the pipelines and matches output records with expected ones.
//   - judge.go turns the matches into the counts and samples of the report.
//   - explain.go adds details to the samples.
//   - report.go prints the report.
//
// A single goroutine runs everything here. Handlers of pipelines may start others,
// see the chain package.
package verify

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/worker"
)

// Command returns `processor verify`.
func Command(e *cli.Env) *cobra.Command {
	v := &verify{env: e}
	cmd := &cobra.Command{
		Use:   "verify [PIPELINE...]",
		Short: "Compare the output of pipelines with the expected output, record by record",
		Long: `Run the committed events of each pipeline's source again, with the code of workers,
and compare the result with the committed records of its topics. Report records
that are missing, too many, duplicated, different, or out of order within their
key, and check that in = out + filtered + dead letters. verify writes nothing, and
workers can continue to run: for events whose offsets are not committed yet, output
is accepted but not required.

Records are matched by key and content. Only dead letters need their headers.
Headers, timestamps, and fields that depend on now(), a table or a service are not
compared; the report lists these fields. Services are not called: for events that
reach a stage http, the records that a worker wrote are accepted, and none has to
exist. --call-services sends every request again, POST and PUT included, and expects
the same outcome. If a key has a missing record and one too
many, the report shows them as one different record. If the source lost its oldest
events, output before the first match is not reported; the same applies to lost
output.

An expected record takes 48 bytes of --memory. If the memory does not suffice,
verify reads input and output several times, each time for a part of the keys. The
records of one key must fit into the memory.

Exit code 0 if the output is as expected; 1 if not, with the disagreements; 2 if
the command line or the topology is wrong.`,
		Example: `  processor verify
  processor verify enrich --since 24h --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, names []string) error { return v.run(cmd.Context(), names) },
	}
	flags := cmd.Flags()
	v.remote = worker.AddRemoteFlags(e, flags)
	flags.DurationVar(&v.since, "since", 0, "compare only events that are younger than this `duration`, by their timestamps (default: all)")
	flags.IntVar(&v.memory, "memory", 256, "memory for expected records in `MiB`")
	flags.IntVar(&v.samples, "samples", 10, "maximum number of disagreements to show for each pipeline")
	flags.BoolVar(&v.services, "call-services", false, "send the requests of http stages again, for every event that is compared")
	flags.BoolVar(&v.json, "json", false, "print JSON, one object for each pipeline")
	return cmd
}

// A verify holds the flags of the command.
type verify struct {
	env      *cli.Env
	remote   *worker.RemoteFlags
	since    time.Duration
	memory   int // MiB
	samples  int
	services bool
	json     bool
}

func (v *verify) run(ctx context.Context, names []string) error {
	if v.memory < 1 || v.samples < 0 || v.since < 0 {
		return cli.Usagef("--memory has to be at least 1, and --samples and --since cannot be negative")
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
			c := &comparison{worker: w, cluster: cluster, pl: pl, since: since, memory: v.memory << 20, most: v.samples, services: v.services}
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
