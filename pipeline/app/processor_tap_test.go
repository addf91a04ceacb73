package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
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
	"millrace/pipeline/topology"
)

// runTapped runs a worker by its command until the test ends, and returns where it
// listens.
func runTapped(b *bench, file string, args ...string) (addr string) {
	b.Helper()
	addrFile := filepath.Join(b.TempDir(), "address")
	signals := make(chan os.Signal, 1)
	var out bytes.Buffer
	env := &Env{Stdout: &out, Stderr: &out, Now: time.Now, Build: ReadBuild(),
		Notify: func() (<-chan os.Signal, func()) { return signals, func() {} }}
	args = append([]string{"run", "-t", file, "-b", strings.Join(b.broker.ListenAddrs(), ","), "-r", b.where,
		"--listen", "127.0.0.1:0", "--listen-file", addrFile, "--sessions", "1", "--instance", "0", "--commit-interval", "20ms"}, args...)
	done := make(chan int, 1)
	go func() { done <- env.Main(args, Processor) }()
	b.Cleanup(func() {
		signals <- syscall.SIGTERM
		if code := <-done; code != ExitOK {
			b.Errorf("the worker ended with %d: %s", code, out.String())
		}
	})
	for {
		if text, err := os.ReadFile(addrFile); err == nil {
			return strings.TrimSpace(string(text))
		}
		select {
		case code := <-done:
			done <- code
			b.Fatalf("the worker ended with %d: %s", code, out.String())
		case <-b.Context().Done():
			b.Fatal("the worker does not listen")
		default:
		}
	}
}

// tapped runs `processor tap` while clicks come in, until it ends.
func tapped(b *bench, addr string, args ...string) (out string) {
	b.Helper()
	var stdout, stderr bytes.Buffer
	env := &Env{Stdout: &stdout, Stderr: &stderr, Now: time.Now}
	done := make(chan int, 1)
	go func() {
		done <- env.Main(append([]string{"tap", "--listen", addr, "--rate", "1000"}, args...), Processor)
	}()
	for {
		select {
		case code := <-done:
			if code != ExitOK {
				b.Errorf("exit code %d: %s", code, stderr.String())
			}
			return stdout.String()
		default:
			b.clicks(21)
		}
	}
}

func TestTapShowsWhatStagesDo(t *testing.T) {
	b := newBench(t, plainTopology)
	addr := runTapped(b, b.file(plainTopology), "--tap", "--tap-mask", "nothing.of.this")
	out := tapped(b, addr, "--json", "--key", "user-1", "--limit", "3") // 1, 8 and 15, if it does not begin within
	events := map[int64]string{}
	for line := range strings.Lines(out) {
		var l traceLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Key != "user-1" || l.Type != "Click" || l.Pipeline != "p" || l.Topic != "in" || l.Dropped != 0 {
			t.Errorf("it shows %s", line)
		}
		events[l.Offset] += fmt.Sprintf("%s %s %s; ", l.Stage, l.At, l.Event)
	}
	if len(events) != 3 {
		t.Errorf("%d events, want 3: %s", len(events), out)
	}
	one := func(n int) string {
		before, after := fmt.Sprintf(`{"id":"user-1","n":%d}`, n), fmt.Sprintf(`{"id":"user-1","n":%d}`, n*10)
		return fmt.Sprintf("filter entering %[1]s; filter passed %[1]s; assert entering %[1]s; assert passed %[1]s; enrich entering %[1]s; enrich passed %[2]s; ", before, after)
	}
	filtered := `filter entering {"id":"user-1","n":15}; filter filtered ; `
	for offset, got := range events {
		if got != one(1) && got != one(8) && got != filtered {
			t.Errorf("of the event at %d it shows %s", offset, got)
		}
	}

	out = tapped(b, addr, "--type", "Click", "--stage", "assert", "--key", "user-6", "--limit", "2", "--mask", "id,key")
	wantLines(t, out, `key "***" Click p`, `{"id":"***","n":13}`, "assert               failed  ***")

	resp, err := http.Get("http://" + addr + tapPath + "?stage=asert&rate=0&colour=red")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%s, %v", resp.Status, err)
	}
	wantLines(t, text.String(), `there is no stage "asert": did you mean "assert"?`, "rate=0 is no number", `there is no parameter "colour"`)
}

func TestTapIsOffUnlessAskedFor(t *testing.T) {
	b := newBench(t, plainTopology)
	addr := runTapped(b, b.file(plainTopology))
	var stderr bytes.Buffer
	env := &Env{Stdout: &stderr, Stderr: &stderr, Now: time.Now}
	if code := env.Main([]string{"tap", "--listen", addr}, Processor); code != ExitFailure {
		t.Errorf("exit code %d", code)
	}
	wantLines(t, stderr.String(), "shows no events: run it with --tap")
}

// tapBench is a session without Kafka.
func tapBench(t *testing.T) (*taps, *chainHandler, *pipeline.Record) {
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(plainTopology)}, topology.Options{Schemas: clicks})
	if err != nil {
		t.Fatal(err)
	}
	pl := plan.Pipelines[0]
	reg := prometheus.NewRegistry()
	watched := newTaps(reg, plan.Pipelines, nil, time.Now)
	h := chainSetup{
		topology: plan, schemas: schemaList(pl.Types), ids: map[string][]int{"out": {1}},
		chains: newChainMetrics(reg), kept: newKeepMetrics(reg), taps: watched, now: time.Now, log: slog.New(slog.DiscardHandler),
	}.handler(pl)
	value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, 0), "a"), 1)
	return watched, h, &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: []byte("a"), Value: value, Time: time.UnixMilli(0)}
}

