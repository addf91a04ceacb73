package kafka

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// singles writes refused records one by one, in the order in which they were added. One
// goroutine does so; it runs only while there are such records.
type singles struct {
	newClient func() (*kgo.Client, error)
	ctx       context.Context // ends when the Writer is closed
	stop      context.CancelFunc
	running   sync.WaitGroup

	mu    sync.Mutex    // guards the fields below; no callback runs while it is held
	queue []single      // still to be written; the goroutine runs while busy is not nil
	busy  chan struct{} // closed when the queue is empty; nil while it is
}

// single is a refused record.
type single struct {
	ctx    context.Context // of its Write
	record *kgo.Record
	finish func(*kgo.Record, error)
}

func newSingles(newClient func() (*kgo.Client, error)) *singles {
	ctx, stop := context.WithCancel(context.Background())
	return &singles{newClient: newClient, ctx: ctx, stop: stop}
}

// add queues a record. It is a callback of the client, so it must not block.
func (s *singles) add(one single) {
	if !s.enqueue(one) {
		one.finish(one.record, kgo.ErrClientClosed)
	}
}

// enqueue returns false if the Writer is closed.
func (s *singles) enqueue(one single) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.queue = append(s.queue, one)
	if s.busy == nil {
		s.busy = make(chan struct{})
		s.running.Go(s.run)
	}
	return true
}

// idle waits until the queue is empty.
func (s *singles) idle(ctx context.Context) error {
	for {
		s.mu.Lock()
		busy := s.busy
		s.mu.Unlock()
		if busy == nil {
			return nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run writes the queue until it is empty. The client is its own, so no other record is in
// the same request.
func (s *singles) run() {
	cl, err := s.newClient()
	if err == nil {
		defer cl.Close()
	}
	for {
		one, ok := s.next()
		if !ok {
			return
		}
		again := *one.record // the client has set fields for the first attempt
		again.Offset = 0
		if err == nil {
			ctx, cancel := context.WithCancel(one.ctx)
			stopped := context.AfterFunc(s.ctx, cancel)
			one.finish(&again, cl.ProduceSync(ctx, &again).FirstErr())
			stopped()
			cancel()
		} else {
			one.finish(&again, err)
		}
	}
}

// next returns the next record; ok is false if there is none.
func (s *singles) next() (one single, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		close(s.busy)
		s.busy, s.queue = nil, nil
		return one, false
	}
	one = s.queue[0]
	s.queue = s.queue[1:]
	return one, true
}

// close ends the writing; the records still in the queue fail.
func (s *singles) close() {
	s.mu.Lock()
	s.stop()
	s.mu.Unlock()
	s.running.Wait()
}
