package projection

import (
	"context"
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projectiontest"
)

func TestAWorkerIsNotReadyUntilAllItsPartitionsAreOpen(t *testing.T) {
	w := newCounts(t, nil)
	w.internal = false
	fw := w.open(w.disk)
	fw.handler = fw.ps.NewHandler()
	restore := fw.ps.cfg.Restore
	var seen []string
	fw.ps.cfg.Restore = func(ctx context.Context, topic string, p int32, f func(*pipeline.Record) error) (int64, error) {
		text := "ready"
		if err := fw.ps.Ready(); err != nil {
			text = err.Error()
		}
		seen = append(seen, text)
		return restore(ctx, topic, p, f)
	}
	var ps []kafka.Partition
	for p := range int32(3) {
		ps = append(ps, kafka.Partition{Topic: projectiontest.EventsTopic, Partition: p, Committed: -1})
	}
	if _, err := fw.handler.Assign(t.Context(), ps); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, "; "); got != "partitions are still to be opened: 3; partitions are still to be opened: 2; partitions are still to be opened: 1" {
		t.Errorf("while partitions were opened: %s", got)
	}
	if err := fw.ps.Ready(); err != nil {
		t.Errorf("afterwards: %v", err)
	}

	failed := context.Canceled
	fw.ps.cfg.Restore = func(context.Context, string, int32, func(*pipeline.Record) error) (int64, error) { return 0, failed }
	ps[0].Partition = 7
	if _, err := fw.handler.Assign(t.Context(), ps[:1]); err == nil {
		t.Error("the restore did not fail")
	}
	if err := fw.ps.Ready(); err != nil {
		t.Errorf("after a failure, which the session reports: %v", err)
	}
	fw.handler.Revoke(ps[1:])
	fw.close()
}
