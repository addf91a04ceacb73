package cli

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Equal lines are printed sampleFirst times in an interval. The others are counted.
const (
	sampleFirst    = 10
	sampleInterval = time.Minute
	maxSampled     = 10_000 // different lines in an interval; later ones are not sampled
)

// placeAttrs are the attributes in which equal lines agree. Others, such as an offset or an
// error, are different in each line of a flood.
var placeAttrs = []string{
	"topic", "stage", "pipeline", "projection", "version", "table", "part", "group", "type", "reason", "schema", "method", "path", "dir", "address",
}

// A sampler is a [slog.Handler] that leaves out lines of a flood: of lines with equal level,
// message and place, only the first ones in an interval are printed. At its end, the last
// one that was left out is printed, too, with the number of those that were not as
// left_out. Lines below info are all printed.
type sampler struct {
	next  slog.Handler
	place string // of the attributes of WithAttrs
	flood *flood
}

// flood is the state that all handlers of a log share.
type flood struct {
	mu    sync.Mutex // guards the fields below
	lines map[string]*sampled
	timer *time.Timer    // ends the interval; nil before its first line
	ended bool           // nothing is left out any more
	print sync.WaitGroup // endings of intervals that print
}

// sampled counts equal lines in an interval.
type sampled struct {
	count  int         // all lines
	last   slog.Record // the last one that was left out
	to     slog.Handler
	serial int // order of the first lines
}

func newSampler(next slog.Handler) *sampler {
	return &sampler{next: next, flood: &flood{lines: map[string]*sampled{}}}
}

func (s *sampler) Enabled(ctx context.Context, level slog.Level) bool {
	return s.next.Enabled(ctx, level)
}

func (s *sampler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sampler{s.next.WithAttrs(attrs), s.place + place(slices.Values(attrs)), s.flood}
}

func (s *sampler) WithGroup(name string) slog.Handler {
	return &sampler{s.next.WithGroup(name), s.place + "\x00" + name + ".", s.flood}
}

func (s *sampler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo && s.leaveOut(r) {
		return nil
	}
	return s.next.Handle(ctx, r)
}

// leaveOut counts a line and reports whether it is left out.
func (s *sampler) leaveOut(r slog.Record) bool {
	key := r.Level.String() + "\x00" + r.Message + s.place + place(r.Attrs)
	f := s.flood
	f.mu.Lock()
	defer f.mu.Unlock()
	line := f.lines[key]
	switch {
	case f.ended || line == nil && len(f.lines) >= maxSampled:
		return false
	case line == nil:
		line = &sampled{serial: len(f.lines)}
		f.lines[key] = line
		if f.timer == nil {
			f.timer = time.AfterFunc(sampleInterval, func() { f.endInterval(false) })
		}
	}
	if line.count++; line.count <= sampleFirst {
		return false
	}
	line.last, line.to = r.Clone(), s.next
	return true
}

// endInterval prints what was left out. After the last call nothing is left out.
func (f *flood) endInterval(last bool) {
	f.mu.Lock()
	if f.ended {
		f.mu.Unlock()
		return
	}
	if f.timer != nil {
		f.timer.Stop()
	}
	lines := f.lines
	f.lines, f.timer, f.ended = map[string]*sampled{}, nil, last
	f.print.Add(1)
	f.mu.Unlock()
	for _, line := range slices.SortedFunc(maps.Values(lines), func(a, b *sampled) int { return a.serial - b.serial }) {
		left := line.count - sampleFirst
		if left <= 0 {
			continue
		}
		line.last.Add("left_out", left-1)
		_ = line.to.Handle(context.Background(), line.last) // as slog does: the log has nowhere to report an error
	}
	f.print.Done()
}

// place returns the attributes in which equal lines agree, as a part of a key.
func place(attrs func(func(slog.Attr) bool)) string {
	var b strings.Builder
	attrs(func(a slog.Attr) bool {
		if slices.Contains(placeAttrs, a.Key) {
			b.WriteString("\x00" + a.Key + "=" + a.Value.String())
		}
		return true
	})
	return b.String()
}

// FlushLog prints how many equal lines were left out so far, and leaves out none from now
// on. A program that ends without returning from [Env.Main] calls it before.
func FlushLog(log *slog.Logger) {
	if s, ok := log.Handler().(*sampler); ok {
		s.flood.endInterval(true)
		s.flood.print.Wait() // an interval may have ended meanwhile
	}
}
