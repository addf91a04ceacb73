package app

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// processorListen is where a processor answers if nothing else is said.
const processorListen = "127.0.0.1:9101"

// Processor returns the command of the program that runs pipelines.
func Processor(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "processor",
		Short: "Run the pipelines of a topology: filter, enrich and route events, exactly once",
		Example: `  processor run
  processor run -t topology.yaml -b kafka:9092 -r http://registry:8085`,
	}
	cmd.AddCommand(processCommand(e), healthcheckCommand(e, processorListen))
	cmd.AddCommand(lintCommand(e), explainCommand(e), graphCommand(e), testCommand(e), stagesCommand(e), functionsCommand(e))
	cmd.AddCommand(dryRunCommand(e), planCommand(e), applyCommand(e), verifyCommand(e), tapCommand(e))
	return cmd
}

func processCommand(e *Env) *cobra.Command {
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
	env    *Env
	worker *WorkerFlags
	only   []string

	tap     bool
	tapMask []string
	taps    *taps
	memory  int // MiB
}

func (p *processor) addFlags(flags *pflag.FlagSet) {
	p.worker = addWorkerFlags(p.env, flags, "processor", processorListen)
	flags.StringSliceVar(&p.only, "pipeline", nil, "run only the `pipelines` of these names")
	flags.IntVar(&p.memory, "memory", kafka.DefaultMemory>>20, "`MiB` that records at work in a pipeline may take, about; tables and what stages remember come on top. No record is written that is larger than a quarter of a session's part")
	flags.BoolVar(&p.tap, "tap", false, "show events to whoever asks at /v1/tap, see the command tap: they may hold what is not everybody's to see")
	flags.StringSliceVar(&p.tapMask, "tap-mask", nil, "never show these fields there, by `path` or name; key is the key, and * all values")
	p.env.BindEnv(flags, "pipeline", "memory", "tap", "tap-mask")
}

func (p *processor) run(ctx context.Context) error {
	if len(p.tapMask) > 0 && !p.tap {
		return Usagef("--tap-mask needs --tap")
	}
	w, err := p.worker.start()
	if err != nil {
		return err
	}
	defer w.close()
	pipelines, err := selectPipelines(w.topology, p.worker.topology.File, p.only)
	if err != nil {
		return err
	}
	if p.tap {
		p.taps = newTaps(w.metrics, pipelines, p.tapMask, p.env.Now)
		w.server.Handle("GET "+tapPath, p.taps)
	}
	o := loopOptions{chains: newChainMetrics(w.metrics), kept: newKeepMetrics(w.metrics), loops: kafka.NewMetrics(w.metrics), taps: p.taps, memory: p.memory << 20, now: p.env.Now}
	tables, err := openTables(w, tablesOf(w.topology, pipelines...), w.server.Ready)
	if err != nil {
		return err
	}
	return tables.while(ctx, func(ctx context.Context) error {
		return w.run(ctx, func(ctx context.Context) ([]*kafka.Loop, error) {
			if err := tables.load(ctx, w); err != nil {
				return nil, err
			}
			return pipelineLoops(ctx, w, pipelines, o)
		})
	})
}

// pipelineLoops returns the loops that run the pipelines.
func pipelineLoops(ctx context.Context, w *worker, pipelines []*topology.Pipeline, o loopOptions) ([]*kafka.Loop, error) {
	var out []*kafka.Loop
	for _, pl := range pipelines {
		l, err := newPipelineLoop(ctx, w, pl, o)
		if err != nil {
			return nil, fmt.Errorf("pipeline %s: %w", pl.Name, err)
		}
		out = append(out, l)
	}
	return out, nil
}

// selectPipelines returns the pipelines with these names, all of them if there
// are no names. file is the topology's file, for errors.
func selectPipelines(t *topology.Topology, file string, only []string) ([]*topology.Pipeline, error) {
	if len(t.Pipelines) == 0 {
		return nil, &ExitError{ExitUsage, fmt.Errorf("%s has no pipelines: there is nothing to run", file)}
	}
	if len(only) == 0 {
		return t.Pipelines, nil
	}
	var names []string
	for _, pl := range t.Pipelines {
		names = append(names, pl.Name)
	}
	var out []*topology.Pipeline
	for _, name := range only {
		i := slices.Index(names, name)
		if i < 0 {
			return nil, Usagef("--pipeline: there is no pipeline %q in %s; it has %v", name, file, names)
		}
		out = append(out, t.Pipelines[i])
	}
	return out, nil
}
