package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/e2e/kafkatest"
	"millrace/pipeline/kafka"
	"millrace/pipeline/producer/shop"
	"millrace/pipeline/sandbox"
)

// stagesFile is a topology with a dozen stages.
const stagesFile = "../../examples/shop-stages/topology.yaml"

func TestStageCountsOnTheSandbox(t *testing.T) {
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	})
	checkStageCounts(t, box.Brokers(), box.RegistryURL())
}

func TestKafkaStageCounts(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, _ []string) {
		registry, err := sandbox.New(sandbox.Config{NoBroker: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := registry.Close(); err != nil {
				t.Error(err)
			}
		})
		checkStageCounts(t, b.Brokers(), registry.RegistryURL())
	})
}

// checkStageCounts sends events, some of them twice, and some records that are not events
// through the topology. It compares the counts of each stage and of the topics with
// expectations that writeEvents computes from the same events.
func checkStageCounts(t *testing.T, brokers []string, registry string) {
	if out, err := exec.Command(filepath.Join(bin, "processor"), "lint", "--strict", "-t", stagesFile).CombinedOutput(); err != nil {
		t.Fatalf("processor lint: %v\n%s", err, out)
	}
	text, err := os.ReadFile(stagesFile)
	if err != nil {
		t.Fatal(err)
	}
	// The names are unique, because a cluster may have topics of earlier runs.
	run := fmt.Sprintf("stages-%d", time.Now().UnixNano())
	text = bytes.ReplaceAll(text, []byte("name: shop-stages"), []byte("name: "+run))
	text = bytes.ReplaceAll(text, []byte("stages.events"), []byte(run+".events"))
	for _, topic := range []string{"users", "lines", "progress", "dead_letters", "user.snapshots"} {
		text = bytes.ReplaceAll(text, []byte("stages."+topic), []byte(run+"."+topic))
	}
	dir := t.TempDir()
	topology, input := filepath.Join(dir, "topology.yaml"), filepath.Join(dir, "events.jsonl")
	if err := os.WriteFile(topology, text, 0o600); err != nil {
		t.Fatal(err)
	}
	want := writeEvents(t, input)
	where := []string{"-b", strings.Join(brokers, ","), "-r", registry, "-t", topology}

	// Load all users first, so it is known which orders have a customer.
	projector := startWorker(t, "projector", append(where, "--data-dir", filepath.Join(dir, "projector"))...)
	if out, err := exec.Command(filepath.Join(bin, "producer"), append([]string{"send", input}, where...)...).CombinedOutput(); err != nil {
		t.Fatalf("producer send: %v\n%s", err, out)
	}
	awaitLag(t, projector, brokers, run+"-projector", run+".events")
	projector.stop(t)
	const invalid = 3
	want.dead["bad_frame"] = invalid
	sendInvalidRecords(t, brokers, run+".events", invalid)

	processor := startWorker(t, "processor", where...)
	awaitLag(t, processor, brokers, run+"-tidy", run+".events")
	got := processor.metrics(t, "tidy", want.sent+invalid)
	processor.stop(t)
	if text, err := os.ReadFile(processor.output); err != nil || bytes.Contains(text, []byte("record of the table cannot be read")) {
		t.Errorf("the table had records that are not rows: %v", err)
	}

	if out := got.of("millrace_events_in_total") - got.of("millrace_events_filtered_total") - got.of("millrace_dead_letters_total"); out != got.of("millrace_events_out_total") {
		t.Errorf("the pipeline's in - filtered - dead letters = %d, out = %d", out, got.of("millrace_events_out_total"))
	}
	passed, rejected := checkStages(t, got, want)
	written := 0
	for topic, n := range want.topics {
		records := readCommitted(t, brokers, run+"."+topic)
		if len(records) != n {
			t.Errorf("%d records on %s, expected %d", len(records), topic, n)
		}
		written += len(records)
	}
	if written != passed {
		t.Errorf("%d records on the topics, but the last stage passed %d", written, passed)
	}
	dead := map[string]int{}
	for _, r := range readCommitted(t, brokers, run+".dead_letters") {
		for _, h := range r.Headers {
			if h.Key == "dlq.reason" {
				dead[string(h.Value)]++
			}
		}
	}
	if !maps.Equal(dead, want.dead) {
		t.Errorf("dead letters %v, expected %v", dead, want.dead)
	}
	if n := rejected + invalid; sum(dead) != n {
		t.Errorf("%d dead letters, but %d records were rejected", sum(dead), n)
	}
}

