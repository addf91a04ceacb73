package admin

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

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
		"DeleteTopic":   func(ctx context.Context) error { return DeleteTopic(ctx, cfg, "in") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := call(ctx); err == nil || !strings.Contains(err.Error(), "cannot reach a Kafka broker at "+cfg.Brokers[0]) || strings.Contains(err.Error(), "unable to dial") {
				t.Errorf("got %v", err)
			}
		})
	}
}
