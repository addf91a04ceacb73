package kafka

import (
	"context"
	"sync"

	"millrace/pipeline"
)

// A Waker is a [pipeline.Handler] that may have something to write although no
// record comes.
//
// Nothing tells, after a commit whose outcome is unknown, whether a batch without
// records took place, for it moves no offset: what is emitted in one has to bear
// being written twice. It is aborted as any other if a partition was taken away.
type Waker interface {
	pipeline.Handler
	// OnWake hands over a function that anybody may call, at any time: the session
	// then has the handler flushed soon, in a batch without records if none come.
	// Nobody calls it again after a batch that was rolled back.
	OnWake(wake func())
}

// alarm ends a poll that waits for records.
type alarm struct {
	mu   sync.Mutex // guards what follows
	rung bool
	stop context.CancelFunc // ends the poll; nil if there is none
}

func (a *alarm) ring() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rung = true
	if a.stop != nil {
		a.stop()
	}
}

// set returns a context for a poll, which ends when the alarm rings, or at once if
// it has. off ends it, and reports whether the alarm rang.
func (a *alarm) set(ctx context.Context) (_ context.Context, off func() bool) {
	ctx, stop := context.WithCancel(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop = stop; a.rung {
		stop()
	}
	return ctx, func() bool {
		stop()
		a.mu.Lock()
		defer a.mu.Unlock()
		rung := a.rung
		a.rung, a.stop = false, nil
		return rung
	}
}
