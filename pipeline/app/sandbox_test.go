package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lockedBuffer is what several may write to.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// sandboxRun is a sandbox program that a test runs.
type sandboxRun struct {
	stdout, stderr lockedBuffer
	signals        chan os.Signal
	exit           chan int
}

func runSandbox(args ...string) *sandboxRun {
	r := &sandboxRun{signals: make(chan os.Signal, 2), exit: make(chan int, 1)}
	env := &Env{
		Stdout: &r.stdout, Stderr: &r.stderr, Now: time.Now,
		Notify: func() (<-chan os.Signal, func()) { return r.signals, func() {} },
		Exit:   func(int) {},
	}
	go func() { r.exit <- env.Main(args, Sandbox) }()
	return r
}

// await waits until the program prints what the expression finds, and returns
// the first group of it.
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
			t.Fatalf("it ended with code %d:\n%s%s", code, r.stdout.String(), r.stderr.String())
		case <-t.Context().Done():
			t.Fatal("the test ran out of time")
		case <-tick.C:
		}
	}
}

func (r *sandboxRun) stop(t *testing.T) {
	t.Helper()
	r.signals <- syscall.SIGTERM
	if code := <-r.exit; code != ExitOK {
		t.Errorf("exit code %d after SIGTERM:\n%s", code, r.stderr.String())
	}
}

func TestSandboxSaysWhereItIsAndStops(t *testing.T) {
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
		t.Errorf("it does not say how to use it:\n%s", out)
	}

	second := runSandbox(args...)
	if code := <-second.exit; code != ExitFailure || !strings.Contains(second.stderr.String(), "in use by another sandbox") {
		t.Errorf("a second one on the directory: exit code %d: %s", code, second.stderr.String())
	}
	r.stop(t)
}

func TestFlagsAreNamedOnlyWhereTheyAreNeeded(t *testing.T) {
	if got := reachFlags(sandboxKafka, "http://"+sandboxRegistry); got != "" {
		t.Errorf("where everybody looks anyway: %q", got)
	}
	if got := reachFlags("127.0.0.1:1", "http://127.0.0.1:2"); got != " -b 127.0.0.1:1 -r http://127.0.0.1:2" {
		t.Error(got)
	}
}

func TestDemoCommandLine(t *testing.T) {
	for name, args := range map[string][]string{
		"seed of a file": {"demo", "--events", "x", "--seed", "1"},
		"no events":      {"demo", "--count", "0"},
		"arguments":      {"demo", "x"},
	} {
		r := runSandbox(args...)
		if code := <-r.exit; code != ExitUsage {
			t.Errorf("%s: exit code %d: %s", name, code, r.stderr.String())
		}
	}
	r := runSandbox("demo", "--bin", t.TempDir())
	if code := <-r.exit; code != ExitFailure || !strings.Contains(r.stderr.String(), "is --bin the directory") {
		t.Errorf("without programs: exit code %d: %s", code, r.stderr.String())
	}
}

const shopTopology = "../../topology.yaml"

func TestDemoAgrees(t *testing.T) {
	for name, extra := range map[string][]string{
		"made up": {"--count", "2000"},
		"killed":  {"--count", "60000", "--kill"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "build", "demo.json")
			r := runSandbox(append([]string{"demo", "--bin", programDir(t), "-t", shopTopology, "--out", out}, extra...)...)
			if code := <-r.exit; code != ExitOK {
				t.Fatalf("exit code %d:\n%s%s", code, r.stdout.String(), r.stderr.String())
			}
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			var got report
			if err := json.Unmarshal(data, &got); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got.EventsIn) != extra[1] || got.EventsFiltered == 0 || got.EventsOut+got.EventsFiltered != got.EventsIn ||
				got.Users == 0 || got.Orders == 0 || got.TotalCents == 0 || got.Seconds <= 0 {
				t.Errorf("the report is\n%s", data)
			}
			if !strings.Contains(r.stdout.String(), "Every number agrees") {
				t.Errorf("it printed\n%s", r.stdout.String())
			}
		})
	}
}

func TestUpRunsUntilToldToStop(t *testing.T) {
	r := runSandbox("up", "--bin", programDir(t), "-t", shopTopology)
	projector := r.await(t, `projector +(http://\S+)/readyz`)
	r.await(t, `(Ctrl-C stops everything)`)
	var page struct {
		Items []any `json:"items"`
	}
	if err := getJSON(t.Context(), projector+"/v1/projections/order", &page); err != nil || len(page.Items) != 0 {
		t.Errorf("orders before any event: %v, %v", page.Items, err)
	}
	r.stop(t)
}

