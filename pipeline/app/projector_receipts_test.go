package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/topology"
)

// knownReceipts returns receipts that were read, each as ID PIPELINE OUTCOME, at
// second 1, 2, 3 and so on.
func knownReceipts(t *testing.T, span time.Duration, lines ...string) *receipts {
	t.Helper()
	r := newReceipts(kafka.Config{}, []*topology.Topic{{Name: "receipts"}}, span, func() time.Time { return time.Unix(0, 0) },
		slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry())
	for i, line := range lines {
		words := strings.Fields(line)
		said := receipt{Pipeline: words[1], Outcome: receiptOutcome(words[2]), Stage: "s-" + words[1]}
		switch said.Outcome {
		case receiptDeadLetter:
			said.Reason = "bad"
		case "duplicate":
			said.Outcome, said.Duplicate = receiptFiltered, true
		}
		r.say(t, words[0], said, i+1)
	}
	return r
}

func (r *receipts) say(t *testing.T, id string, said receipt, second int) {
	t.Helper()
	value, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.take(&pipeline.Record{Topic: "receipts", Key: []byte(id), Value: value, Time: time.Unix(int64(second), 0)}); err != nil {
		t.Fatal(err)
	}
}

// An event does not come if it was held up on each way that it may have come.
func TestAnEventDoesNotComeIfNoWayIsLeft(t *testing.T) {
	topics := map[string]*topology.Topic{}
	topic := func(name string) *topology.Topic {
		if topics[name] == nil {
			topics[name] = &topology.Topic{Name: name}
		}
		return topics[name]
	}
	for _, test := range []struct {
		pipelines string // NAME FROM TO
		said      string // of the event e
		want      string // "" if it may come
	}{
		{"a in out", "", ""},
		{"a in out", "e a filtered", "filtered a s-a"},
		{"a in out", "e a dead_letter", "dead_letter a s-a bad"},
		{"a in out", "e a dead_letter, e a filtered", "filtered a s-a"}, // it was sent again
		{"a in out", "other a filtered", ""},
		{"a in other", "e a filtered", ""},
		{"a in m, b m out", "e b filtered", "filtered b s-b"},
		{"a in m, b m out", "e a filtered", "filtered a s-a"},
		{"a in out, b in out", "e a filtered", ""},
		{"a in out, b in out", "e a filtered, e b dead_letter", "dead_letter b s-b bad"},
		{"a in out, b else out", "e a filtered", "filtered a s-a"},
		{"a in m, b m out, c in out", "e b filtered", ""},
		{"a in m, b m out, c in out", "e b filtered, e c filtered", "filtered b s-b"},
		{"a in m, b m out, c in out", "e a filtered, e c filtered", "filtered a s-a"},
		{"a in m, b else m, c m out", "e a filtered", "filtered a s-a"},
		{"a in m, b else m, c m out, d else out", "e c filtered", ""},
		{"a in m, b else m, c m out, d else out", "e a filtered", "filtered a s-a"},
		{"a in out", "e a duplicate", "filtered a s-a, and may come"},
		{"a in out", "e a filtered, e a duplicate", "filtered a s-a"}, // the first did not come out either
	} {
		plan := &topology.Topology{}
		for _, line := range strings.Split(test.pipelines, ", ") {
			words := strings.Fields(line)
			plan.Pipelines = append(plan.Pipelines, &topology.Pipeline{Name: words[0], From: topic(words[1]), To: topic(words[2]), DeadLetter: topic("dead"), Receipts: topic("receipts")})
		}
		var lines []string
		if test.said != "" {
			lines = strings.Split(test.said, ", ")
		}
		out, ok := newUpstream(plan, topic("out"), knownReceipts(t, time.Hour, lines...)).outcome("e")
		got := ""
		if ok {
			if got = strings.TrimSpace(fmt.Sprintf("%s %s %s %s", out.State, out.Pipeline, out.Stage, out.Reason)); out.Open {
				got += ", and may come"
			}
			if !strings.Contains(out.Detail, "pipeline "+out.Pipeline) {
				t.Errorf("%s; %s: %q does not name the pipeline", test.pipelines, test.said, out.Detail)
			}
		}
		if got != test.want {
			t.Errorf("%s; %s: %q, want %q", test.pipelines, test.said, got, test.want)
		}
	}
}

