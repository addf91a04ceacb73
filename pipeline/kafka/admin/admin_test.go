package admin

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
)

func TestEveryCallNamesTheBrokersThatItCannotReach(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := kafka.Config{Brokers: []string{l.Addr().String()}}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func(context.Context) error{
		"CommittedSum":  func(ctx context.Context) error { _, err := CommittedSum(ctx, cfg, "g"); return err },
		"DeleteGroup":   func(ctx context.Context) error { return DeleteGroup(ctx, cfg, "g") },
		"RemoveMembers": func(ctx context.Context) error { return RemoveMembers(ctx, cfg, "g", "a") },
		"DeleteBefore":  func(ctx context.Context) error { return DeleteBefore(ctx, cfg, "in", map[int32]int64{0: 1}) },
		"CommittedEnds": func(ctx context.Context) error { _, err := LastStableOffsets(ctx, cfg, "in"); return err },
		"DeleteTopic":   func(ctx context.Context) error { return DeleteTopic(ctx, cfg, "in") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := call(ctx); err == nil || !strings.Contains(err.Error(), "cannot reach a Kafka broker at "+cfg.Brokers[0]) || strings.Contains(err.Error(), "unable to dial") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestDeleteBeforeLeavesTheRest(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cfg := kafka.Config{Brokers: c.ListenAddrs()}
	for n := range 10 {
		if err := kafka.WriteOnce(t.Context(), cfg, &pipeline.Record{Topic: "in", Value: []byte{byte('0' + n)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := DeleteBefore(t.Context(), cfg, "in", map[int32]int64{0: 7}); err != nil {
		t.Fatal(err)
	}
	var got []byte
	if _, err := kafka.ReadPartition(t.Context(), cfg, "in", 0, 0, func(r *pipeline.Record) error {
		got = append(got, r.Value...)
		return nil
	}); err != nil || string(got) != "789" {
		t.Errorf("read %s, error %v", got, err)
	}
	ends, err := LastStableOffsets(t.Context(), cfg, "in")
	if err != nil || ends[0] != 10 {
		t.Errorf("ends %v, error %v", ends, err)
	}
}
