// Package worker holds the common parts of the long-running programs: their flags, the
// HTTP server for health and metrics, and a runner that runs loops until a signal.
//
// Start reading at [Flags.Start] and [Worker.Run]. The goroutine of the command owns a
// [Worker] until Run. Then its loops and the HTTP server read it concurrently, and only
// Loops and the reason why it is not ready still change: both are atomic.
package worker

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/server"
	"millrace/pipeline/server/dial"
	"millrace/pipeline/topology"
)

// Worker is a long-running program with its configuration. [Flags.Start] makes one, and
// [RemoteFlags.Open] makes one for a command that only inspects: without HTTP, and without
// the permission to create topics.
type Worker struct {
	Flags    *Flags
	Topology *topology.Topology
	Kafka    kafka.Config
	Registry *codec.Registry
	Metrics  *prometheus.Registry
	Log      *slog.Logger
	Server   *server.Server
	Dial     *dial.Caller // calls other workers; nil if the program calls none
	begun    bool         // RunWith was called; owned by the command's goroutine

	Loops  atomic.Pointer[[]*kafka.Loop] // the running loops; nil until they are started
	reason atomic.Pointer[string]        // why there are no loops yet
}

// configure loads the topology and the configurations of the clients. reg, if not nil, gets
// the metrics of Kafka clients.
func (w *Worker) configure(k *cli.KafkaFlags, registry *cli.RegistryFlags, reg prometheus.Registerer) (err error) {
	if w.Topology, err = w.Flags.Topology.Load(w.Flags.Env); err != nil {
		return err
	}
	if w.Kafka, err = k.Config(w.Log, reg); err != nil {
		return err
	}
	w.Kafka.Partitioners = w.Topology.Partitioners()
	where, err := registry.Config()
	if err != nil {
		return err
	}
	if w.Registry, err = cli.OpenRegistry(where); err != nil {
		return &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	return nil
}

// Close releases the resources of a worker that did not run. After [Worker.RunWith] it does
// nothing, because that closes them.
func (w *Worker) Close() {
	if !w.begun {
		_ = w.Server.Close() // it never served
	}
}

// SetNotReady sets the reason why the worker is not ready, as long as it has no loops.
func (w *Worker) SetNotReady(why string) { w.reason.Store(&why) }

// Ready returns nil if all of Loops are ready.
func (w *Worker) Ready() error {
	loops := w.Loops.Load()
	if loops == nil {
		return errors.New(*w.reason.Load())
	}
	var faults []error
	for _, l := range *loops {
		faults = append(faults, l.Ready())
	}
	return errors.Join(faults...)
}

// RunWith serves HTTP and runs f. If one of them fails, it cancels the other.
func (w *Worker) RunWith(ctx context.Context, f func(context.Context) error) error {
	w.begun = true
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.Server.Run(ctx) })
	if w.Dial != nil {
		g.Go(func() error { return w.Dial.Run(ctx) })
	}
	g.Go(func() error { return f(ctx) })
	return g.Wait()
}

// BringUp calls bringUp until it succeeds, with a backoff of 100 ms to 5 s. It returns false
// and no error if the context ends first, and an error that a retry cannot fix.
func (w *Worker) BringUp(ctx context.Context, bringUp func(context.Context) error) (up bool, err error) {
	for wait := minRetry; ; wait = min(2*wait, maxRetry) {
		err := bringUp(ctx)
		switch {
		case err == nil:
			return true, nil
		case ctx.Err() != nil:
			return false, nil
		case IsPermanent(err):
			return false, Misconfigured(err)
		}
		w.SetNotReady(err.Error())
		w.Log.Warn("cannot start yet; will retry", "err", err, "wait", wait)
		if !sleep(ctx, wait) {
			return false, nil
		}
	}
}

// EnsureTopics checks that topics of the topology exist as declared, and creates missing
// ones unless --no-create-topics is set.
func (w *Worker) EnsureTopics(ctx context.Context, topics []*topology.Topic) (kafka.Cluster, error) {
	return kafka.EnsureTopics(ctx, w.Kafka, TopicSpecs(topics...), !w.Flags.NoCreateTopics)
}

// TopicSpecs returns the required properties of topics, once for each topic.
func TopicSpecs(topics ...*topology.Topic) (specs []kafka.TopicSpec) {
	for _, t := range topics {
		if !slices.ContainsFunc(specs, func(s kafka.TopicSpec) bool { return s.Name == t.Name }) {
			specs = append(specs, kafka.TopicSpec{Name: t.Name, Partitions: t.Partitions, Replication: t.Replication, Config: t.Config})
		}
	}
	return specs
}

// Sessions returns the number of sessions in this process.
func (w *Worker) Sessions() int {
	if w.Flags.Sessions > 0 {
		return w.Flags.Sessions
	}
	return runtime.GOMAXPROCS(0)
}

// LoopConfig returns the configuration of a loop without its handler. The group's name is
// the topology's name, a dash and suffix.
func (w *Worker) LoopConfig(suffix string, metrics *kafka.Metrics) kafka.LoopConfig {
	return kafka.LoopConfig{
		Client:             w.Kafka,
		Group:              w.Topology.Name + "-" + suffix,
		Instance:           w.Flags.Instance,
		Static:             w.Flags.static,
		AcceptLoss:         w.Flags.AcceptLoss,
		Protocol:           kafka.GroupProtocol(w.Flags.protocol),
		Sessions:           w.Sessions(),
		CommitInterval:     w.Flags.CommitInterval,
		TransactionTimeout: w.Flags.TransactionTimeout,
		SessionTimeout:     w.Flags.SessionTimeout,
		Metrics:            metrics,
		Logger:             w.Log,
	}
}
