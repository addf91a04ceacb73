package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"millrace/pipeline"
)

// lines is a log that is read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func TestLoopConfigIsChecked(t *testing.T) {
	h := func(int) (pipeline.Handler, error) { return &copier{}, nil }
	good := LoopConfig{Client: Config{Brokers: []string{"a"}}, Group: "g", Topics: []string{"in"}, NewHandler: h}
	for _, tt := range []struct {
		name   string
		change func(*LoopConfig)
		want   string // in the error; no error if empty
	}{
		{"defaults", func(*LoopConfig) {}, ""},
		{"no group", func(c *LoopConfig) { c.Group = "" }, "group"},
		{"no topics", func(c *LoopConfig) { c.Topics = nil }, "topics"},
		{"no handler", func(c *LoopConfig) { c.NewHandler = nil }, "handler"},
		{"another guarantee", func(c *LoopConfig) { c.Guarantee = "at_most_once" }, "exactly_once or at_least_once"},
		{"another protocol", func(c *LoopConfig) { c.Protocol = "share" }, "classic or consumer"},
		{"a slow commit", func(c *LoopConfig) { c.CommitInterval = 5 * time.Second }, "at most a third"},
		{"too little memory", func(c *LoopConfig) { c.Memory, c.Sessions = 64<<20, 8 }, "needs at least 16 MiB"},
		{"enough memory", func(c *LoopConfig) { c.Memory, c.Sessions = 64<<20, 4 }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			_, err := NewLoop(cfg)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// With the consumer protocol the broker assigns partitions. A batch during a rebalance
// aborts.
func TestTheConsumerProtocolLosesAndRepeatsNothing(t *testing.T) {
	c := newCluster(t, 6)
	classic := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Observe: true, Count: -1})
	inject(t, c, 0, 5000)
	run := func(instance string, static bool) (*Loop, func() error) {
		cfg := testConfig(c, nil)
		cfg.Instance, cfg.Protocol, cfg.Static, cfg.CommitInterval = instance, ConsumerProtocol, static, 5*time.Millisecond
		cfg.NewHandler = func(int) (pipeline.Handler, error) { return &copier{}, nil }
		return start(t, cfg)
	}
	run("a", false)
	committed(t, c, "out", 5000)
	_, stop := run("b", true)
	waitFor(t, func() bool { g := c.GroupInfo("g"); return g != nil && len(g.Members) == 2 })
	inject(t, c, 5000, 8000)
	if err := stop(); err != nil {
		t.Error(err)
	}
	inject(t, c, 8000, 9000)
	wantEach(t, committed(t, c, "out", 9000), 9000)
	if classic.Hits() > 0 {
		t.Error("a member joined by the classic protocol")
	}
}

func TestTheConsumerProtocolRequiresNewBrokers(t *testing.T) {
	for _, old := range []*kversion.Versions{kversion.V3_9_0(), kversion.V4_2_0()} {
		c := newCluster(t, 1, kfake.MaxVersions(old))
		cfg := testConfig(c, &copier{})
		cfg.Protocol = ConsumerProtocol
		l, err := NewLoop(cfg)
		if err != nil {
			t.Fatal(err)
		}
		err = l.Run(t.Context())
		if pipeline.ClassOf(err) != pipeline.ClassFatal || !strings.Contains(err.Error(), "4.3 or newer") {
			t.Errorf("ended with %v", err)
		}
	}
}

func TestAnOldTransactionVersionCausesAWarning(t *testing.T) {
	for _, tt := range []struct {
		versions *kversion.Versions
		warned   bool
	}{{kversion.V3_9_0(), true}, {kversion.V4_3_0(), false}} {
		var log lines
		c := newCluster(t, 1, kfake.MaxVersions(tt.versions))
		inject(t, c, 0, 10)
		cfg := testConfig(c, &copier{})
		cfg.Sessions, cfg.Logger = 2, log.logger()
		cfg.NewHandler = func(int) (pipeline.Handler, error) { return &copier{}, nil }
		_, stop := start(t, cfg)
		wantEach(t, committed(t, c, "out", 10), 10)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "transaction.version=2"); n > 1 || (n == 1) != tt.warned {
			t.Errorf("%d warnings for brokers of version %s", n, tt.versions.VersionGuess())
		}
	}
}

