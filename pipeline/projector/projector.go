// Package projector is the worker that folds events into aggregates and answers
// questions about them over HTTP.
//
// Start at [RunCommand] and program.go, which assembles the parts of a worker:
//
//   - supervisor starts and stops versions of projections, as the control topic
//     requires, and chooses the version that answers
//   - builder makes the loop of a consumer group, and groupLoop is one that runs
//   - groupFollower keeps partitions that other workers own (standby, replica)
//   - roster knows which loops run, and announcer tells other workers
//   - clusterReader merges the answers of all workers, forwarder sends a question to
//     the worker that can answer it, and internalAPI answers other workers
//
// # Owners and locks
//
// The goroutine of the supervisor starts and stops loops. Sessions of the loops call
// groupHandler. HTTP handlers run in goroutines of their own. roster.mu, restores.mu and
// groupFollower.mu guard what these goroutines share. No other lock is taken and no
// callback is called while one of them is held, with one exception: groupFollower.mu is
// held while a kafka.Follower takes up a partition, which takes the lock of the
// kafka.Follower.
package projector

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/seal"
	"millrace/pipeline/store"
	"millrace/pipeline/worker"
)

// RunCommand returns the command `projector run`.
func RunCommand(e *cli.Env) *cobra.Command {
	c := &runCommand{env: e}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run all projections as a worker of their consumer group",
		Long: `Folds the events of the topology's projections, as a member of the consumer
group NAME-projector, publishes the states as snapshots on compacted topics, and
answers questions over HTTP. Several workers share the partitions; give each its own
--instance and --data-dir. With --standby, workers also keep the states of each
other's partitions, to take them over immediately. With --replica, a worker is in no
group and keeps all states, to answer more questions.

The data directory is a cache: the worker continues from it after a stop or a crash.
If it is lost or does not fit, it is restored from the snapshots and the log.

A projection that cannot start, because a topic or schema is wrong, say, does not hold
up the others: /readyz?verbose and the log have the reason, and it is tried again.

SIGTERM finishes and commits the current batches, then leaves the group. A second
signal ends the process immediately; nothing is lost by that.

Exit code 0 after a stop; 1 if the worker cannot continue; 2 if the command line or the
topology is wrong, or if no projection can start before something is corrected; 3 if
another worker has the same --instance.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	c.addFlags(cmd.Flags())
	return cmd
}

// runCommand is the command `projector run`, with its flags.
type runCommand struct {
	env    *cli.Env
	worker *worker.Flags
	kek    *keyring.Flags

	options options
}

// options are the flags that only this command has.
type options struct {
	noDecrypt bool
	dataDir   string
	advertise string
	noHistory bool
	memory    int // MiB
	receipts  time.Duration
	replica   bool
	standby   bool
	feeds     int
}

func (c *runCommand) addFlags(flags *pflag.FlagSet) {
	c.worker = worker.AddFlags(c.env, flags, "projector", worker.ProjectorListen)
	c.worker.AddDialFlags(flags)
	c.kek = keyring.AddFlags(c.env, flags)
	flags.BoolVar(&c.options.noDecrypt, "no-decrypt", false, "answer without key-encryption keys: encrypted fields are null and marked as hidden")
	flags.StringVar(&c.options.dataDir, "data-dir", "data/projector", "`directory` of the states; another one for each worker")
	flags.StringVar(&c.options.advertise, "advertise", "", "`host:port` at which other workers reach this one (default: the address of --listen, with the host's name if it listens on all addresses)")
	flags.BoolVar(&c.options.noHistory, "no-history", false, "keep states only, not the events that made them: faster and smaller, no questions about the past")
	flags.IntVar(&c.options.memory, "memory", projection.DefaultMemory>>20, "`MiB` that states in memory may take, approximately")
	flags.DurationVar(&c.options.receipts, "receipts", time.Hour, "remember for a `duration` which events pipelines filtered or made dead letters; 0 disables it")
	flags.BoolVar(&c.options.replica, "replica", false, "join no group: fold all partitions for questions only, and publish nothing")
	flags.BoolVar(&c.options.standby, "standby", false, "keep the states of partitions that other workers own, to take them over immediately")
	flags.IntVar(&c.options.feeds, "feeds", query.DefaultFeeds, "maximum `number` of concurrent feeds; each takes memory for the changes that its client has not read")
	c.env.BindEnv(flags, "no-decrypt", "data-dir", "advertise", "no-history", "memory", "receipts", "replica", "standby", "feeds")
}

func (c *runCommand) run(ctx context.Context) (err error) {
	if host, _, err := net.SplitHostPort(c.options.advertise); err == nil {
		c.worker.AllowHost(host) // other workers call it so
	}
	w, err := c.worker.Start()
	if err != nil {
		return err
	}
	defer w.Close()
	if c.options.replica && c.options.standby {
		return cli.Usagef("--replica and --standby exclude each other: a standby is a member of the group, and a replica is not")
	}
	if c.options.memory < 4 {
		return cli.Usagef("--memory: give at least 4 MiB, not %d", c.options.memory)
	}
	if c.options.feeds < 1 {
		return cli.Usagef("--feeds: give at least 1, not %d", c.options.feeds)
	}
	if len(w.Topology.Projections) == 0 {
		return &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s has no projections: there is nothing to run", c.worker.Topology.File)}
	}
	keys, keks, err := c.keys(w)
	if err != nil {
		return err
	}
	kept, err := store.Open(c.options.dataDir, store.Options{Logger: w.Log, Fatal: exitWithoutStore(w.Log), HoldCompactions: true})
	if err != nil {
		return err
	}
	defer giveUpWhenStopped(ctx, kept)()
	kept.Register(w.Metrics)
	// Everything that reads from the store ends with w.RunWith.
	defer func() { err = errors.Join(err, kept.Close()) }()

	var api atomic.Pointer[http.Handler]
	waiting := query.Unready("the worker is starting")
	api.Store(&waiting)
	w.Server.Handle("/v1/", http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) { (*api.Load()).ServeHTTP(out, r) }))

	p := c.assemble(w, kept, keys, func(h http.Handler) { api.Store(&h) })
	p.internal.register(w.Server)
	w.Server.Ready("groups", func(context.Context) error { return w.Ready() })
	for _, pr := range w.Topology.Projections {
		// Not ready would take this worker, and so all others, from the load balancer of
		// the projections that run.
		w.Server.Report("projection "+pr.Name, func(context.Context) error { return p.supervisor.roster.whyHeld(pr.Name) })
	}
	w.Server.Ready("restore", func(context.Context) error { return p.readiness.ready() })
	w.Server.Report("history", func(context.Context) error { return p.restores.history() })
	if keys != nil {
		check := w.Server.Ready // a stale ring shows the data of subjects that were forgotten meanwhile
		if c.options.noDecrypt {
			check = w.Server.Report // it shows no data
		}
		check("keys", func(context.Context) error { return keys.Following() })
	}
	w.Server.Report("receipts", func(context.Context) error { return p.receipts.Following() })
	w.Server.Ready("disk", func(context.Context) error {
		_, err := kept.Waiting()
		return err
	})
	w.Server.Startup("restored", func(context.Context) error { return p.readiness.started() })
	return w.RunWith(ctx, func(ctx context.Context) error {
		if err := c.unlock(ctx, w, keks); err != nil || ctx.Err() != nil {
			return err
		}
		return p.run(ctx)
	})
}

// unlock unlocks the key-encryption keys that a KMS has wrapped. No other goroutine uses them
// yet. A stop meanwhile is no error.
func (c *runCommand) unlock(ctx context.Context, w *worker.Worker, keks *seal.KEKs) error {
	if keks == nil {
		return nil
	}
	if err := c.kek.Unlock(ctx, keks, w.Log, w.SetNotReady); err != nil && ctx.Err() == nil {
		return err
	}
	w.SetNotReady("starting")
	return nil
}

// keys returns the keys of encrypted fields, nil if nothing is encrypted, and the key-encryption
// keys to unlock, nil if nothing is decrypted.
func (c *runCommand) keys(w *worker.Worker) (*keyring.Ring, *seal.KEKs, error) {
	keks, err := c.kek.Parse()
	topic := keyring.Topic(w.Topology)
	switch {
	case err != nil || topic == nil:
		return nil, nil, err
	case c.options.noDecrypt:
		keks = nil
	case keks == nil:
		return nil, nil, cli.Usagef("%s encrypts fields: name the key-encryption keys with --kek-file, or set %s, or answer without them with --no-decrypt", c.worker.Topology.File, keyring.EnvKEK)
	}
	return keyring.New(keyring.Config{Kafka: w.Kafka, Topic: topic.Name, Partitions: topic.Partitions, KEKs: keks, Now: c.env.Now, Log: w.Log, Metrics: w.Metrics}), keks, nil
}
