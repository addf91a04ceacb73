package worker

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/server"
)

// Flags are the flags that the long-running programs share. Parsing sets the fields, and
// [Flags.Start] sets the default of Instance. Afterwards they are constant, so all
// goroutines can read them.
type Flags struct {
	Env      *cli.Env
	Kafka    *cli.KafkaFlags
	Topology *cli.TopologyFlags
	registry *cli.RegistryFlags
	log      *cli.LogFlags
	server   *ServerFlags
	dial     *DialFlags // nil: the program calls no other worker
	program  string     // of package access

	Instance           string        // name of this worker, unique in its groups and the same after a restart
	Sessions           int           // members of the group in this process; 0 means one per core
	CommitInterval     time.Duration // how long a transaction collects events
	TransactionTimeout time.Duration // timeout of the transactions
	SessionTimeout     time.Duration // of the group's members
	NoCreateTopics     bool          // fail on a missing topic instead of creating it
	NoRegister         bool          // fail on a missing schema instead of registering it
	AcceptLoss         bool          // continue although retention deleted events unread
	static             bool          // static membership in the group
	staticFlag         *pflag.Flag   // --static
	protocol           string        // a kafka.GroupProtocol
}

// DefaultTransactionTimeout is the default of --transaction-timeout.
const DefaultTransactionTimeout = 10 * time.Second

// AddFlags adds the flags of a long-running program. listen is the default of --listen.
func AddFlags(e *cli.Env, flags *pflag.FlagSet, program, listen string) *Flags {
	f := &Flags{Env: e, program: program}
	f.Kafka = e.KafkaFlags(flags, program)
	f.registry = e.RegistryFlags(flags)
	f.Topology = e.TopologyFlags(flags)
	f.log = e.LogFlags(flags)
	f.server = AddServerFlags(e, flags, listen, defaultConns)
	flags.StringVar(&f.Instance, "instance", "", "`name` of this worker, unique in the group and the same after a restart: a part of its transactional ids (default: the host's name)")
	flags.BoolVar(&f.static, "static", false, "be a static member of the group: the partitions of a worker that is killed wait for it, up to --session-timeout (default: if --instance is set)")
	f.staticFlag = flags.Lookup("static")
	flags.StringVar(&f.protocol, "group-protocol", string(kafka.ClassicProtocol), "`protocol` that assigns partitions: classic (by the members) or consumer (by the broker: KIP-848, Kafka 4.3 or newer)")
	flags.IntVar(&f.Sessions, "sessions", 0, "run `n` members of the group in this process (default: one for each core)")
	flags.DurationVar(&f.CommitInterval, "commit-interval", 100*time.Millisecond, "how long a transaction collects events")
	flags.DurationVar(&f.TransactionTimeout, "transaction-timeout", DefaultTransactionTimeout, "how long the partitions of a crashed worker wait, at most")
	flags.DurationVar(&f.SessionTimeout, "session-timeout", 45*time.Second, "how long the group waits for a silent worker")
	flags.BoolVar(&f.NoCreateTopics, "no-create-topics", false, "do not start a pipeline or projection without its topics, instead of creating them")
	flags.BoolVar(&f.NoRegister, "no-register", false, "do not start a pipeline or projection while the registry lacks a schema that it writes with, instead of registering it")
	flags.BoolVar(&f.AcceptLoss, "accept-loss", false, "continue if retention deleted events before they were read: log and record the gap instead of stopping")
	e.BindEnv(flags, "accept-loss", "instance", "static", "group-protocol", "sessions", "commit-interval", "transaction-timeout", "session-timeout", "no-create-topics", "no-register")
	return f
}

// OpenRegistry returns a client of the registry. It does not connect.
func (f *Flags) OpenRegistry() (*codec.Registry, error) {
	where, err := f.registry.Config()
	if err != nil {
		return nil, err
	}
	return cli.OpenRegistry(where)
}

// AddDialFlags adds the flags of a program that calls other workers.
func (f *Flags) AddDialFlags(flags *pflag.FlagSet) { f.dial = AddDialFlags(f.Env, flags) }

// AllowHost adds a name under which the HTTP server is called.
func (f *Flags) AllowHost(name string) { f.server.own = append(f.server.own, name) }

// Start reads the configuration, sets the garbage collector's target ([cli.Env.TuneGC]), and
// listens. It does not connect to Kafka or the registry. The caller must call
// [Worker.Close], also after Run.
func (f *Flags) Start() (*Worker, error) {
	log, err := f.log.Logger()
	if err != nil {
		return nil, err
	}
	f.Env.TuneGC()
	if f.staticFlag != nil && !f.staticFlag.Changed {
		f.static = f.Instance != "" // only a name that returns is worth waiting for
	}
	if f.Instance == "" {
		if f.Instance, err = os.Hostname(); err != nil {
			return nil, cli.Usagef("--instance: the host has no name to use as the default (%w)", err)
		}
	}
	w := &Worker{Flags: f, Metrics: NewRegistry(f.Env.Build), Log: log}
	if err := w.configure(f.Kafka, f.registry, w.Metrics); err != nil {
		return nil, err
	}
	if f.dial != nil {
		f.dial.files.TLS = f.dial.files.TLS || f.server.tls.Enabled() // the others are as this one
		if w.Dial, err = f.dial.Open(log); err != nil {
			return nil, err
		}
		if f.server.access != "" && !w.Dial.Named() {
			log.Warn("this worker has no token and no client certificate, so other workers with --auth-file refuse its questions: give it --token-file")
		}
	}
	if w.Server, err = server.New(f.server.Config(f.program, log, w.Metrics)); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w; each worker on a machine also needs its own --instance, and a projector its own --data-dir", err)
		}
		return nil, err
	}
	w.reportSchemas()
	w.SetNotReady("starting")
	return w, nil
}
