package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"millrace/pipeline/kafka"
	"millrace/schemas"
)

const envAnnotation = "millrace/env"

// BindEnv lets a flag take its value from an environment variable when it is not
// given on the command line, and says so in its help. The variable is
// MILLRACE_ and the flag's name: MILLRACE_DATA_DIR for --data-dir.
func (e *Env) BindEnv(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		f := flags.Lookup(name)
		if f == nil {
			panic("no flag " + name) // a mistake in the program, found by its first test
		}
		env := kafka.EnvName(name)
		if f.Annotations == nil {
			f.Annotations = map[string][]string{}
		}
		f.Annotations[envAnnotation] = []string{env}
		f.Usage += " (env " + env + ")"
	}
}

// fromEnv sets the flags that were bound and not given. A variable that is set
// to nothing counts as not set.
func (e *Env) fromEnv(flags *pflag.FlagSet) error {
	var faults []error
	flags.VisitAll(func(f *pflag.Flag) {
		env := f.Annotations[envAnnotation]
		if f.Changed || env == nil {
			return
		}
		if value := e.Getenv(env[0]); value != "" {
			if err := flags.Set(f.Name, value); err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", env[0], err))
			}
		}
	})
	return errors.Join(faults...)
}

// secret returns the value of an environment variable, or of the file that the
// variable of that name with _FILE names.
func (e *Env) secret(name string) (kafka.Secret, error) {
	value, file := e.Getenv(name), e.Getenv(name+"_FILE")
	switch {
	case value != "" && file != "":
		return kafka.Secret{}, fmt.Errorf("%s and %s_FILE are both set: set one", name, name)
	case file != "":
		data, err := os.ReadFile(file)
		if err != nil {
			return kafka.Secret{}, fmt.Errorf("%s_FILE: %w", name, err)
		}
		return kafka.NewSecret(strings.TrimRight(string(data), "\r\n")), nil
	}
	return kafka.NewSecret(value), nil
}

// KafkaFlags are the flags that say how to reach Kafka.
type KafkaFlags struct {
	env     *Env
	program string
	Brokers []string
	props   []string
	file    string
}

// KafkaFlags adds --brokers, -X and --command-config. program is the last part
// of the default client id.
func (e *Env) KafkaFlags(flags *pflag.FlagSet, program string) *KafkaFlags {
	f := &KafkaFlags{env: e, program: program}
	flags.StringSliceVarP(&f.Brokers, "brokers", "b", nil, "Kafka brokers as `host:port`, also --bootstrap-server (env MILLRACE_BROKERS; default "+kafka.DefaultBroker+")")
	flags.StringArrayVarP(&f.props, "property", "X", nil, "Kafka client setting as `key=value`; list shows those there are, dump what is set and where")
	flags.StringVar(&f.file, "command-config", "", "Kafka client settings from a property `file`, of the Java client or librdkafka")
	e.BindEnv(flags, "command-config")
	return f
}

