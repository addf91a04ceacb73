package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
)

// The tests of this file use kfake, a Kafka broker in this process, with the topics
// "in" and "out". Handlers copy the value of each input record to "out".
//
// Most tests run in a bubble of testing/synctest, where network connections are
// in-memory pipes and time is fake: it advances only when every goroutine waits. So a
// wait for a timeout takes no real time, and a test does not depend on the speed of the
// machine.

// A cluster is a kfake cluster, and how to connect to it.
type cluster struct {
	*kfake.Cluster
	dial func(ctx context.Context, network, addr string) (net.Conn, error) // nil: TCP
}

// config returns the configuration of a client of the cluster.
func (c *cluster) config() Config { return Config{Brokers: c.ListenAddrs(), dialTCP: c.dial} }

// client returns a client of the cluster that is closed at the end of the test.
func (c *cluster) client(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	all := []kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...)}
	if c.dial != nil {
		all = append(all, kgo.Dialer(c.dial))
	}
	cl, err := kgo.NewClient(append(all, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// newCluster starts a cluster that listens on TCP, for tests in real time.
func newCluster(t *testing.T, partitions int, opts ...kfake.Opt) *cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{
		kfake.NumBrokers(1), kfake.SeedTopics(int32(partitions), "in", "out"),
		// Tests wait until the group removes members that crashed.
		kfake.BrokerConfigs(map[string]string{"group.min.session.timeout.ms": "100"}),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &cluster{Cluster: c}
}

// newBubbleCluster starts a cluster on a virtual network, for tests in a bubble.
func newBubbleCluster(t *testing.T, partitions int, opts ...kfake.Opt) *cluster {
	t.Helper()
	network := new(kfake.VirtualNetwork)
	c := newCluster(t, partitions, append(opts, kfake.ListenFn(network.Listen), kfake.Ports(9092))...)
	c.dial = network.DialContext
	return c
}

// inject writes records from..to-1 to "in" and waits until they are acknowledged.
func inject(t *testing.T, c *cluster, from, to int) {
	t.Helper()
	w, err := NewWriter(c.config())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	write(t, w, from, to)
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// write is inject without waiting for the acknowledgements.
func write(t *testing.T, w *Writer, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		w.Write(t.Context(), &pipeline.Record{
			Topic: "in", Partition: pipeline.KeyPartition,
			Key: fmt.Appendf(nil, "key-%d", i%17), Value: fmt.Appendf(nil, "%06d", i),
			Time: time.UnixMilli(int64(i)),
		}, func(err error) {
			if err != nil {
				t.Errorf("record %d: %v", i, err)
			}
		})
	}
}

// committed waits until a topic has at least n committed records, and returns the values
// of all that it has then.
func committed(t *testing.T, c *cluster, topic string, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cl := c.client(t, kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer cl.Close()
	for have := 0; have < n; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%s has %d committed records, want %d: %v", topic, have, n, err)
		}
		have += fetches.NumRecords()
	}
	return readAll(ctx, t, c, topic)
}

// readAll returns the values of the committed records of a topic.
func readAll(ctx context.Context, t *testing.T, c *cluster, topic string) []string {
	t.Helper()
	var got []string
	for _, p := range c.PartitionInfos(topic) {
		_, err := ReadPartition(ctx, c.config(), topic, p.Partition, 0, func(r *pipeline.Record) error {
			got = append(got, string(r.Value))
			return nil
		})
		if err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
	}
	return got
}

// wantEach checks that got has the values 0 to n-1 once each, in any order.
func wantEach(t *testing.T, got []string, n int) {
	t.Helper()
	slices.Sort(got)
	for i := range max(n, len(got)) {
		want := fmt.Sprintf("%06d", i)
		if i >= len(got) || got[i] != want {
			at := got[min(i, len(got)):min(i+3, len(got))]
			t.Fatalf("%d records; at %d want %s, got %v", len(got), i, want, at)
		}
	}
}

// copier is a Handler that copies to "out". before, if set, is called before each
// copy; it may emit other records or return an error. ended, if set, is called at the
// end of each batch.
type copier struct {
	before func(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error
	ended  func(committed bool)
}

func (h *copier) Handle(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	if h.before != nil {
		if err := h.before(ctx, in, out); err != nil {
			return err
		}
	}
	out.Emit(&pipeline.Record{Topic: "out", Partition: pipeline.KeyPartition, Key: in.Key, Value: in.Value, Time: in.Time})
	return nil
}

func (h *copier) Flush(context.Context, pipeline.Emitter) error { return nil }

func (h *copier) EndBatch(committed bool) {
	if h.ended != nil {
		h.ended(committed)
	}
}

func testConfig(c *cluster, h pipeline.Handler) LoopConfig {
	return LoopConfig{
		Client: c.config(), Group: "g", Topics: []string{"in"},
		CommitInterval: 20 * time.Millisecond, TransactionTimeout: 5 * time.Second,
		SessionTimeout: 3 * time.Second,
		NewHandler:     func(int) (pipeline.Handler, error) { return h, nil },
	}
}

// start runs a loop until stop is called or the test ends. stop returns Run's error.
func start(t *testing.T, cfg LoopConfig) (l *Loop, stop func() error) {
	t.Helper()
	l, err := NewLoop(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return l, stop
}

// In real time: see the test of rebalances.
func TestEveryRecordIsWrittenOnce(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(string(guarantee), func(t *testing.T) {
			c := newCluster(t, 4)
			inject(t, c, 0, 5000)
			cfg := testConfig(c, nil)
			cfg.Guarantee, cfg.Sessions = guarantee, 3
			cfg.NewHandler = func(int) (pipeline.Handler, error) { return &copier{}, nil }
			_, stop := start(t, cfg)
			wantEach(t, committed(t, c, "out", 5000), 5000)
			if err := stop(); err != nil {
				t.Error(err)
			}
			inject(t, c, 5000, 6000)
			start(t, cfg)
			wantEach(t, committed(t, c, "out", 6000), 6000)
		})
	}
}

func TestALoopIsReadyWithoutLagAtTheEndOfTheInput(t *testing.T) {
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		t.Run(string(guarantee), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newBubbleCluster(t, 4)
				inject(t, c, 0, 5000)
				cfg := testConfig(c, &copier{})
				cfg.Guarantee = guarantee
				l, _ := start(t, cfg)
				await(t, "the end of the input", func() bool { return len(l.Progress()) == 4 && lag(l) == 0 && l.Ready() == nil })
				wantEach(t, readAll(t.Context(), t, c, "out"), 5000)
			})
		})
	}
}

func TestOrderPerKeyIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 3)
		inject(t, c, 0, 3000)
		start(t, testConfig(c, &copier{}))
		committed(t, c, "out", 3000)
		for _, p := range c.PartitionInfos("out") {
			last := map[string]string{}
			_, err := ReadPartition(t.Context(), c.config(), "out", p.Partition, 0, func(r *pipeline.Record) error {
				if key := string(r.Key); string(r.Value) <= last[key] {
					t.Errorf("%s: %s after %s", key, r.Value, last[key])
				} else {
					last[key] = string(r.Value)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestAnyFailureAbortsTheBatch is the most important test of Millrace. For each way in
// which an output can be missing, the input offset does not move and no record of the
// batch is visible. Once the cause is removed, every record is written once.
func TestAnyFailureAbortsTheBatch(t *testing.T) {
	errEncode := errors.New("cannot encode")
	tests := []struct {
		name string
		// before runs before each copy until the cause is removed.
		before func(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error
		fault  *kfake.Fault
		// before50 is how many records a later, smaller batch commits without the one that
		// the handler refuses: 50 if the handler names it.
		before50 int
	}{
		{
			name: "output too large",
			before: func(_ context.Context, in *pipeline.Record, out pipeline.Emitter) error {
				if string(in.Value) == "000050" {
					out.Emit(&pipeline.Record{Topic: "out", Partition: 0, Value: make([]byte, 2<<20)})
				}
				return nil
			},
		},
		{
			name:  "no write permission",
			fault: &kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "out", Err: kerr.TopicAuthorizationFailed, Count: -1},
		},
		{
			name: "output topic does not exist",
			before: func(_ context.Context, in *pipeline.Record, out pipeline.Emitter) error {
				if string(in.Value) == "000050" {
					out.Emit(&pipeline.Record{Topic: "missing", Partition: 0, Value: in.Value})
				}
				return nil
			},
		},
		{
			name: "encode error", before50: 50,
			before: func(_ context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
				if string(in.Value) == "000050" {
					return errEncode
				}
				return nil
			},
		},
		{
			name: "canceled context", before50: 50,
			before: func(ctx context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
				if string(in.Value) == "000050" {
					ctx, cancel := context.WithCancel(ctx)
					cancel()
					return ctx.Err()
				}
				return nil
			},
		},
	}
	for _, guarantee := range []Guarantee{ExactlyOnce, AtLeastOnce} {
		for _, test := range tests {
			t.Run(string(guarantee)+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					c := newBubbleCluster(t, 1)
					var faults *kfake.FaultHandle
					if test.fault != nil {
						faults = c.Fault(*test.fault)
					}
					var repaired atomic.Bool
					var aborts atomic.Int32
					h := &copier{
						before: func(ctx context.Context, in *pipeline.Record, out pipeline.Emitter) error {
							if repaired.Load() || test.before == nil {
								return nil
							}
							return test.before(ctx, in, out)
						},
						ended: func(committed bool) {
							if !committed {
								aborts.Add(1)
							}
						},
					}
					inject(t, c, 0, 100)
					cfg := testConfig(c, h)
					cfg.Guarantee = guarantee
					l, _ := start(t, cfg)
					await(t, "two rolled back batches", func() bool { return aborts.Load() >= 2 })
					if guarantee == ExactlyOnce {
						if got := readAll(t.Context(), t, c, "out"); len(got) != 0 && len(got) != test.before50 {
							t.Errorf("%d records of an aborted batch are visible", len(got))
						}
					}
					if at := groupOffset(c, "in", 0); at > int64(test.before50) {
						t.Errorf("the group's offset moved to %d", at)
					}
					if l.Ready() == nil {
						t.Error("ready, although no batch commits")
					}
					if faults != nil {
						if faults.Hits() == 0 {
							t.Error("the fault was never injected")
						}
						faults.Remove()
					}
					repaired.Store(true)
					await(t, "the end of the input", func() bool { return lag(l) == 0 && l.Ready() == nil })
					got := committed(t, c, "out", 100)
					if guarantee == AtLeastOnce {
						slices.Sort(got)
						got = slices.Compact(got) // records written before the failure are written again
					}
					wantEach(t, got, 100)
				})
			})
		}
	}
}

// member is a copier that closes assigned when its session first gets partitions.
type member struct {
	copier
	once     sync.Once
	assigned chan struct{}
}

func (m *member) Assign(_ context.Context, ps []Partition) ([]int64, error) {
	if len(ps) > 0 {
		m.once.Do(func() { close(m.assigned) })
	}
	from := make([]int64, len(ps))
	for i, p := range ps {
		from[i] = max(p.Committed, p.Start)
	}
	return from, nil
}

func (*member) Revoke([]Partition) {}

// In real time, as every test in which a group has several members. In a bubble it could
// hang: the client holds a mutex while it waits to join the group, and a commit waits for
// that mutex. A goroutine that waits for a mutex keeps the fake time from advancing, so
// the other members never send the heartbeat by which they learn of the rebalance.
func TestRecordsSurviveRebalances(t *testing.T) {
	const n = 20000
	c := newCluster(t, 6)
	inject(t, c, 0, n)
	worker := func(instance string) (sessions []*member, stop func() error) {
		sessions = []*member{{assigned: make(chan struct{})}, {assigned: make(chan struct{})}}
		cfg := testConfig(c, nil)
		cfg.Instance, cfg.Sessions, cfg.CommitInterval = instance, len(sessions), 5*time.Millisecond
		cfg.SessionTimeout = time.Second // a third of it is the interval at which members check for a rebalance
		cfg.NewHandler = func(i int) (pipeline.Handler, error) { return sessions[i], nil }
		_, stop = start(t, cfg)
		return sessions, stop
	}
	worker("a")
	for i := range 5 {
		sessions, stop := worker(fmt.Sprint("b", i))
		for _, m := range sessions {
			<-m.assigned
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	wantEach(t, committed(t, c, "out", n), n)
}

func TestStopFinishesTheCurrentBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		inject(t, c, 0, 10)
		entered, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		h := &copier{before: func(context.Context, *pipeline.Record, pipeline.Emitter) error {
			once.Do(func() { close(entered); <-release })
			return nil
		}}
		_, stop := start(t, testConfig(c, h))
		<-entered
		stopped := make(chan error)
		go func() { stopped <- stop() }()
		close(release)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		wantEach(t, readAll(t.Context(), t, c, "out"), 10)
		if at := groupOffset(c, "in", 0); at != 10 {
			t.Errorf("the group's offset is %d, want 10", at)
		}
	})
}

func TestStopAbortsABatchThatDoesNotEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		inject(t, c, 0, 10)
		entered := make(chan struct{})
		var once sync.Once
		h := &copier{before: func(ctx context.Context, _ *pipeline.Record, _ pipeline.Emitter) error {
			once.Do(func() { close(entered) })
			<-ctx.Done()
			return ctx.Err()
		}}
		cfg := testConfig(c, h)
		cfg.Drain = 10 * time.Millisecond
		_, stop := start(t, cfg)
		<-entered
		if err := stop(); err != nil {
			t.Error(err)
		}
		if got := readAll(t.Context(), t, c, "out"); len(got) != 0 {
			t.Errorf("%d records of an aborted batch are visible", len(got))
		}
		if at := groupOffset(c, "in", 0); at > 0 {
			t.Errorf("the group's offset moved to %d", at)
		}
	})
}

// In real time: see the test of rebalances.
func TestSecondProcessUnderOneInstanceFencesTheFirst(t *testing.T) {
	c := newCluster(t, 2)
	l, err := NewLoop(testConfig(c, &copier{}))
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan error, 1)
	go func() { first <- l.Run(t.Context()) }()
	inject(t, c, 0, 10)
	committed(t, c, "out", 10)
	start(t, testConfig(c, &copier{}))
	for i := 10; ; i++ { // the first process learns of the second with its next transaction
		inject(t, c, i, i+1)
		wantEach(t, committed(t, c, "out", i+1), i+1)
		select {
		case err := <-first:
			if !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), "--instance") {
				t.Fatalf("ended with %v", err)
			}
			return
		default:
		}
	}
}

