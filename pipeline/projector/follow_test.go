package projector

import (
	"context"
	"log/slog"
	"runtime"
	"testing"

	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projection"
)

// A worker that stops while it opens partitions must not try again without end.
func TestAFollowerStopsWhileItOpensAPartition(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	f := &groupFollower{
		set: projection.New(projection.Config{}),
		bounds: func(ctx context.Context, _ string) (map[int32]kafka.Bounds, error) {
			if calls++; calls > 3 {
				t.Error("it opens the partition again after the context has ended")
				runtime.Goexit()
			}
			cancel()
			return nil, ctx.Err()
		},
		log:     slog.New(slog.DiscardHandler),
		all:     []projection.Key{{Topic: "events", Partition: 1}},
		held:    map[projection.Key]bool{},
		phases:  map[projection.Key]followPhase{},
		changed: make(chan struct{}),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.open(ctx); err != nil {
			t.Error(err)
		}
	}()
	<-done
}