func TestAPendingEventMayHaveEndedBeforeItCame(t *testing.T) {
	in, out, letters, told := &topology.Topic{Name: "in"}, &topology.Topic{Name: "out"}, &topology.Topic{Name: "letters"}, &topology.Topic{Name: "told"}
	plan := &topology.Topology{Pipelines: []*topology.Pipeline{
		{Name: "one", From: in, To: out, DeadLetter: letters}, {Name: "two", From: in, To: letters, DeadLetter: letters},
		{Name: "three", From: in, To: in, Targets: [][]*topology.Topic{{letters, out}}, DeadLetter: letters, Receipts: told},
	}}
	plan.Pipelines[2].To = letters
	known := knownReceipts(t, time.Hour, "e three filtered")
	want := "pipeline one may have filtered it, or put it into letters; pipeline three filtered it: stage s-three, but it may come another way"
	if got := newUpstream(plan, out, known).unheard("e"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	want = "pipeline three has not said since 1969-12-31T23:00:00Z that it filtered it or put it into letters, as far as its receipts have been read"
	if got := newUpstream(plan, out, known).unheard("f"); !strings.HasSuffix(got, want) {
		t.Errorf("%q, want %q at its end", got, want)
	}
	if got := newUpstream(plan, in, known).unheard("e"); got != "" {
		t.Errorf("nobody writes there, but %q", got)
	}
}

// Of receipts that are too old, or too many, the oldest are forgotten; and what
// cannot be known any more is said.
func TestReceiptsAreForgotten(t *testing.T) {
	said := receipt{Pipeline: "p", Outcome: receiptFiltered, Stage: "s"}
	known := func(r *receipts, second int) bool {
		_, ok := r.of(fmt.Sprint("e-", second), "p")
		return ok
	}
	r := knownReceipts(t, 10*time.Second)
	for second := 1; second <= 100; second++ {
		r.say(t, fmt.Sprint("e-", second), said, second)
		for ago := range min(second, 10) {
			if !known(r, second-ago) {
				t.Fatalf("at %d, the receipt of %d is forgotten", second, second-ago)
			}
		}
		if known(r, second-21) {
			t.Errorf("at %d, the receipt of %d is known", second, second-21)
		}
		if since := int(r.since.Unix()); known(r, since-1) || since > 0 && !known(r, since+1) {
			t.Errorf("at %d, receipts are known since %d, or are not", second, since)
		}
	}

	r = knownReceipts(t, time.Hour)
	r.most = 1 << 20
	const n = 50_000
	for i := 1; i <= n; i++ {
		r.say(t, fmt.Sprint("e-", i), said, 1)
	}
	if bytes := r.recent.Bytes() + r.older.Bytes(); bytes > r.most*3/2 {
		t.Errorf("they take %d bytes", bytes)
	}
	if known(r, 1) || !known(r, n) || !known(r, n-1000) {
		t.Error("the latest are to be known, and the first to be forgotten")
	}
}

func TestWhatIsNoReceiptIsCounted(t *testing.T) {
	r := knownReceipts(t, time.Hour)
	for _, value := range []string{"", "null", "{", `{"outcome":"filtered"}`, `{"outcome":"lost","pipeline":"p"}`} {
		if err := r.take(&pipeline.Record{Topic: "receipts", Key: []byte("e"), Value: []byte(value)}); err != nil {
			t.Error(err)
		}
	}
	if got := testutil.ToFloat64(r.rejected.WithLabelValues("receipts")); got != 5 {
		t.Errorf("%v are counted", got)
	}
}

const toldTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, id: "id + ''"}
  clicks: {partitions: 2, config: {retention.ms: "-1"}}
  dead: {partitions: 1}
  told: {partitions: 1}
pipelines:
  p:
    from: in
    to: clicks
    dead_letter: dead
    receipts: told
    stages:
      - filter: {name: even, keep: n % 2 == 0}
      - assert: {name: lucky, that: "n != 14", message: "'fourteen'"}
      - dedupe: {by: id, within: 1h}
projections:
  count: {from: clicks, key: id, state: Count, on: {Click: {set: {n: n}}}, snapshots: counts}
