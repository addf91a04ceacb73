package programs_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

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
	harness.Write(t, file, []byte(toldTopology))
	harness.Write(t, filepath.Join(dir, "schemas", "Click.avsc"), harness.ClickSchemas["Click.avsc"].Data)
	harness.Write(t, filepath.Join(dir, "schemas", "Count.avsc"), []byte(`{"type": "record", "name": "Count", "fields": [{"name": "n", "type": "long", "default": 0}]}`))
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close() })

	signals := make(chan os.Signal, 1)
	var told harness.Buffer
	env := &cli.Env{Stdout: &told, Stderr: &told, Now: time.Now, Exit: func(int) {}, Notify: func() (<-chan os.Signal, func()) { return signals, func() {} }}
	exit := make(chan int, 1)
	go func() {
		exit <- env.Main([]string{"run", "-t", file, "-b", box.Brokers()[0], "-r", box.RegistryURL(), "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0"}, programs.Processor)
	}()
	address, stop, err := startProjector(t.Context(), file, dir, box)
	if err != nil {
		t.Fatal(err)
	}

	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{box.RegistryURL()}})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := codec.ParseSchema(string(harness.ClickSchemas["Click.avsc"].Data))
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
	get(after(99, "1ms"), http.StatusGatewayTimeout, `"outcome":"pending"`, "pipeline p has not reported since")
	get("/v1/events/e-7", http.StatusNotFound, `"outcome":"filtered"`, `"stage":"even"`, "pipeline p filtered it: stage even")
	get("/v1/events/e-2", http.StatusOK, `"applied"`)

	var errs bytes.Buffer
	ask := &cli.Env{Stdout: io.Discard, Stderr: &errs, Now: time.Now}
	if code := ask.Main([]string{"event", "e-14", "--address", address}, programs.Projector); code != cli.ExitFailure || !strings.Contains(errs.String(), "pipeline p made it a dead letter: stage lucky, assert") {
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
	if code := <-exit; code != cli.ExitOK {
		t.Errorf("the processor ended with code %d: %s", code, told.String())
	}
}
