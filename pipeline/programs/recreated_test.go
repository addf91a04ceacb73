package programs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/producer"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

const sumTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, id: "id + ''"}
  clicks: {partitions: 2, config: {retention.ms: "-1"}}
  dead: {partitions: 1}
pipelines:
  p: {from: in, to: clicks, dead_letter: dead}
projections:
  sum: {from: clicks, key: id, state: Count, on: {Click: {set: {n: state.n + n}}}, snapshots: sums}
  direct: {from: in, key: id, state: Count, on: {Click: {set: {n: state.n + n}}}, snapshots: directs}
`

// program is a running program.
type program struct {
	errors  harness.Buffer // stderr, if it is apart
	output  harness.Buffer
	signals chan os.Signal
	exit    chan int
}

// run starts a program in this process.
func run(command func(*cli.Env) *cobra.Command, box *sandbox.Sandbox, args ...string) *program {
	return runIn(&cli.Env{}, command, box, args...)
}

// runIn starts a program in this process. It completes the environment.
func runIn(env *cli.Env, command func(*cli.Env) *cobra.Command, box *sandbox.Sandbox, args ...string) *program {
	p := &program{signals: make(chan os.Signal, 1), exit: make(chan int, 1)}
	env.Stdout, env.Stderr, env.Now, env.Exit = &p.output, &p.output, time.Now, func(int) {}
	env.Notify = func() (<-chan os.Signal, func()) { return p.signals, func() {} }
	go func() { p.exit <- env.Main(append(args, "-b", box.Brokers()[0], "-r", box.RegistryURL()), command) }()
	return p
}

// stop stops a program and checks its exit code.
func (p *program) stop(t *testing.T) {
	t.Helper()
	p.signals <- syscall.SIGTERM
	if code := <-p.exit; code != cli.ExitOK {
		t.Errorf("exit code %d:\n%s", code, p.output.String())
	}
}

// until repeats a check every 10 ms, at most for a minute, until it returns true.
func until(t *testing.T, check func() bool) bool {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-tick.C {
		if check() {
			return true
		}
	}
	return false
}

// get returns the status and the body of an answer; 0 if there is no answer.
func get(url string) (status int, body string) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	text, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode, string(text)
}

// awaitState waits until an aggregate has n.
func awaitState(t *testing.T, address, projection, id string, n int64) {
	t.Helper()
	last := ""
	if !until(t, func() bool {
		var answer struct {
			State struct{ N int64 }
		}
		_, last = get("http://" + address + "/v1/projections/" + projection + "/" + id)
		return json.Unmarshal([]byte(last), &answer) == nil && answer.State.N == n
	}) {
		t.Errorf("%s %s never has n = %d; at last %s", projection, id, n, last)
	}
}

// Topics that are deleted and created again under running workers are processed and folded
// from their start. Nothing of the old ones remains in a state, and nothing of the new ones
// is missing.
func TestRunningWorkersStartAgainWhenTopicsAreCreatedAgain(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, sumTopology)
	box := harness.Sandbox(t)
	processor := run(programs.Processor, box, "run", "-t", file, "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0")
	defer processor.stop(t)
	address, stop, err := startProjector(t.Context(), file, dir, box)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	clicks := newClickSender(t, box, "in")
	for n := range int64(30) {
		clicks.send(n)
	}
	for n := range int64(30) {
		awaitState(t, address, "direct", fmt.Sprint("e-", n), n)
		awaitState(t, address, "sum", fmt.Sprint("e-", n), n)
	}

	cl, err := kgo.NewClient(kgo.SeedBrokers(box.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	if _, err := adm.DeleteTopics(t.Context(), "in"); err != nil {
		t.Fatal(err)
	}
	if _, err := adm.CreateTopic(t.Context(), 2, 1, nil, "in"); err != nil {
		t.Fatal(err)
	}
	again := newClickSender(t, box, "in")
	for n := int64(20); n < 70; n++ {
		again.send(n)
	}
	for _, n := range []int64{20, 29, 30, 69} {
		awaitState(t, address, "direct", fmt.Sprintf("e-%d", n), n)
	}
	// The pipeline's output has the events of both topics; a projection knows them by their ids.
	for id, n := range map[string]int64{"e-19": 19, "e-20": 20, "e-29": 29, "e-30": 30, "e-69": 69} {
		awaitState(t, address, "sum", id, n)
	}
	if status, body := get("http://" + address + "/v1/projections/direct/e-19"); status != http.StatusNotFound {
		t.Errorf("an aggregate of the old topic: %d %s", status, body)
	}
	if n := strings.Count(processor.output.String(), "a topic was deleted and created again; starting again"); n != 1 {
		t.Errorf("the processor says so %d times:\n%s", n, processor.output.String())
	}
}

// Partitions that are added under running programs end all of them, with the topic and both
// numbers.
func TestRunningProgramsEndWhenPartitionsAreAdded(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, sumTopology)
	box := harness.Sandbox(t)
	listening := dir + "/producer.address"
	all := map[string]*program{
		"processor": run(programs.Processor, box, "run", "-t", file, "--sessions", "1", "--listen", "127.0.0.1:0", "--listen-file", dir+"/processor.address"),
		"projector": run(programs.Projector, box, "run", "-t", file, "--sessions", "1", "--listen", "127.0.0.1:0", "--listen-file", dir+"/projector.address", "--data-dir", dir+"/data"),
		"producer":  run(producer.Command, box, "serve", "-t", file, "--topic", "in", "--key", "id", "--listen", "127.0.0.1:0", "--listen-file", listening),
	}
	for name := range all {
		awaitReady(t, dir+"/"+name+".address")
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(box.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).UpdatePartitions(t.Context(), 3, "in"); err != nil {
		t.Fatal(err)
	}
	for name, p := range all {
		if code := <-p.exit; code == cli.ExitOK {
			t.Errorf("%s: exit code %d", name, code)
		}
		if want := "topic in had 2 partitions when this program started and has 3 now"; !strings.Contains(p.output.String(), want) {
			t.Errorf("%s does not say %q:\n%s", name, want, p.output.String())
		}
	}
}

// awaitReady waits until the program whose address is in a file is ready.
func awaitReady(t *testing.T, file string) {
	t.Helper()
	if !until(t, func() bool {
		address, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		status, _ := get("http://" + strings.TrimSpace(string(address)) + "/readyz")
		return status == http.StatusOK
	}) {
		t.Fatalf("the program of %s is not ready", file)
	}
}

// newest follows a topic until the test ends. The result returns the n of the newest event
// with an id, -1 if there is none.
func newest(t *testing.T, box *sandbox.Sandbox, topic string) func(id string) int64 {
	t.Helper()
	var mu sync.Mutex
	ns := map[string]int64{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	tail := kafka.NewTail(kafka.Config{Brokers: box.Brokers()}, topic)
	go func() {
		done <- tail.Follow(ctx, func(r *pipeline.Record) error {
			id, rest, err := codec.ReadText(r.Value[codec.FrameSize:])
			if err != nil {
				return err
			}
			n, _, err := codec.ReadLong(rest)
			mu.Lock()
			defer mu.Unlock()
			ns[string(id)] = n
			return err
		}, func(error, time.Duration) {})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(id string) int64 {
		mu.Lock()
		defer mu.Unlock()
		if n, ok := ns[id]; ok {
			return n
		}
		return -1
	}
}

// While the topic of a table is gone, lookups have the last rows. When it is back, they have
// the rows of the new topic, and none of the old one. The other pipelines do not notice.
func TestATableWhoseTopicIsCreatedAgainIsReadFromItsStart(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldPipelines)
	box := harness.Sandbox(t)
	adm := admin(t, box)
	processor := run(programs.Processor, box, "run", "-t", file, "--pipeline", "good,joined", "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0", "--listen-file", dir+"/address")
	defer processor.stop(t)
	awaitReady(t, dir+"/address")
	address := addressOf(t, dir+"/address")
	out, joined := newest(t, box, "out"), newest(t, box, "joined")
	clicks := newClickSender(t, box, "in")
	lookup := func(id string, n, want int64) {
		t.Helper()
		clicks.put(id, n)
		if !until(t, func() bool { return out(id) == n && joined(id) == want }) {
			t.Fatalf("%s %d: the pipelines wrote %d and %d, want %d and %d\n%s", id, n, out(id), joined(id), n, want, processor.output.String())
		}
	}
	hasMetrics := func(lines ...string) {
		t.Helper()
		metrics := ""
		if !until(t, func() bool { _, metrics = get("http://" + address + "/metrics"); return hasLines(metrics, lines...) }) {
			t.Fatalf("the metrics lack %q:\n%s", lines, metrics)
		}
	}
	rows := newClickSender(t, box, "rows")
	rows.put("e-1", 100)
	rows.put("e-2", 200)
	hasMetrics(`millrace_table_rows{table="rows"} 2`)
	lookup("e-1", 1, 100)

	if _, err := adm.DeleteTopics(t.Context(), "rows"); err != nil {
		t.Fatal(err)
	}
	hasMetrics(`millrace_following{follower="table rows",topic="rows"} 0`, `millrace_pipeline_running{pipeline="joined"} 1`)
	if status, reasons := readyChecks(address); status != http.StatusServiceUnavailable || !strings.HasPrefix(reasons["table rows"], "table rows: no longer followed: ") || len(reasons) != 1 {
		t.Errorf("ready: %d %q", status, reasons)
	}
	lookup("e-1", 2, 100)
	lookup("e-2", 3, 200)

	if _, err := adm.CreateTopic(t.Context(), 1, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("compact")}, "rows"); err != nil {
		t.Fatal(err)
	}
	newClickSender(t, box, "rows").put("e-1", 101)
	hasMetrics(`millrace_table_rows{table="rows"} 1`, `millrace_following{follower="table rows",topic="rows"} 1`)
	awaitReady(t, dir+"/address")
	lookup("e-1", 4, 101)
	lookup("e-2", 5, 5)
	harness.WantLines(t, processor.output.String(), "reading the table's topic from its start", "the table is loaded from its new topic")
}