// checkStages checks the counts of every stage. It returns the number of records that the
// last stage passed, and the number that all stages rejected.
func checkStages(t *testing.T, got counters, want expectation) (passed, rejected int) {
	t.Helper()
	stages := []string{"leavers", "once", "sane", "cents", "trifles", "modest", "customer", "private", "stamp", "by-user", "by-kind", "lines"}
	in := want.sent
	for _, name := range stages {
		s := got.stage(name)
		t.Logf("%-10s %v", name, s)
		if s.in != in {
			t.Errorf("%s: %d in, but the previous stage passed %d", name, s.in, in)
		}
		if s.in+s.added != s.passed+s.filtered+s.rejected {
			t.Errorf("%s: %d in + %d added, but %d passed + %d filtered + %d rejected", name, s.in, s.added, s.passed, s.filtered, s.rejected)
		}
		expected := want.stages[name]
		expected.in, expected.passed = in, in+expected.added-expected.filtered-expected.rejected
		if s != expected {
			t.Errorf("%s: %v, expected %v", name, s, expected)
		}
		in, rejected = s.passed, rejected+s.rejected
	}
	return in, rejected
}

// stageCounts holds the counts of a stage. passed includes skipped.
type stageCounts struct{ in, added, passed, filtered, rejected, skipped int }

func (s stageCounts) String() string {
	return fmt.Sprintf("%d in + %d added = %d passed + %d filtered + %d rejected (%d skipped)", s.in, s.added, s.passed, s.filtered, s.rejected, s.skipped)
}

// expectation holds the expected results for a file of events.
type expectation struct {
	sent   int                    // events, including duplicates
	stages map[string]stageCounts // by stage, without in and passed
	topics map[string]int         // number of records, by topic
	dead   map[string]int         // number of dead letters, by reason
}

// writeEvents writes the purchases of a real shop (if MILLRACE_CDNOW is set), followed by
// synthetic events of all types. It writes every fiftieth event twice.
func writeEvents(t *testing.T, to string) expectation {
	t.Helper()
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := bufio.NewWriter(f)
	var events []purchase
	twice := map[int]bool{}
	add := func(line []byte) {
		var p purchase
		if err := json.Unmarshal(line, &p); err != nil {
			t.Fatal(err)
		}
		times := 1
		if len(events)%50 == 7 {
			times, twice[len(events)] = 2, true
		}
		events = append(events, p)
		for range times {
			if _, err := out.Write(append(slices.Clip(line), '\n')); err != nil {
				t.Fatal(err)
			}
		}
	}
	if file := os.Getenv("MILLRACE_CDNOW"); file != "" {
		purchasesOf(t, file, add)
	} else {
		t.Log("MILLRACE_CDNOW is not set: using only synthetic events")
	}
	for e := range (shop.Story{Seed: 3, Events: 20_000, Start: time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC)}).All() {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		add(line)
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	return expect(t, events, twice)
}

