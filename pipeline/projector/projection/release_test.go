package projection

import (
	"context"
	"errors"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projectiontest"
)

// blockedWorker is a worker with a blocked aggregate k.
func blockedWorker(t *testing.T) *foldWorker {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("k")
	w.counted("k", 0, 0, "b")
	fw := w.start()
	fw.run()
	return fw
}

// The partition is revoked after its blocked aggregate was found and before its
// events are folded again.
func TestAReleaseOfAPartitionThatIsRevokedMeanwhileChangesNothing(t *testing.T) {
	fw := blockedWorker(t)
	tail := fw.ps.cfg.Tail
	fw.ps.cfg.Tail = func(ctx context.Context, topic string, partition int32, from int64, f func(*pipeline.Record) error) error {
		fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
		return tail(ctx, topic, partition, from, f)
	}
	if _, err := fw.ps.Release(t.Context(), fw.projection(), "k", true); !errors.Is(err, ErrNotBlocked) {
		t.Errorf("the release returned %v, want %v", err, ErrNotBlocked)
	}
	fw.close()
	fw = fw.start()
	wants(t, fw, map[string]string{"k": "blocked a"})
	fw.stop()
}

// The partition is revoked after the units were listed and before they are searched.
func TestASearchForABlockedAggregateSkipsARevokedPartition(t *testing.T) {
	fw := blockedWorker(t)
	u := fw.ps.assignedUnits()[0]
	fw.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic}})
	if _, _, found := u.findBlocked(fw.projection(), "k"); found {
		t.Error("the revoked partition was searched")
	}
	fw.close()
}
