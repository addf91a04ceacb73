// Package processor has the commands of the processor that need no other tool: run, lint,
// explain, stages, functions and tap.
//
// Start at [RunCommand], which runs the pipelines of a topology as a worker. Package chain
// runs the events. Each command runs in one goroutine; run starts more in packages chain
// and worker.
package processor

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/worker"
)

// RunCommand returns `processor run`.
func RunCommand(e *cli.Env) *cobra.Command {
	p := &processor{env: e}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run pipelines as a worker of their consumer groups",
		Long: `Runs the pipelines of the topology, each as a member of its consumer group
(NAME-PIPELINE). Several workers share the partitions; give each its own --instance.

A pipeline that cannot start, because a topic or schema is wrong, say, does not hold up
the others: /readyz?verbose and the log have the reason, and it is tried again.

SIGTERM finishes and commits the current batches, then leaves the groups. A second
signal ends the process immediately; no event is lost.

Exit code 0 after a stop; 1 after a fatal error; 2 if the command line or the topology
is invalid, or if no pipeline can start before something is corrected; 3 if another
worker has the same --instance.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.run(cmd.Context()) },
	}
	p.addFlags(cmd.Flags())
	return cmd
}

// processor is the command run.
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
	flags.StringSliceVar(&p.only, "pipeline", nil, "run only these `pipelines`")
	flags.IntVar(&p.memory, "memory", kafka.DefaultMemory>>20, "approximate limit in `MiB` for the records in flight of a pipeline, plus tables and state. A record larger than a quarter of a session's share is not written")
	flags.BoolVar(&p.tap, "tap", false, "show events at /v1/tap, see the command tap: events may contain confidential data")
	flags.StringSliceVar(&p.tapMask, "tap-mask", nil, "hide these fields at /v1/tap, by `path` or name; key hides the key, * all values")
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
	pipelines, err := worker.SelectPipelines(w.Topology, p.worker.Topology.File, p.only)
	if err != nil {
		return err
	}
	if err := chain.CheckHoldTimes(pipelines, w.Flags.TransactionTimeout); err != nil {
		return err
	}
	if p.tap {
		p.taps = chain.NewTaps(w.Metrics, pipelines, p.tapMask, p.env.Now)
		w.Server.Handle("GET "+chain.TapPath, p.taps)
	}
	o := chain.LoopOptions{Metrics: chain.NewMetrics(w.Metrics), Loops: kafka.NewMetrics(w.Metrics), Taps: p.taps, Memory: p.memory << 20, Now: p.env.Now}
	tables, err := chain.OpenTables(w, chain.TablesOf(w.Topology, pipelines...), w.Server.Ready)
	if err != nil {
		return err
	}
	running := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "millrace_pipeline_running", Help: "1 while a pipeline runs, 0 while it cannot start. /readyz?verbose has the reason.",
	}, []string{"pipeline"})
	w.Metrics.MustRegister(running)
	var parts []worker.Part
	for _, pl := range pipelines {
		own := tables.Of(w.Topology, pl)
		parts = append(parts, worker.Part{Name: "pipeline " + pl.Name, Running: running.WithLabelValues(pl.Name), Start: func(ctx context.Context) (*kafka.Loop, error) {
			if err := own.Load(ctx, w); err != nil {
				return nil, err
			}
			return chain.NewLoop(ctx, w, pl, o)
		}})
	}
	return tables.RunDuring(ctx, func(ctx context.Context) error { return w.Run(ctx, parts) })
}
