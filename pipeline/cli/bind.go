package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"millrace/pipeline/kafka/auth"
	"millrace/pipeline/kafka/properties"
)

// envAnnotation is the annotation of a flag with the name of its environment variable.
const envAnnotation = "millrace/env"

// BindEnv lets flags take their values from environment variables when the command line
// does not have them, and adds the variables to their help. The name of a variable is
// MILLRACE_ and the flag's name: MILLRACE_DATA_DIR for --data-dir.
func (e *Env) BindEnv(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		f := flags.Lookup(name)
		if f == nil {
			panic("no flag " + name) // a mistake in the program, found by its first test
		}
		env := properties.EnvName(name)
		if f.Annotations == nil {
			f.Annotations = map[string][]string{}
		}
		f.Annotations[envAnnotation] = []string{env}
		f.Usage += " (env " + env + ")"
	}
}

// fromEnv sets the bound flags that the command line does not have. An empty variable is
// the same as one that is not set.
func (e *Env) fromEnv(flags *pflag.FlagSet) error {
	var faults []error
	flags.VisitAll(func(f *pflag.Flag) {
		env := f.Annotations[envAnnotation]
		if f.Changed || env == nil {
			return
		}
		value := e.Getenv(env[0])
		if value == "" {
			return
		}
		err := flags.Set(f.Name, value)
		var invalid *pflag.InvalidValueError
		if errors.As(err, &invalid) {
			err = valueError(invalid)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", env[0], err))
		}
	})
	return errors.Join(faults...)
}

// secret returns the value of an environment variable, or the content of the file whose
// name is in the variable with the suffix _FILE.
func (e *Env) secret(name string) (auth.Secret, error) {
	value, file := e.Getenv(name), e.Getenv(name+"_FILE")
	switch {
	case value != "" && file != "":
		return auth.Secret{}, fmt.Errorf("%s and %s_FILE are both set: set one", name, name)
	case file != "":
		data, err := os.ReadFile(file)
		if err != nil {
			return auth.Secret{}, fmt.Errorf("%s_FILE: %w", name, err)
		}
		return auth.NewSecret(strings.TrimRight(string(data), "\r\n")), nil
	}
	return auth.NewSecret(value), nil
}
