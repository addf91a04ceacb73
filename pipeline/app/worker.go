package app

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// WorkerFlags are the flags that the long-running programs have in common.
type WorkerFlags struct {
	env      *Env
	program  string
	kafka    *KafkaFlags
	registry *RegistryFlags
	topology *TopologyFlags
	log      *LogFlags
	server   *ServerFlags

	instance       string
	static         bool
	protocol       string
	sessions       int
	commitInterval time.Duration
	txnTimeout     time.Duration
	sessionTimeout time.Duration
	noCreate       bool
	noRegister     bool
}

// addWorkerFlags adds them. listen is the default of --listen.
func addWorkerFlags(e *Env, flags *pflag.FlagSet, program, listen string) *WorkerFlags {
	f := &WorkerFlags{env: e, program: program}
	f.kafka = e.KafkaFlags(flags, program)
	f.registry = e.RegistryFlags(flags)
	f.topology = e.TopologyFlags(flags)
	f.log = e.LogFlags(flags)
	f.server = addServerFlags(e, flags, listen)
	flags.StringVar(&f.instance, "instance", "", "`name` of this worker, another for each in the group and the same after a restart: its transactional ids are made of it (default: the host's name)")
	// A projector comes back to the states it has on its disk, so it wants the
	// partitions it had.
	flags.BoolVar(&f.static, "static", program == "projector", "be a static member of the group: a restart within --session-timeout moves no partitions")
	flags.StringVar(&f.protocol, "group-protocol", string(kafka.ClassicProtocol), "how the group shares out partitions: `classic` by its members, consumer by the broker (KIP-848, Kafka 4.3 or newer)")
	flags.IntVar(&f.sessions, "sessions", 0, "members of the group in this process (default: one for each core)")
	flags.DurationVar(&f.commitInterval, "commit-interval", 100*time.Millisecond, "how long a transaction collects events")
	flags.DurationVar(&f.txnTimeout, "transaction-timeout", 10*time.Second, "how long a crashed worker's partitions wait, at most")
	flags.DurationVar(&f.sessionTimeout, "session-timeout", 45*time.Second, "how long the group waits for a silent worker")
	flags.BoolVar(&f.noCreate, "no-create-topics", false, "stop if a topic of the topology does not exist, instead of creating it")
	flags.BoolVar(&f.noRegister, "no-register", false, "stop if the registry lacks a schema that is to be written with, instead of registering it")
	e.BindEnv(flags, "instance", "static", "group-protocol", "sessions", "commit-interval", "transaction-timeout", "session-timeout", "no-create-topics", "no-register")
	return f
}

// worker is a long-running program that has read its configuration.
type worker struct {
	flags    *WorkerFlags
	topology *topology.Topology
	kafka    kafka.Config
	registry *codec.Registry
	metrics  *prometheus.Registry
	log      *slog.Logger
	server   *Server
	begun    bool // run was called, and so the server's

	loops atomic.Pointer[[]*kafka.Loop]
	why   atomic.Pointer[string] // there are no loops yet
}

// start reads the configuration and listens, but connects to nothing.
func (f *WorkerFlags) start() (*worker, error) {
	log, err := f.log.Logger()
	if err != nil {
		return nil, err
	}
	if f.instance == "" {
		if f.instance, err = os.Hostname(); err != nil {
			return nil, Usagef("--instance: the host has no name to take (%w)", err)
		}
	}
	w := &worker{flags: f, metrics: NewRegistry(f.env.Build), log: log}
	if w.topology, err = f.topology.Load(f.env); err != nil {
		return nil, err
	}
	if w.kafka, err = f.kafka.Config(log, w.metrics); err != nil {
		return nil, err
	}
	where, err := f.registry.Config()
	if err != nil {
		return nil, err
	}
	if w.registry, err = openRegistry(where); err != nil {
		return nil, &ExitError{ExitUsage, err}
	}
	if w.server, err = NewServer(f.server.Config(log, w.metrics)); err != nil {
		return nil, err
	}
	w.say("starting")
	w.server.Ready("groups", func(context.Context) error { return w.ready() })
	return w, nil
}

