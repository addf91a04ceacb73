package worker

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/server"
)

// ServerFlags are the flags of the HTTP server. A command that calls the server of another
// process sets Env and the fields itself, see [ServerFlags.DialAddress].
type ServerFlags struct {
	Env        *cli.Env
	Listen     string // host:port
	ListenFile string // path of the file with the server's address; "" means none
	probes     string
	tls        server.TLSFiles
	access     string
	insecure   bool
	hosts      []string // --allow-host
	own        []string // names that the program adds
	conns      int
	pprof      bool
}

// defaultConns is the default of --max-connections of workers: enough for all feeds and all
// requests that wait for an event, and for as many other callers.
const defaultConns = 1024

// AddServerFlags adds the flags of the HTTP server. listen and conns are the defaults of
// --listen and --max-connections.
func AddServerFlags(e *cli.Env, flags *pflag.FlagSet, listen string, conns int) *ServerFlags {
	f := &ServerFlags{Env: e}
	flags.StringVar(&f.Listen, "listen", listen, "`host:port` of the HTTP server for health, metrics and queries; port 0 selects a free port")
	flags.StringVar(&f.ListenFile, "listen-file", "", "write the address of the HTTP server to a `file`")
	flags.StringVar(&f.probes, "probe-listen", "", "`host:port` for health and metrics, without authentication; --listen then has neither")
	flags.StringVar(&f.access, "auth-file", "", "YAML `file` with the callers of the HTTP server and their roles; it is read again when it changes")
	flags.BoolVar(&f.insecure, "insecure-http", false, "without --auth-file, let everyone who reaches the HTTP server read and change everything")
	flags.StringVar(&f.tls.Certificate, "tls-cert", "", "PEM `file` with the certificate of the HTTP server, which then uses TLS; it is read again when it changes")
	flags.StringVar(&f.tls.Key, "tls-key", "", "PEM `file` with the key of --tls-cert")
	flags.StringVar(&f.tls.ClientCA, "tls-client-ca", "", "PEM `file` of authorities whose client certificates can name a caller of --auth-file")
	flags.StringSliceVar(&f.hosts, "allow-host", nil, "`name` under which browsers call the HTTP server, beside its address and the machine's name")
	flags.IntVar(&f.conns, "max-connections", conns, "most connections of the HTTP server; more replace those that wait the longest for their client")
	flags.BoolVar(&f.pprof, "pprof", false, "serve Go profiles, which reveal internals, at /debug/pprof/")
	e.BindEnv(flags, "listen", "listen-file", "probe-listen", "auth-file", "insecure-http", "tls-cert", "tls-key", "tls-client-ca", "allow-host", "max-connections", "pprof")
	return f
}

// Config returns the configuration of the server of a program. Its requests have no body.
func (f *ServerFlags) Config(program string, log *slog.Logger, metrics *prometheus.Registry) server.Config {
	return server.Config{
		Program: program, Listen: f.Listen, ListenFile: f.ListenFile, Probes: f.probes,
		TLS: f.tls, Access: f.access, Insecure: f.insecure, Hosts: f.hosts, Own: f.own, Conns: f.conns, MaxBody: func(*http.Request) int64 { return 0 },
		Pprof: f.pprof, Metrics: metrics, Build: f.Env.Build, Logger: log,
	}
}

// NewRegistry returns a registry with the metrics of the Go runtime, the process and the
// build.
func NewRegistry(b cli.Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "millrace_build_info",
		Help:        "Version, commit and Go version of the build in labels; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
	})
	info.Set(1)
	reg.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}
