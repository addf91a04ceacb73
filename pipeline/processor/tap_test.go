package processor_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/processor/trace"
	"millrace/pipeline/programs"
)

// tapped runs `processor tap` while events are written, and returns its output.
func tapped(b *processortest.Bench, addr string, args ...string) (out string) {
	b.Helper()
	var stdout, stderr bytes.Buffer
	env := &cli.Env{Stdout: &stdout, Stderr: &stderr, Now: time.Now}
	done := make(chan int, 1)
	go func() {
		done <- env.Main(append([]string{"tap", "--listen", addr, "--rate", "1000"}, args...), programs.Processor)
	}()
	for {
		select {
		case code := <-done:
			if code != cli.ExitOK {
				b.Errorf("exit code %d: %s", code, stderr.String())
			}
			return stdout.String()
		default:
			b.Clicks(21)
		}
	}
}

func TestTapShowsWhatStagesDo(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	addr := processortest.RunTapped(b, b.File(harness.PlainTopology), "--tap", "--tap-mask", "nothing.of.this")
	out := tapped(b, addr, "--json", "--key", "user-1", "--limit", "3") // events 1, 8 and 15 of each 21, in the order in which the client joins
	events := map[int64]string{}
	for line := range strings.Lines(out) {
		var l trace.Line
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		if l.Key != "user-1" || l.Type != "Click" || l.Pipeline != "p" || l.Topic != "in" || l.Dropped != 0 {
			t.Errorf("unexpected line %s", line)
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
			t.Errorf("event at offset %d: got %s", offset, got)
		}
	}

	out = tapped(b, addr, "--type", "Click", "--stage", "assert", "--key", "user-6", "--limit", "2", "--mask", "id,key")
	harness.WantLines(t, out, `key "***" Click p`, `{"id":"***","n":13}`, "assert               failed  ***")

	resp, err := http.Get("http://" + addr + chain.TapPath + "?stage=asert&rate=0&colour=red")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var problem struct{ Detail string }
	if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%s, %v", resp.Status, err)
	}
	harness.WantLines(t, problem.Detail, `there is no stage "asert": did you mean "assert"?`, "rate=0 is not a number", `there is no parameter "colour"`)
}

func TestTapNeedsTheFlagOfTheWorker(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	addr := processortest.RunTapped(b, b.File(harness.PlainTopology))
	var stderr bytes.Buffer
	env := &cli.Env{Stdout: &stderr, Stderr: &stderr, Now: time.Now}
	if code := env.Main([]string{"tap", "--listen", addr}, programs.Processor); code != cli.ExitFailure {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, stderr.String(), "does not show events: run it with --tap")
}