func (w *worker) close() {
	if !w.begun {
		_ = w.server.Close() // it never served
	}
}

func (w *worker) say(why string) { w.why.Store(&why) }

// ready returns nil when all loops are.
func (w *worker) ready() error {
	loops := w.loops.Load()
	if loops == nil {
		return errors.New(*w.why.Load())
	}
	var faults []error
	for _, l := range *loops {
		faults = append(faults, l.Ready())
	}
	return errors.Join(faults...)
}

// run serves, brings up the loops and runs them until the context ends.
func (w *worker) run(ctx context.Context, bringUp func(context.Context) ([]*kafka.Loop, error)) error {
	return w.runBeside(ctx, func(ctx context.Context) error {
		loops, err := w.insist(ctx, bringUp)
		if loops == nil || err != nil {
			return err
		}
		w.loops.Store(&loops)
		running, ctx := errgroup.WithContext(ctx)
		for _, l := range loops {
			running.Go(func() error { return l.Run(ctx) })
		}
		return running.Wait()
	})
}

// runBeside serves as long as f runs, and runs f as long as it serves.
func (w *worker) runBeside(ctx context.Context, f func(context.Context) error) error {
	w.begun = true
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.server.Run(ctx) })
	g.Go(func() error { return f(ctx) })
	return g.Wait()
}

// insist tries to bring up the loops until it works, the context ends (nil), or
// the error is one that trying again does not mend.
func (w *worker) insist(ctx context.Context, bringUp func(context.Context) ([]*kafka.Loop, error)) ([]*kafka.Loop, error) {
	const most = 5 * time.Second
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, most) {
		loops, err := bringUp(ctx)
		var exit *ExitError
		switch {
		case err == nil:
			return loops, nil
		case ctx.Err() != nil:
			return nil, nil
		case pipeline.ClassOf(err) != pipeline.ClassAbort, errors.As(err, &exit), errors.Is(err, codec.ErrIncompatible):
			return nil, err
		}
		w.say(err.Error())
		w.log.Warn("cannot start yet; trying again", "err", err, "wait", wait)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, nil
		case <-t.C:
		}
	}
}

// ensureTopics makes sure that topics of the topology exist as they are declared.
func (w *worker) ensureTopics(ctx context.Context, topics []*topology.Topic) (kafka.Cluster, error) {
	return kafka.EnsureTopics(ctx, w.kafka, topicSpecs(topics...), !w.flags.noCreate)
}

// topicSpecs returns how topics of the topology have to be, each once.
func topicSpecs(topics ...*topology.Topic) (specs []kafka.TopicSpec) {
	for _, t := range topics {
		if !slices.ContainsFunc(specs, func(s kafka.TopicSpec) bool { return s.Name == t.Name }) {
			specs = append(specs, kafka.TopicSpec{Name: t.Name, Partitions: t.Partitions, Replication: t.Replication, Config: t.Config})
		}
	}
	return specs
}

// sessions returns how many sessions the flags ask for.
func (w *worker) sessions() int {
	if w.flags.sessions > 0 {
		return w.flags.sessions
	}
	return runtime.GOMAXPROCS(0)
}

// loopConfig returns what the flags say of a loop. suffix completes the group's
// name.
func (w *worker) loopConfig(suffix string, metrics *kafka.Metrics) kafka.LoopConfig {
	return kafka.LoopConfig{
		Client:             w.kafka,
		Group:              w.topology.Name + "-" + suffix,
		Instance:           w.flags.instance,
		Static:             w.flags.static,
		Protocol:           kafka.GroupProtocol(w.flags.protocol),
		Sessions:           w.sessions(),
		CommitInterval:     w.flags.commitInterval,
		TransactionTimeout: w.flags.txnTimeout,
		SessionTimeout:     w.flags.sessionTimeout,
		Metrics:            metrics,
		Logger:             w.log,
	}
}
