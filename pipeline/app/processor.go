package app

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/stage"
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
	chains, kept := newChainMetrics(w.metrics), newKeepMetrics(w.metrics)
	loops := kafka.NewMetrics(w.metrics)
	tables, err := openTables(w, tablesOf(w.topology, pipelines...), w.server.Ready)
	if err != nil {
		return err
	}
	return tables.while(ctx, func(ctx context.Context) error {
		return w.run(ctx, func(ctx context.Context) ([]*kafka.Loop, error) {
			if err := tables.load(ctx, w); err != nil {
				return nil, err
			}
			return p.loops(ctx, w, pipelines, chains, kept, loops)
		})
	})
}

// loops returns the loops that run the pipelines.
func (p *processor) loops(ctx context.Context, w *worker, pipelines []*topology.Pipeline, chains *chainMetrics, kept *keepMetrics, loops *kafka.Metrics) ([]*kafka.Loop, error) {
	var out []*kafka.Loop
	for _, pl := range pipelines {
		l, err := p.loop(ctx, w, pl, chains, kept, loops)
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

// loop makes sure that a pipeline's topics and schemas are there, and returns
// the loop that runs it.
func (p *processor) loop(ctx context.Context, w *worker, pl *topology.Pipeline, chains *chainMetrics, kept *keepMetrics, loops *kafka.Metrics) (*kafka.Loop, error) {
	if hold := holds(pl); pl.Guarantee == topology.ExactlyOnce && hold > w.flags.txnTimeout/2 {
		return nil, Usagef("its stages may hold up a transaction for %v, which leaves too little of --transaction-timeout %v: give it at least twice as much", hold, w.flags.txnTimeout)
	}
	topics := append(append([]*topology.Topic{pl.From}, pl.SideTopics()...), pl.Writes()...)
	cluster, err := w.ensureTopics(ctx, topics)
	if err != nil {
		return nil, err
	}
	if states := stateTopics(w.topology, pl, cluster.Topics[pl.From.Name].Partitions); len(states) > 0 {
		if _, err := kafka.EnsureTopics(ctx, w.kafka, states, !w.flags.noCreate); err != nil {
			return nil, err
		}
	}
	ids, err := outputIDs(ctx, w.registry, pl, !w.flags.noRegister)
	if err != nil {
		return nil, err
	}
	cfg := w.loopConfig(pl.Name, loops)
	cfg.Topics = []string{pl.From.Name}
	for _, t := range append(pl.Writes(), pl.SideTopics()...) {
		cfg.Writes = append(cfg.Writes, t.Name)
	}
	cfg.Memory = p.memory << 20
	cfg.Guarantee = kafka.Guarantee(pl.Guarantee)
	lanes := concurrency(pl)
	if lanes > 1 {
		cfg.MaxPoll = lanes * queuePerLane
	}
	setup := chainSetup{
		topology: w.topology, schemas: w.registry, ids: ids, client: w.kafka, chains: chains, kept: kept, taps: p.taps, receipts: true,
		now: p.env.Now, log: w.log.With("pipeline", pl.Name),
	}
	cfg.NewHandler = func(int) (pipeline.Handler, error) {
		if lanes > 1 {
			return newLanes(setup, pl, lanes), nil
		}
		return setup.handler(pl), nil
	}
	return kafka.NewLoop(cfg)
}

// holds returns for how long the stages of a pipeline may hold up a batch.
func holds(pl *topology.Pipeline) (sum time.Duration) {
	for _, s := range pl.Stages {
		if h, ok := s.Built.(stage.Holder); ok {
			sum += h.Holds()
		}
	}
	return sum
}

// outputIDs returns the schema ids of what a pipeline writes, by topic and type.
// Schemas that are not in the registry are put there if register is set.
func outputIDs(ctx context.Context, registry schemaRegistry, pl *topology.Pipeline, register bool) (map[string][]int, error) {
	ids := map[string][]int{}
	for _, topic := range pl.Writes() {
		ids[topic.Name] = make([]int, len(pl.Output))
	}
	for i, s := range pl.Output {
		for _, topic := range pl.Targets[i] {
			id, err := schemaID(ctx, registry, topic.Name, s, register)
			if err != nil {
				return nil, err
			}
			ids[topic.Name][i] = id
		}
	}
	return ids, nil
}
