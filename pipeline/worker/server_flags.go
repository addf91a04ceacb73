package worker

import (
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
)

// ServerFlags are the flags of the HTTP server.
type ServerFlags struct {
	Env        *cli.Env
	Listen     string
	ListenFile string
	pprof      bool
}

// AddServerFlags adds --listen, --listen-file and --pprof.
func AddServerFlags(e *cli.Env, flags *pflag.FlagSet, listen string) *ServerFlags {
	f := &ServerFlags{Env: e}
	flags.StringVar(&f.Listen, "listen", listen, "`host:port` of the HTTP server for health, metrics and questions; port 0 takes a free one")
	flags.StringVar(&f.ListenFile, "listen-file", "", "write the address that the HTTP server got to a `file`")
	flags.BoolVar(&f.pprof, "pprof", false, "serve Go profiles at /debug/pprof/, which show much of the inside")
	e.BindEnv(flags, "listen", "listen-file", "pprof")
	return f
}
