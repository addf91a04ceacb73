package receipt_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/receipt"
	"millrace/pipeline/topology"
)

// A new reader reads the receipts of the span, and not older ones.
func TestReaderStartsASpanAgo(t *testing.T) {
	b := processortest.NewBench(t, processortest.ReceiptsTopology)
	if _, err := kafka.EnsureTopics(t.Context(), b.Config(), []kafka.TopicSpec{{Name: "receipts", Partitions: 2}}, true); err != nil {
		t.Fatal(err)
	}
	b.Write(3, func(i int) *pipeline.Record {
		return &pipeline.Record{Topic: "receipts", Partition: int32(i / 2), Key: fmt.Append(nil, "e-", i), Value: []byte(`{"outcome":"filtered","pipeline":"p","stage":"s"}`),
			Time: time.Now().Add(-[]time.Duration{2 * time.Hour, time.Minute, 2 * time.Hour}[i])}
	})
	r := receipt.NewReader(b.Config(), []*topology.Topic{{Name: "receipts"}}, time.Hour, time.Now, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for lag, known := int64(1), false; !known || lag > 0; lag, known = r.Lag() {
		select {
		case <-tick.C:
		case <-time.After(30 * time.Second):
			t.Fatal("the receipts are never read")
		}
	}
	for i, want := range []bool{false, true, false} {
		if _, ok := r.Of(fmt.Sprint("e-", i), "p"); ok != want {
			t.Errorf("the receipt %d is known: %v", i, ok)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
