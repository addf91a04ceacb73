package worker

import (
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// RemoteFlags are the flags of commands that inspect, from outside, the topics and groups of
// workers.
type RemoteFlags struct {
	Topology *cli.TopologyFlags

	env      *cli.Env
	kafka    *cli.KafkaFlags
	registry *cli.RegistryFlags
	log      *cli.LogFlags
	dial     *DialFlags // nil: the command calls no worker
}

// AddRemoteFlags adds the flags. The default of --log-level is warn, because these commands
// print their results.
func AddRemoteFlags(e *cli.Env, flags *pflag.FlagSet) *RemoteFlags {
	f := &RemoteFlags{env: e}
	f.kafka = e.KafkaFlags(flags, "processor")
	f.registry = e.RegistryFlags(flags)
	f.Topology = e.TopologyFlags(flags)
	f.log = e.LogFlags(flags)
	f.log.Level = "warn"
	flags.Lookup("log-level").DefValue = f.log.Level
	return f
}

// AddDialFlags adds the flags of a command that calls workers.
func (f *RemoteFlags) AddDialFlags(flags *pflag.FlagSet) { f.dial = AddDialFlags(f.env, flags) }

// Open reads the configuration as a worker does, and does not connect. The worker creates
// no topics and has no HTTP server.
func (f *RemoteFlags) Open() (*Worker, error) {
	log, err := f.log.Logger()
	if err != nil {
		return nil, err
	}
	w := &Worker{Flags: &Flags{Env: f.env, Topology: f.Topology, NoCreateTopics: true}, Metrics: prometheus.NewRegistry(), Log: log}
	if err := w.configure(f.kafka, f.registry, nil); err != nil {
		return nil, err
	}
	if f.dial != nil {
		if w.Dial, err = f.dial.Open(log); err != nil {
			return nil, err
		}
	}
	w.Kafka.Patience = kafka.CommandPatience
	return w, nil
}

// Select returns the pipelines with these names, or all pipelines if there are no names.
func (f *RemoteFlags) Select(w *Worker, names []string) ([]*topology.Pipeline, error) {
	return SelectPipelines(w.Topology, f.Topology.File, names)
}

// DefaultInstance returns the default of --instance: the host's name, or 0 if the host has none.
func DefaultInstance() string {
	name, err := os.Hostname()
	if err != nil {
		return "0"
	}
	return name
}
