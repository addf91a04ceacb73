package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"millrace/pipeline/private"
)

// Main runs a program and returns its exit code. args are the arguments after the program's
// name. Main prints an error once, on Stderr, as "program: error".
//
// A command whose context a signal canceled returns nil if it had nothing left to do, as a
// worker that was stopped, or the context's error if it did not finish.
//
// The files of the program, and of its libraries, belong to its user only.
//
// Flags that are bound to environment variables ([Env.BindEnv]) have their values when RunE
// is called.
func (e *Env) Main(args []string, root func(*Env) *cobra.Command) int {
	if e.Umask != nil {
		e.Umask(private.Umask)
	}
	e.logs = &logs{}
	ctx, stop := e.untilSignal()
	defer stop()
	defer e.logs.flush()

	cmd := root(e)
	program := cmd.Name()
	e.addVersion(cmd)
	cmd.SetIn(e.Stdin)
	cmd.SetOut(e.Stdout)
	cmd.SetErr(e.Stderr)
	cmd.SetArgs(append([]string{}, args...)) // nil would mean the arguments of the process
	cmd.SilenceErrors = true
	cmd.SilenceUsage = true
	cmd.SetUsageTemplate(usageTemplate)
	cmd.SetHelpTemplate(helpTemplate)
	cmd.SetGlobalNormalizationFunc(normalizeFlag)
	cmd.SetFlagErrorFunc(flagError)

	running := false // the command line is valid, and the command runs
	e.prepare(cmd, &running)
	cmd, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}

	var stopped *signalError
	if errors.Is(err, context.Canceled) && errors.As(context.Cause(ctx), &stopped) {
		fmt.Fprintf(e.Stderr, "%s: %v\n", program, stopped)
		return stopped.exitCode()
	}
	var exit *ExitError
	if errors.As(err, &exit) && exit.Err == nil {
		return exit.Code
	}
	fmt.Fprintf(e.Stderr, "%s: %s\n", program, strings.TrimRight(err.Error(), "\n"))
	code := ExitCode(err)
	if !running && exit == nil {
		code = ExitUsage
	}
	if code == ExitUsage && exit == nil {
		fmt.Fprintf(e.Stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return code
}

// prepare gives a command and its subcommands the behavior that all commands share: it
// rejects unexpected arguments, rejects a group of commands without a subcommand, sets flags
// from the environment, and completes the names in a topology.
func (e *Env) prepare(cmd *cobra.Command, running *bool) {
	for _, sub := range cmd.Commands() {
		e.prepare(sub, running)
	}
	cmd.DisableAutoGenTag = true
	cmd.SuggestionsMinimumDistance = 2
	e.completeFlags(cmd)
	if !cmd.Runnable() {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(e.Stderr)
			if err := cmd.Help(); err != nil {
				return err
			}
			return &ExitError{Code: ExitUsage}
		}
	}
	check := cmd.Args
	if check == nil {
		check = noArgs
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return err
		}
		return e.fromEnv(cmd.Flags())
	}
	runE, run := cmd.RunE, cmd.Run
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		*running = true
		if runE == nil {
			run(cmd, args)
			return nil
		}
		return runE(cmd, args)
	}
}

// noArgs rejects all arguments. For a group of commands, the argument is an unknown command.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)
}

// A signalError is the cause of a context that a signal canceled.
type signalError struct{ signal os.Signal }

func (e *signalError) Error() string {
	if e.signal == os.Interrupt {
		return "interrupted"
	}
	return e.signal.String()
}

func (e *signalError) exitCode() int {
	if n, ok := e.signal.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return ExitFailure
}

// untilSignal returns a context that the first signal cancels, and a function that ends the
// goroutine that waits for signals.
func (e *Env) untilSignal() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	if e.Notify == nil {
		return ctx, func() { cancel(nil) }
	}
	signals, end := e.Notify()
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case s := <-signals:
			cancel(&signalError{s})
		case <-done:
			return
		}
		select {
		case <-signals:
			e.logs.flush()
			e.Exit(128 + int(syscall.SIGINT))
		case <-done:
		}
	})
	return ctx, func() {
		close(done)
		watch.Wait()
		end()
		cancel(nil)
	}
}