func TestUnreadRecordsDeletedByRetentionStopTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		inject(t, c, 0, 10)
		_, stop := start(t, testConfig(c, &copier{}))
		await(t, "the commit", func() bool { return groupOffset(c, "in", 0) == 10 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		inject(t, c, 10, 20)
		if err := c.DeleteRecords("in", 0, 15); err != nil {
			t.Fatal(err)
		}
		l, err := NewLoop(testConfig(c, &copier{}))
		if err != nil {
			t.Fatal(err)
		}
		err = l.Run(t.Context())
		if pipeline.ClassOf(err) != pipeline.ClassFatal || !strings.Contains(err.Error(), "retention deleted 5 offsets unread") {
			t.Errorf("ended with %v", err)
		}
	})
}

// The operator may accept the loss. The loop commits at once, so the next start needs no
// acceptance although no record arrives.
// In real time: the client holds a mutex while it waits for the end of a transaction.
func TestALoopContinuesAfterUnreadRecordsIfTheLossIsAccepted(t *testing.T) {
	for _, left := range []int{5, 0} {
		t.Run(fmt.Sprint(left, " are left"), func(t *testing.T) {
			c := newCluster(t, 1)
			inject(t, c, 0, 10)
			_, stop := start(t, testConfig(c, &copier{}))
			waitFor(t, func() bool { return groupOffset(c, "in", 0) == 10 })
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			inject(t, c, 10, 20)
			if err := c.DeleteRecords("in", 0, int64(20-left)); err != nil {
				t.Fatal(err)
			}
			cfg := testConfig(c, &copier{})
			cfg.AcceptLoss = true
			reg := prometheus.NewRegistry()
			cfg.Metrics = NewMetrics(reg)
			_, stop = start(t, cfg)
			waitFor(t, func() bool { return groupOffset(c, "in", 0) == 20 })
			if n := testutil.ToFloat64(cfg.Metrics.unread); n != float64(10-left) {
				t.Errorf("%v unread offsets are counted, want %d", n, 10-left)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			_, _ = start(t, testConfig(c, &copier{}))
			inject(t, c, 20, 21)
			got := committed(t, c, "out", 10+left+1)
			if len(got) != 10+left+1 || got[len(got)-1] != "000020" || got[10] == "000010" {
				t.Errorf("written: %v", got)
			}
		})
	}
}

func TestANewGroupReadsFromTheStartOfTheTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		inject(t, c, 0, 20)
		if err := c.DeleteRecords("in", 0, 15); err != nil {
			t.Fatal(err)
		}
		var first atomic.Bool
		h := &copier{before: func(context.Context, *pipeline.Record, pipeline.Emitter) error {
			if !first.Swap(true) {
				return errors.New("abort before anything was committed")
			}
			return nil
		}}
		start(t, testConfig(c, h))
		if got := committed(t, c, "out", 5); got[0] != "000015" || len(got) != 5 {
			t.Errorf("got %v, want 000015 to 000019", got)
		}
	})
}

