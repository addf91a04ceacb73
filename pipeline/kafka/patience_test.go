package kafka

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// fail makes a cluster answer the first n requests for coordinators and for the metadata of
// topics with an error.
func fail(c *kfake.Cluster, n int, code *kerr.Error) {
	var mu sync.Mutex
	left := map[int16]int{int16(kmsg.FindCoordinator): n, int16(kmsg.Metadata): n}
	take := func(key int16) bool {
		mu.Lock()
		defer mu.Unlock()
		left[key]--
		return left[key] >= 0
	}
	c.ControlKey(int16(kmsg.FindCoordinator), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		asked := req.(*kmsg.FindCoordinatorRequest)
		if !take(req.Key()) {
			return nil, nil, false
		}
		resp := asked.ResponseKind().(*kmsg.FindCoordinatorResponse)
		resp.ErrorCode = code.Code
		for _, key := range asked.CoordinatorKeys {
			one := kmsg.NewFindCoordinatorResponseCoordinator()
			one.Key, one.ErrorCode = key, code.Code
			resp.Coordinators = append(resp.Coordinators, one)
		}
		return resp, nil, true
	})
	c.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		asked := req.(*kmsg.MetadataRequest)
		if len(asked.Topics) == 0 || !take(req.Key()) {
			return nil, nil, false
		}
		resp := asked.ResponseKind().(*kmsg.MetadataResponse)
		for _, topic := range asked.Topics {
			one := kmsg.NewMetadataResponseTopic()
			one.Topic, one.ErrorCode = topic.Topic, code.Code
			resp.Topics = append(resp.Topics, one)
		}
		for i, addr := range c.ListenAddrs() {
			broker := kmsg.NewMetadataResponseBroker()
			host, port := splitAddress(addr)
			broker.NodeID, broker.Host = int32(i), host
			for _, digit := range port {
				broker.Port = 10*broker.Port + digit - '0'
			}
			resp.Brokers = append(resp.Brokers, broker)
		}
		return resp, nil, true
	})
}

// patientCalls are requests of commands about groups and topics.
var patientCalls = map[string]func(context.Context, Config) error{
	"EnsureTopics": func(ctx context.Context, cfg Config) error {
		_, err := EnsureTopics(ctx, cfg, []TopicSpec{{Name: "in"}}, false)
		return err
	},
	"Describe a topic": func(ctx context.Context, cfg Config) error {
		_, err := Describe(ctx, cfg, []string{"in"}, nil, nil)
		return err
	},
	"Describe a group": func(ctx context.Context, cfg Config) error {
		_, err := Describe(ctx, cfg, nil, []string{"g"}, nil)
		return err
	},
	"Describe a transactional id": func(ctx context.Context, cfg Config) error {
		_, err := Describe(ctx, cfg, nil, nil, []string{"id"})
		return err
	},
	"GroupProgress of a group": func(ctx context.Context, cfg Config) error {
		_, _, err := GroupProgress(ctx, cfg, "g", "in")
		return err
	},
	"TopicBounds":       func(ctx context.Context, cfg Config) error { _, err := TopicBounds(ctx, cfg, "in", true); return err },
	"LastStableOffsets": func(ctx context.Context, cfg Config) error { _, err := LastStableOffsets(ctx, cfg, "in"); return err },
	"DeleteBefore": func(ctx context.Context, cfg Config) error {
		return DeleteBefore(ctx, cfg, "in", map[int32]int64{0: 0})
	},
	"ReadSettled": func(ctx context.Context, cfg Config) error {
		_, err := ReadSettled(ctx, cfg, "in", 0, func(*pipeline.Record) error { return nil })
		return err
	},
}

// Requests of commands to a cluster that has just started wait until it works.
func TestCommandsWaitForBrokersThatAreStarting(t *testing.T) {
	for name, call := range patientCalls {
		codes := []*kerr.Error{kerr.LeaderNotAvailable}
		if strings.Contains(name, "group") || strings.Contains(name, "id") {
			codes = []*kerr.Error{kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator}
		}
		for _, code := range codes {
			t.Run(name+" "+code.Message, func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, 1)
				fail(c.Cluster, 3, code)
				cfg := c.config()
				var log bytes.Buffer
				cfg.Patience, cfg.Logger = CommandPatience, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
				if err := call(t.Context(), cfg); err != nil {
					t.Error(err)
				}
				if n := strings.Count(log.String(), "the brokers are still starting; trying again"); n > 2 { // once for each request
					t.Errorf("logged %d times:\n%s", n, log.String())
				}
			})
		}
	}
}

// The wait is bounded, and logged once. Without patience there is none.
func TestTheWaitForBrokersThatAreStartingIsBounded(t *testing.T) {
	c := newCluster(t, 1)
	fail(c.Cluster, 1_000_000, kerr.CoordinatorNotAvailable)
	cfg := c.config()
	var log bytes.Buffer
	cfg.Patience, cfg.Logger = time.Second, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	began := time.Now()
	_, err := Describe(t.Context(), cfg, nil, []string{"g"}, nil)
	if err == nil || !strings.Contains(err.Error(), "COORDINATOR_NOT_AVAILABLE") || !strings.Contains(err.Error(), "for the brokers to start") {
		t.Errorf("the error is %v", err)
	}
	if time.Since(began) > 30*time.Second || strings.Count(log.String(), "the brokers are still starting; trying again") != 1 {
		t.Errorf("after %v:\n%s", time.Since(began), log.String())
	}
	cfg.Patience = 0
	if _, err := Describe(t.Context(), cfg, nil, []string{"g"}, nil); err == nil || strings.Contains(err.Error(), "for the brokers to start") {
		t.Errorf("without patience: %v", err)
	}
}

// An error that does not disappear by itself is returned at once, also beside one that does.
func TestOtherErrorsAreNotWaitedFor(t *testing.T) {
	for _, err := range []error{kerr.TopicAuthorizationFailed, kerr.UnknownTopicOrPartition, &pipeline.FatalError{Err: kerr.LeaderNotAvailable}, context.Canceled} {
		n := 0
		if got := patiently(t.Context(), Config{Patience: time.Hour}, func() error { n++; return err }); !errors.Is(got, err) || n != 1 {
			t.Errorf("%v: called %d times, and returned %v", err, n, got)
		}
	}
}
