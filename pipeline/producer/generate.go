package producer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/private"
	"millrace/pipeline/producer/shop"
)

func generateCommand(e *cli.Env) *cobra.Command {
	p := &producer{env: e}
	var f storyFlags
	var out string
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Send the events of an example shop",
		Long: `Sends the events of an example shop: users sign up, change their details, order,
pay, receive their orders, and some leave.

A seed always gives the same events, including their ids. Different seeds have
different users and orders.`,
		Example: `  producer generate --events 10000 --seed 7
  producer generate --events 0 --rate 50 --start now
  producer generate --events 100000 --out events.jsonl`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			story, err := f.story(e.Now())
			if err != nil {
				return err
			}
			lines := newStoryLines(story, f.rate, e.Now)
			defer lines.close()
			if out != "" {
				return p.write(cmd.Context(), out, lines)
			}
			return p.run(cmd.Context(), nil, func(context.Context) lineSource { return lines })
		},
	}
	p.addFlags(cmd, "")
	flags := cmd.Flags()
	flags.Uint64Var(&f.seed, "seed", 1, "`number` that determines the events")
	flags.IntVarP(&f.events, "events", "n", 10_000, "number of events; 0 means no end")
	flags.IntVar(&f.users, "users", 0, "maximum number of users that sign up (default: one event in ten is a sign-up)")
	flags.Float64Var(&f.rate, "rate", 0, "events per second; 0 means no limit")
	flags.StringVar(&f.start, "start", defaultStart, "`time` before the first event, or now; the events follow at one per second, or at --rate")
	flags.StringVar(&out, "out", "", "write the events as JSON lines to a `file` or - instead of sending them")
	return cmd
}

// storyLines is a source of the lines of a story. One goroutine owns it.
type storyLines struct {
	pull  func() (*shop.Event, bool)
	stop  func()
	rate  float64 // events per second; 0: no limit
	now   func() time.Time
	began time.Time
	count int // events so far
	batch lineBatch
}

// newStoryLines returns the lines of a story, at most rate per second unless rate is
// zero. Close it after use.
func newStoryLines(story shop.Story, rate float64, now func() time.Time) *storyLines {
	l := &storyLines{rate: rate, now: now, began: now()}
	l.pull, l.stop = iter.Pull(story.All())
	return l
}

func (l *storyLines) close() { l.stop() }

func (l *storyLines) next(ctx context.Context) (*lineBatch, error) {
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	const most = 512
	b := &l.batch
	b.reset("generated", l.count+1)
	for len(b.ends) < most && (len(b.ends) == 0 || l.due() <= 0) {
		event, ok := l.pull()
		if !ok {
			break
		}
		b.data = append(event.AppendJSON(b.data), '\n')
		b.ends = append(b.ends, len(b.data))
		l.count++
	}
	if len(b.ends) == 0 {
		return nil, io.EOF
	}
	return b, nil
}

// due returns the time until the next event is due, at most 0 if it is due now.
func (l *storyLines) due() time.Duration {
	if l.rate == 0 {
		return 0
	}
	return time.Duration(float64(l.count)/l.rate*float64(time.Second)) - l.now().Sub(l.began)
}

// wait returns when the next event is due, or with the context's error.
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

// storyFlags are the flags that select a story.
type storyFlags struct {
	seed   uint64
	events int
	users  int
	rate   float64
	start  string
}

// defaultStart is the default of --start: a fixed day, so a seed gives the same events
// on every day.
const defaultStart = "2026-01-01T00:00:00Z"

func (f *storyFlags) story(now time.Time) (shop.Story, error) {
	s := shop.Story{Seed: f.seed, Events: f.events, Users: f.users}
	switch {
	case f.events < 0:
		return s, cli.Usagef("--events: %d is negative; 0 means no end", f.events)
	case f.users < 0:
		return s, cli.Usagef("--users: %d is negative; 0 means one event in ten", f.users)
	case f.rate < 0 || f.rate > 1e9:
		return s, cli.Usagef("--rate: %v is not a number of events per second; 0 means no limit", f.rate)
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

// write writes a source to a file, or to stdout if the name is "-".
func (p *producer) write(ctx context.Context, name string, source lineSource) (err error) {
	if p.asJSON {
		return cli.Usagef("--json cannot be combined with --out: only a run that sends has a summary")
	}
	var w io.Writer = p.env.Stdout
	if name != "-" {
		f, failed := private.Create(name)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		w = f
	}
	n, err := writeLines(ctx, w, source)
	fmt.Fprintf(p.env.Stderr, "wrote %d events\n", n)
	if ctx.Err() != nil {
		return &cli.ExitError{Code: cli.ExitFailure, Err: errors.New("interrupted")}
	}
	return err
}

// writeLines writes all lines of a source, and returns their number.
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
