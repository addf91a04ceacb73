// Package programs assembles the commands of Millrace's four programs from the packages
// that implement them.
//
// Start reading at [Main]: the binaries in cmd call it, and so does a program with stages
// written in Go, such as examples/go-stage. One file per program lists its commands. The
// package has no state.
package programs

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/producer"
	"millrace/pipeline/sandbox/demo"
	"millrace/pipeline/stage"
)

// root returns the root command of a program, nil if there is no program with the name.
func root(name string) func(*cli.Env) *cobra.Command {
	switch name {
	case "producer":
		return producer.Command
	case "processor":
		return Processor
	case "projector":
		return Projector
	case "sandbox":
		return demo.Command
	}
	return nil
}

// Main runs a program of Millrace (producer, processor, projector or sandbox) with the
// arguments of this process, and returns its exit code.
//
// kinds are the kinds of stages that a topology can use, by name. nil means
// [stage.Builtin]. A program with stages written in Go adds them to the built-in kinds, so
// that all commands know them.
func Main(name string, kinds map[string]stage.Kind) int {
	env := cli.NewEnv()
	env.Stages = kinds
	command := root(name)
	if command == nil {
		fmt.Fprintf(env.Stderr, "there is no program %q: choose producer, processor, projector or sandbox\n", name)
		return cli.ExitUsage
	}
	return env.Main(os.Args[1:], command)
}
