package keyring

import (
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
)

// Flags are the flags that say where the key-encryption keys are.
type Flags struct {
	env  *cli.Env
	file string
}

// EnvKEK holds the keys themselves, where a file is not wanted.
const EnvKEK = "MILLRACE_KEK"

// AddFlags adds --kek-file.
func AddFlags(e *cli.Env, flags *pflag.FlagSet) *Flags {
	f := &Flags{env: e}
	flags.StringVar(&f.file, "kek-file", "", "`file` of the key-encryption keys of a topology with encryption: an id and 32 bytes in base64 on a line, the newest last; or all of that in env "+EnvKEK)
	e.BindEnv(flags, "kek-file")
	return f
}
