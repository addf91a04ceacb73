package app

import (
	"context"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// loopOptions are what the loops of a worker's pipelines share.
type loopOptions struct {
	chains *chainMetrics
	kept   *keepMetrics
	loops  *kafka.Metrics
	taps   *taps // nil if nobody can watch
	memory int   // bytes that the records of one pipeline may take; kafka's default if 0
	now    func() time.Time
}

// newPipelineLoop makes sure that a pipeline's topics and schemas exist, and
// returns the loop that runs it.
func newPipelineLoop(ctx context.Context, w *worker, pl *topology.Pipeline, o loopOptions) (*kafka.Loop, error) {
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
	cfg := w.loopConfig(pl.Name, o.loops)
	cfg.Topics = []string{pl.From.Name}
	for _, t := range append(pl.Writes(), pl.SideTopics()...) {
		cfg.Writes = append(cfg.Writes, t.Name)
	}
	cfg.Memory = o.memory
	cfg.Guarantee = kafka.Guarantee(pl.Guarantee)
	lanes := concurrency(pl)
	if lanes > 1 {
		cfg.MaxPoll = lanes * queuePerLane
	}
	setup := chainSetup{
		topology: w.topology, schemas: w.registry, ids: ids, client: w.kafka, chains: o.chains, kept: o.kept, taps: o.taps, receipts: true,
		now: o.now, log: w.log.With("pipeline", pl.Name),
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
