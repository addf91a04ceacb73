package kafka

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// followTail runs Follow with f until the end of the test.
func followTail(t *testing.T, tail *Tail, f func(*pipeline.Record) error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := tail.Follow(ctx, f, func(error, time.Duration) {}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

func TestTailReportsAnOutageOfTheBrokersUntilItEnds(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	inject(t, c, 0, 10)
	w := &wire{}
	cfg := c.config()
	cfg.dialTCP = w.dial
	tail := NewTail(cfg, "in")
	followTail(t, tail, func(*pipeline.Record) error { return nil })
	<-tail.Loaded()
	waitFor(t, func() bool { return tail.Err() == nil })
	w.kill()
	var last error
	defer func() { t.Logf("last error of Err: %v", last) }()
	waitFor(t, func() bool {
		last = tail.Err()
		return last != nil && strings.Contains(last.Error(), "reading topic in: no broker has answered") && strings.Contains(last.Error(), "the wire is cut")
	})
	w.repair()
	waitFor(t, func() bool { return tail.Err() == nil })
}

// A tail that waits for its function is in contact with the brokers, and its lag grows.
func TestTailAsksForTheEndWhileItsFunctionWaits(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	inject(t, c, 0, 1)
	tail := NewTail(c.config(), "in")
	called, release := make(chan struct{}, 100), make(chan struct{})
	followTail(t, tail, func(*pipeline.Record) error {
		called <- struct{}{}
		<-release
		return nil
	})
	<-called
	inject(t, c, 1, 8)
	waitFor(t, func() bool { n, ok := tail.Lag(); return ok && n == 8 })
	if err := tail.Err(); err != nil {
		t.Error(err)
	}
	close(release)
	waitFor(t, func() bool { n, ok := tail.Lag(); return ok && n == 0 })
}

// The error of a record that cannot be taken stays while it is tried again.
func TestTailKeepsTheErrorOfARecordUntilItIsTaken(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	inject(t, c, 0, 1)
	tail := NewTail(c.config(), "in")
	calls := 0
	var during []error
	taken := make(chan struct{})
	followTail(t, tail, func(*pipeline.Record) error {
		during = append(during, tail.Err())
		if calls++; calls < 3 {
			return errors.New("the registry is down")
		}
		close(taken)
		return nil
	})
	<-taken
	for i, err := range during {
		if (err != nil) != (i > 0) {
			t.Errorf("in call %d, the error is %v", i+1, err)
		}
	}
	waitFor(t, func() bool { return tail.Err() == nil })
}

// Without the permission to read, the topic can be described: the error stays between the
// attempts, and ends on an idle topic, too.
func TestTailKeepsTheErrorOfAFetchUntilTheTopicCanBeRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	attempts := make(chan struct{}, 1000)
	allowed := make(chan struct{})
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		select {
		case <-allowed:
			return nil, nil, false
		default:
		}
		f := req.(*kmsg.FetchRequest)
		resp := f.ResponseKind().(*kmsg.FetchResponse)
		for _, t := range f.Topics {
			out := kmsg.FetchResponseTopic{Topic: t.Topic, TopicID: t.TopicID}
			for _, p := range t.Partitions {
				one := kmsg.NewFetchResponseTopicPartition()
				one.Partition, one.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
				out.Partitions = append(out.Partitions, one)
			}
			resp.Topics = append(resp.Topics, out)
		}
		attempts <- struct{}{}
		return resp, nil, true
	})
	tail := NewTail(c.config(), "in")
	followTail(t, tail, func(*pipeline.Record) error { return nil })
	waitFor(t, func() bool { return tail.Err() != nil })
	for range 4 {
		<-attempts
		if err := tail.Err(); err == nil || !strings.Contains(err.Error(), "TOPIC_AUTHORIZATION_FAILED") {
			t.Errorf("between attempts, the error is %v", err)
		}
	}
	close(allowed)
	waitFor(t, func() bool { return tail.Err() == nil })
}
