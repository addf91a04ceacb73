package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/codec"
	"millrace/pipeline/e2e/kafkatest"
	"millrace/pipeline/sandbox"
)

const (
	handOverPartitions = 12
	handOverPace       = 5 * time.Millisecond // between two events of a partition
	handOverLimit      = 45 * time.Second     // of a pause
	handOverClick      = `{"type":"record","name":"Click","fields":[{"name":"id","type":"string"},{"name":"n","type":"long"}]}`
	handOverCount      = `{"type":"record","name":"Count","fields":[{"name":"n","type":"long","default":0}]}`
)

// A handOver is a topology under a steady load. A test stops and starts its workers.
// Each partition has one key and the events 0, 1, 2 and so on.
type handOver struct {
	t       *testing.T
	program string
	args    []string // of every worker
	out     string   // topic that the workers write
	brokers []string
	dir     string
	workers map[string]*handOverWorker
	unload  func() // ends the load

	mu      sync.Mutex // guards the fields below
	sent    []int64    // number of acknowledged events, by partition
	lastAck time.Time
	longAck time.Duration // longest time without an acknowledged event, since mark
	seen    []int64       // processor: number of events on the output, by partition; projector: number of snapshots
	last    []time.Time   // of the last output
	longest []time.Duration
	fault   string
}

// newHandOver writes a topology with a pipeline and a projection, and starts the load.
func newHandOver(t *testing.T, brokers []string, program string, args ...string) *handOver {
	t.Helper()
	registry, err := sandbox.New(sandbox.Config{NoBroker: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registry.Close(); err != nil {
			t.Error(err)
		}
	})
	name := fmt.Sprintf("handover-%d", time.Now().UnixNano())
	h := &handOver{t: t, program: program, brokers: brokers, dir: t.TempDir(), workers: map[string]*handOverWorker{}, out: name + ".out",
		sent: make([]int64, handOverPartitions), seen: make([]int64, handOverPartitions), last: make([]time.Time, handOverPartitions), longest: make([]time.Duration, handOverPartitions)}
	if program == "projector" {
		h.out = name + ".counts"
	}
	text := strings.NewReplacer("NAME", name, "COUNT", strconv.Itoa(handOverPartitions)).Replace(`name: NAME
topics:
  NAME.in: {partitions: COUNT, types: [Click], envelope: none, id: "id + '-' + string(n)"}
  NAME.out: {partitions: COUNT}
  NAME.dead: {partitions: 1}
pipelines:
  p: {from: NAME.in, to: NAME.out, dead_letter: NAME.dead, stages: [{filter: {keep: n >= 0}}]}
projections:
  count: {from: NAME.in, key: id, state: Count, on: {Click: {set: {n: state.n + 1}}}, snapshots: NAME.counts}
`)
	topology := filepath.Join(h.dir, "topology.yaml")
	for file, content := range map[string]string{topology: text, filepath.Join(h.dir, "Click.avsc"): handOverClick, filepath.Join(h.dir, "Count.avsc"): handOverCount} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.args = append([]string{"-t", topology, "--schemas", h.dir, "-b", strings.Join(brokers, ","), "-r", registry.RegistryURL()}, args...)
	h.begin(name+".in", registry.RegistryURL())
	return h
}

// begin creates the topics and starts the load and the reader of the output.
func (h *handOver) begin(in, registry string) {
	h.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(h.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		h.t.Fatal(err)
	}
	config := map[string]*string{}
	if h.program == "projector" {
		compact := "compact"
		config["cleanup.policy"] = &compact
	}
	adm := kadm.NewClient(cl)
	_, err1 := adm.CreateTopic(h.t.Context(), handOverPartitions, 1, nil, in)
	_, err2 := adm.CreateTopic(h.t.Context(), handOverPartitions, 1, config, h.out)
	reg, err3 := codec.NewRegistry(codec.RegistryConfig{URLs: []string{registry}})
	schema, err4 := codec.ParseSchema(handOverClick)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			h.t.Fatal(err)
		}
	}
	id, err := reg.Register(h.t.Context(), codec.TopicRecordName.Value(in, schema), schema)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.t.Context()))
	load, unload := context.WithCancel(ctx)
	var sender, reader sync.WaitGroup
	sender.Go(func() { h.send(load, cl, in, id) })
	reader.Go(func() { h.read(ctx) })
	h.unload = func() { unload(); sender.Wait() }
	h.t.Cleanup(func() { h.unload(); cancel(); reader.Wait(); cl.Close() })
}

// handOverKeys returns a key for each partition.
func handOverKeys() []string {
	keys := make([]string, handOverPartitions)
	p := kgo.StickyKeyPartitioner(nil).ForTopic("")
	for i, left := 0, handOverPartitions; left > 0; i++ {
		key := fmt.Sprintf("key-%04d", i)
		if at := p.Partition(&kgo.Record{Key: []byte(key)}, handOverPartitions); keys[at] == "" {
			keys[at] = key
			left--
		}
	}
	return keys
}