// expect computes the expected results of events. twice holds the indexes of the events
// that are sent twice.
func expect(t *testing.T, events []purchase, twice map[int]bool) expectation {
	t.Helper()
	deleted := map[string]bool{} // users
	for _, p := range events {
		if p.Type == "UserDeleted" {
			deleted[p.Data.ID] = true
		}
	}
	want := expectation{sent: len(events) + len(twice), stages: map[string]stageCounts{}, topics: map[string]int{}, dead: map[string]int{}}
	count := func(stage string, f func(*stageCounts)) {
		s := want.stages[stage]
		f(&s)
		want.stages[stage] = s
	}
	for i, p := range events {
		cents := int(p.Data.TotalAmount*100 + 0.5)
		copies := 1
		if twice[i] {
			copies = 2
		}
		// Dedupe forgets an event that becomes a dead letter, because the event may be
		// sent again and must then pass. So both copies are rejected.
		switch {
		case p.Type == "UserDeleted":
			count("leavers", func(s *stageCounts) { s.filtered += copies })
			continue
		case p.Type == "OrderCreated" && p.Data.TotalAmount <= 0:
			count("sane", func(s *stageCounts) { s.rejected += copies })
			want.dead["assert"] += copies
			continue
		case p.Type == "OrderCreated" && cents >= 700 && deleted[p.Data.UserID]:
			if cents > 25000 {
				count("modest", func(s *stageCounts) { s.skipped += copies })
			}
			count("customer", func(s *stageCounts) { s.rejected += copies })
			want.dead["missing_row"] += copies
			continue
		}
		count("once", func(s *stageCounts) { s.filtered += copies - 1 })
		switch {
		case p.Type == "OrderPaid", p.Type == "OrderShipped":
			want.topics["progress"]++
		case p.Type != "OrderCreated":
			want.topics["users"]++
		case cents < 700:
			count("trifles", func(s *stageCounts) { s.filtered++ })
		default:
			if cents > 25000 {
				count("modest", func(s *stageCounts) { s.skipped++ })
			}
			count("lines", func(s *stageCounts) { s.added += len(p.Data.Items) - 1 })
			want.topics["lines"] += len(p.Data.Items)
		}
	}
	for _, stage := range []string{"leavers", "once", "trifles", "modest", "customer", "lines"} {
		if want.stages[stage] == (stageCounts{}) {
			t.Errorf("no event of the test covers the stage %s", stage)
		}
	}
	return want
}

// purchase holds the fields of an event that the stages read.
type purchase struct {
	Type string `json:"type"`
	Data struct {
		ID          string            `json:"id"`
		UserID      string            `json:"user_id"`
		Items       []json.RawMessage `json:"items"`
		TotalAmount float64           `json:"total_amount"`
	} `json:"data"`
}

// purchasesOf calls add with each line of a gzip file.
func purchasesOf(t *testing.T, file string, add func(line []byte)) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		add(slices.Clone(lines.Bytes()))
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

// worker is a process of a long-running program.
type worker struct {
	name, url string
	cmd       *exec.Cmd
	output    string        // file with its stdout and stderr
	exited    chan struct{} // closed when the process has ended
}

// startWorker starts a processor or projector and waits until it is ready.
func startWorker(t *testing.T, name string, args ...string) *worker {
	t.Helper()
	return startProgram(t, name, append([]string{"run"}, args...)...)
}

// startProgram starts a command with an HTTP server and waits until it is ready.
func startProgram(t *testing.T, name string, args ...string) *worker {
	t.Helper()
	dir := t.TempDir()
	w := &worker{name: name, output: filepath.Join(dir, "output"), exited: make(chan struct{})}
	out, err := os.Create(w.output)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	addr := filepath.Join(dir, "addr")
	w.cmd = exec.Command(filepath.Join(bin, name), append(args, "--listen", "127.0.0.1:0", "--listen-file", addr)...)
	w.cmd.Stdout, w.cmd.Stderr = out, out
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = w.cmd.Wait() // the result is in ProcessState
		close(w.exited)
	}()
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // in case a failed test did not stop it
		<-w.exited
		if t.Failed() {
			text, _ := os.ReadFile(w.output)
			t.Logf("%s printed:\n%s", name, text[max(0, len(text)-4096):])
		}
	})
	w.await(t, "readiness", func(ctx context.Context) (bool, error) {
		at, err := os.ReadFile(addr)
		if err != nil || len(at) == 0 {
			return false, nil
		}
		w.url = scheme + strings.TrimSpace(string(at))
		code, _, err := get(ctx, w.url+"/readyz")
		return code == http.StatusOK, err
	})
	return w
}

