// Package e2e tests the binaries as processes, on the sandbox and, if requested, on
// Apache Kafka.
//
// Start reading at [TestMain] and demo; startWorker and rebuildBox run the long-running
// programs.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/e2e/kafkatest"
)

// bin is the directory of the binaries under test. TestMain builds them, with the race
// detector if the tests have it.
var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "millrace-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	if raceEnabled {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "millrace/cmd/...", "millrace/pipeline/e2e/bench")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the binaries: %v\n%s", err, out)
		return 1
	}
	bin = dir
	if kafkatest.Enabled() {
		if err := secureHTTP(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// report holds the fields of demo.json that the tests check.
type report struct {
	EventsIn       int            `json:"events_in"`
	EventsOut      int            `json:"events_out"`
	EventsFiltered int            `json:"events_filtered"`
	DeadLetters    int            `json:"dead_letters"`
	ByType         map[string]int `json:"by_type"`
	Users          int            `json:"users"`
	Orders         int            `json:"orders"`
	UsersByStatus  map[string]int `json:"users_by_status"`
	OrdersByStatus map[string]int `json:"orders_by_status"`
	TotalCents     int64          `json:"total_amount_cents"`
	Seconds        float64        `json:"seconds"`
}

// demo runs `sandbox demo`, which checks every event and every state, and returns its
// report. The output goes to the test's log.
func demo(t *testing.T, args ...string) report {
	t.Helper()
	out := filepath.Join(t.TempDir(), "demo.json")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "sandbox"), append([]string{"demo", "--bin", bin, "--out", out, "-t", "../../topology.yaml"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	text, err := cmd.CombinedOutput()
	t.Logf("%s", text)
	if err != nil {
		t.Fatalf("sandbox demo: %v", err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDemoOnTheSandbox(t *testing.T) {
	r := demo(t, "--count", "10000")
	if r.EventsIn != 10_000 || r.EventsOut+r.EventsFiltered != r.EventsIn || r.DeadLetters != 0 {
		t.Errorf("%d in, %d out, %d filtered, %d dead letters", r.EventsIn, r.EventsOut, r.EventsFiltered, r.DeadLetters)
	}
	if r.EventsFiltered == 0 || r.EventsFiltered != r.ByType["UserDeleted"] {
		t.Errorf("%d filtered, but %d users deleted", r.EventsFiltered, r.ByType["UserDeleted"])
	}
	if r.Users != r.ByType["UserCreated"] || r.Orders != r.ByType["OrderCreated"] || r.UsersByStatus["deleted"] != r.ByType["UserDeleted"] {
		t.Errorf("%d users, %d orders, %v from %v", r.Users, r.Orders, r.UsersByStatus, r.ByType)
	}
}

func TestDemoWithKillsGivesTheSameReport(t *testing.T) {
	calm, killed := demo(t, "--count", "30000"), demo(t, "--count", "30000", "--kill")
	calm.Seconds, killed.Seconds = 0, 0
	if fmt.Sprint(calm) != fmt.Sprint(killed) {
		t.Errorf("without kills %+v\nwith kills    %+v", calm, killed)
	}
}

// purchases returns the arguments of a demo with the purchases of a real shop, and a
// check of its report. MILLRACE_CDNOW is the file of the purchases; the file
// cdnow-expected.json in the same directory holds the expected totals. Without
// MILLRACE_CDNOW, the demo uses synthetic events, and checks only the number of events
// in addition to its own comparison.
func purchases(t *testing.T) (args []string, check func(report)) {
	t.Helper()
	file := os.Getenv("MILLRACE_CDNOW")
	if file == "" {
		t.Log("MILLRACE_CDNOW is not set: using synthetic events")
		return []string{"--count", "160000"}, func(r report) {
			if r.EventsIn != 160_000 {
				t.Errorf("%d events in", r.EventsIn)
			}
		}
	}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cdnow-expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Events  int            `json:"events"`
		ByType  map[string]int `json:"by_type"`
		Users   int            `json:"users"`
		Orders  int            `json:"orders"`
		Paid    int            `json:"orders_paid"`
		Created int            `json:"orders_still_created"`
		Cents   int64          `json:"total_amount_cents"`
	}
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	return []string{"--events", file}, func(r report) {
		t.Helper()
		if r.EventsIn != want.Events || r.EventsOut != want.Events || r.DeadLetters != 0 || !maps.Equal(r.ByType, want.ByType) {
			t.Errorf("%d in, %d out, %d dead letters, %v; want %d of each and %v", r.EventsIn, r.EventsOut, r.DeadLetters, r.ByType, want.Events, want.ByType)
		}
		if r.Users != want.Users || r.Orders != want.Orders || r.OrdersByStatus["paid"] != want.Paid || r.OrdersByStatus["created"] != want.Created || r.TotalCents != want.Cents {
			t.Errorf("%d users, %d orders, %v, %d cents; want %+v", r.Users, r.Orders, r.OrdersByStatus, r.TotalCents, want)
		}
	}
}

// onKafka starts a Kafka broker and calls test with it and with the arguments for a demo
// on it. Only `make test-kafka` runs such tests, and it checks that they ran.
func onKafka(t *testing.T, test func(t *testing.T, b *kafkatest.Broker, args []string)) {
	t.Helper()
	onKafkaWith(t, kafkatest.Config{}, test)
}

func onKafkaWith(t *testing.T, cfg kafkatest.Config, test func(t *testing.T, b *kafkatest.Broker, args []string)) {
	t.Helper()
	if !kafkatest.Enabled() {
		t.Log("NOT run: needs MILLRACE_TEST_KAFKA=1; `make test-kafka` runs it")
		return
	}
	b, err := kafkatest.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Log(b)
	test(t, b, []string{"-b", strings.Join(b.Brokers(), ",")})
}

func TestKafkaDemo(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, args []string) {
		events, check := purchases(t)
		r := demo(t, append(args, events...)...)
		check(r)
		checkOutput(t, b, r)
	})
}

func TestKafkaDemoWithKills(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, args []string) {
		events, check := purchases(t)
		r := demo(t, append(append(args, events...), "--kill")...)
		check(r)
		checkOutput(t, b, r)
	})
}

// checkOutput counts the committed records of the demo's output topic, independently of the
// demo and of package kafka, and compares the count with the report.
func checkOutput(t *testing.T, b *kafkatest.Broker, r report) {
	t.Helper()
	n := 0
	eachCommitted(t, b.Brokers(), "shop.enriched", func(*kgo.Record) { n++ })
	if n != r.EventsOut {
		t.Errorf("shop.enriched has %d committed records, the report has %d", n, r.EventsOut)
	}
}
