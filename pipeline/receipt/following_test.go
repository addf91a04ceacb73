package receipt

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/topology"
)

// A topic that may not be created, and then one that cannot be read, is not followed. The
// other topic is.
func TestReaderSaysWhichTopicsAreNotFollowed(t *testing.T) {
	cfg := kafka.Config{Brokers: harness.Sandbox(t).Brokers()}
	create := func(topic string) {
		if _, err := kafka.EnsureTopics(t.Context(), cfg, []kafka.TopicSpec{{Name: topic, Partitions: 1}}, true); err != nil {
			t.Fatal(err)
		}
	}
	create("a")
	reg := prometheus.NewRegistry()
	r := NewReader(cfg, []*topology.Topic{{Name: "a"}, {Name: "b"}}, time.Hour, time.Now, slog.New(slog.DiscardHandler), reg)
	var allowed atomic.Bool
	r.Ensure = func(context.Context) error {
		if !allowed.Load() {
			return errors.New("not allowed to create it")
		}
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	following := func() map[string]float64 {
		out := map[string]float64{}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "millrace_following" {
					out[m.GetLabel()[1].GetValue()] = m.GetGauge().GetValue()
				}
			}
		}
		return out
	}
	shown := func(a, b float64, reasons ...string) func() bool {
		return func() bool {
			err, now := r.Following(), following()
			if (err == nil) != (len(reasons) == 0) || len(now) != 2 || now["a"] != a || now["b"] != b {
				return false
			}
			for _, reason := range reasons {
				if !strings.Contains(err.Error(), reason) {
					return false
				}
			}
			return true
		}
	}
	harness.Awaited(t, "both topics", shown(0, 0, "the receipts topic a is not followed: not allowed to create it", "the receipts topic b is not followed"))
	allowed.Store(true)
	harness.Awaited(t, "the missing topic", shown(1, 0, "the receipts topic b is not followed: reading topic b: "))
	create("b")
	harness.Awaited(t, "no fault", shown(1, 1))
}