// Config returns the configuration that flags, environment and file give. What
// they have that is ignored is logged. For -X list and -X dump it prints and
// returns an [ExitError] with ExitOK.
func (f *KafkaFlags) Config(log *slog.Logger, reg prometheus.Registerer) (kafka.Config, error) {
	if slices.Contains(f.props, "list") {
		if err := kafka.ListProperties(f.env.Stdout); err != nil {
			return kafka.Config{}, err
		}
		return kafka.Config{}, &ExitError{Code: ExitOK}
	}
	settings, err := kafka.Sources{
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

// DefaultRegistry is where the schema registry is looked for if nothing else is
// said.
const DefaultRegistry = "http://127.0.0.1:8085"

// RegistryFlags are the flags that say how to reach the schema registry.
type RegistryFlags struct {
	env    *Env
	urls   []string
	caFile string
}

// RegistryFlags adds --registry and --registry-ca. User, password and token come
// from the environment alone.
func (e *Env) RegistryFlags(flags *pflag.FlagSet) *RegistryFlags {
	f := &RegistryFlags{env: e}
	flags.StringSliceVarP(&f.urls, "registry", "r", []string{DefaultRegistry}, "schema registry `URL`, or several of one cluster; "+
		"credentials from env MILLRACE_REGISTRY_USER and _PASSWORD, or _TOKEN (or _PASSWORD_FILE, _TOKEN_FILE)")
	flags.StringVar(&f.caFile, "registry-ca", "", "PEM `file` of authorities to trust at the registry instead of the system's")
	e.BindEnv(flags, "registry", "registry-ca")
	return f
}

// Registry says how to reach the schema registry: by user and password, by
// token, or by neither.
type Registry struct {
	URLs     []string
	User     string
	Password kafka.Secret
	Token    kafka.Secret
	TLS      *tls.Config // nil: as the system has it
}

// Config returns what the flags and the environment say.
func (f *RegistryFlags) Config() (Registry, error) {
	r := Registry{User: f.env.Getenv("MILLRACE_REGISTRY_USER")}
	var faults []error
	for _, raw := range f.urls {
		u, err := url.Parse(raw)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			faults = append(faults, errors.New("--registry: want a URL such as "+DefaultRegistry))
		case u.User != nil:
			faults = append(faults, errors.New("--registry: a URL with a user in it can be seen by others; use MILLRACE_REGISTRY_USER and MILLRACE_REGISTRY_PASSWORD"))
		default:
			r.URLs = append(r.URLs, strings.TrimRight(raw, "/"))
		}
	}
	var err error
	if r.Password, err = f.env.secret("MILLRACE_REGISTRY_PASSWORD"); err != nil {
		faults = append(faults, err)
	}
	if r.Token, err = f.env.secret("MILLRACE_REGISTRY_TOKEN"); err != nil {
		faults = append(faults, err)
	}
	switch {
	case !r.Token.IsZero() && (r.User != "" || !r.Password.IsZero()):
		faults = append(faults, errors.New("MILLRACE_REGISTRY_TOKEN and MILLRACE_REGISTRY_USER or _PASSWORD are both set: set one"))
	case r.User == "" && !r.Password.IsZero():
		faults = append(faults, errors.New("MILLRACE_REGISTRY_PASSWORD needs MILLRACE_REGISTRY_USER"))
	}
	if f.caFile != "" {
		if r.TLS, err = (kafka.TLS{Enabled: true, CAFile: f.caFile}).Config(); err != nil {
			faults = append(faults, fmt.Errorf("--registry-ca: %w", err))
		}
	}
	if len(faults) > 0 {
		return Registry{}, &ExitError{ExitUsage, errors.Join(faults...)}
	}
	return r, nil
}

// TopologyFlags are the flags that name the topology and its schemas.
type TopologyFlags struct {
	File      string
	SchemaDir string
}

// TopologyFlags adds --topology and --schemas.
func (e *Env) TopologyFlags(flags *pflag.FlagSet) *TopologyFlags {
	f := &TopologyFlags{}
	flags.StringVarP(&f.File, "topology", "t", "topology.yaml", "topology `file`")
	flags.StringVar(&f.SchemaDir, "schemas", "", "`directory` of .avsc files (default: schemas beside the topology, else those shipped in the program)")
	e.BindEnv(flags, "topology", "schemas")
	return f
}

// Schemas returns the .avsc files, and where they are for people to read.
func (f *TopologyFlags) Schemas() (files fs.FS, from string, err error) {
	dir := f.SchemaDir
	if dir == "" {
		dir = filepath.Join(filepath.Dir(f.File), "schemas")
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return schemas.FS, "the schemas shipped in the program", nil
		}
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return nil, "", &ExitError{ExitUsage, fmt.Errorf("--schemas: %w", err)}
	case !info.IsDir():
		return nil, "", &ExitError{ExitUsage, fmt.Errorf("--schemas: %s is not a directory", dir)}
	}
	return os.DirFS(dir), dir, nil
}

// LogFlags are the flags that say what is logged, and how.
type LogFlags struct {
	env           *Env
	Level, format string
}

// LogFlags adds --log-level and --log-format.
func (e *Env) LogFlags(flags *pflag.FlagSet) *LogFlags {
	f := &LogFlags{env: e}
	flags.StringVar(&f.Level, "log-level", "info", "least `level` to log: trace, debug, info, warn or error")
	flags.StringVar(&f.format, "log-format", "", "log as `text` or json (default: text on a terminal, else json)")
	e.BindEnv(flags, "log-level", "log-format")
	return f
}
