package worker

import (
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// RemoteFlags are the flags of commands that look, from outside, at what workers
// work with.
type RemoteFlags struct {
	env      *cli.Env
	kafka    *cli.KafkaFlags
	registry *cli.RegistryFlags
	Topology *cli.TopologyFlags
	log      *cli.LogFlags
}

func AddRemoteFlags(e *cli.Env, flags *pflag.FlagSet) *RemoteFlags {
	f := &RemoteFlags{env: e}
	f.kafka = e.KafkaFlags(flags, "processor")
	f.registry = e.RegistryFlags(flags)
	f.Topology = e.TopologyFlags(flags)
	f.log = e.LogFlags(flags)
	f.log.Level = "warn" // what they have to say, they print
	flags.Lookup("log-level").DefValue = f.log.Level
	return f
}

// Open reads the configuration as a worker does, and connects to nothing. What
// it returns creates no topics.
func (f *RemoteFlags) Open() (*Worker, error) {
	log, err := f.log.Logger()
	if err != nil {
		return nil, err
	}
	w := &Worker{Flags: &Flags{Env: f.env, Topology: f.Topology, NoCreate: true}, Metrics: prometheus.NewRegistry(), Log: log}
	if w.Topology, err = f.Topology.Load(f.env); err != nil {
		return nil, err
	}
	if w.Kafka, err = f.kafka.Config(log, nil); err != nil {
		return nil, err
	}
	where, err := f.registry.Config()
	if err != nil {
		return nil, err
	}
	if w.Registry, err = cli.OpenRegistry(where); err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	return w, nil
}

// Select returns the pipelines of these names, all if there are no names.
func (f *RemoteFlags) Select(w *Worker, names []string) ([]*topology.Pipeline, error) {
	return Select(w.Topology, f.Topology.File, names)
}

// Hostname returns what transactional ids are made of if nothing is said.
func Hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "0"
	}
	return name
}
