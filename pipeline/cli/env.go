// Package cli holds the parts that the commands of all programs share: the environment of
// a program, its common flags, exit codes, shell completion, and text and JSON output.
//
// Start reading at [Env.Main], which runs a program. An [Env] belongs to one run of a
// program, and tests make their own. Apart from the goroutine that waits for signals, the
// package starts no goroutines, and nothing in it is safe for concurrent use unless its
// documentation allows that.
package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"millrace/pipeline/seal"
	"millrace/pipeline/stage"
)

// Env holds everything outside of a program that the program uses. Tests make their own. A
// nil field means that the thing does not exist: no environment variables, no signals.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// LookupEnv returns an environment variable, as [os.LookupEnv] does.
	LookupEnv func(string) (string, bool)

	// Now is the clock.
	Now func() time.Time

	// Terminal reports that Stderr is a terminal.
	Terminal bool

	// Notify returns the channel of stop signals, and a function that ends the
	// subscription. The first signal cancels the command's context. At the second one the
	// program calls Exit immediately.
	Notify func() (<-chan os.Signal, func())
	Exit   func(code int)

	// SetGCPercent sets the target of the garbage collector, as [debug.SetGCPercent] does.
	SetGCPercent func(percent int) int

	// Umask sets the mode bits that new files do not get, as [syscall.Umask] does.
	Umask func(mask int) int

	// Build is the output of the command version.
	Build Build

	// Stages are the available kinds of stages, by name. nil means [stage.Builtin].
	Stages map[string]stage.Kind

	// KMS opens a key of a key management service. nil means that the program has no clients
	// of such services.
	KMS func(ctx context.Context, uri string) (seal.KMS, error)

	logs *logs // the loggers of this run; nil outside of [Env.Main]
}

// NewEnv returns the environment of this process.
func NewEnv() *Env {
	return &Env{
		Stdin:     os.Stdin,
		Stdout:    os.Stdout,
		Stderr:    os.Stderr,
		LookupEnv: os.LookupEnv,
		Now:       time.Now,
		Terminal:  IsTerminal(os.Stderr),
		Notify: func() (<-chan os.Signal, func()) {
			c := make(chan os.Signal, 2)
			signal.Notify(c, os.Interrupt, syscall.SIGTERM)
			return c, func() { signal.Stop(c) }
		},
		Exit:         os.Exit, //nolint:forbidigo // this is where the process ends: everything else goes through Env
		SetGCPercent: debug.SetGCPercent,
		Umask:        umask,
		Build:        ReadBuild(),
	}
}

// StageKinds returns the available kinds of stages, by name.
func (e *Env) StageKinds() map[string]stage.Kind {
	if e.Stages == nil {
		return stage.Builtin()
	}
	return e.Stages
}

// Getenv returns an environment variable, "" if it is not set.
func (e *Env) Getenv(name string) string {
	if e.LookupEnv == nil {
		return ""
	}
	v, _ := e.LookupEnv(name)
	return v
}

// gcPercent is the default of GOGC in long-running programs. Compared with Go's own default
// of 100, the heap grows larger between collections, and the collector takes less CPU time.
const gcPercent = 300

// TuneGC sets GOGC to 300 in a long-running program, unless the environment has GOGC.
// GOMEMLIMIT bounds the heap in both cases.
func (e *Env) TuneGC() {
	if e.SetGCPercent == nil || e.Getenv("GOGC") != "" {
		return
	}
	e.SetGCPercent(gcPercent)
}
