package cli

import (
	"log/slog"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/properties"
)

// KafkaFlags are the flags that configure Kafka clients.
type KafkaFlags struct {
	Brokers []string // of --brokers, as host:port; empty if the flag is not given

	env     *Env
	program string
	props   []string // of -X, as key=value
	file    string   // of --command-config
}

// KafkaFlags adds --brokers, -X and --command-config. program is the last part of the
// default client id.
func (e *Env) KafkaFlags(flags *pflag.FlagSet, program string) *KafkaFlags {
	f := &KafkaFlags{env: e, program: program}
	flags.StringSliceVarP(&f.Brokers, "brokers", "b", nil, "Kafka brokers as `host:port`, also --bootstrap-server (env MILLRACE_BROKERS; default "+properties.DefaultBroker+")")
	flags.StringArrayVarP(&f.props, "property", "X", nil, "Kafka client setting as `key=value`; list prints the available settings, dump prints the given ones and their sources")
	flags.StringVar(&f.file, "command-config", "", "read Kafka client settings from a property `file` of the Java client or librdkafka")
	e.BindEnv(flags, "command-config")
	return f
}

// Config returns the configuration from flags, environment and file. It logs the settings
// that it ignores. For -X list and -X dump it prints and returns an [ExitError] with
// ExitOK.
func (f *KafkaFlags) Config(log *slog.Logger, reg prometheus.Registerer) (kafka.Config, error) {
	if slices.Contains(f.props, "list") {
		if err := properties.ListProperties(f.env.Stdout); err != nil {
			return kafka.Config{}, err
		}
		return kafka.Config{}, &ExitError{Code: ExitOK}
	}
	settings, err := properties.Sources{
		File:      f.file,
		LookupEnv: f.env.LookupEnv,
		Flags:     slices.DeleteFunc(slices.Clone(f.props), func(p string) bool { return p == "dump" }),
		Brokers:   f.Brokers,
		ClientID:  "millrace-" + f.program + "/" + f.env.Build.Version,
	}.Load()
	if err != nil {
		return kafka.Config{}, &ExitError{ExitUsage, err}
	}
	if slices.Contains(f.props, "dump") {
		if err := settings.Dump(f.env.Stdout); err != nil {
			return kafka.Config{}, err
		}
		return kafka.Config{}, &ExitError{Code: ExitOK}
	}
	for _, w := range settings.Warnings {
		log.Warn(w)
	}
	cfg := settings.Config
	cfg.Version = f.env.Build.Version
	cfg.Logger = log
	cfg.Registerer = reg
	if err := cfg.Validate(); err != nil {
		return kafka.Config{}, &ExitError{ExitUsage, err}
	}
	return cfg, nil
}
