package programs_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/programs"
)

const receiptsTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, id: "id + ''"}
  clicks: {partitions: 2, config: {retention.ms: "-1"}}
  dead: {partitions: 1}
  receipts: {partitions: 1}
pipelines:
  p:
    from: in
    to: clicks
    dead_letter: dead
    receipts: receipts
    stages:
      - filter: {name: even, keep: n % 2 == 0}
      - assert: {name: lucky, that: "n != 14", message: "'fourteen'"}
      - dedupe: {by: id, within: 1h}
projections:
  count: {from: clicks, key: id, state: Count, on: {Click: {set: {n: n}}}, snapshots: counts}
`

// A request that waits for an event gets the pipeline's outcome of the event as soon as the
// pipeline has one.
func TestAWaitingRequestGetsThePipelinesOutcome(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, receiptsTopology)
	box := harness.Sandbox(t)

	signals := make(chan os.Signal, 1)
	var output harness.Buffer
	env := &cli.Env{Stdout: &output, Stderr: &output, Now: time.Now, Exit: func(int) {}, Notify: func() (<-chan os.Signal, func()) { return signals, func() {} }}
	exit := make(chan int, 1)
	go func() {
		exit <- env.Main([]string{"run", "-t", file, "-b", box.Brokers()[0], "-r", box.RegistryURL(), "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0"}, programs.Processor)
	}()
	address, stop, err := startProjector(t.Context(), file, dir, box)
	if err != nil {
		t.Fatal(err)
	}
	clicks := newClickSender(t, box, "in")
	after := func(n int, wait string) string {
		return fmt.Sprintf("/v1/projections/count/e-%d?after_event=e-%d&wait=%s", n, n, wait)
	}

	// The first request waits before the pipeline has written a receipt.
	go clicks.send(7)
	wantAnswer(t, address, after(7, "30s"), http.StatusConflict, `"outcome":"filtered"`, `"pipeline":"p"`, `"stage":"even"`)
	clicks.send(14)
	wantAnswer(t, address, after(14, "30s"), http.StatusConflict, `"outcome":"dead_letter"`, `"pipeline":"p"`, `"stage":"lucky"`, `"reason":"assert"`)
	clicks.send(2)
	wantAnswer(t, address, after(2, "30s"), http.StatusOK, `"after_event":"applied"`)
	clicks.send(2) // the receipt of this duplicate must not replace the outcome of the first
	clicks.send(9)
	wantAnswer(t, address, after(9, "30s"), http.StatusConflict, `"outcome":"filtered"`)
	wantAnswer(t, address, after(2, "0s"), http.StatusOK, `"after_event":"applied"`)
	wantAnswer(t, address, after(99, "1ms"), http.StatusGatewayTimeout, `"outcome":"pending"`, "pipeline p has not reported since")
	wantAnswer(t, address, "/v1/events/e-7", http.StatusNotFound, `"outcome":"filtered"`, `"stage":"even"`, "pipeline p filtered it: stage even")
	wantAnswer(t, address, "/v1/events/e-2", http.StatusOK, `"applied"`)

	var errs bytes.Buffer
	client := &cli.Env{Stdout: io.Discard, Stderr: &errs, Now: time.Now}
	if code := client.Main([]string{"event", "e-14", "--address", address}, programs.Projector); code != cli.ExitFailure || !strings.Contains(errs.String(), "pipeline p made it a dead letter: stage lucky, assert") {
		t.Errorf("exit code %d: %s", code, &errs)
	}

	// After a restart, the projector has the same outcome.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if address, stop, err = startProjector(t.Context(), file, dir, box); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, address, after(7, "30s"), http.StatusConflict, `"outcome":"filtered"`)
	if err := stop(); err != nil {
		t.Error(err)
	}
	signals <- syscall.SIGTERM
	if code := <-exit; code != cli.ExitOK {
		t.Errorf("the processor ended with code %d: %s", code, output.String())
	}
}

// wantAnswer requests a path, and checks the status and parts of the answer.
func wantAnswer(t *testing.T, address, path string, status int, parts ...string) {
	t.Helper()
	resp := request(t, http.MethodGet, "http://"+address+path, "")
	if resp.status != status {
		t.Errorf("%s: %d, want %d: %s", path, resp.status, status, resp.body)
	}
	for _, part := range parts {
		if !strings.Contains(string(resp.body), part) {
			t.Errorf("%s: %s has no %s", path, resp.body, part)
		}
	}
}
