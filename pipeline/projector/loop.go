package projector

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/reader"
)

// groupLoop folds the events of a consumer group for all versions in that group. The
// builder sets its fields, which are immutable from then on, except for those at the
// end.
type groupLoop struct {
	group     string
	signature string // of all versions of the group
	wanted    []wantedVersion
	held      map[string]error // why other versions of the group cannot start, by label
	set       *projection.Set
	readers   []*reader.Reader              // in the order of wanted
	follows   bool                          // other workers own all partitions: this worker is a replica, or of a later release
	loop      *kafka.Loop                   // nil if follows is set
	follower  *groupFollower                // nil unless follows is set or this worker is a standby
	fillers   int                           // goroutines that fill histories after a restore
	watches   []func(context.Context) error // each ends when a topic changes so that the loop cannot continue

	probe   time.Time          // when the held versions are tried again; the supervisor owns it
	answers atomic.Bool        // questions are answered from one of the versions
	isLive  atomic.Bool        // one of the versions is live, and may have effects
	cancel  context.CancelFunc // set by start
	done    chan struct{}      // closed at the end
	err     error              // valid after done
}

// start starts the loop. If it ends without being stopped, it is sent to ended.
func (l *groupLoop) start(ctx context.Context, ended chan<- *groupLoop) {
	ctx, l.cancel = context.WithCancel(ctx)
	go func() { // stop waits for it
		defer close(l.done)
		l.err = l.run(ctx)
		l.set.Close()
		if ctx.Err() == nil {
			select {
			case ended <- l:
			case <-ctx.Done():
			}
		}
	}()
}

// stop ends the loop, waits for its end and returns its error.
func (l *groupLoop) stop() error {
	l.cancel()
	<-l.done
	return l.err
}

// run reads the events until the context ends or a part cannot continue.
func (l *groupLoop) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if l.loop != nil {
		g.Go(func() error { return l.loop.Run(ctx) })
		for range l.fillers {
			g.Go(func() error { return l.set.Fill(ctx) })
		}
	}
	if l.follower != nil {
		g.Go(func() error { return l.follower.run(ctx) })
	}
	for _, watch := range l.watches {
		g.Go(func() error { return watch(ctx) })
	}
	return g.Wait()
}

// sets returns the partitions of this worker and those that it follows.
func (l *groupLoop) sets() []*projection.Set {
	if l.follower == nil || l.follower.set == l.set {
		return []*projection.Set{l.set}
	}
	return []*projection.Set{l.set, l.follower.set}
}

// forget sets the aggregates that must not exist, and erases them.
func (l *groupLoop) forget(ctx context.Context, state *control.State) error {
	for _, s := range l.sets() {
		s.Forget(state.Forgotten)
	}
	return l.erase(ctx)
}

// erase erases the aggregates that must not exist.
func (l *groupLoop) erase(ctx context.Context) error {
	for _, s := range l.sets() {
		if err := s.Erase(ctx); err != nil {
			return err
		}
	}
	return nil
}

// groupHandler is the handler of a session. It reports assignments, and publishes
// nothing but snapshots unless a version is live. The session owns it.
type groupHandler struct {
	handler   *projection.Handler
	loop      *groupLoop
	restores  *restores
	announcer *announcer
	snapshots map[string]bool // topics
}

var (
	_ kafka.Rereader    = (*groupHandler)(nil)
	_ kafka.Pauser      = (*groupHandler)(nil)
	_ kafka.Waker       = (*groupHandler)(nil)
	_ kafka.SizeLimited = (*groupHandler)(nil)
)

// Assign implements [kafka.Assigner].
func (h *groupHandler) Assign(ctx context.Context, ps []kafka.Partition) ([]int64, error) {
	if f := h.loop.follower; f != nil {
		if err := f.yield(ctx, ps); err != nil {
			return nil, err
		}
	}
	from, err := h.handler.Assign(ctx, ps)
	if err != nil {
		return from, err
	}
	err = h.loop.erase(ctx)
	for i, p := range ps {
		h.restores.addTail(h.loop.group, h.loop.loop, p, from[i])
		h.restores.addFill(h.loop.group, h.loop.set, p)
	}
	h.announcer.changed()
	return from, err
}

// Handled implements [kafka.Rereader].
func (h *groupHandler) Handled(topic string, partition int32) int64 {
	return h.handler.Handled(topic, partition)
}

// Paused implements [kafka.Pauser].
func (h *groupHandler) Paused(topic string, partition int32) bool {
	return h.handler.Paused(topic, partition)
}

// Revoke implements [kafka.Assigner].
func (h *groupHandler) Revoke(ps []kafka.Partition) {
	h.handler.Revoke(ps)
	for _, p := range ps {
		h.restores.dropTasks(h.loop.group, p.Topic, p.Partition)
	}
	if f := h.loop.follower; f != nil {
		f.takeBack(ps)
	}
	h.announcer.changed()
}

// SetLimits implements [kafka.SizeLimited].
func (h *groupHandler) SetLimits(limits kafka.Limits) { h.handler.SetLimits(limits) }

// OnWake implements [kafka.Waker].
func (h *groupHandler) OnWake(wake func()) { h.handler.OnWake(wake) }

// Handle implements [pipeline.Handler].
func (h *groupHandler) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	return h.handler.Handle(ctx, in, out)
}

// Flush implements [pipeline.Handler].
func (h *groupHandler) Flush(ctx context.Context, out pipeline.Emitter) error {
	if !h.loop.isLive.Load() {
		// The live version publishes the same dead letters.
		out = &filteredEmitter{out: out, topics: h.snapshots}
	}
	return h.handler.Flush(ctx, out)
}

// EndBatch implements [pipeline.Handler].
func (h *groupHandler) EndBatch(committed bool) { h.handler.EndBatch(committed) }

// filteredEmitter passes on only the records for some topics.
type filteredEmitter struct {
	out    pipeline.Emitter
	topics map[string]bool
}

// Emit implements [pipeline.Emitter].
func (e *filteredEmitter) Emit(r *pipeline.Record) {
	if e.topics[r.Topic] {
		e.out.Emit(r)
	}
}
