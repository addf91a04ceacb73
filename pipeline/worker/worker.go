// Package worker is what the long-running programs share: their flags, the HTTP
// server for health and metrics, and running loops until a signal.
//
// Start at [Flags.Start] and [Worker.Run].
package worker

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
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// Flags are the flags that the long-running programs have in common.
type Flags struct {
	Env      *cli.Env
	program  string
	Kafka    *cli.KafkaFlags
	registry *cli.RegistryFlags
	Topology *cli.TopologyFlags
	log      *cli.LogFlags
	server   *ServerFlags

	Instance       string
	static         bool
	protocol       string
	Sessions       int
	CommitInterval time.Duration
	TxnTimeout     time.Duration
	SessionTimeout time.Duration
	NoCreate       bool
	NoRegister     bool
}

// AddFlags adds them. listen is the default of --listen.
func AddFlags(e *cli.Env, flags *pflag.FlagSet, program, listen string) *Flags {
	f := &Flags{Env: e, program: program}
	f.Kafka = e.KafkaFlags(flags, program)
	f.registry = e.RegistryFlags(flags)
	f.Topology = e.TopologyFlags(flags)
	f.log = e.LogFlags(flags)
	f.server = AddServerFlags(e, flags, listen)
	flags.StringVar(&f.Instance, "instance", "", "`name` of this worker, another for each in the group and the same after a restart: its transactional ids are made of it (default: the host's name)")
	// A projector comes back to the states it has on its disk, so it wants the
	// partitions it had.
	flags.BoolVar(&f.static, "static", program == "projector", "be a static member of the group: a restart within --session-timeout moves no partitions")
	flags.StringVar(&f.protocol, "group-protocol", string(kafka.ClassicProtocol), "how the group shares out partitions: `classic` by its members, consumer by the broker (KIP-848, Kafka 4.3 or newer)")
	flags.IntVar(&f.Sessions, "sessions", 0, "members of the group in this process (default: one for each core)")
	flags.DurationVar(&f.CommitInterval, "commit-interval", 100*time.Millisecond, "how long a transaction collects events")
	flags.DurationVar(&f.TxnTimeout, "transaction-timeout", 10*time.Second, "how long a crashed worker's partitions wait, at most")
	flags.DurationVar(&f.SessionTimeout, "session-timeout", 45*time.Second, "how long the group waits for a silent worker")
	flags.BoolVar(&f.NoCreate, "no-create-topics", false, "stop if a topic of the topology does not exist, instead of creating it")
	flags.BoolVar(&f.NoRegister, "no-register", false, "stop if the registry lacks a schema that is to be written with, instead of registering it")
	e.BindEnv(flags, "instance", "static", "group-protocol", "sessions", "commit-interval", "transaction-timeout", "session-timeout", "no-create-topics", "no-register")
	return f
}

// Worker is a long-running program that has read its configuration.
type Worker struct {
	Flags    *Flags
	Topology *topology.Topology
	Kafka    kafka.Config
	Registry *codec.Registry
	Metrics  *prometheus.Registry
	Log      *slog.Logger
	HTTP     *Server
	begun    bool // run was called, and so the server's

	Loops atomic.Pointer[[]*kafka.Loop]
	why   atomic.Pointer[string] // there are no loops yet
}

// Start reads the configuration and listens, but connects to nothing.
func (f *Flags) Start() (*Worker, error) {
	log, err := f.log.Logger()
	if err != nil {
		return nil, err
	}
	if f.Instance == "" {
		if f.Instance, err = os.Hostname(); err != nil {
			return nil, cli.Usagef("--instance: the host has no name to take (%w)", err)
		}
	}
	w := &Worker{Flags: f, Metrics: NewRegistry(f.Env.Build), Log: log}
	if w.Topology, err = f.Topology.Load(f.Env); err != nil {
		return nil, err
	}
	if w.Kafka, err = f.Kafka.Config(log, w.Metrics); err != nil {
		return nil, err
	}
	where, err := f.registry.Config()
	if err != nil {
		return nil, err
	}
	if w.Registry, err = cli.OpenRegistry(where); err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	if w.HTTP, err = NewServer(f.server.Config(log, w.Metrics)); err != nil {
		return nil, err
	}
	w.NotReady("starting")
	w.HTTP.Ready("groups", func(context.Context) error { return w.ready() })
	return w, nil
}

