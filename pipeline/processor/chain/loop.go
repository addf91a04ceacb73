package chain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

// LoopOptions are what the loops of a worker's pipelines share. All fields except Taps
// and Memory are required.
type LoopOptions struct {
	Metrics *Metrics
	Loops   *kafka.Metrics
	Taps    *Taps // nil: clients cannot watch events
	Memory  int   // limit for the records of one pipeline, in bytes; 0: kafka.DefaultMemory
	Now     func() time.Time
}

// NewLoop returns the loop that runs a pipeline. Before, it creates or checks its topics and
// schemas.
func NewLoop(ctx context.Context, w *worker.Worker, pl *topology.Pipeline, o LoopOptions) (*kafka.Loop, error) {
	if err := CheckHoldTime(pl, w.Flags.TransactionTimeout); err != nil {
		return nil, err
	}
	ids, known, err := prepare(ctx, w, pl)
	if err != nil {
		return nil, err
	}
	cfg := w.LoopConfig(pl.Name, o.Loops)
	cfg.Known = known
	cfg.Topics = []string{pl.From.Name}
	for _, t := range append(pl.Writes(), pl.SideTopics()...) {
		cfg.Writes = append(cfg.Writes, t.Name)
	}
	cfg.Memory = o.Memory
	cfg.Guarantee = kafka.Guarantee(pl.Guarantee)
	n := laneCount(pl)
	if n > 1 {
		cfg.MaxPoll = n * queuePerLane
	}
	log := w.Log.With("pipeline", pl.Name)
	c := config{
		topology: w.Topology, schemas: w.Registry, ids: ids, kafka: w.Kafka, metrics: o.Metrics, taps: o.Taps, receipts: true,
		drift: event.NewDrift(log), now: o.Now, log: log,
	}
	cfg.NewHandler = func(int) (pipeline.Handler, error) {
		if n > 1 {
			return newLanes(c, pl, n), nil
		}
		return c.newHandler(pl), nil
	}
	loop, err := kafka.NewLoop(cfg)
	return loop, worker.Misconfigured(err)
}

// prepare creates or checks the topics and schemas of a pipeline. It returns the schema
// ids of its output, and its topics.
func prepare(ctx context.Context, w *worker.Worker, pl *topology.Pipeline) (map[string][]int, map[string]kafka.TopicInfo, error) {
	topics := append(append([]*topology.Topic{pl.From}, pl.SideTopics()...), pl.Writes()...)
	cluster, err := w.EnsureTopics(ctx, topics)
	if err != nil {
		return nil, nil, err
	}
	if states := StateTopics(w.Topology, pl, cluster.Topics[pl.From.Name].Partitions); len(states) > 0 {
		own, err := kafka.EnsureTopics(ctx, w.Kafka, states, !w.Flags.NoCreateTopics)
		if err != nil {
			return nil, nil, err
		}
		maps.Copy(cluster.Topics, own.Topics)
	}
	ids, err := outputIDs(ctx, w.Registry, pl, !w.Flags.NoRegister)
	return ids, cluster.Topics, err
}

// CheckHoldTimes checks that no pipeline can delay a transaction longer than the
// transaction timeout of the worker allows. The error is one of usage.
func CheckHoldTimes(pipelines []*topology.Pipeline, timeout time.Duration) error {
	var faults []error
	for _, pl := range pipelines {
		if err := CheckHoldTime(pl, timeout); err != nil {
			faults = append(faults, fmt.Errorf("pipeline %s: %w", pl.Name, err))
		}
	}
	return errors.Join(faults...)
}

// CheckHoldTime is [CheckHoldTimes] for one pipeline.
func CheckHoldTime(pl *topology.Pipeline, timeout time.Duration) error {
	if hold := HoldTime(pl); pl.Guarantee == topology.ExactlyOnce && hold > timeout/2 {
		return cli.Usagef("its stages may delay a transaction by %v, but --transaction-timeout is only %v: set it to at least %v", hold, timeout, 2*hold)
	}
	return nil
}

// HoldTime returns the maximum time by which the stages of a pipeline may delay a batch.
func HoldTime(pl *topology.Pipeline) (sum time.Duration) {
	for _, s := range pl.Stages {
		if h, ok := s.Built.(stage.Delayer); ok {
			sum += h.MaxDelay()
		}
	}
	return sum
}

// outputIDs returns the schema ids of the output of a pipeline, by topic and type. It
// registers missing schemas if register is set.
func outputIDs(ctx context.Context, registry event.Registry, pl *topology.Pipeline, register bool) (map[string][]int, error) {
	ids := map[string][]int{}
	for _, topic := range pl.Writes() {
		ids[topic.Name] = make([]int, len(pl.Output))
	}
	for i, s := range pl.Output {
		for _, topic := range pl.Targets[i] {
			id, err := event.EnsureSchema(ctx, registry, topic.Subject(s), s, register)
			if err != nil {
				return nil, err
			}
			ids[topic.Name][i] = id
		}
	}
	return ids, nil
}