func TestReadyReportsAnOutageOfTheBrokers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	inject(t, c, 0, 10)
	w := &wire{}
	cfg := testConfig(c, &copier{})
	cfg.Client.dialTCP = w.dial
	l, _ := start(t, cfg)
	waitFor(t, func() bool { return l.Ready() == nil })
	w.kill()
	var last error
	defer func() { t.Logf("last error of Ready: %v", last) }()
	waitFor(t, func() bool {
		last = l.Ready()
		return last != nil && strings.Contains(last.Error(), "no broker has answered") && strings.Contains(last.Error(), "cannot reach a Kafka broker") && strings.Contains(last.Error(), "the wire is cut")
	})
	w.repair()
	waitFor(t, func() bool { return l.Ready() == nil })
}

// Ready returns the reason why a loop does not work, and nil once it works again.
func TestReadyReportsTheReason(t *testing.T) {
	t.Run("the registry is down", func(t *testing.T) {
		c := newCluster(t, 1)
		inject(t, c, 0, 10)
		down := make(chan struct{})
		h := &copier{before: func(context.Context, *pipeline.Record, pipeline.Emitter) error {
			select {
			case <-down:
				return nil
			default:
				return errors.New("the registry does not answer")
			}
		}}
		l, _ := start(t, testConfig(c, h))
		waitFor(t, func() bool {
			err := l.Ready()
			return err != nil && strings.Contains(err.Error(), "the registry does not answer")
		})
		close(down)
		wantEach(t, committed(t, c, "out", 10), 10)
		waitFor(t, func() bool { return l.Ready() == nil })
	})
	t.Run("no permission for the group", func(t *testing.T) {
		c := newCluster(t, 1)
		fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Err: kerr.GroupAuthorizationFailed, TopLevel: true, Count: -1})
		l, _ := start(t, testConfig(c, &copier{}))
		waitFor(t, func() bool {
			err := l.Ready()
			return err != nil && strings.Contains(err.Error(), "GROUP_AUTHORIZATION_FAILED")
		})
		fault.Remove()
		waitFor(t, func() bool { return l.Ready() == nil })
	})
}

func TestAPanicInAHandlerEndsTheLoopWithItsStack(t *testing.T) {
	var log lines
	c := newCluster(t, 1)
	inject(t, c, 0, 10)
	cfg := testConfig(c, &copier{before: func(context.Context, *pipeline.Record, pipeline.Emitter) error { panic(fmt.Sprint("no ", "idea")) }})
	cfg.Logger = log.logger()
	l, err := NewLoop(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Run(t.Context()); pipeline.ClassOf(err) != pipeline.ClassFatal || !strings.Contains(err.Error(), "panic: no idea") {
		t.Errorf("ended with %v", err)
	}
	if !strings.Contains(log.String(), "no idea") || !strings.Contains(log.String(), "options_test.go") {
		t.Errorf("the log has no stack: %s", log.String())
	}
	if got := readAll(t.Context(), t, c, "out"); len(got) != 0 {
		t.Errorf("%d records of a batch that panicked are visible", len(got))
	}
}

// With little memory, a batch ends at its byte limit.
func TestMemoryBoundsABatch(t *testing.T) {
	c := newCluster(t, 1)
	w, err := NewWriter(c.config())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 200 {
		w.Write(t.Context(), &pipeline.Record{Topic: "in", Partition: 0, Value: make([]byte, 64<<10)}, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := &sizer{}
	cfg := testConfig(c, h)
	cfg.Memory, cfg.CommitInterval = minSessionMemory, time.Second
	l, stop := start(t, cfg)
	waitFor(t, func() bool { return lag(l) == 0 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	// A batch exceeds its limit by at most one poll.
	if limit := l.cfg.batchBytes(); h.largest > limit+(firstPoll*64)<<10 || h.largest < limit {
		t.Errorf("the largest batch has %d bytes, at a limit of %d", h.largest, limit)
	}
}

// sizer records the size of the largest batch.
type sizer struct{ bytes, largest int }

func (s *sizer) Handle(_ context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
	s.bytes += len(in.Value)
	return nil
}
func (s *sizer) Flush(context.Context, pipeline.Emitter) error { return nil }
func (s *sizer) EndBatch(bool)                                 { s.largest, s.bytes = max(s.largest, s.bytes), 0 }
