package admin

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline/kafka"
)

// startingCluster starts a cluster that has no coordinators during the first n requests for
// them, and no controller during the first n deletions of topics.
func startingCluster(t *testing.T, n int) kafka.Config {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "in", "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	cfg := kafka.Config{Brokers: c.ListenAddrs()}
	commit(t, cfg)
	var mu sync.Mutex
	coordinators, deletions := n, n // guarded by mu
	c.ControlKey(int16(kmsg.FindCoordinator), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		if coordinators--; coordinators < 0 {
			return nil, nil, false
		}
		asked := req.(*kmsg.FindCoordinatorRequest)
		resp := asked.ResponseKind().(*kmsg.FindCoordinatorResponse)
		resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
		for _, key := range asked.CoordinatorKeys {
			one := kmsg.NewFindCoordinatorResponseCoordinator()
			one.Key, one.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
			resp.Coordinators = append(resp.Coordinators, one)
		}
		return resp, nil, true
	})
	c.ControlKey(int16(kmsg.DeleteTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		if deletions--; deletions < 0 {
			return nil, nil, false
		}
		asked := req.(*kmsg.DeleteTopicsRequest)
		resp := asked.ResponseKind().(*kmsg.DeleteTopicsResponse)
		for _, topic := range asked.Topics {
			one := kmsg.NewDeleteTopicsResponseTopic()
			one.Topic, one.ErrorCode = topic.Topic, kerr.BrokerNotAvailable.Code
			resp.Topics = append(resp.Topics, one)
		}
		return resp, nil, true
	})
	return cfg
}

// commit commits offset 1 of topic "in" for group "g", which has no members then.
func commit(t *testing.T, cfg kafka.Config) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("in"), kgo.DisableAutoCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: []byte("v")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	cl.PollFetches(t.Context())
	if err := cl.CommitUncommittedOffsets(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The requests of operators wait for brokers that are starting, and then have their effect
// once. Without patience, they fail and name the group or the topic.
func TestRequestsOfOperatorsWaitForBrokersThatAreStarting(t *testing.T) {
	for name, one := range map[string]struct {
		call func(context.Context, kafka.Config) error
		what string // in the error
	}{
		"CommittedSum": {func(ctx context.Context, cfg kafka.Config) error {
			sum, err := CommittedSum(ctx, cfg, "g")
			if err == nil && sum != 1 {
				return errors.New("the sum is not 1")
			}
			return err
		}, "group g"},
		"RemoveMembers": {func(ctx context.Context, cfg kafka.Config) error { return RemoveMembers(ctx, cfg, "g", "a") }, "group g"},
		"DeleteGroup": {func(ctx context.Context, cfg kafka.Config) error {
			if err := DeleteGroup(ctx, cfg, "g"); err != nil {
				return err
			}
			if sum, err := CommittedSum(ctx, cfg, "g"); err != nil || sum != 0 {
				return errors.Join(errors.New("the group is not deleted"), err)
			}
			return nil
		}, "group g"},
		"DeleteTopic": {func(ctx context.Context, cfg kafka.Config) error {
			if err := DeleteTopic(ctx, cfg, "out"); err != nil {
				return err
			}
			if d, err := kafka.Describe(ctx, cfg, []string{"out"}, nil, nil); err != nil || len(d.Topics) > 0 {
				return errors.Join(errors.New("the topic is not deleted"), err)
			}
			return nil
		}, "topic out"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := startingCluster(t, 3)
			cfg.Patience = kafka.CommandPatience
			if err := one.call(t.Context(), cfg); err != nil {
				t.Error(err)
			}
			cfg = startingCluster(t, 1_000_000)
			if err := one.call(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), one.what) {
				t.Errorf("without patience: %v", err)
			}
		})
	}
}
