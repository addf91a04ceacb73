package worker

import (
	"log/slog"
	"os"

	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/server/dial"
)

// DialFlags are the flags of programs and commands that call the HTTP servers of workers.
type DialFlags struct{ files dial.Files }

// envToken is the environment variable with a token, for shells.
const envToken = "MILLRACE_TOKEN"

// AddDialFlags adds the flags.
func AddDialFlags(e *cli.Env, flags *pflag.FlagSet) *DialFlags {
	f := &DialFlags{}
	flags.StringVar(&f.files.Token, "token-file", "", "`file` with the token for calls to workers, in one line; or the token in env "+envToken)
	flags.BoolVar(&f.files.TLS, "https", false, "call workers with TLS (default: if one of the following flags, or --tls-cert, is set)")
	flags.StringVar(&f.files.CA, "server-ca", "", "PEM `file` of authorities to trust at workers instead of the system's")
	flags.StringVar(&f.files.Certificate, "client-cert", "", "PEM `file` with the client certificate for calls to workers")
	flags.StringVar(&f.files.Key, "client-key", "", "PEM `file` with the key of --client-cert")
	e.BindEnv(flags, "token-file", "https", "server-ca", "client-cert", "client-key")
	return f
}

// Open reads the files.
func (f *DialFlags) Open(log *slog.Logger) (*dial.Caller, error) {
	files := f.files
	if files.Token == "" {
		files.TokenText = os.Getenv(envToken)
	}
	c, err := dial.Open(log, files)
	if err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	return c, nil
}
