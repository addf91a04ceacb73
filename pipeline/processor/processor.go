// Package processor runs the pipelines of a topology as a worker, and holds the
// commands that explain them: lint, explain, stages, functions, tap.
//
// Start at [RunCommand]. What happens to one event is in package chain.
package processor

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/worker"
)

func RunCommand(e *cli.Env) *cobra.Command {
	p := &processor{env: e}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run pipelines as a worker of their consumer groups",
		Long: `Runs the pipelines of the topology, each as a member of its consumer group
(NAME-PIPELINE). More workers share the work; give each another --instance.

SIGTERM finishes and commits the batches at hand, then leaves the groups. A
second signal ends the process at once; nothing is lost by that.

Exit code 0 after a stop; 1 if it could not go on; 2 if the command line or the
topology is wrong; 3 if another worker has the same --instance.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.run(cmd.Context()) },
	}
	p.addFlags(cmd.Flags())
	return cmd
}

// processor is the worker.
type processor struct {
	env    *cli.Env
	worker *worker.Flags
	only   []string

	tap     bool
	tapMask []string
	taps    *chain.Taps
	memory  int // MiB
}

func (p *processor) addFlags(flags *pflag.FlagSet) {
	p.worker = worker.AddFlags(p.env, flags, "processor", worker.ProcessorListen)
	flags.StringSliceVar(&p.only, "pipeline", nil, "run only the `pipelines` of these names")
	flags.IntVar(&p.memory, "memory", kafka.DefaultMemory>>20, "`MiB` that records at work in a pipeline may take, about; tables and what stages remember come on top. No record is written that is larger than a quarter of a session's part")
	flags.BoolVar(&p.tap, "tap", false, "show events to whoever asks at /v1/tap, see the command tap: they may hold what is not everybody's to see")
	flags.StringSliceVar(&p.tapMask, "tap-mask", nil, "never show these fields there, by `path` or name; key is the key, and * all values")
	p.env.BindEnv(flags, "pipeline", "memory", "tap", "tap-mask")
}

func (p *processor) run(ctx context.Context) error {
	if len(p.tapMask) > 0 && !p.tap {
		return cli.Usagef("--tap-mask needs --tap")
	}
	w, err := p.worker.Start()
	if err != nil {
		return err
	}
	defer w.Close()
	pipelines, err := worker.Select(w.Topology, p.worker.Topology.File, p.only)
	if err != nil {
		return err
	}
	if p.tap {
		p.taps = chain.NewTaps(w.Metrics, pipelines, p.tapMask, p.env.Now)
		w.HTTP.Handle("GET "+chain.TapPath, p.taps)
	}
	o := chain.LoopOptions{Metrics: chain.NewMetrics(w.Metrics), Loops: kafka.NewMetrics(w.Metrics), Taps: p.taps, Memory: p.memory << 20, Now: p.env.Now}
	tables, err := chain.OpenTables(w, chain.TablesOf(w.Topology, pipelines...), w.HTTP.Ready)
	if err != nil {
		return err
	}
	return tables.RunDuring(ctx, func(ctx context.Context) error {
		return w.Run(ctx, func(ctx context.Context) ([]*kafka.Loop, error) {
			if err := tables.Load(ctx, w); err != nil {
				return nil, err
			}
			return chain.NewLoops(ctx, w, pipelines, o)
		})
	})
}