// One who does not read is not waited for: what does not fit is counted.
func TestTapNeverHoldsUpAPipeline(t *testing.T) {
	watched, h, rec := tapBench(t)
	c, err := watched.client(url.Values{"rate": {"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	leave, ok := watched.join(c)
	if !ok {
		t.Fatal("it is full")
	}
	c.tokens = 1e9 // as if it had waited for long
	c.rate = 1e9
	const perEvent = 6
	n := tapBuffer/perEvent + 100
	var out records
	for range n {
		if err := h.Handle(t.Context(), rec, &out); err != nil {
			t.Fatal(err)
		}
	}
	if want := int64(n*perEvent - tapBuffer); c.dropped.Load() != want || testutil.ToFloat64(watched.dropped) != float64(want) {
		t.Errorf("%d lines dropped, %v in the metric, want %d", c.dropped.Load(), testutil.ToFloat64(watched.dropped), want)
	}
	<-c.lines
	if err := h.Handle(t.Context(), rec, &out); err != nil {
		t.Fatal(err)
	}
	for len(c.lines) > 1 {
		<-c.lines
	}
	if line := string(<-c.lines); !strings.Contains(line, fmt.Sprintf(`"dropped":%d}`, n*perEvent-tapBuffer)) {
		t.Errorf("the first line after those says %s", line)
	}
	leave()
	before := len(c.lines)
	if err := h.Handle(t.Context(), rec, &out); err != nil || len(c.lines) != before || h.tap.on {
		t.Errorf("it goes on after it has left: %v", err)
	}
}

func TestTapCostsNothingWhenNobodyWatches(t *testing.T) {
	_, h, rec := tapBench(t)
	if n := testing.AllocsPerRun(100, func() {
		h.tap.begin(rec)
		h.tap.end(rec, "", nil)
	}); n != 0 {
		t.Errorf("%v allocations an event", n)
	}
}

// What is no event has no stage, and is shown all the same.
func TestTapShowsWhatCannotBeDecoded(t *testing.T) {
	watched, h, rec := tapBench(t)
	c, err := watched.client(url.Values{"stage": {stageDecode}})
	if err != nil {
		t.Fatal(err)
	}
	leave, _ := watched.join(c)
	defer leave()
	rec.Value = []byte("{}")
	if err := h.Handle(t.Context(), rec, &records{}); err != nil {
		t.Fatal(err)
	}
	select {
	case line := <-c.lines:
		wantLines(t, string(line), `"stage":"decode","at":"failed"`, `"reason":"bad_frame"`)
	default:
		t.Error("it is not shown")
	}
}

func TestMasksHideFields(t *testing.T) {
	event := `{"id":"u-1","data":{"email":"a@b","items":[{"sku":"x","price":2}],"name":null}}`
	for _, test := range []struct {
		mask []string
		want string
	}{
		{nil, event},
		{[]string{"data.email"}, `{"id":"u-1","data":{"email":"***","items":[{"sku":"x","price":2}],"name":null}}`},
		{[]string{"email"}, `{"id":"u-1","data":{"email":"***","items":[{"sku":"x","price":2}],"name":null}}`},
		{[]string{"data.items.sku"}, `{"id":"u-1","data":{"email":"a@b","items":[{"sku":"***","price":2}],"name":null}}`},
		{[]string{"items"}, `{"id":"u-1","data":{"email":"a@b","items":"***","name":null}}`},
		{[]string{"*"}, `{"id":"***","data":{"email":"***","items":[{"sku":"***","price":"***"}],"name":"***"}}`},
	} {
		l := traceLine{Key: "u-1", Event: json.RawMessage(event), Error: "a@b is bad"}
		maskLine(&l, test.mask)
		if string(l.Event) != test.want {
			t.Errorf("%v: %s\nwant %s", test.mask, l.Event, test.want)
		}
		if (l.Error == maskedValue) != (test.mask != nil) {
			t.Errorf("%v: the error is %q", test.mask, l.Error)
		}
	}
}

func TestTapViewIsReadable(t *testing.T) {
	at := time.UnixMilli(1_800_000_000_000).UTC()
	line := func(stage, what, event string, err error) traceLine {
		l := traceLine{Pipeline: "p", Stage: stage, At: what, Topic: "in", Partition: 3, Offset: 17, Time: at, Key: "user-1\x1b[2J", Type: "Click"}
		if event != "" {
			l.Event = json.RawMessage(event)
		}
		l.fail(err)
		return l
	}
	key := "user-2"
	moved := line("rekey", "passed", `{"id":"user-1","n":1}`, nil)
	moved.NewKey, moved.To, moved.Dropped = &key, []string{"out2"}, 3
	var out bytes.Buffer
	v := tapView{printer: printer{w: &out}}
	for _, l := range []traceLine{
		line("enrich", "entering", `{"id":"user-1","n":1}`, nil), line("enrich", "passed", `{"id":"user-1","n":10}`, nil),
		line("rekey", "entering", `{"id":"user-1","n":1}`, nil), moved,
		line("assert", "entering", `{"id":"user-1","n":1}`, nil), line("assert", "failed", "", errors.New("no\x1b[31m")),
	} {
		v.show(l)
	}
	want := `2027-01-15T08:00:00.000Z in/3@17 key "user-1\u001b[2J" Click p
  {"id":"user-1","n":1}
  enrich               passed  n: 1 -> 10
(3 lines not shown: this end was too slow)
  rekey                passed  new key "user-2", to out2
  assert               failed  no [31m
`
	if out.String() != want {
		t.Errorf("it prints\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	v = tapView{printer: printer{w: &out}, colour: true}
	v.show(line("assert", "failed", "", errors.New("no")))
	wantLines(t, out.String(), "\x1b[31mfailed\x1b[0m")
}
