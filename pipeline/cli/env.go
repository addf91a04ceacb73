// Package cli is what the commands of all programs share: the environment that a
// program runs in, its flags, exit codes, and text and JSON for people.
//
// Start at [Env.Main], which runs a program. An [Env] belongs to one run of a
// program; tests make their own.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/stage"
)

// Env is the world around a program. Tests make their own; what is nil there
// does not exist: no environment, no signals.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// LookupEnv finds an environment variable, as [os.LookupEnv].
	LookupEnv func(string) (string, bool)

	// Now is the clock.
	Now func() time.Time

	// Terminal says that Stderr is read by a person.
	Terminal bool

	// Notify returns the channel of requests to stop, and a function that ends
	// it. The first cancels the command's context; at the second the program
	// calls Exit at once.
	Notify func() (<-chan os.Signal, func())
	Exit   func(code int)

	// Build is what `version` shows.
	Build Build

	// Stages are the kinds of stages that a topology may use, by name; nil means
	// [stage.Builtin].
	Stages map[string]stage.Kind
}

// NewEnv returns the world of this process.
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
		Exit:  os.Exit, //nolint:forbidigo // this is where the process ends: everything else goes through Env
		Build: ReadBuild(),
	}
}

func IsTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// StageKinds returns the kinds of stages that a topology may use, by name.
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

// Main runs a program to its end and returns its exit code. args are those after
// the program's name. An error is printed once, on Stderr, as "program: error".
//
// A command whose context was cancelled by a signal returns nil if it had
// nothing left to do (a worker that was told to stop), or the context's error
// if it did not finish.
//
// Flags that were bound to environment variables ([Env.BindEnv]) have their
// values when RunE is called.
func (e *Env) Main(args []string, root func(*Env) *cobra.Command) int {
	ctx, stop := e.untilSignal()
	defer stop()

	cmd := root(e)
	program := cmd.Name()
	cmd.AddCommand(e.versionCommand())
	cmd.SetIn(e.Stdin)
	cmd.SetOut(e.Stdout)
	cmd.SetErr(e.Stderr)
	cmd.SetArgs(append([]string{}, args...)) // nil would mean the arguments of the process
	cmd.SilenceErrors = true
	cmd.SilenceUsage = true
	cmd.SetUsageTemplate(usageTemplate)
	cmd.SetHelpTemplate(helpTemplate)
	cmd.SetGlobalNormalizationFunc(normalizeFlag)

	running := false // whether the command line was understood
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

// prepare makes a command and those below it behave alike: arguments that
// nobody asked for are faults, and so is a group of commands without one of
// them; flags take their values from the environment.
func (e *Env) prepare(cmd *cobra.Command, running *bool) {
	for _, sub := range cmd.Commands() {
		e.prepare(sub, running)
	}
	cmd.DisableAutoGenTag = true
	cmd.SuggestionsMinimumDistance = 2
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

// signalError is why a context ended, if a signal was the cause.
type signalError struct{ os.Signal }

func (e *signalError) Error() string {
	if e.Signal == os.Interrupt {
		return "interrupted"
	}
	return e.String()
}

func (e *signalError) exitCode() int {
	if n, ok := e.Signal.(syscall.Signal); ok {
		return 128 + int(n)
	}
	return ExitFailure
}

// untilSignal returns a context that ends with the first signal. The function
// it returns ends the watch and waits for that.
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

// normalizeFlag knows the other names of flags.
func normalizeFlag(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	switch name {
	case "bootstrap-server", "bootstrap-servers":
		name = "brokers"
	}
	return pflag.NormalizedName(name)
}

// Help shows what to type first, then what it all means.
const (
	helpTemplate = `{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{.UsageString}}`

	usageTemplate = `{{if .HasExample}}Examples:
{{.Example | trimTrailingWhitespaces}}

{{end}}Usage:
{{- if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND [flags]{{else}}
  {{.UseLine}}{{end}}
{{- if .HasAvailableSubCommands}}

Commands:
{{- range .Commands}}{{if (or .IsAvailableCommand (eq .Name "help"))}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}
{{- if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
{{- if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
{{- if .HasAvailableSubCommands}}

'{{.CommandPath}} COMMAND --help' says more of a command.{{end}}
`
)

// version is set by the linker for a release:
//
//	go build -ldflags "-X millrace/pipeline/cli.version=v1.2.3"
var version string

// Build says which program this is.
type Build struct {
	Version  string `json:"version"`          // of the release, or "devel"
	Commit   string `json:"commit,omitempty"` // of the source, with "+dirty" if it had changes
	Time     string `json:"time,omitempty"`   // of the commit, RFC 3339
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// ReadBuild returns the Build of this binary.
func ReadBuild() Build {
	b := Build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if b.Version == "" {
		b.Version = strings.Trim(info.Main.Version, "()")
	}
	if b.Version == "" {
		b.Version = "devel"
	}
	setting := func(key string) string {
		i := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == key })
		if i < 0 {
			return ""
		}
		return info.Settings[i].Value
	}
	b.Commit = setting("vcs.revision")
	if b.Commit != "" && setting("vcs.modified") == "true" {
		b.Commit += "+dirty"
	}
	b.Time = setting("vcs.time")
	return b
}

func (e *Env) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show which build this is",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := e.Build
			if asJSON {
				enc := json.NewEncoder(e.Stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(b)
			}
			commit := b.Commit
			if len(commit) > 12 {
				commit = strings.TrimSpace(commit[:12] + strings.Repeat("+dirty", strings.Count(commit, "+dirty")))
			}
			_, err := fmt.Fprintln(e.Stdout, strings.Join(slices.DeleteFunc(
				[]string{cmd.Root().Name(), b.Version, commit, b.Go, b.Platform},
				func(s string) bool { return s == "" }), " "))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// Colors reports whether what is printed may be coloured: a person reads it,
// and has not asked for none (no-color.org).
func (e *Env) Colors() bool {
	f, ok := e.Stdout.(*os.File)
	return ok && IsTerminal(f) && e.Getenv("NO_COLOR") == "" && e.Getenv("TERM") != "dumb"
}