`

// Whoever waits for an event is told what a pipeline on the way made of it, once it
// has.
func TestWhatAPipelineMadeOfAnEventIsTold(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "schemas"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "topology.yaml")
	write(t, file, []byte(toldTopology))
	write(t, filepath.Join(dir, "schemas", "Click.avsc"), clicks["Click.avsc"].Data)
	write(t, filepath.Join(dir, "schemas", "Count.avsc"), []byte(`{"type": "record", "name": "Count", "fields": [{"name": "n", "type": "long", "default": 0}]}`))
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close() })

	signals := make(chan os.Signal, 1)
	var told lockedBuffer
	env := &Env{Stdout: &told, Stderr: &told, Now: time.Now, Exit: func(int) {}, Notify: func() (<-chan os.Signal, func()) { return signals, func() {} }}
	exit := make(chan int, 1)
	go func() {
		exit <- env.Main([]string{"run", "-t", file, "-b", box.Brokers()[0], "-r", box.RegistryURL(), "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0"}, Processor)
	}()
	address, stop, err := startProjector(t.Context(), file, dir, box)
	if err != nil {
		t.Fatal(err)
	}

	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{box.RegistryURL()}})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := codec.ParseSchema(string(clicks["Click.avsc"].Data))
	if err != nil {
		t.Fatal(err)
	}
	id, err := registry.Register(t.Context(), codec.Subject("in", schema), schema)
	if err != nil {
		t.Fatal(err)
	}
	w, err := kafka.NewWriter(kafka.Config{Brokers: box.Brokers()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	send := func(n int64) {
		value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, id), fmt.Sprint("e-", n)), n)
		w.Write(t.Context(), &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: fmt.Append(nil, "e-", n), Value: value, Time: time.Now()}, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		if err := w.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	}
	get := func(path string, status int, has ...string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != status {
			t.Errorf("%s: %d, want %d: %s", path, resp.StatusCode, status, body)
		}
		for _, part := range has {
			if !strings.Contains(string(body), part) {
				t.Errorf("%s: %s has no %s", path, body, part)
			}
		}
	}
	after := func(n int, wait string) string {
		return fmt.Sprintf("/v1/projections/count/e-%d?after_event=e-%d&wait=%s", n, n, wait)
	}
	// The first waits before there is a receipt.
	go send(7)
	get(after(7, "30s"), http.StatusConflict, `"outcome":"filtered"`, `"pipeline":"p"`, `"stage":"even"`)
	send(14)
	get(after(14, "30s"), http.StatusConflict, `"outcome":"dead_letter"`, `"pipeline":"p"`, `"stage":"lucky"`, `"reason":"assert"`)
	send(2)
	get(after(2, "30s"), http.StatusOK, `"after_event":"applied"`)
	send(2) // its receipt is not what became of the first
	send(9)
	get(after(9, "30s"), http.StatusConflict, `"outcome":"filtered"`)
	get(after(2, "0s"), http.StatusOK, `"after_event":"applied"`)
	get(after(99, "1ms"), http.StatusGatewayTimeout, `"outcome":"pending"`, "pipeline p has not said since")
	get("/v1/events/e-7", http.StatusNotFound, `"outcome":"filtered"`, `"stage":"even"`, "pipeline p filtered it: stage even")
	get("/v1/events/e-2", http.StatusOK, `"applied"`)

	var errs bytes.Buffer
	ask := &Env{Stdout: io.Discard, Stderr: &errs, Now: time.Now}
	if code := ask.Main([]string{"event", "e-14", "--address", address}, Projector); code != ExitFailure || !strings.Contains(errs.String(), "pipeline p put it among its dead letters: stage lucky, assert") {
		t.Errorf("exit code %d: %s", code, &errs)
	}

	// After a restart, it is known as before.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if address, stop, err = startProjector(t.Context(), file, dir, box); err != nil {
		t.Fatal(err)
	}
	get(after(7, "30s"), http.StatusConflict, `"outcome":"filtered"`)
	if err := stop(); err != nil {
		t.Error(err)
	}
	signals <- syscall.SIGTERM
	if code := <-exit; code != ExitOK {
		t.Errorf("the processor ended with code %d: %s", code, told.String())
	}
}

// Who begins reads what is not too old.
func TestReceiptsAreReadFromSoLongAgo(t *testing.T) {
	b := newBench(t, receiptsTopology)
	if _, err := kafka.EnsureTopics(t.Context(), b.config(), []kafka.TopicSpec{{Name: "receipts", Partitions: 2}}, true); err != nil {
		t.Fatal(err)
	}
	b.write(3, func(i int) *pipeline.Record {
		return &pipeline.Record{Topic: "receipts", Partition: int32(i / 2), Key: fmt.Append(nil, "e-", i), Value: []byte(`{"outcome":"filtered","pipeline":"p","stage":"s"}`),
			Time: time.Now().Add(-[]time.Duration{2 * time.Hour, time.Minute, 2 * time.Hour}[i])}
	})
	r := newReceipts(b.config(), []*topology.Topic{{Name: "receipts"}}, time.Hour, time.Now, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for lag, known := int64(1), false; !known || lag > 0; lag, known = r.lag() {
		select {
		case <-tick.C:
		case <-time.After(30 * time.Second):
			t.Fatal("they are never read")
		}
	}
	for i, want := range []bool{false, true, false} {
		if _, ok := r.of(fmt.Sprint("e-", i), "p"); ok != want {
			t.Errorf("the receipt %d is known: %v", i, ok)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