// keeper is a copier that chooses the offset to start from.
type keeper struct {
	copier
	mu       sync.Mutex // guards the fields below
	assigned []Partition
	revoked  int
	from     int64
}

func (k *keeper) Assign(_ context.Context, ps []Partition) ([]int64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.assigned = append(k.assigned, ps...)
	from := make([]int64, len(ps))
	for i := range from {
		from[i] = k.from
	}
	return from, nil
}

func (k *keeper) Revoke(ps []Partition) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.revoked += len(ps)
}

func TestAssignerChoosesWhereToStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		inject(t, c, 0, 20)
		h := &keeper{from: 12}
		_, stop := start(t, testConfig(c, h))
		if got := committed(t, c, "out", 8); got[0] != "000012" {
			t.Errorf("started at %s, want 000012", got[0])
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		want := Partition{Topic: "in", Partition: 0, Committed: -1, Start: 0, End: 20}
		if !slices.Equal(h.assigned, []Partition{want}) {
			t.Errorf("assigned %+v, want %+v", h.assigned, want)
		}
		if h.revoked != 1 {
			t.Errorf("%d partitions revoked, want 1", h.revoked)
		}
	})
}

func TestUncommittedInputIsNeverRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleCluster(t, 1)
		inject(t, c, 0, 5)
		cl := c.client(t, kgo.TransactionalID("elsewhere"))
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: []byte("aborted")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		inject(t, c, 5, 10)
		l, _ := start(t, testConfig(c, &copier{}))
		wantEach(t, committed(t, c, "out", 10), 10)
		// The position passes the marker of the aborted transaction.
		await(t, "position 12", func() bool { return lag(l) == 0 && l.Progress()[0].Position == 12 })
	})
}

func lag(l *Loop) (n int64) {
	ps := l.Progress()
	if len(ps) == 0 {
		return -1
	}
	for _, p := range ps {
		n += p.Lag()
	}
	return n
}

func groupOffset(c *cluster, topic string, partition int32) int64 {
	g := c.GroupInfo("g")
	if g == nil {
		return -1
	}
	commit, ok := g.Commits[topic][partition]
	if !ok {
		return -1
	}
	return commit.Offset
}

// waitFor checks a condition in real time until it holds. In a bubble, use await.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatal("the condition does not hold after two minutes")
		case <-tick.C:
		}
	}
}

// await waits, in a bubble, until a condition holds. It checks the condition whenever all
// other goroutines are blocked, and then lets the fake time advance.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for synctest.Wait(); !cond(); synctest.Wait() {
		if time.Now().After(deadline) {
			t.Fatalf("a minute of fake time has passed without %s", what)
		}
		time.Sleep(time.Millisecond) //nolint:forbidigo // fake time: it advances the clock of the bubble
	}
}
