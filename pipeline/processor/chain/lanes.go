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

// lanes runs a chain that mostly waits. Several handlers work at the same time, each on
// its own keys, so the events of a key keep their order. Their output is emitted in the
// order of the input.
//
// The session's goroutine owns all fields. While work runs, the goroutine of lane n owns
// handlers[n] and the elements of queue with this lane.
type lanes struct {
	handlers []*handler
	queue    []queued
	seed     maphash.Seed
}

// queued is a record in the queue, and its output.
type queued struct {
	in   pipeline.Record
	lane int
	why  error // why Kafka refused the output; nil if it did not
	out  collector
}

// collector keeps the emitted records.
type collector struct{ records []pipeline.Record }

func (c *collector) Emit(r *pipeline.Record) { c.records = append(c.records, *r) }

// queuePerLane is the number of queued records per lane at which the lanes start. It limits
// how long they delay a batch.
const queuePerLane = 4

// laneCount returns the number of lanes for a pipeline: the maximum concurrency of its
// stages. A stage with state needs all events in order, so its chain has one lane.
func laneCount(pl *topology.Pipeline) int {
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

func newLanes(c config, pl *topology.Pipeline, n int) *lanes {
	l := &lanes{seed: maphash.MakeSeed()}
	for range n {
		l.handlers = append(l.handlers, c.newHandler(pl))
	}
	return l
}

// SetLimits implements [kafka.SizeLimited].
func (l *lanes) SetLimits(limits kafka.Limits) {
	for _, h := range l.handlers {
		h.SetLimits(limits)
	}
}

// Prepare implements [pipeline.Preparer]. The lanes share the results by the registry's
// cache.
func (l *lanes) Prepare(ctx context.Context, records []*pipeline.Record) error {
	return l.handlers[0].Prepare(ctx, records)
}

// Handle implements [pipeline.Handler].
func (l *lanes) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	return l.add(ctx, in, nil, out)
}

// Refuse implements [kafka.Refuser].
func (l *lanes) Refuse(ctx context.Context, in *pipeline.Record, why error, out pipeline.Emitter) error {
	return l.add(ctx, in, why, out)
}

// add queues a record. why tells why Kafka refused its output.
func (l *lanes) add(ctx context.Context, in *pipeline.Record, why error, out pipeline.Emitter) error {
	q := queued{in: *in, why: why}
	q.in.Headers = slices.Clone(in.Headers)
	first := l.handlers[0] // no lane runs now
	if key := first.input.key(ctx, in, &first.event); key != nil {
		q.lane = int(maphash.Bytes(l.seed, key) % uint64(len(l.handlers)))
	} else { // events without a key need no order
		q.lane = int(uint64(in.Offset) % uint64(len(l.handlers)))
	}
	l.queue = append(l.queue, q)
	if len(l.queue) < queuePerLane*len(l.handlers) {
		return nil
	}
	return l.work(ctx, out)
}

// work runs the queued records and emits their output.
func (l *lanes) work(ctx context.Context, out pipeline.Emitter) error {
	g, ctx := errgroup.WithContext(ctx)
	for n := range l.handlers {
		g.Go(func() error { return l.run(ctx, n) })
	}
	err := g.Wait()
	if err == nil {
		for i := range l.queue {
			for j := range l.queue[i].out.records {
				out.Emit(&l.queue[i].out.records[j])
			}
		}
	}
	l.clear()
	return err
}

// run runs the queued records of one lane. An error ends the batch, so it stops the lane;
// the group cancels the others.
func (l *lanes) run(ctx context.Context, lane int) error {
	for i := range l.queue {
		q := &l.queue[i]
		if q.lane != lane {
			continue
		}
		h, err := l.handlers[lane], error(nil)
		if q.why != nil {
			err = h.Refuse(ctx, &q.in, q.why, &q.out)
		} else {
			err = h.Handle(ctx, &q.in, &q.out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clear removes the queued records and releases their memory.
func (l *lanes) clear() {
	clear(l.queue)
	l.queue = l.queue[:0]
}

// Flush implements [pipeline.Handler].
func (l *lanes) Flush(ctx context.Context, out pipeline.Emitter) error {
	return l.work(ctx, out)
}

// EndBatch implements [pipeline.Handler].
func (l *lanes) EndBatch(committed bool) {
	l.clear() // not empty if the batch was aborted
	for _, h := range l.handlers {
		h.EndBatch(committed)
	}
}
