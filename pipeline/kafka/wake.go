package kafka

import (
	"context"
	"sync"

	"millrace/pipeline"
)

// A Waker is a [pipeline.Handler] that may emit records although none arrive.
//
// A batch without records moves no offset. So if the outcome of its commit is
// unknown, the offsets do not show whether it was committed, and the handler may
// emit its records again: they must be harmless when written twice. Like any other
// batch, it aborts if a partition was revoked.
type Waker interface {
	pipeline.Handler
	// OnWake passes the wake function to the handler. Any goroutine may call wake at
	// any time. The session then flushes the handler soon, in a batch without
	// records if none arrive. After a batch that was rolled back, the handler must
	// call wake again: the session does not repeat the flush.
	OnWake(wake func())
}

// alarm ends a poll that waits for records. Any goroutine may call ring; the
// session's goroutine calls watch.
type alarm struct {
	mu    sync.Mutex // guards the fields below
	woken bool
	stop  context.CancelFunc // ends the current poll; nil if there is none
}

func (a *alarm) ring() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.woken = true
	if a.stop != nil {
		a.stop()
	}
}

// watch returns a context for a poll. It ends when the alarm rings, or immediately
// if the alarm has rung since the last off. off ends the context and reports
// whether the alarm rang.
func (a *alarm) watch(ctx context.Context) (_ context.Context, off func() bool) {
	ctx, stop := context.WithCancel(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stop = stop; a.woken {
		stop()
	}
	return ctx, func() bool {
		stop()
		a.mu.Lock()
		defer a.mu.Unlock()
		woken := a.woken
		a.woken, a.stop = false, nil
		return woken
	}
}