// send sends one event per partition at every tick. Events that are late are sent at once.
func (h *handOver) send(ctx context.Context, cl *kgo.Client, topic string, schema int) {
	keys := handOverKeys()
	tick := time.NewTicker(handOverPace)
	defer tick.Stop()
	begin := time.Now()
	for n := int64(0); ; n++ {
		for time.Since(begin) < time.Duration(n)*handOverPace {
			select {
			case <-ctx.Done():
				_ = cl.Flush(context.WithoutCancel(ctx))
				return
			case <-tick.C:
			}
		}
		for p, key := range keys {
			value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, schema), key), n)
			cl.Produce(context.WithoutCancel(ctx), &kgo.Record{Topic: topic, Partition: int32(p), Key: []byte(key), Value: value}, func(_ *kgo.Record, err error) {
				h.mu.Lock()
				defer h.mu.Unlock()
				if err != nil {
					h.fault = err.Error()
				}
				h.sent[p]++
				now := time.Now()
				if !h.lastAck.IsZero() {
					h.longAck = max(h.longAck, now.Sub(h.lastAck))
				}
				h.lastAck = now
			})
		}
	}
}

// read reads the output as a program behind the workers does, and checks its order.
func (h *handOver) read(ctx context.Context) {
	from := map[int32]kgo.Offset{}
	for p := range int32(handOverPartitions) {
		from[p] = kgo.NewOffset().AtStart()
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(h.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{h.out: from}))
	if err != nil {
		h.t.Error(err)
		return
	}
	defer cl.Close()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		now := time.Now()
		h.mu.Lock()
		fetches.EachError(func(_ string, _ int32, err error) {
			if ctx.Err() == nil {
				h.fault = err.Error()
			}
		})
		fetches.EachRecord(func(r *kgo.Record) { h.saw(r, now) })
		h.mu.Unlock()
	}
}

// saw records an output. The lock is held.
func (h *handOver) saw(r *kgo.Record, now time.Time) {
	p := r.Partition
	if h.program == "processor" {
		n, _ := binary.Varint(r.Value[5+1+len(r.Key):]) // after the frame and the id
		if n != h.seen[p] && h.fault == "" {
			h.fault = fmt.Sprintf("partition %d offset %d: event %d, want %d", p, r.Offset, n, h.seen[p])
		}
	}
	h.seen[p]++
	if !h.last[p].IsZero() {
		h.longest[p] = max(h.longest[p], now.Sub(h.last[p]))
	}
	h.last[p] = now
}

// mark forgets the longest pauses.
func (h *handOver) mark() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.longest)
	h.longAck = 0
}

// settle waits until every partition has passed the events of the next half second. It
// returns the longest pause of each partition since mark, and of the load.
func (h *handOver) settle() (longest []time.Duration, load time.Duration) {
	h.t.Helper()
	for range 2 {
		h.mu.Lock()
		sent := slices.Clone(h.sent)
		seen := slices.Clone(h.seen)
		h.mu.Unlock()
		h.await("every partition to have output", func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			for p := range sent {
				if h.program == "processor" && h.seen[p] < sent[p]+100 || h.program == "projector" && h.seen[p] < seen[p]+5 {
					return false
				}
			}
			return true
		})
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fault != "" {
		h.t.Fatal(h.fault)
	}
	return slices.Clone(h.longest), h.longAck
}

func (h *handOver) await(what string, cond func() bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			for name := range h.workers {
				text, _ := os.ReadFile(filepath.Join(h.dir, name+".log"))
				h.t.Logf("%s printed:\n%s", name, text[max(0, len(text)-4096):])
			}
			h.t.Fatalf("timeout waiting for %s", what)
		case <-tick.C:
		}
	}
}

// handOverWorker is a process.
type handOverWorker struct {
	cmd    *exec.Cmd
	exited chan struct{}
	url    string
}

// start starts a worker and waits until it is ready.
func (h *handOver) start(name string) {
	h.t.Helper()
	addr := filepath.Join(h.dir, name+".addr")
	_ = os.Remove(addr)
	args := append([]string{"run", "--listen", "127.0.0.1:0", "--listen-file", addr, "--instance", name}, h.args...)
	if h.program == "projector" {
		args = append(args, "--data-dir", filepath.Join(h.dir, "data-"+name))
	}
	w := &handOverWorker{cmd: exec.Command(filepath.Join(bin, h.program), args...), exited: make(chan struct{})}
	log, err := os.OpenFile(filepath.Join(h.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	w.cmd.Stdout, w.cmd.Stderr = log, log
	if err := w.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.workers[name] = w
	go func() {
		_ = w.cmd.Wait() // the result is in ProcessState
		close(w.exited)
	}()
	h.t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // fails if it has ended, which is normal
		<-w.exited
	})
	h.await(name+" to be ready", func() bool {
		at, err := os.ReadFile(addr)
		if err != nil || len(at) == 0 {
			return false
		}
		w.url = scheme + strings.TrimSpace(string(at))
		code, _, err := get(h.t.Context(), w.url+"/readyz")
		return err == nil && code == 200
	})
}

