package worker

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
)

// ServerFlags are the flags of the HTTP server. A command that calls the server of another
// process sets Env and the fields itself, see [ServerFlags.DialAddress].
type ServerFlags struct {
	Env        *cli.Env
	Listen     string // host:port
	ListenFile string // path of the file with the server's address; "" means none
	pprof      bool
}

// AddServerFlags adds --listen, --listen-file and --pprof. listen is the default of
// --listen.
func AddServerFlags(e *cli.Env, flags *pflag.FlagSet, listen string) *ServerFlags {
	f := &ServerFlags{Env: e}
	flags.StringVar(&f.Listen, "listen", listen, "`host:port` of the HTTP server for health, metrics and queries; port 0 selects a free port")
	flags.StringVar(&f.ListenFile, "listen-file", "", "write the address of the HTTP server to a `file`")
	flags.BoolVar(&f.pprof, "pprof", false, "serve Go profiles, which reveal internals, at /debug/pprof/")
	e.BindEnv(flags, "listen", "listen-file", "pprof")
	return f
}

// Config returns the server's configuration.
func (f *ServerFlags) Config(log *slog.Logger, gatherer prometheus.Gatherer) ServerConfig {
	return ServerConfig{
		Listen: f.Listen, ListenFile: f.ListenFile, Pprof: f.pprof,
		Gatherer: gatherer, Build: f.Env.Build, Logger: log,
	}
}