// shopEvent is an event of the aggregate, with an id of its own.
func shopEvent(id, typ, aggregate string) (e demoEvent) {
	e.ID, e.Type, e.Data.ID = id, typ, aggregate
	e.Metadata = map[string]string{"pipeline": "enrich"}
	return e
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	in := []demoEvent{
		shopEvent("1", "OrderCreated", "a"), shopEvent("2", "OrderPaid", "a"), shopEvent("3", "OrderShipped", "a"),
		shopEvent("4", "UserCreated", "u"), shopEvent("5", "UserDeleted", "u"),
	}
	right := []demoEvent{in[0], in[3], in[1], in[2]}
	plain := in[1]
	plain.Metadata = nil
	tests := []struct {
		name  string
		out   []demoEvent
		dead  int
		wants []string // none: it agrees
	}{
		{"right", right, 0, nil},
		{"aggregates in another order", []demoEvent{in[3], in[0], in[1], in[2]}, 0, nil},
		{"one is a dead letter", right[:3], 1, nil},
		{"lost", right[:3], 0, []string{"1 events did not come out, but there are 0 dead letters", "event 3 (OrderShipped) did not come out", "5 events in, but 3 out + 1 filtered + 0 dead letters = 4"}},
		{"lost in the midst", []demoEvent{in[0], in[2], in[3]}, 0, []string{"event 2 (OrderPaid) did not come out"}},
		{"twice", append(slices.Clone(right), in[0]), 0, []string{"event 1 (OrderCreated) is on shop.enriched once too often"}},
		{"twice at once", []demoEvent{in[0], in[0], in[1], in[2], in[3]}, 0, []string{"event 1 (OrderCreated) is on shop.enriched once too often"}},
		{"out of order", []demoEvent{in[1], in[0], in[2], in[3]}, 0, []string{"event 1 (OrderCreated) is on shop.enriched once too often, or after a later event"}},
		{"invented", append(slices.Clone(right), shopEvent("9", "OrderPaid", "a")), 0, []string{"event 9 (OrderPaid) is on shop.enriched, but not on shop.events"}},
		{"not filtered", append(slices.Clone(right), in[4]), 0, []string{"1 events UserDeleted are on shop.enriched"}},
		{"not enriched", []demoEvent{in[0], plain, in[2], in[3]}, 0, []string{"event 2 (OrderPaid) on shop.enriched is not enriched"}},
		{"a dead letter of nothing", right, 1, []string{"0 events did not come out, but there are 1 dead letters"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := &report{DeadLetters: test.dead}
			r.checkEvents(in, test.out)
			all := strings.Join(r.Disagreements, "\n")
			if len(test.wants) == 0 && all != "" {
				t.Errorf("it says\n%s", all)
			}
			for _, want := range test.wants {
				if !strings.Contains(all, want) {
					t.Errorf("it does not say %q, but\n%s", want, all)
				}
			}
		})
	}
}

func TestExpectedStates(t *testing.T) {
	order := shopEvent("1", "OrderCreated", "o")
	order.Data.TotalAmount = 12.34
	users, orders := expectedStates([]demoEvent{
		order, shopEvent("2", "OrderPaid", "o"),
		shopEvent("3", "UserCreated", "u"), shopEvent("4", "UserUpdated", "u"), shopEvent("5", "UserDeleted", "u"), shopEvent("6", "UserUpdated", "u"),
	})
	if len(users) != 1 || *users["u"] != (demoState{"deleted", 0, 3}) {
		t.Errorf("user %+v", users["u"])
	}
	if len(orders) != 1 || *orders["o"] != (demoState{"paid", 1234, 2}) {
		t.Errorf("order %+v", orders["o"])
	}
}

func TestReportForPeople(t *testing.T) {
	r := &report{
		EventsIn: 12345, EventsOut: 12300, EventsFiltered: 45,
		ByType: map[string]int{"OrderCreated": 12300, "UserDeleted": 45}, OutByType: map[string]int{"OrderCreated": 12300}, FilteredByType: map[string]int{"UserDeleted": 45},
		Users: 45, UsersByStatus: map[string]int{"deleted": 45}, Orders: 12300, OrdersByStatus: map[string]int{"created": 12300},
		TotalCents: 123456705, Steps: steps{Inject: 0.5, Process: 1, Project: 2}, ExampleUser: json.RawMessage(`{"id":"u"}`),
	}
	var out strings.Builder
	r.print(&out)
	const want = `
Events    12,345 in = 12,300 out + 45 filtered + 0 dead letters

                          in         out    filtered
  OrderCreated        12,300      12,300           0
  UserDeleted             45           0          45

Users     45: 45 deleted
Orders    12,300: 12,300 created; in all 1,234,567.05

Time      since sending began; the steps overlap

  all sent            0.50 s      24,690 events/s
  all processed       1.00 s      12,345 events/s
  all folded          2.00 s       6,172 events/s

A user    {
            "id": "u"
          }

An order  none

Every number agrees, event by event and state by state.
`
	if out.String() != want {
		t.Errorf("it is\n%s\nwant\n%s", out.String(), want)
	}
	for i := range maxShown + 2 {
		r.disagree("number %d", i)
	}
	out.Reset()
	if r.print(&out); strings.Contains(out.String(), "Every number") || !strings.HasSuffix(out.String(), "\n  number 19\n  and 2 more\n") {
		t.Errorf("with disagreements it is\n%s", out.String())
	}
}

func TestGroupedNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -999: "-999", -1000: "-1,000", 1234567: "1,234,567"} {
		if got := grouped(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestTailKeepsTheEndAndPassesOnLines(t *testing.T) {
	var next strings.Builder
	tl := &tail{next: &next, prefix: "p: "}
	fmt.Fprint(tl, "one\ntw")
	fmt.Fprint(tl, "o\n"+strings.Repeat("x", demoTail))
	if next.String() != "p: one\np: two\n" {
		t.Errorf("passed on %q", next.String())
	}
	if tl.String() != strings.Repeat("x", demoTail) {
		t.Errorf("kept %d bytes", len(tl.String()))
	}
}
