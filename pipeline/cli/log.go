package cli

import (
	"log/slog"
	"strings"

	"github.com/spf13/pflag"

	"millrace/pipeline/kafka"
)

// LogFlags are the flags that configure the log.
type LogFlags struct {
	Level string // the lowest level to log; a command can change the default after LogFlags

	env    *Env
	format string
}

// LogFlags adds --log-level and --log-format.
func (e *Env) LogFlags(flags *pflag.FlagSet) *LogFlags {
	f := &LogFlags{env: e}
	flags.StringVar(&f.Level, "log-level", "info", "lowest `level` to log: trace, debug, info, warn or error")
	flags.StringVar(&f.format, "log-format", "", "`format` of the log: text or json (default: text on a terminal, else json)")
	e.BindEnv(flags, "log-level", "log-format")
	return f
}

// Logger returns the configured logger. It writes to Stderr. Both formats write a
// [time.Duration] as text with its unit, such as 1.5s.
func (f *LogFlags) Logger() (*slog.Logger, error) {
	level, ok := map[string]slog.Level{
		"trace": kafka.LevelTrace,
		"debug": slog.LevelDebug,
		"info":  slog.LevelInfo,
		"warn":  slog.LevelWarn,
		"error": slog.LevelError,
	}[strings.ToLower(f.Level)]
	if !ok {
		return nil, Usagef("--log-level: %q is none of trace, debug, info, warn and error", f.Level)
	}
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: f.replaceAttr}
	switch {
	case f.format == "text", f.format == "" && f.env.Terminal:
		return slog.New(slog.NewTextHandler(f.env.Stderr, opts)), nil
	case f.format == "json", f.format == "":
		return slog.New(slog.NewJSONHandler(f.env.Stderr, opts)), nil
	}
	return nil, Usagef("--log-format: %q is neither text nor json", f.format)
}

func (f *LogFlags) replaceAttr(groups []string, a slog.Attr) slog.Attr {
	switch {
	case a.Value.Kind() == slog.KindDuration:
		a.Value = slog.StringValue(a.Value.Duration().String()) // JSON would have nanoseconds
	case len(groups) > 0:
	case a.Key == slog.TimeKey && f.env.Now != nil:
		a.Value = slog.TimeValue(f.env.Now())
	case a.Key == slog.LevelKey && a.Value.Any() == kafka.LevelTrace:
		a.Value = slog.StringValue("TRACE") // the default is DEBUG-4
	}
	return a
}
