package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/seal"
)

// Flags are the flags that locate the key-encryption keys.
type Flags struct {
	env  *cli.Env
	file string

	within time.Duration // for tests: how long Unlock retries; 0 means unlockTime
}

// EnvKEK is the environment variable that may hold the keys themselves, instead of
// a file.
const EnvKEK = "MILLRACE_KEK"

// AddFlags adds --kek-file.
func AddFlags(e *cli.Env, flags *pflag.FlagSet) *Flags {
	f := &Flags{env: e}
	flags.StringVar(&f.file, "kek-file", "", "`file` of the key-encryption keys of a topology with encryption: one per line, an id and 32 bytes in base64, or what a KMS has wrapped, the newest last; or the same text in env "+EnvKEK)
	e.BindEnv(flags, "kek-file")
	return f
}

// Parse reads the key-encryption keys. It returns nil if none are given. Those that a KMS has
// wrapped are locked: see [Flags.Unlock].
func (f *Flags) Parse() (*seal.KEKs, error) {
	text := f.env.Getenv(EnvKEK)
	switch {
	case f.file != "" && text != "":
		return nil, cli.Usagef("--kek-file and %s are both given: give one", EnvKEK)
	case f.file != "":
		data, err := os.ReadFile(f.file)
		if err != nil {
			return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("--kek-file: %w", err)}
		}
		text = string(data)
	case text == "":
		return nil, nil
	}
	k, err := seal.ParseKEKs(text)
	if err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s: %w", f.source(), err)}
	}
	if locked := k.Locked(); len(locked) > 0 && f.env.KMS == nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s: line %d: %s: %w", f.source(), locked[0].Line, locked[0].ID, errNoKMS)}
	}
	return k, nil
}

var errNoKMS = errors.New("this program has no clients of key management services; programs.WithKMS adds them")

// source is where the keys are from.
func (f *Flags) source() string {
	if f.file != "" {
		return f.file
	}
	return EnvKEK
}

// Load reads the key-encryption keys and unlocks them. It returns nil if none are given.
func (f *Flags) Load(ctx context.Context, log *slog.Logger) (*seal.KEKs, error) {
	k, err := f.Parse()
	if err != nil || k == nil {
		return nil, err
	}
	return k, f.Unlock(ctx, k, log, func(string) {})
}
