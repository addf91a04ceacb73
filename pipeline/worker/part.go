package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
)

// A Part is one of the loops of a worker. The parts do not wait for each other: a part that
// cannot start is tried again while the others run.
type Part struct {
	Name    string           // for people, as "pipeline enrich"; the name of its check at /readyz
	Running prometheus.Gauge // 1 while the loop runs, else 0
	// Start makes the loop. It is called again after an error, and after the loop has ended
	// with one.
	Start func(context.Context) (*kafka.Loop, error)
}

// Delays before a part is started again: they double. An error that may disappear by itself
// is retried sooner than one that somebody has to correct.
const (
	minRetry          = 100 * time.Millisecond
	maxRetry          = 5 * time.Second
	maxPermanentRetry = 30 * time.Second
)

// IsPermanent reports whether an error will occur again if the same is tried again: somebody
// has to correct the command line, the topology or the cluster.
func IsPermanent(err error) bool {
	var exit *cli.ExitError
	return pipeline.ClassOf(err) != pipeline.ClassAbort || cli.ExitCode(err) == cli.ExitUsage || errors.As(err, &exit) || errors.Is(err, codec.ErrIncompatible)
}

// Misconfigured returns an error that ends the program with [cli.ExitUsage].
func Misconfigured(err error) error {
	if err == nil || cli.ExitCode(err) != cli.ExitFailure {
		return err // it has an exit code
	}
	return &cli.ExitError{Code: cli.ExitUsage, Err: err}
}

// Run serves HTTP and runs the parts until the context ends. It returns early if another
// process has the name of this worker ([kafka.ErrFenced]), or if no part runs and none
// could start by trying again.
func (w *Worker) Run(ctx context.Context, parts []Part) error {
	r := &partRunner{log: w.Log, failed: map[*runningPart]error{}}
	for _, p := range parts {
		p.Running.Set(0)
		one := &runningPart{Part: p, reason: errors.New("starting")}
		r.parts = append(r.parts, one)
		w.Server.Ready(p.Name, func(context.Context) error { return one.ready() })
	}
	return w.RunWith(ctx, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, p := range r.parts {
			g.Go(func() error { return r.run(ctx, p) })
		}
		return g.Wait()
	})
}

// partRunner runs parts, each in a goroutine.
type partRunner struct {
	log   *slog.Logger
	parts []*runningPart // immutable once they run

	mu     sync.Mutex             // guards failed
	failed map[*runningPart]error // parts that cannot start, and will not by trying again
}

// runningPart is a part with its state.
type runningPart struct {
	Part

	mu     sync.Mutex  // guards the fields below
	loop   *kafka.Loop // nil while it does not run
	reason error       // why it does not run
}

// ready returns nil if the loop runs and is ready.
func (p *runningPart) ready() error {
	p.mu.Lock()
	loop, reason := p.loop, p.reason
	p.mu.Unlock()
	if loop != nil {
		return loop.Ready()
	}
	return reason
}

func (p *runningPart) set(loop *kafka.Loop, reason error) {
	p.mu.Lock()
	p.loop, p.reason = loop, reason
	p.mu.Unlock()
	if loop != nil {
		p.Running.Set(1)
	} else {
		p.Running.Set(0)
	}
}

// run runs a part until the context ends, or until the whole worker has to end.
func (r *partRunner) run(ctx context.Context, p *runningPart) error {
	told := ""
	for wait := minRetry; ; {
		began := time.Now()
		started, err := r.runOnce(ctx, p)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, kafka.ErrFenced) {
			return err
		}
		p.set(nil, err)
		if errors.Is(err, kafka.ErrRecreated) {
			r.log.Warn("a topic was deleted and created again; starting again", "part", p.Name, "err", err)
			continue
		}
		if IsPermanent(err) {
			if all := r.fail(p, err); all != nil {
				return all
			}
		}
		if started && time.Since(began) > time.Minute {
			wait = minRetry
		}
		r.tell(p, err, started, wait, &told)
		if !sleep(ctx, wait) {
			return nil
		}
		most := maxRetry
		if IsPermanent(err) {
			most = maxPermanentRetry
		}
		wait = min(2*wait, most)
	}
}

// runOnce starts a part and runs it until its loop ends. started reports whether the loop
// has run.
func (r *partRunner) runOnce(ctx context.Context, p *runningPart) (started bool, err error) {
	loop, err := p.Start(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return false, nil
		}
		if IsPermanent(err) {
			err = Misconfigured(err)
		}
		return false, err
	}
	r.mu.Lock()
	delete(r.failed, p)
	r.mu.Unlock()
	p.set(loop, nil)
	r.log.Info("runs", "part", p.Name)
	return true, loop.Run(ctx)
}

// fail records that a part cannot start. If now no part can, it returns the errors of all.
func (r *partRunner) fail(p *runningPart, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed[p] = fmt.Errorf("%s: %w", p.Name, err)
	if len(r.failed) < len(r.parts) {
		return nil
	}
	var all []error
	for _, p := range r.parts {
		all = append(all, r.failed[p])
	}
	return errors.Join(all...)
}

// tell logs why a part does not run: the first time, and when the reason changes, as a
// warning or an error.
func (r *partRunner) tell(p *runningPart, err error, started bool, wait time.Duration, told *string) {
	level, what := slog.LevelWarn, "cannot start yet; will retry"
	switch {
	case started:
		level, what = slog.LevelError, "stopped; will start again"
	case IsPermanent(err):
		level, what = slog.LevelError, "cannot start until this is corrected; will retry"
	}
	if err.Error() == *told {
		level = slog.LevelDebug
	}
	*told = err.Error()
	r.log.Log(context.Background(), level, what, "part", p.Name, "err", err, "wait", wait)
}

// sleep waits, and returns false if the context ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
