package keyring

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/seal"
)

// Flags are the flags that locate the key-encryption keys.
type Flags struct {
	env  *cli.Env
	file string
}

// EnvKEK is the environment variable that may hold the keys themselves, instead of
// a file.
const EnvKEK = "MILLRACE_KEK"

// AddFlags adds --kek-file.
func AddFlags(e *cli.Env, flags *pflag.FlagSet) *Flags {
	f := &Flags{env: e}
	flags.StringVar(&f.file, "kek-file", "", "`file` of the key-encryption keys of a topology with encryption: one per line, an id and 32 bytes in base64, the newest last; or the same text in env "+EnvKEK)
	e.BindEnv(flags, "kek-file")
	return f
}

// Load reads the key-encryption keys. It returns nil if none are given.
func (f *Flags) Load() (*seal.KEKs, error) {
	text, name := f.env.Getenv(EnvKEK), EnvKEK
	switch {
	case f.file != "" && text != "":
		return nil, cli.Usagef("--kek-file and %s are both given: give one", EnvKEK)
	case f.file != "":
		data, err := os.ReadFile(f.file)
		if err != nil {
			return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("--kek-file: %w", err)}
		}
		text, name = string(data), f.file
	case text == "":
		return nil, nil
	}
	k, err := seal.ParseKEKs(text)
	if err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s: %w", name, err)}
	}
	return k, nil
}
