package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
)

func TestHintsHaveOnlyTheFlagsThatDifferFromTheDefaults(t *testing.T) {
	if got := addressFlags(kafkaAddress, "http://"+registryAddress); got != "" {
		t.Errorf("at the default addresses: %q", got)
	}
	if got := addressFlags("127.0.0.1:1", "http://127.0.0.1:2"); got != " -b 127.0.0.1:1 -r http://127.0.0.1:2" {
		t.Error(got)
	}
}

// shopEvent is an event of the aggregate, with an id of its own.
func shopEvent(id, typ, aggregate string) (e demoEvent) {
	e.ID, e.Type, e.Data.ID = id, typ, aggregate
	e.Metadata = map[string]string{"pipeline": "enrich"}
	return e
}

func TestCheckFindsEventsThatAreWrong(t *testing.T) {
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
		wants []string // empty if the numbers agree
	}{
		{"right", right, 0, nil},
		{"aggregates in another order", []demoEvent{in[3], in[0], in[1], in[2]}, 0, nil},
		{"one is a dead letter", right[:3], 1, nil},
		{"lost", right[:3], 0, []string{"1 events did not come out, but there are 0 dead letters", "event 3 (OrderShipped) did not come out", "5 events in, but 3 out + 1 filtered + 0 dead letters = 4"}},
		{"lost in between", []demoEvent{in[0], in[2], in[3]}, 0, []string{"event 2 (OrderPaid) did not come out"}},
		{"twice", append(slices.Clone(right), in[0]), 0, []string{"event 1 (OrderCreated) is on shop.enriched once too often"}},
		{"twice at once", []demoEvent{in[0], in[0], in[1], in[2], in[3]}, 0, []string{"event 1 (OrderCreated) is on shop.enriched once too often"}},
		{"out of order", []demoEvent{in[1], in[0], in[2], in[3]}, 0, []string{"event 1 (OrderCreated) is on shop.enriched once too often, or after a later event"}},
		{"invented", append(slices.Clone(right), shopEvent("9", "OrderPaid", "a")), 0, []string{"event 9 (OrderPaid) is on shop.enriched, but not on shop.events"}},
		{"not filtered", append(slices.Clone(right), in[4]), 0, []string{"1 events UserDeleted are on shop.enriched"}},
		{"not enriched", []demoEvent{in[0], plain, in[2], in[3]}, 0, []string{"event 2 (OrderPaid) on shop.enriched is not enriched"}},
		{"a dead letter without an event", right, 1, []string{"0 events did not come out, but there are 1 dead letters"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := &Report{DeadLetters: test.dead}
			r.checkEvents(in, test.out)
			all := strings.Join(r.Disagreements, "\n")
			if len(test.wants) == 0 && all != "" {
				t.Errorf("unexpected disagreements\n%s", all)
			}
			for _, want := range test.wants {
				if !strings.Contains(all, want) {
					t.Errorf("no disagreement %q in\n%s", want, all)
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

func TestTheReportAsText(t *testing.T) {
	r := &Report{
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
Orders    12,300: 12,300 created; total 1,234,567.05

Time      since the start of sending; the steps overlap

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
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	for i := range maxShown + 2 {
		r.disagree("number %d", i)
	}
	out.Reset()
	if r.print(&out); strings.Contains(out.String(), "Every number") || !strings.HasSuffix(out.String(), "\n  number 19\n  and 2 more\n") {
		t.Errorf("with disagreements\n%s", out.String())
	}
}

func TestGroupedNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -999: "-999", -1000: "-1,000", 1234567: "1,234,567"} {
		if got := cli.GroupDigits(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestTailKeepsTheEndAndPassesOnLines(t *testing.T) {
	var next strings.Builder
	tl := &tail{next: &next, prefix: "p: "}
	fmt.Fprint(tl, "one\ntw")
	fmt.Fprint(tl, "o\n"+strings.Repeat("x", keptOutput))
	if next.String() != "p: one\np: two\n" {
		t.Errorf("wrote %q", next.String())
	}
	if tl.String() != strings.Repeat("x", keptOutput) {
		t.Errorf("kept %d bytes", len(tl.String()))
	}
}

func TestChildrenGetTheEnvironmentButNotTheAddressesOfAnotherCluster(t *testing.T) {
	got := childEnv([]string{
		"PATH=/bin", "MILLRACE_KEK=k1 AAAA", "MILLRACE_BROKERS=kafka:9092", "MILLRACE_REGISTRY_PASSWORD_FILE=x", "MILLRACE_SASL_USERNAME=u",
		"MILLRACE_LISTEN=:80", "MILLRACE_LISTEN_FILE=x", "MILLRACE_ADVERTISE=h:1", "MILLRACE_SESSIONS=2", "MILLRACE_KEK_FILE=keks",
	})
	if want := []string{"PATH=/bin", "MILLRACE_KEK=k1 AAAA", "MILLRACE_SESSIONS=2", "MILLRACE_KEK_FILE=keks"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHintsAreOfTheTopology(t *testing.T) {
	dir := t.TempDir()
	schema := filepath.Join(dir, "schemas", "Click.avsc")
	if err := os.MkdirAll(filepath.Dir(schema), 0o700); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "topology.yaml")
	for name, text := range map[string]string{
		schema: `{"type": "record", "name": "Click", "fields": [{"name": "id", "type": "string", "default": ""}]}`,
		own: `name: t
topics: {clicks: {partitions: 1, types: [Click], envelope: none, id: id}, clean: {partitions: 1}, dead: {partitions: 1}}
pipelines: {clean: {from: clicks, to: clean, dead_letter: dead}}
projections: {click: {from: clean, key: id, state: Click, on: {Click: {set: {id: id}}}, snapshots: snapshots}}
`,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]string{
		own:                    "  bin/producer send events.jsonl --topic clicks -t " + own + "\n  curl 'http://p/v1/projections/click?limit=3'\n",
		harness.ShopTopology(): "  bin/producer generate --events 1000 -t " + harness.ShopTopology() + "\n  curl 'http://p/v1/projections/user?limit=3'\n  curl 'http://p/v1/projections/order?limit=3'\n",
	} {
		d := &demo{env: &cli.Env{}, bin: "bin", topology: file, brokers: []string{kafkaAddress}, registry: cli.DefaultRegistry}
		got := d.hints(d.loadTopology(), "http://p")
		if _, lines, _ := strings.Cut(got, "\n\n"); lines != want+"\n" {
			t.Errorf("%s: hints are\n%s\nwant\n%s", file, got, want)
		}
	}
	d := &demo{env: &cli.Env{}, topology: filepath.Join(dir, "missing.yaml")}
	if got := d.hints(d.loadTopology(), "http://p"); got != "" {
		t.Errorf("without a topology: %s", got)
	}
}
