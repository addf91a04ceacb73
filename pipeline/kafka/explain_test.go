package kafka

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"millrace/pipeline"
)

// unusedAddress returns an address at which no process listens.
func unusedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// Every request that reaches no broker returns the addresses and the remedy, without the
// client's own prefix, and the cause stays in the error's chain.
func TestEveryCallNamesTheBrokersThatItCannotReach(t *testing.T) {
	t.Parallel()
	addr := unusedAddress(t)
	cfg := Config{Brokers: []string{addr}}
	ignore := func(*pipeline.Record) error { return nil }
	record := &pipeline.Record{Topic: "in", Value: []byte("v")}
	for name, call := range map[string]func(context.Context) error{
		"Ping": cfg.Ping,
		"EnsureTopics": func(ctx context.Context) error {
			_, err := EnsureTopics(ctx, cfg, []TopicSpec{{Name: "in"}}, true)
			return err
		},
		"Lag":            func(ctx context.Context) error { _, err := Lag(ctx, cfg, "g", "in"); return err },
		"GroupProgress":  func(ctx context.Context) error { _, _, err := GroupProgress(ctx, cfg, "g", "in"); return err },
		"Describe":       func(ctx context.Context) error { _, err := Describe(ctx, cfg, []string{"in"}, nil, nil); return err },
		"Describe group": func(ctx context.Context) error { _, err := Describe(ctx, cfg, nil, []string{"g"}, nil); return err },
		"CheckTopics": func(ctx context.Context) error {
			_, err := CheckTopics(ctx, cfg, []TopicSpec{{Name: "in"}})
			return err
		},
		"SetTopicConfig": func(ctx context.Context) error {
			return SetTopicConfig(ctx, cfg, "in", map[string]string{"retention.ms": "1"})
		},
		"TopicBounds":   func(ctx context.Context) error { _, err := TopicBounds(ctx, cfg, "in", true); return err },
		"ReadPartition": func(ctx context.Context) error { _, err := ReadPartition(ctx, cfg, "in", 0, 0, ignore); return err },
		"ReadRange":     func(ctx context.Context) error { return ReadRange(ctx, cfg, "in", 0, Bounds{0, 1}, ignore) },
		"ReadSettled":   func(ctx context.Context) error { _, err := ReadSettled(ctx, cfg, "in", 0, ignore); return err },
		"CommittedEnds": func(ctx context.Context) error { _, err := LastStableOffsets(ctx, cfg, "in"); return err },
		"DeleteBefore":  func(ctx context.Context) error { return DeleteBefore(ctx, cfg, "in", map[int32]int64{0: 1}) },
		"WriteOnce":     func(ctx context.Context) error { return writeOnceInVain(ctx, cfg, record) },
		"Tail.Run":      func(ctx context.Context) error { return NewTail(cfg, "in").Run(ctx, ignore) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := call(ctx)
			if err == nil {
				t.Fatal("no error")
			}
			text := err.Error()
			if !strings.Contains(text, "cannot reach a Kafka broker at "+addr) || !strings.Contains(text, "-b/--brokers") || strings.Contains(text, "unable to dial") {
				t.Errorf("got %v", err)
			}
			var op *net.OpError
			if !errors.Is(err, syscall.ECONNREFUSED) || !errors.As(err, &op) {
				t.Errorf("the cause is not in the chain of %v", err)
			}
		})
	}
}

// writeOnceInVain ends WriteOnce, which retries until its context ends, after some failures.
func writeOnceInVain(ctx context.Context, cfg Config, record *pipeline.Record) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failures atomic.Int64
	cfg.dialTCP = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if failures.Add(1) == 2 { // the client asks for metadata alone, so it has taken note of the first
			cancel()
		}
		return conn, err
	}
	return WriteOnce(ctx, cfg, record)
}

func TestAnUnreachableBrokerThatTheClusterAdvertisesIsNamed(t *testing.T) {
	cause := &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 7), Port: 9092}, Err: syscall.ECONNREFUSED}
	for _, tt := range []struct {
		seeds []string
		addr  string
		want  string
	}{
		{[]string{"a", "b:9093"}, "a:9092", "cannot reach a Kafka broker at a,b:9093; check that Kafka is running there and that the address is right (-b/--brokers): dial tcp 10.0.0.7:9092: connection refused"},
		{[]string{"10.0.0.7"}, "10.0.0.7:9092", "cannot reach a Kafka broker at 10.0.0.7; check that Kafka is running there and that the address is right (-b/--brokers): connection refused"},
		{[]string{"a"}, "kafka-2:9092", "cannot reach the Kafka broker at kafka-2:9092, an address that the cluster at a advertises; check that Kafka is running there, its advertised.listeners, and -b/--brokers: dial tcp 10.0.0.7:9092: connection refused"},
	} {
		err := &unreachableError{seeds: tt.seeds, addr: tt.addr, err: cause}
		if err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}
