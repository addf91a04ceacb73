package fill

import (
	"context"
	"sync"
	"time"

	"millrace/pipeline"
)

// Jobs hands out work to the goroutines that call Run.
type Jobs struct {
	mu      sync.Mutex // guards changed
	changed chan struct{}
}

// Changed wakes the goroutines that wait for work.
func (j *Jobs) Changed() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

func (j *Jobs) wait() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	return j.changed
}

// retryAfter is the delay after an error.
const retryAfter = time.Second

// Run does work until the context ends. claim returns the next piece, nil if there is none;
// the rest of a piece that fails is claimed again. failed gets the error. Run returns
// early only with an error of [pipeline.ClassFatal].
func (j *Jobs) Run(ctx context.Context, claim func() (work func(context.Context) error), failed func(err error, wait time.Duration)) error {
	for ctx.Err() == nil {
		changed := j.wait() // before claim, which may miss what comes later
		work := claim()
		if work == nil {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		err := work(ctx)
		if err != nil && ctx.Err() == nil {
			if pipeline.ClassOf(err) == pipeline.ClassFatal {
				return err
			}
			failed(err, retryAfter)
			again := time.NewTimer(retryAfter)
			select {
			case <-ctx.Done():
			case <-again.C:
			}
			again.Stop()
		}
		j.Changed()
	}
	return nil
}
