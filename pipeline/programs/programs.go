// Package programs assembles the commands of Millrace's four programs from the packages
// that implement them.
//
// Start reading at [Main]: the binaries in cmd call it, and so does a program with stages
// written in Go, such as examples/go-stage. One file per program lists its commands. The
// package has no state.
package programs

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/producer"
	"millrace/pipeline/sandbox/demo"
	"millrace/pipeline/seal"
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

// An Option changes the environment of a program.
type Option func(*cli.Env)

// WithKMS gives a producer or projector the clients of key management services, which
// open opens. Package kms has them. They are no part of every program, because they are large.
func WithKMS(open func(ctx context.Context, uri string) (seal.KMS, error)) Option {
	return func(e *cli.Env) { e.KMS = open }
}

// Main runs a program of Millrace (producer, processor, projector or sandbox) with the
// arguments of this process, and returns its exit code.
//
// kinds are the kinds of stages that a topology can use, by name. nil means
// [stage.Builtin]. A program with stages written in Go adds them to the built-in kinds, so
// that all commands know them.
func Main(name string, kinds map[string]stage.Kind, options ...Option) int {
	env := cli.NewEnv()
	env.Stages = kinds
	for _, set := range options {
		set(env)
	}
	command := root(name)
	if command == nil {
		fmt.Fprintf(env.Stderr, "there is no program %q: choose producer, processor, projector or sandbox\n", name)
		return cli.ExitUsage
	}
	return env.Main(os.Args[1:], command)
}
