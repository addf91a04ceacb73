package kafka

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"millrace/pipeline"
)

// pauser is a waker that pauses partition 0 at an offset until passes is set.
type pauser struct {
	waker
	at     int64 // of the record that pauses it
	paused atomic.Bool
	tries  atomic.Int32 // of that record
	passes atomic.Bool
}

func (h *pauser) Assign(_ context.Context, ps []Partition) (from []int64, err error) {
	for _, p := range ps {
		from = append(from, max(p.Committed, p.Start))
	}
	return from, nil
}

func (h *pauser) Revoke([]Partition) {}

func (h *pauser) Paused(_ string, partition int32) bool {
	return partition == 0 && h.paused.Load() && !h.passes.Load()
}

func (h *pauser) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	if in.Partition == 0 && in.Offset >= h.at && !h.passes.Load() {
		h.tries.Add(1)
		h.paused.Store(true)
		return fmt.Errorf("not yet: %w", ErrPaused)
	}
	return h.waker.Handle(ctx, in, out)
}

// A paused partition keeps its offset and its lag, while the session reads the others and is
// ready. It is read on when the handler wakes the session, and nothing is lost or written
// twice.
func TestAPausedPartitionWaitsAndTheOthersAreRead(t *testing.T) {
	for name, atOnce := range map[string]bool{"from its assignment": true, "at a record": false} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2)
			inject(t, c, 0, 100)
			h := &pauser{at: 10}
			h.paused.Store(atOnce)
			l, _ := start(t, testConfig(c, h))
			waitFor(t, func() bool { return len(l.Progress()) == 2 && (atOnce || h.paused.Load()) })
			inject(t, c, 100, 200)
			waitFor(t, func() bool { return l.ProgressOf("in", 1).Position > 0 && l.ProgressOf("in", 1).Lag() == 0 })
			if err := l.Ready(); err != nil {
				t.Errorf("not ready: %v", err)
			}
			if got := groupOffset(c, "in", 0); got > h.at {
				t.Errorf("the group's offset of the paused partition is %d", got)
			}
			if p := l.ProgressOf("in", 0); p.Position > h.at || p.Lag() == 0 {
				t.Errorf("the progress of the paused partition is %+v", p)
			}
			if n, want := h.tries.Load(), map[bool]int32{true: 0, false: 1}[atOnce]; n != want {
				t.Errorf("the record was passed %d times while the partition was paused, want %d", n, want)
			}
			h.passes.Store(true)
			h.queue("000200") // wakes the session
			wantEach(t, committed(t, c, "out", 201), 201)
			waitFor(t, func() bool { return lag(l) == 0 })
		})
	}
}
