package kafka

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// The benchmark measures the CPU time of this process per event. So the broker runs in
// a separate process: this test binary, started with brokerEnv set.
const brokerEnv = "MILLRACE_BENCH_BROKER"

func TestMain(m *testing.M) {
	if os.Getenv(brokerEnv) != "" {
		os.Exit(serveBroker())
	}
	os.Exit(m.Run())
}

// serveBroker runs a broker until its standard input ends.
func serveBroker() int {
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer c.Close()
	fmt.Fprintln(os.Stdout, strings.Join(c.ListenAddrs(), ","))
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// brokerProcess starts a broker process, which ends with the benchmark.
func brokerProcess(b *testing.B) Config {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), brokerEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return Config{Brokers: strings.Split(strings.TrimSpace(line), ",")}
}

const (
	benchEvents     = 400_000
	benchPartitions = 12
)

// A copyLoop copies every event of "in" to another topic, with its own group, and
// returns when all are committed.
type copyLoop struct {
	name string
	run  func(ctx context.Context, cfg Config, group, to string) error
}

// BenchmarkLoop runs the loops in turn over the same events, several times. For each
// loop it reports the CPU time of this process and the allocations per event, and the
// ratio of its CPU time to that of the bare loop.
func BenchmarkLoop(b *testing.B) {
	loops := []copyLoop{
		{"bare", bareLoop},
		{"exactly_once", func(ctx context.Context, cfg Config, group, to string) error {
			return ourLoop(ctx, cfg, ExactlyOnce, group, to)
		}},
		{"at_least_once", func(ctx context.Context, cfg Config, group, to string) error {
			return ourLoop(ctx, cfg, AtLeastOnce, group, to)
		}},
	}
	cfg := brokerProcess(b)
	specs := []TopicSpec{{Name: "in", Partitions: benchPartitions}}
	for _, l := range loops {
		specs = append(specs, TopicSpec{Name: "out-" + l.name, Partitions: benchPartitions})
	}
	if _, err := EnsureTopics(b.Context(), cfg, specs, true); err != nil {
		b.Fatal(err)
	}
	injectEvents(b, cfg, benchEvents)

	type sums struct {
		cpu, wall time.Duration
		mallocs   uint64
	}
	total := make([]sums, len(loops))
	rounds := 0
	for b.Loop() {
		for i, l := range loops {
			runtime.GC()
			cpu, mallocs, began := cpuTime(b), mallocs(), time.Now()
			if err := l.run(b.Context(), cfg, fmt.Sprintf("%s-%d", l.name, rounds), "out-"+l.name); err != nil {
				b.Fatalf("%s: %v", l.name, err)
			}
			total[i].wall += time.Since(began)
			total[i].cpu += cpuTime(b) - cpu
			total[i].mallocs += mallocsSince(mallocs)
		}
		rounds++
	}
	events := float64(rounds * benchEvents)
	for i, l := range loops {
		b.ReportMetric(float64(total[i].cpu.Nanoseconds())/events, l.name+"-cpu-ns/event")
		b.ReportMetric(float64(total[i].mallocs)/events, l.name+"-allocs/event")
		b.ReportMetric(events/total[i].wall.Seconds(), l.name+"-events/s")
		if i > 0 {
			b.ReportMetric(float64(total[i].cpu)/float64(total[0].cpu), l.name+"/bare-cpu")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// injectEvents writes events of a realistic size, with a header.
func injectEvents(b *testing.B, cfg Config, n int) {
	b.Helper()
	w, err := NewWriter(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	var once sync.Once
	for i := range n {
		w.Write(b.Context(), &pipeline.Record{
			Topic: "in", Partition: pipeline.KeyPartition,
			Key:     fmt.Appendf(nil, "order-%08d", i%50_000),
			Value:   fmt.Appendf(nil, "\x00\x00\x00\x00\x07%032x%0128d", i*2654435761, i),
			Headers: []pipeline.Header{{Key: "traceparent", Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")}},
			Time:    time.UnixMilli(int64(i)),
		}, func(err error) {
			if err != nil {
				once.Do(func() { b.Error(err) })
			}
		})
	}
	if err := w.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

func mallocsSince(before uint64) uint64 { return mallocs() - before }

// bareLoop copies records with only the client's transaction session, without the
// checks of our loop.
func bareLoop(ctx context.Context, cfg Config, group, to string) error {
	opts, err := cfg.Options()
	if err != nil {
		return err
	}
	session, err := kgo.NewGroupTransactSession(append(opts,
		kgo.TransactionalID(group), kgo.TransactionTimeout(10*time.Second),
		kgo.ConsumerGroup(group), kgo.ConsumeTopics("in"),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)...)
	if err != nil {
		return err
	}
	defer session.Close()
	for done := 0; done < benchEvents; {
		fetches := session.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		if err := session.Begin(); err != nil {
			return err
		}
		n := 0
		for deadline := time.Now().Add(100 * time.Millisecond); ; {
			fetches.EachRecord(func(r *kgo.Record) {
				n++
				session.Produce(ctx, &kgo.Record{Topic: to, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp}, func(_ *kgo.Record, err error) {
					if err != nil {
						panic(err)
					}
				})
			})
			if !time.Now().Before(deadline) || done+n >= benchEvents {
				break
			}
			more, cancel := context.WithDeadline(ctx, deadline)
			fetches = session.PollFetches(more)
			cancel()
		}
		committed, err := session.End(ctx, kgo.TryCommit)
		if err != nil {
			return err
		}
		if committed {
			done += n
		}
	}
	return nil
}

func ourLoop(ctx context.Context, cfg Config, guarantee Guarantee, group, to string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	h := &benchCopier{to: to, done: stop}
	l, err := NewLoop(LoopConfig{
		Client: cfg, Group: group, Topics: []string{"in"}, Guarantee: guarantee,
		NewHandler: func(int) (pipeline.Handler, error) { return h, nil },
	})
	if err != nil {
		return err
	}
	if err := l.Run(ctx); err != nil {
		return err
	}
	if h.committed != benchEvents {
		return errors.New("the loop was stopped early")
	}
	return nil
}

// benchCopier copies events, and ends the loop at the last one.
type benchCopier struct {
	to           string
	done         func()
	out          pipeline.Record
	n, committed int
}

func (h *benchCopier) Handle(_ context.Context, in *pipeline.Record, out pipeline.Emitter) error {
	h.out = *in
	h.out.Topic, h.out.Partition = h.to, pipeline.KeyPartition
	out.Emit(&h.out)
	if h.n++; h.committed+h.n == benchEvents {
		h.done()
	}
	return nil
}

func (h *benchCopier) Flush(context.Context, pipeline.Emitter) error { return nil }

func (h *benchCopier) EndBatch(committed bool) {
	if committed {
		h.committed += h.n
	}
	h.n = 0
}
