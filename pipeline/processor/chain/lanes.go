package chain

import (
	"context"
	"hash/maphash"
	"slices"

	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// Lanes runs a chain that mostly waits: several clones of it work at
// once, each on keys of its own, so that the events of a key keep their order.
// What they make is emitted in the order of the input.
type Lanes struct {
	lanes []*Handler
	queue []queued
	seed  maphash.Seed
}

// queued is a record that waits for its lane, and what came of it.
type queued struct {
	in   pipeline.Record
	lane int
	out  Records
}

// queuePerLane bounds what waits before the lanes are set to work, and so how
// long they hold up a batch.
const queuePerLane = 4

// Concurrency returns how many clones of a pipeline's chain may be at work at
// once. A stage that remembers sees the events in their order, so a chain with
// one is not run so.
func Concurrency(pl *topology.Pipeline) int {
	n := 1
	for _, s := range pl.Stages {
		if _, ok := s.Built.(stage.Keeper); ok {
			return 1
		}
		if w, ok := s.Built.(stage.Waiter); ok {
			n = max(n, w.Concurrency())
		}
	}
	return n
}

func NewLanes(s Config, pl *topology.Pipeline, n int) *Lanes {
	l := &Lanes{seed: maphash.MakeSeed()}
	for range n {
		l.lanes = append(l.lanes, s.NewHandler(pl))
	}
	return l
}

// Limit implements [kafka.Limited].
func (l *Lanes) Limit(limits kafka.Limits) {
	for _, h := range l.lanes {
		h.Limit(limits)
	}
}

// Handle implements [pipeline.Handler].
func (l *Lanes) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	q := queued{in: *in, lane: int(uint64(in.Offset) % uint64(len(l.lanes)))} // without a key there is no order to keep
	if key := l.lanes[0].keyOf(ctx, in); key != nil {                         // the lanes are at rest now
		q.lane = int(maphash.Bytes(l.seed, key) % uint64(len(l.lanes)))
	}
	q.in.Headers = slices.Clone(in.Headers)
	l.queue = append(l.queue, q)
	if len(l.queue) < queuePerLane*len(l.lanes) {
		return nil
	}
	return l.work(ctx, out)
}

// work runs what is queued, and emits what came of it.
func (l *Lanes) work(ctx context.Context, out pipeline.Emitter) error {
	g, ctx := errgroup.WithContext(ctx)
	for n, h := range l.lanes {
		g.Go(func() error {
			for i := range l.queue {
				if q := &l.queue[i]; q.lane == n {
					if err := h.Handle(ctx, &q.in, &q.out); err != nil {
						return err // the other lanes need not go on
					}
				}
			}
			return nil
		})
	}
	err := g.Wait()
	for i := range l.queue {
		for j := range l.queue[i].out.All {
			if err == nil {
				out.Emit(&l.queue[i].out.All[j])
			}
		}
	}
	clear(l.queue)
	l.queue = l.queue[:0]
	return err
}

// Flush implements [pipeline.Handler].
func (l *Lanes) Flush(ctx context.Context, out pipeline.Emitter) error {
	return l.work(ctx, out)
}

// EndBatch implements [pipeline.Handler].
func (l *Lanes) EndBatch(committed bool) {
	clear(l.queue) // of a batch that was given up
	l.queue = l.queue[:0]
	for _, h := range l.lanes {
		h.EndBatch(committed)
	}
}
