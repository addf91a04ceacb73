package cli

import (
	"log/slog"
	"strings"

	"millrace/pipeline/kafka"
)

// Logger returns the logger that the flags ask for. It writes to Stderr.
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
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case a.Key == slog.TimeKey && f.env.Now != nil:
			a.Value = slog.TimeValue(f.env.Now())
		case a.Key == slog.LevelKey && a.Value.Any() == kafka.LevelTrace:
			a.Value = slog.StringValue("TRACE") // else it is DEBUG-4
		}
		return a
	}}
	switch {
	case f.format == "text", f.format == "" && f.env.Terminal:
		return slog.New(slog.NewTextHandler(f.env.Stderr, opts)), nil
	case f.format == "json", f.format == "":
		return slog.New(slog.NewJSONHandler(f.env.Stderr, opts)), nil
	}
	return nil, Usagef("--log-format: %q is neither text nor json", f.format)
}