func (w *Worker) Close() {
	if !w.begun {
		_ = w.HTTP.Close() // it never served
	}
}

func (w *Worker) NotReady(why string) { w.why.Store(&why) }

// ready returns nil when all loops are.
func (w *Worker) ready() error {
	loops := w.Loops.Load()
	if loops == nil {
		return errors.New(*w.why.Load())
	}
	var faults []error
	for _, l := range *loops {
		faults = append(faults, l.Ready())
	}
	return errors.Join(faults...)
}

// Run serves, brings up the loops and runs them until the context ends.
func (w *Worker) Run(ctx context.Context, bringUp func(context.Context) ([]*kafka.Loop, error)) error {
	return w.RunWith(ctx, func(ctx context.Context) error {
		loops, err := w.BringUp(ctx, bringUp)
		if loops == nil || err != nil {
			return err
		}
		w.Loops.Store(&loops)
		running, ctx := errgroup.WithContext(ctx)
		for _, l := range loops {
			running.Go(func() error { return l.Run(ctx) })
		}
		return running.Wait()
	})
}

// RunWith serves as long as f runs, and runs f as long as it serves.
func (w *Worker) RunWith(ctx context.Context, f func(context.Context) error) error {
	w.begun = true
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.HTTP.Run(ctx) })
	g.Go(func() error { return f(ctx) })
	return g.Wait()
}

// BringUp tries to bring up the loops until it works, the context ends (nil), or
// the error is one that trying again does not mend.
func (w *Worker) BringUp(ctx context.Context, bringUp func(context.Context) ([]*kafka.Loop, error)) ([]*kafka.Loop, error) {
	const most = 5 * time.Second
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, most) {
		loops, err := bringUp(ctx)
		var exit *cli.ExitError
		switch {
		case err == nil:
			return loops, nil
		case ctx.Err() != nil:
			return nil, nil
		case pipeline.ClassOf(err) != pipeline.ClassAbort, errors.As(err, &exit), errors.Is(err, codec.ErrIncompatible):
			return nil, err
		}
		w.NotReady(err.Error())
		w.Log.Warn("cannot start yet; trying again", "err", err, "wait", wait)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, nil
		case <-t.C:
		}
	}
}

// EnsureTopics makes sure that topics of the topology exist as they are declared.
func (w *Worker) EnsureTopics(ctx context.Context, topics []*topology.Topic) (kafka.Cluster, error) {
	return kafka.EnsureTopics(ctx, w.Kafka, TopicSpecs(topics...), !w.Flags.NoCreate)
}

// TopicSpecs returns how topics of the topology have to be, each once.
func TopicSpecs(topics ...*topology.Topic) (specs []kafka.TopicSpec) {
	for _, t := range topics {
		if !slices.ContainsFunc(specs, func(s kafka.TopicSpec) bool { return s.Name == t.Name }) {
			specs = append(specs, kafka.TopicSpec{Name: t.Name, Partitions: t.Partitions, Replication: t.Replication, Config: t.Config})
		}
	}
	return specs
}

// Sessions returns how many sessions the flags ask for.
func (w *Worker) Sessions() int {
	if w.Flags.Sessions > 0 {
		return w.Flags.Sessions
	}
	return runtime.GOMAXPROCS(0)
}

// LoopConfig returns what the flags say of a loop. suffix completes the group's
// name.
func (w *Worker) LoopConfig(suffix string, metrics *kafka.Metrics) kafka.LoopConfig {
	return kafka.LoopConfig{
		Client:             w.Kafka,
		Group:              w.Topology.Name + "-" + suffix,
		Instance:           w.Flags.Instance,
		Static:             w.Flags.static,
		Protocol:           kafka.GroupProtocol(w.Flags.protocol),
		Sessions:           w.Sessions(),
		CommitInterval:     w.Flags.CommitInterval,
		TransactionTimeout: w.Flags.TxnTimeout,
		SessionTimeout:     w.Flags.SessionTimeout,
		Metrics:            metrics,
		Logger:             w.Log,
	}
}
