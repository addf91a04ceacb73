package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/expr"
)

// flagError replaces an error of the flag parser by one that suggests the nearest flag, or
// that describes the expected value.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var noValue *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		if unknown.GetSpecifiedShortnames() != "" {
			return fmt.Errorf("unknown flag -%s", unknown.GetSpecifiedName())
		}
		return fmt.Errorf("unknown flag --%s%s", unknown.GetSpecifiedName(), flagHint(cmd, unknown.GetSpecifiedName()))
	case errors.As(err, &noValue):
		kind, _ := pflag.UnquoteUsage(noValue.GetFlag())
		return fmt.Errorf("--%s needs a value: --%[1]s %s", noValue.GetFlag().Name, kind)
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s: %w", invalid.GetFlag().Name, valueError(invalid))
	}
	return err
}

// flagHint suggests the flag of the command whose name is nearest, "" if none is near.
func flagHint(cmd *cobra.Command, name string) string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, "--"+f.Name)
		}
	})
	near := expr.Suggest("--"+name, names)
	if near == "" {
		return ""
	}
	return "; " + strings.ReplaceAll(near, `"`, "")
}

// valueError describes the value that a flag expects.
func valueError(err *pflag.InvalidValueError) error {
	want := ""
	switch err.GetFlag().Value.Type() {
	case "int", "int32", "int64":
		want = "a whole number such as 10"
	case "uint", "uint32", "uint64":
		want = "a whole number that is not negative, such as 10"
	case "float64":
		want = "a number such as 2.5"
	case "duration":
		want = "a duration with a unit, such as 500ms, 30s or 1h30m"
	case "bool":
		want = "true or false"
	default:
		return fmt.Errorf("%q: %w", err.GetValue(), errors.Unwrap(err))
	}
	if errors.Is(err, strconv.ErrRange) {
		return fmt.Errorf("%s is too large or too small", err.GetValue())
	}
	return fmt.Errorf("%q is not %s", err.GetValue(), want)
}