// end ends a worker with a signal.
func (h *handOver) end(name string, signal syscall.Signal) {
	h.t.Helper()
	w := h.workers[name]
	delete(h.workers, name)
	if err := w.cmd.Process.Signal(signal); err != nil {
		h.t.Fatal(err)
	}
	<-w.exited
	if code := w.cmd.ProcessState.ExitCode(); signal == syscall.SIGTERM && code != 0 {
		h.t.Errorf("%s: exit code %d", name, code)
	}
}

var lagSeries = regexp.MustCompile(`(?m)^millrace_consumer_lag_records\{.*partition="(\d+)"`)

// owned returns the partitions of a worker, in order.
func (h *handOver) owned(name string) []int {
	h.t.Helper()
	_, text, err := get(h.t.Context(), h.workers[name].url+"/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	var ps []int
	for _, m := range lagSeries.FindAllStringSubmatch(string(text), -1) {
		p, _ := strconv.Atoi(m[1])
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return slices.Compact(ps)
}

// share waits until the workers have the same number of partitions.
func (h *handOver) share() {
	h.t.Helper()
	h.await("an even share", func() bool {
		for name := range h.workers {
			if len(h.owned(name)) != handOverPartitions/len(h.workers) {
				return false
			}
		}
		return true
	})
}

// change measures the pauses of a change. Partitions that the workers have kept were not
// affected.
func (h *handOver) change(what string, do func()) {
	h.t.Helper()
	before := map[string][]int{}
	for name := range h.workers {
		before[name] = h.owned(name)
	}
	h.mark()
	do()
	longest, load := h.settle()
	h.share()
	var moved, kept time.Duration
	for p, d := range longest {
		stayed := false
		for name := range h.workers {
			stayed = stayed || slices.Contains(before[name], p) && slices.Contains(h.owned(name), p) && !strings.Contains(what, name+":")
		}
		if stayed {
			kept = max(kept, d)
		} else {
			moved = max(moved, d)
		}
	}
	if moved > handOverLimit || kept > handOverLimit {
		h.t.Errorf("%s: a partition has no output for %v", what, max(moved, kept))
	}
	h.t.Logf("%-22s moved or restarted %5d ms, unaffected %5d ms, load %4d ms", what, moved.Milliseconds(), kept.Milliseconds(), load.Milliseconds())
}

// finish ends the load, and checks that every event is on the output or in a state once.
func (h *handOver) finish() {
	h.t.Helper()
	h.unload()
	h.await("every event to be processed once", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.fault != "" || h.program == "projector" || slices.Equal(h.seen, h.sent)
	})
	if h.fault != "" {
		h.t.Fatal(h.fault)
	}
	if h.program == "processor" {
		return
	}
	for p, key := range handOverKeys() {
		last := ""
		h.await("the state of "+key, func() bool {
			_, body, err := get(h.t.Context(), h.workers["a"].url+"/v1/projections/count/"+key)
			last = fmt.Sprint(string(body), err)
			return strings.Contains(last, fmt.Sprintf(`"n":%d}`, h.sent[p]))
		})
	}
}

// TestKafkaHandOver stops, kills and starts workers under a steady load, and reports the
// longest time for which a partition has no output. Each event is processed once. Nothing
// waits for a dead worker: the timeouts of the group are longer than the limit of a pause.
func TestKafkaHandOver(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, _ []string) {
		for _, c := range []struct {
			name, program string
			args          []string
		}{
			{"processor", "processor", nil},
			{"dynamic", "processor", []string{"--static=false"}},
			{"consumer protocol", "processor", []string{"--group-protocol", "consumer"}},
			{"projector", "projector", nil},
			{"dynamic projector", "projector", []string{"--static=false"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel() // mostly waits
				h := newHandOver(t, b.Brokers(), c.program, append(c.args, "--session-timeout", "60s", "--transaction-timeout", "60s")...)
				h.start("a")
				h.settle()
				h.change("1 to 2", func() { h.start("b"); h.share() })
				h.change("b: SIGTERM and start", func() { h.end("b", syscall.SIGTERM); h.start("b"); h.share() })
				h.change("b: kill and start", func() { h.end("b", syscall.SIGKILL); h.start("b"); h.share() })
				h.change("2 to 3", func() { h.start("c"); h.share() })
				h.change("3 to 2", func() { h.end("c", syscall.SIGTERM); h.share() })
				h.finish()
				h.end("b", syscall.SIGTERM)
				h.end("a", syscall.SIGTERM)
			})
		}
	})
}
