package programs_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/sandbox/demo"
)

// sandboxRun is a running sandbox program.
type sandboxRun struct {
	stdout, stderr harness.Buffer
	signals        chan os.Signal
	exit           chan int
}

func runSandbox(args ...string) *sandboxRun {
	r := &sandboxRun{signals: make(chan os.Signal, 2), exit: make(chan int, 1)}
	env := &cli.Env{
		Stdout: &r.stdout, Stderr: &r.stderr, Now: time.Now,
		Notify: func() (<-chan os.Signal, func()) { return r.signals, func() {} },
		Exit:   func(int) {},
	}
	go func() { r.exit <- env.Main(args, demo.Command) }()
	return r
}

// await waits until the output matches a regular expression, and returns the first group of
// the match.
func (r *sandboxRun) await(t *testing.T, expr string) string {
	t.Helper()
	re := regexp.MustCompile(expr)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if m := re.FindStringSubmatch(r.stdout.String()); m != nil {
			return m[1]
		}
		select {
		case code := <-r.exit:
			t.Fatalf("the program ended with code %d:\n%s%s", code, r.stdout.String(), r.stderr.String())
		case <-t.Context().Done():
			t.Fatal("the test ran out of time")
		case <-tick.C:
		}
	}
}

func (r *sandboxRun) stop(t *testing.T) {
	t.Helper()
	r.signals <- syscall.SIGTERM
	if code := <-r.exit; code != cli.ExitOK {
		t.Errorf("exit code %d after SIGTERM:\n%s", code, r.stderr.String())
	}
}

func TestSandboxPrintsItsAddressesAndStops(t *testing.T) {
	dir := t.TempDir()
	args := []string{"run", "--kafka-listen", "127.0.0.1:0", "--registry-listen", "127.0.0.1:0", "--data-dir", dir, "--log-level", "error"}
	r := runSandbox(args...)
	registry := r.await(t, `schema registry  (http://127\.0\.0\.1:\d+)\n`)
	r.await(t, `(Ctrl-C stops it)`)
	resp, err := http.Get(registry + "/subjects")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "[]" || err != nil {
		t.Errorf("subjects %s, %v", body, err)
	}
	if out := r.stdout.String(); !strings.Contains(out, "processor run -b 127.0.0.1:") || !strings.Contains(out, "-r "+registry) || !strings.Contains(out, dir) {
		t.Errorf("the output does not explain the use:\n%s", out)
	}

	second := runSandbox(args...)
	if code := <-second.exit; code != cli.ExitFailure || !strings.Contains(second.stderr.String(), "in use by another sandbox") {
		t.Errorf("a second sandbox in the directory: exit code %d: %s", code, second.stderr.String())
	}
	r.stop(t)
}

func TestDemoCommandLine(t *testing.T) {
	for name, args := range map[string][]string{
		"seed of a file": {"demo", "--events", "x", "--seed", "1"},
		"no events":      {"demo", "--count", "0"},
		"arguments":      {"demo", "x"},
	} {
		r := runSandbox(args...)
		if code := <-r.exit; code != cli.ExitUsage {
			t.Errorf("%s: exit code %d: %s", name, code, r.stderr.String())
		}
	}
	r := runSandbox("demo", "--bin", t.TempDir())
	if code := <-r.exit; code != cli.ExitFailure || !strings.Contains(r.stderr.String(), "is --bin the directory") {
		t.Errorf("without programs: exit code %d: %s", code, r.stderr.String())
	}
}

func TestDemoAgrees(t *testing.T) {
	for name, extra := range map[string][]string{
		"synthetic": {"--count", "2000"},
		"killed":    {"--count", "60000", "--kill"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "build", "demo.json")
			r := runSandbox(append([]string{"demo", "--bin", programDir(t), "-t", harness.ShopTopology(), "--out", out}, extra...)...)
			if code := <-r.exit; code != cli.ExitOK {
				t.Fatalf("exit code %d:\n%s%s", code, r.stdout.String(), r.stderr.String())
			}
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			var got demo.Report
			if err := json.Unmarshal(data, &got); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got.EventsIn) != extra[1] || got.EventsFiltered == 0 || got.EventsOut+got.EventsFiltered != got.EventsIn ||
				got.Users == 0 || got.Orders == 0 || got.TotalCents == 0 || got.Seconds <= 0 {
				t.Errorf("the report is\n%s", data)
			}
			if !strings.Contains(r.stdout.String(), "Every number agrees") {
				t.Errorf("the output is\n%s", r.stdout.String())
			}
		})
	}
}

func TestUpRunsUntilASignal(t *testing.T) {
	r := runSandbox("up", "--bin", programDir(t), "-t", harness.ShopTopology())
	projector := r.await(t, `projector +(http://\S+)/readyz`)
	r.await(t, `producer (generate --events 1000)`)
	r.await(t, `(Ctrl-C stops everything)`)
	var page struct {
		Items []any `json:"items"`
	}
	if err := harness.GetJSON(t.Context(), projector+"/v1/projections/order", &page); err != nil || len(page.Items) != 0 {
		t.Errorf("orders before any event: %v, %v", page.Items, err)
	}
	r.stop(t)
}
