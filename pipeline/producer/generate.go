package producer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/producer/shop"
)

// storyLines is a story as a source of lines.
type storyLines struct {
	pull  func() (*shop.Event, bool)
	stop  func()
	rate  float64 // events per second; 0: as fast as they are taken
	now   func() time.Time
	began time.Time
	told  int
	batch lineBatch
}

// tellStory returns the lines of a story, at most rate per second if that is not
// zero. Close it after use.
func tellStory(story shop.Story, rate float64, now func() time.Time) *storyLines {
	l := &storyLines{rate: rate, now: now, began: now()}
	l.pull, l.stop = iter.Pull(story.Tell())
	return l
}

func (l *storyLines) close() { l.stop() }

func (l *storyLines) next(ctx context.Context) (*lineBatch, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	const most = 512
	b := &l.batch
	b.reset("generated", l.told+1)
	for len(b.ends) < most && (len(b.ends) == 0 || l.due() <= 0) {
		event, ok := l.pull()
		if !ok {
			break
		}
		b.data = append(event.AppendJSON(b.data), '\n')
		b.ends = append(b.ends, len(b.data))
		l.told++
	}
	if len(b.ends) == 0 {
		return nil, io.EOF
	}
	return b, nil
}

// due returns how long it is until the next event is due.
func (l *storyLines) due() time.Duration {
	if l.rate == 0 {
		return 0
	}
	return time.Duration(float64(l.told)/l.rate*float64(time.Second)) - l.now().Sub(l.began)
}

func (l *storyLines) wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	due := l.due()
	if due <= 0 {
		return nil
	}
	timer := time.NewTimer(due)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// storyFlags are the flags that choose a story.
type storyFlags struct {
	seed   uint64
	events int
	users  int
	rate   float64
	start  string
}

// defaultStart is when a story begins if nothing else is said: a fixed day, so
// that a seed gives the same events on every day.
const defaultStart = "2026-01-01T00:00:00Z"

func (f *storyFlags) story(now time.Time) (shop.Story, error) {
	s := shop.Story{Seed: f.seed, Events: f.events, Users: f.users}
	switch {
	case f.events < 0:
		return s, cli.Usagef("--events: %d is less than nothing; 0 means no end", f.events)
	case f.users < 0:
		return s, cli.Usagef("--users: %d is less than nothing; 0 means as many as fit", f.users)
	case f.rate < 0 || f.rate > 1e9:
		return s, cli.Usagef("--rate: %v is not a number of events per second; 0 means as fast as can be", f.rate)
	}
	if f.rate > 0 {
		s.Gap = time.Duration(float64(time.Second) / f.rate)
	}
	if f.start == "now" {
		s.Start = now
		return s, nil
	}
	var err error
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if s.Start, err = time.Parse(layout, f.start); err == nil && s.Start.Unix() >= 0 {
			return s, nil
		}
	}
	return s, cli.Usagef("--start: %q is neither now nor a time since 1970 such as %s", f.start, defaultStart)
}

// writeLines writes a source to the end, and returns how many lines it had.
func writeLines(ctx context.Context, w io.Writer, source lineSource) (int, error) {
	n := 0
	for {
		b, err := source.next(ctx)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if _, err := w.Write(b.data); err != nil {
			return n, fmt.Errorf("writing events: %w", err)
		}
		n += len(b.ends)
	}
}
