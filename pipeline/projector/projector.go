// Package projector is the worker that folds events into aggregates and answers
// questions about them over HTTP.
//
// Start at [RunCommand] and versions.go, which decides which versions of which
// projections run here. Answers of all workers are merged in cluster.go and
// feed.go; forward.go sends a question to the worker that can answer it.
package projector

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/store"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

func RunCommand(e *cli.Env) *cobra.Command {
	p := &projector{env: e}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run all projections as a worker of their consumer group",
		Long: `Folds the events of the topology's projections, as a member of the consumer
group NAME-projector, publishes the states as snapshots on compacted topics, and
answers questions over HTTP. More workers share the partitions; give each another
--instance and a --data-dir of its own. With --standby they also keep the states of
each other's partitions, so as to take them over at once; with --replica, a worker is
in no group and keeps all states, to answer more questions.

The data directory is a cache: what is in it is taken up again after a stop or a
crash. If it is lost or does not fit, it is made anew from the snapshots and the
log.

SIGTERM finishes and commits the batches at hand, then leaves the group. A second
signal ends the process at once; nothing is lost by that.

Exit code 0 after a stop; 1 if it could not go on; 2 if the command line or the
topology is wrong; 3 if another worker has the same --instance.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.run(cmd.Context()) },
	}
	p.addFlags(cmd.Flags())
	return cmd
}

// projector is the worker.
type projector struct {
	env       *cli.Env
	worker    *worker.Flags
	kek       *keyring.Flags
	noDecrypt bool
	dataDir   string
	advertise string

	noHistory bool
	memory    int // MiB
	receipts  time.Duration
	replica   bool
	standby   bool
}

func (p *projector) addFlags(flags *pflag.FlagSet) {
	p.worker = worker.AddFlags(p.env, flags, "projector", worker.ProjectorListen)
	p.kek = keyring.AddFlags(p.env, flags)
	flags.BoolVar(&p.noDecrypt, "no-decrypt", false, "answer without key-encryption keys: encrypted fields are null, and said to be hidden")
	flags.StringVar(&p.dataDir, "data-dir", "data/projector", "`directory` of the states; another for each worker")
	flags.StringVar(&p.advertise, "advertise", "", "`host:port` at which other workers reach this one (default: that of --listen, by the host's name if it listens on all addresses)")
	flags.BoolVar(&p.noHistory, "no-history", false, "keep states alone, not the events that made them: faster and smaller, no questions about the past")
	flags.IntVar(&p.memory, "memory", projection.DefaultMemory>>20, "`MiB` that states in memory may take, about")
	flags.DurationVar(&p.receipts, "receipts", time.Hour, "remember for a `duration` which events pipelines filtered or made dead letters; 0 disables it")
	flags.BoolVar(&p.replica, "replica", false, "be in no group: fold all partitions for questions alone, and publish nothing")
	flags.BoolVar(&p.standby, "standby", false, "keep the states of partitions that other workers have, so as to take them over at once")
	p.env.BindEnv(flags, "no-decrypt", "data-dir", "advertise", "no-history", "memory", "receipts", "replica", "standby")
}

func (p *projector) run(ctx context.Context) (err error) {
	w, err := p.worker.Start()
	if err != nil {
		return err
	}
	defer w.Close()
	if p.replica && p.standby {
		return cli.Usagef("--replica and --standby: a standby is of the group, and a replica is not; say one of them")
	}
	if len(w.Topology.Projections) == 0 {
		return &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s has no projections: there is nothing to run", p.worker.Topology.File)}
	}
	keys, err := p.keys(w)
	if err != nil {
		return err
	}
	kept, err := store.Open(p.dataDir, store.Options{Logger: w.Log})
	if err != nil {
		return err
	}
	kept.Register(w.Metrics)
	// Whoever reads from the store ends with w.run.
	defer func() { err = errors.Join(err, kept.Close()) }()

	var api atomic.Pointer[http.Handler]
	waiting := query.Unready("the worker is starting")
	api.Store(&waiting)
	w.HTTP.Handle("/v1/", http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) { (*api.Load()).ServeHTTP(out, r) }))

	v := p.newVersions(w, kept, keys, func(h http.Handler) { api.Store(&h) })
	v.serveInternal(w.HTTP)
	w.HTTP.Ready("restore", func(context.Context) error { return v.ready() })
	w.HTTP.Startup("restored", func(context.Context) error { return v.started() })
	return w.RunWith(ctx, v.run)
}

// keys returns the keys of encrypted fields, nil if nothing is encrypted.
func (p *projector) keys(w *worker.Worker) (*keyring.Ring, error) {
	keks, err := p.kek.Load()
	topic := keyring.Topic(w.Topology)
	switch {
	case err != nil || topic == nil:
		return nil, err
	case p.noDecrypt:
		keks = nil
	case keks == nil:
		return nil, cli.Usagef("%s encrypts fields: name the key-encryption keys with --kek-file, or set %s, or answer without them with --no-decrypt", p.worker.Topology.File, keyring.EnvKEK)
	}
	return keyring.New(keyring.Config{Kafka: w.Kafka, Topic: topic.Name, Partitions: topic.Partitions, KEKs: keks, Now: p.env.Now, Log: w.Log, Metrics: w.Metrics}), nil
}

// snapshotsTopic is the topic of a version's snapshots as it has to be: as many
// partitions as the events have, and compacted.
func snapshotsTopic(pr *topology.Projection, name string) *topology.Topic {
	t := *pr.Snapshots
	t.Name = name
	t.Partitions = pr.From.Partitions
	t.Config = map[string]string{"cleanup.policy": "compact"}
	for k, v := range pr.Snapshots.Config {
		t.Config[k] = v
	}
	return &t
}