// await polls cond until it returns true. It fails the test after three minutes, on an
// error, or if the worker ends.
func (w *worker) await(t *testing.T, what string, cond func(context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := cond(ctx)
		if err != nil {
			t.Fatalf("%s: waiting for %s: %v", w.name, what, err)
		}
		if ok {
			return
		}
		select {
		case <-w.exited:
			t.Fatalf("%s ended unexpectedly: %v", w.name, w.cmd.ProcessState)
		case <-ctx.Done():
			t.Fatalf("%s: waiting for %s: %v", w.name, what, ctx.Err())
		case <-tick.C:
		}
	}
}

// stop ends the worker with SIGTERM and checks that it exits with code 0.
func (w *worker) stop(t *testing.T) {
	t.Helper()
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("stopping the %s: %v", w.name, err)
	}
	select {
	case <-w.exited:
	case <-time.After(time.Minute):
		t.Fatalf("the %s did not stop", w.name)
	}
	if code := w.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("%s: %v", w.name, w.cmd.ProcessState)
	}
}

func get(ctx context.Context, url string) (code int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// awaitLag waits until a group has committed all records of a topic.
func awaitLag(t *testing.T, w *worker, brokers []string, group, topic string) {
	t.Helper()
	w.await(t, "lag 0 on "+topic, func(ctx context.Context) (bool, error) {
		lag, err := kafka.Lag(ctx, kafka.Config{Brokers: brokers}, group, topic)
		return lag == 0, err
	})
}

// counters are the counter metrics of a pipeline.
type counters []counter

type counter struct {
	name, stage string
	value       int
}

// metrics returns the counters of a pipeline once it has counted in input events. The
// committed offsets of the group may be visible before that.
func (w *worker) metrics(t *testing.T, pipeline string, in int) (found counters) {
	t.Helper()
	w.await(t, "the counters of all events", func(ctx context.Context) (bool, error) {
		_, text, err := get(ctx, w.url+"/metrics")
		if err != nil {
			return false, err
		}
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
		if err != nil {
			return false, err
		}
		found = nil
		for name, family := range families {
			for _, m := range family.GetMetric() {
				labels := map[string]string{}
				for _, l := range m.GetLabel() {
					labels[l.GetName()] = l.GetValue()
				}
				if m.GetCounter() != nil && labels["pipeline"] == pipeline {
					found = append(found, counter{name, labels["stage"], int(m.GetCounter().GetValue())})
				}
			}
		}
		return found.of("millrace_events_in_total") >= in, nil
	})
	return found
}

// of returns the sum of all counters with a name.
func (c counters) of(name string) (n int) {
	for _, one := range c {
		if one.name == name {
			n += one.value
		}
	}
	return n
}

func (c counters) stage(stage string) stageCounts {
	own := slices.DeleteFunc(slices.Clone(c), func(one counter) bool { return one.stage != stage })
	of := func(what string) int { return own.of("millrace_stage_records_" + what + "_total") }
	return stageCounts{of("in"), of("added"), of("out"), of("filtered"), of("rejected"), of("skipped")}
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// sendInvalidRecords writes n records that are not events.
func sendInvalidRecords(t *testing.T, brokers []string, topic string, n int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range n {
		r := &kgo.Record{Topic: topic, Key: fmt.Append(nil, i), Value: []byte(`{"no": "event"}`)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// readCommitted returns the committed records of a topic.
func readCommitted(t *testing.T, brokers []string, topic string) (records []*kgo.Record) {
	t.Helper()
	eachCommitted(t, brokers, topic, func(r *kgo.Record) { records = append(records, r) })
	return records
}

// eachCommitted calls f with the committed records of a topic. It uses only the Kafka
// client, with isolation level read_committed, and no code of Millrace.
func eachCommitted(t *testing.T, brokers []string, topic string, f func(*kgo.Record)) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	// Read up to the high watermark, not the last stable offset: the marker of the last
	// transaction may still be missing, and this reader then waits for it.
	ends, err := kadm.NewClient(cl).ListEndOffsets(t.Context(), topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	from := map[int32]kgo.Offset{} // partitions that are not read to the end yet
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			from[o.Partition] = kgo.NewOffset().AtStart()
		}
	})
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(from) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				f(r)
			}
			if end, _ := ends.Lookup(topic, r.Partition); r.Offset >= end.Offset-1 {
				delete(from, r.Partition)
			}
		})
	}
}
