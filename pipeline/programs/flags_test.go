package programs_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
)

// eachCommand calls f with all commands of all programs.
func eachCommand(f func(*cobra.Command)) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		f(cmd)
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(binaries)) {
		walk(binaries[name](&cli.Env{}))
	}
}

// Help shows the first back-quoted word of a flag's usage as the type of its value. It must
// not be a value, or a word that happened to be quoted.
func TestHelpShowsTypesOfFlags(t *testing.T) {
	bad := []string{"many", "long", "where", "now", "text"}
	n := 0
	eachCommand(func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			n++
			word, _ := pflag.UnquoteUsage(f)
			if slices.Contains(bad, word) || word != "" && word == f.DefValue || strings.Contains(word, " ") {
				t.Errorf("%s: the type of --%s is %q", cmd.CommandPath(), f.Name, word)
			}
		})
	})
	if n < 100 {
		t.Errorf("only %d flags found", n)
	}
}

func TestTheCommandsOfAllProgramsComplete(t *testing.T) {
	completes := map[string]bool{}
	eachCommand(func(cmd *cobra.Command) { completes[cmd.CommandPath()] = cmd.ValidArgsFunction != nil })
	for _, path := range []string{
		"processor stages", "processor explain", "processor dry-run", "processor verify",
		"projector get", "projector list", "projector history", "projector why", "projector diff-versions", "projector watch", "projector blocked", "projector release",
		"projector rebuild", "projector diff", "projector promote", "projector rollback", "projector retire", "projector forget",
	} {
		if !completes[path] {
			t.Errorf("%s does not complete its arguments", path)
		}
	}
}
