package chain

import (
	"context"
	"fmt"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// LoopOptions are what the loops of a worker's pipelines share.
type LoopOptions struct {
	Metrics      *Metrics
	StateMetrics *StateMetrics
	Loops        *kafka.Metrics
	Taps         *Taps // nil if nobody can watch
	Memory       int   // bytes that the records of one pipeline may take; kafka's default if 0
	Now          func() time.Time
}

// NewLoop makes sure that a pipeline's topics and schemas exist, and
// returns the loop that runs it.
func NewLoop(ctx context.Context, w *worker.Worker, pl *topology.Pipeline, o LoopOptions) (*kafka.Loop, error) {
	if hold := HoldTime(pl); pl.Guarantee == topology.ExactlyOnce && hold > w.Flags.TxnTimeout/2 {
		return nil, cli.Usagef("its stages may hold up a transaction for %v, which leaves too little of --transaction-timeout %v: give it at least twice as much", hold, w.Flags.TxnTimeout)
	}
	topics := append(append([]*topology.Topic{pl.From}, pl.SideTopics()...), pl.Writes()...)
	cluster, err := w.EnsureTopics(ctx, topics)
	if err != nil {
		return nil, err
	}
	if states := StateTopics(w.Topology, pl, cluster.Topics[pl.From.Name].Partitions); len(states) > 0 {
		if _, err := kafka.EnsureTopics(ctx, w.Kafka, states, !w.Flags.NoCreate); err != nil {
			return nil, err
		}
	}
	ids, err := OutputIDs(ctx, w.Registry, pl, !w.Flags.NoRegister)
	if err != nil {
		return nil, err
	}
	cfg := w.LoopConfig(pl.Name, o.Loops)
	cfg.Topics = []string{pl.From.Name}
	for _, t := range append(pl.Writes(), pl.SideTopics()...) {
		cfg.Writes = append(cfg.Writes, t.Name)
	}
	cfg.Memory = o.Memory
	cfg.Guarantee = kafka.Guarantee(pl.Guarantee)
	lanes := Concurrency(pl)
	if lanes > 1 {
		cfg.MaxPoll = lanes * queuePerLane
	}
	setup := Config{
		Topology: w.Topology, Schemas: w.Registry, IDs: ids, client: w.Kafka, Metrics: o.Metrics, StateMetrics: o.StateMetrics, taps: o.Taps, receipts: true,
		Now: o.Now, Log: w.Log.With("pipeline", pl.Name),
	}
	cfg.NewHandler = func(int) (pipeline.Handler, error) {
		if lanes > 1 {
			return NewLanes(setup, pl, lanes), nil
		}
		return setup.NewHandler(pl), nil
	}
	return kafka.NewLoop(cfg)
}

// HoldTime returns for how long the stages of a pipeline may hold up a batch.
func HoldTime(pl *topology.Pipeline) (sum time.Duration) {
	for _, s := range pl.Stages {
		if h, ok := s.Built.(stage.Holder); ok {
			sum += h.Holds()
		}
	}
	return sum
}

// OutputIDs returns the schema ids of what a pipeline writes, by topic and type.
// Schemas that are not in the registry are put there if register is set.
func OutputIDs(ctx context.Context, registry event.Registry, pl *topology.Pipeline, register bool) (map[string][]int, error) {
	ids := map[string][]int{}
	for _, topic := range pl.Writes() {
		ids[topic.Name] = make([]int, len(pl.Output))
	}
	for i, s := range pl.Output {
		for _, topic := range pl.Targets[i] {
			id, err := event.SchemaID(ctx, registry, topic.Name, s, register)
			if err != nil {
				return nil, err
			}
			ids[topic.Name][i] = id
		}
	}
	return ids, nil
}

// NewLoops returns the loops that run the pipelines.
func NewLoops(ctx context.Context, w *worker.Worker, pipelines []*topology.Pipeline, o LoopOptions) ([]*kafka.Loop, error) {
	var out []*kafka.Loop
	for _, pl := range pipelines {
		l, err := NewLoop(ctx, w, pl, o)
		if err != nil {
			return nil, fmt.Errorf("pipeline %s: %w", pl.Name, err)
		}
		out = append(out, l)
	}
	return out, nil
}
