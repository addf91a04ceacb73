package cli

import (
	"log/slog"
	"strings"
	"sync"

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

// Logger returns the configured logger. It writes to Stderr, and samples floods of equal lines. Both formats write a
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
	var handler slog.Handler
	switch {
	case f.format == "text", f.format == "" && f.env.Terminal:
		handler = slog.NewTextHandler(f.env.Stderr, opts)
	case f.format == "json", f.format == "":
		handler = slog.NewJSONHandler(f.env.Stderr, opts)
	default:
		return nil, Usagef("--log-format: %q is neither text nor json", f.format)
	}
	log := slog.New(newSampler(handler))
	if f.env.logs != nil {
		f.env.logs.add(log)
	}
	return log, nil
}

// logs are loggers that are flushed at the end of a program.
type logs struct {
	mu  sync.Mutex // guards all
	all []*slog.Logger
}

func (l *logs) add(log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, log)
}

func (l *logs) flush() {
	l.mu.Lock()
	all := l.all
	l.mu.Unlock()
	for _, log := range all {
		FlushLog(log)
	}
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
