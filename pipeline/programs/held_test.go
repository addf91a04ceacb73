package programs_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/programs"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/topology"
)

const heldPipelines = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none}
  out: {partitions: 2}
  odd: {partitions: 2, types: [Click], envelope: none}
  odd.out: {partitions: 2}
  strict: {partitions: 2}
  rows: {partitions: 1, types: [Click], envelope: none, config: {cleanup.policy: compact}}
  joined: {partitions: 2}
  dead: {partitions: 1}
tables:
  rows: {topic: rows}
pipelines:
  good: {from: in, to: out, dead_letter: dead}
  odd: {from: odd, to: odd.out, dead_letter: dead}
  strict: {from: in, to: strict, dead_letter: dead}
  joined:
    from: in
    to: joined
    dead_letter: dead
    stages: [lookup: {table: rows, key: id, set: {n: row.n}, missing: keep}]
`

// readyChecks returns the status of /readyz?verbose and the reasons of the checks that
// failed, by name.
func readyChecks(address string) (status int, reasons map[string]string) {
	status, body := get("http://" + address + "/readyz?verbose")
	var answer struct {
		Checks []struct {
			Name, Reason string
			OK           bool
		}
	}
	reasons = map[string]string{}
	if json.Unmarshal([]byte(body), &answer) == nil {
		for _, c := range answer.Checks {
			if !c.OK {
				reasons[c.Name] = c.Reason
			}
		}
	}
	return status, reasons
}

// hasLines reports whether a text has all of some lines.
func hasLines(text string, lines ...string) bool {
	all := strings.Split(text, "\n")
	return !slices.ContainsFunc(lines, func(line string) bool { return !slices.Contains(all, line) })
}

// admin returns an admin client of a sandbox.
func admin(t *testing.T, box *sandbox.Sandbox) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(box.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// occupy registers a schema under a subject of a topic, with which a long is incompatible.
func occupy(t *testing.T, box *sandbox.Sandbox, topic, schema string) {
	t.Helper()
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{box.RegistryURL()}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := codec.ParseSchema(schema)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Register(t.Context(), codec.TopicRecordName.Value(topic, s), s); err != nil {
		t.Fatal(err)
	}
}

// vacate deletes a subject.
func vacate(t *testing.T, box *sandbox.Sandbox, subject string) {
	t.Helper()
	for _, path := range []string{"", "?permanent=true"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, box.RegistryURL()+"/subjects/"+subject+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("DELETE %s: %s", req.URL, resp.Status)
		}
	}
}

// addressOf waits for the address in the file of --listen-file.
func addressOf(t *testing.T, file string) (address string) {
	t.Helper()
	if !until(t, func() bool {
		text, _ := os.ReadFile(file)
		address = strings.TrimSpace(string(text))
		return address != ""
	}) {
		t.Fatalf("no address in %s", file)
	}
	return address
}

// A pipeline whose topic, schema or table is wrong does not hold up the others. It says why
// it does not run, and starts when the cause is gone.
func TestAPipelineThatCannotStartDoesNotHoldUpTheOthers(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldPipelines)
	box := harness.Sandbox(t)
	adm := admin(t, box)
	create := func(partitions int32, names ...string) { createTopics(t, adm, partitions, nil, names...) }
	create(2, "in", "out", "odd.out", "strict", "joined")
	create(1, "dead")
	create(3, "odd")
	occupy(t, box, "strict", `{"type": "record", "name": "Click", "fields": [{"name": "id", "type": "string"}, {"name": "n", "type": "string"}]}`)
	processor := run(programs.Processor, box, "run", "-t", file, "--no-create-topics", "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0", "--listen-file", dir+"/address")
	defer processor.stop(t)
	address := addressOf(t, dir+"/address")

	clicks := newClickSender(t, box, "in")
	clicks.send(1)
	awaitEnds(t, adm, map[string]int64{"out": 1})
	want := map[string]string{
		"pipeline odd":    "topic odd has 3 partitions, but is declared with 2",
		"pipeline strict": "strict-Click",
		"pipeline joined": "topic rows does not exist: create it with 1 partition",
	}
	var reasons map[string]string
	if !until(t, func() bool {
		var status int
		status, reasons = readyChecks(address)
		for name, part := range want {
			if !strings.Contains(reasons[name], part) {
				return false
			}
		}
		return status == http.StatusServiceUnavailable && reasons["pipeline good"] == ""
	}) {
		t.Errorf("not ready because of %q, want %q", reasons, want)
	}
	if _, metrics := get("http://" + address + "/metrics"); !hasLines(metrics, `millrace_pipeline_running{pipeline="good"} 1`,
		`millrace_pipeline_running{pipeline="odd"} 0`, `millrace_pipeline_running{pipeline="strict"} 0`, `millrace_pipeline_running{pipeline="joined"} 0`) {
		t.Errorf("metrics of the pipelines:\n%s", metrics)
	}

	if _, err := adm.DeleteTopics(t.Context(), "odd"); err != nil {
		t.Fatal(err)
	}
	create(2, "odd")
	create(1, "rows")
	vacate(t, box, "strict-Click")
	if !until(t, func() bool {
		status, _ := readyChecks(address)
		return status == http.StatusOK
	}) {
		_, reasons = readyChecks(address)
		t.Fatalf("the pipelines do not start after the causes are gone: %q\n%s", reasons, processor.output.String())
	}
	awaitEnds(t, adm, map[string]int64{"out": 1, "strict": 1, "joined": 1})
	if _, metrics := get("http://" + address + "/metrics"); !hasLines(metrics, `millrace_pipeline_running{pipeline="odd"} 1`, `millrace_pipeline_running{pipeline="joined"} 1`) {
		t.Errorf("metrics of the pipelines:\n%s", metrics)
	}
}

// createTopics creates topics, and fails the test if one cannot be created.
func createTopics(t *testing.T, adm *kadm.Client, partitions int32, config map[string]*string, names ...string) {
	t.Helper()
	created, err := adm.CreateTopics(t.Context(), partitions, 1, config, names...)
	if err == nil {
		err = created.Error()
	}
	if err != nil {
		t.Fatalf("creating %q: %v", names, err)
	}
}

// awaitEnds waits until topics have committed records, at least n each.
func awaitEnds(t *testing.T, adm *kadm.Client, least map[string]int64) {
	t.Helper()
	for topic, n := range least {
		var sum int64
		if !until(t, func() bool {
			ends, err := adm.ListCommittedOffsets(t.Context(), topic)
			sum = 0
			ends.Each(func(o kadm.ListedOffset) { sum += max(0, o.Offset) })
			return err == nil && sum >= n
		}) {
			t.Fatalf("%s has %d records, want %d", topic, sum, n)
		}
	}
}

// If no pipeline can start, and trying again is useless, the program ends and says why.
func TestTheProcessorEndsIfNoPipelineCanStart(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldPipelines)
	box := harness.Sandbox(t)
	createTopics(t, admin(t, box), 3, nil, "odd", "rows")
	for _, one := range []struct {
		args []string
		want []string
	}{
		{[]string{"--pipeline", "odd"}, []string{"pipeline odd: topic odd has 3 partitions, but is declared with 2"}},
		{[]string{"--pipeline", "odd,joined"}, []string{"pipeline odd: topic odd has 3", "pipeline joined: topic rows has 3"}},
		{[]string{"--pipeline", "good", "--no-create-topics"}, []string{"pipeline good: topic in does not exist: create it"}},
		{[]string{"--memory", "20", "--sessions", "2"}, []string{"20 MiB of memory is too little for 2 sessions"}},
		{[]string{"--commit-interval", "9s"}, []string{"the commit interval 9s is too long"}},
	} {
		p := run(programs.Processor, box, append([]string{"run", "-t", file, "--listen", "127.0.0.1:0"}, one.args...)...)
		select {
		case code := <-p.exit:
			if code != cli.ExitUsage {
				t.Errorf("%v: exit code %d, want %d", one.args, code, cli.ExitUsage)
			}
			harness.WantLines(t, p.output.String(), one.want...)
		case <-time.After(3 * time.Minute):
			t.Fatalf("%v: it does not end:\n%s", one.args, p.output.String())
		}
	}
}

const heldProjections = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, id: "id + ''", config: {retention.ms: "-1"}}
  odd: {partitions: 2, types: [Click], envelope: none, id: "id + ''", config: {retention.ms: "-1"}}
projections:
  sum: {from: in, key: id, state: Count, on: {Click: {set: {n: state.n + n}}}, snapshots: sums}
  odd: {from: odd, key: id, state: Count, on: {Click: {set: {n: state.n + n}}}, snapshots: odds}
  strict: {from: in, key: id, state: Count, on: {Click: {set: {n: state.n + n}}}, snapshots: stricts}
`

// A projection whose topic or schema is wrong does not hold up the others. Questions about
// it get the reason, and it folds everything when the cause is gone.
func TestAProjectionThatCannotStartDoesNotHoldUpTheOthers(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldProjections)
	box := harness.Sandbox(t)
	adm := admin(t, box)
	createTopics(t, adm, 3, nil, "odd")
	const subject = "stricts-CountSnapshot"
	occupy(t, box, "stricts", `{"type": "record", "name": "CountSnapshot", "fields": [{"name": "id", "type": "long"}]}`)
	projector := run(programs.Projector, box, "run", "-t", file, "--sessions", "1", "--listen", "127.0.0.1:0", "--listen-file", dir+"/address", "--data-dir", filepath.Join(dir, "data"))
	defer projector.stop(t)
	awaitReady(t, dir+"/address") // the topics exist
	address := addressOf(t, dir+"/address")
	clicks := newClickSender(t, box, "in")
	clicks.send(3)
	awaitState(t, address, "sum", "e-3", 3)

	status, reasons := readyChecks(address)
	if status != http.StatusOK || !strings.Contains(reasons["projection odd"], "topic odd has 3 partitions") || !strings.Contains(reasons["projection strict"], subject) {
		t.Errorf("%d %q", status, reasons)
	}
	if _, text := get("http://" + address + "/readyz"); !strings.HasPrefix(text, "ok\nprojection odd: ") {
		t.Errorf("/readyz: %s", text)
	}
	for _, path := range []string{"/v1/projections/odd", "/v1/projections/odd/e-1", "/v1/blocked/strict", "/v1/events/e-1"} {
		if status, body := get("http://" + address + path); status != http.StatusServiceUnavailable || !strings.Contains(body, "projection odd cannot start") && !strings.Contains(body, "projection strict cannot start") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, body := get("http://" + address + "/v1/events/e-3"); status != http.StatusOK {
		t.Errorf("an event of a projection that runs: %d %s", status, body)
	}
	if _, metrics := get("http://" + address + "/metrics"); !hasLines(metrics, `millrace_projection_running{projection="sum"} 1`,
		`millrace_projection_running{projection="odd"} 0`, `millrace_projection_running{projection="strict"} 0`) {
		t.Errorf("metrics of the projections:\n%s", metrics)
	}

	if _, err := adm.DeleteTopics(t.Context(), "odd"); err != nil {
		t.Fatal(err)
	}
	vacate(t, box, subject)
	awaitState(t, address, "strict", "e-3", 3)
	odd := newClickSender(t, box, "odd")
	if !until(t, func() bool { _, reasons = readyChecks(address); return len(reasons) == 0 }) {
		t.Fatalf("still held: %q", reasons)
	}
	odd.send(4)
	awaitState(t, address, "odd", "e-4", 4)
	awaitState(t, address, "sum", "e-3", 3)
	if _, metrics := get("http://" + address + "/metrics"); !hasLines(metrics, `millrace_projection_running{projection="odd"} 1`, `millrace_projection_running{projection="strict"} 1`) {
		t.Errorf("metrics of the projections:\n%s", metrics)
	}
}

// A pipeline that ends, here because its topic gets partitions, does not end the others.
func TestAPipelineThatEndsDoesNotEndTheOthers(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldPipelines)
	box := harness.Sandbox(t)
	adm := admin(t, box)
	processor := run(programs.Processor, box, "run", "-t", file, "--pipeline", "good,odd", "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0", "--listen-file", dir+"/address")
	defer processor.stop(t)
	awaitReady(t, dir+"/address")
	address := addressOf(t, dir+"/address")
	if _, err := adm.UpdatePartitions(t.Context(), 3, "odd"); err != nil {
		t.Fatal(err)
	}
	if !until(t, func() bool {
		_, reasons := readyChecks(address)
		return strings.Contains(reasons["pipeline odd"], "topic odd has 3 partitions, but is declared with 2") && reasons["pipeline good"] == ""
	}) {
		t.Errorf("the pipeline does not end:\n%s", processor.output.String())
	}
	harness.WantLines(t, processor.output.String(), "topic odd had 2 partitions when this program started and has 3 now")
	clicks := newClickSender(t, box, "in")
	clicks.send(1)
	awaitEnds(t, adm, map[string]int64{"out": 1})
	if _, metrics := get("http://" + address + "/metrics"); !hasLines(metrics, `millrace_pipeline_running{pipeline="good"} 1`, `millrace_pipeline_running{pipeline="odd"} 0`) {
		t.Errorf("metrics of the pipelines:\n%s", metrics)
	}
}

// A field that a writer added, and that our schema lacks, is reported by the projector once,
// however many projections and events drop it.
func TestTheProjectorLogsDroppedFieldsOncePerWriter(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, id: "id + ''", config: {retention.ms: "-1"}}
projections:
  sum: {from: in, key: id, state: Count, on: {Click: {set: {n: state.n + n}}}, snapshots: sums}
  last: {from: in, key: id, state: Count, on: {Click: {set: {n: n}}}, snapshots: lasts}
`)
	box := harness.Sandbox(t)
	projector := run(programs.Projector, box, "run", "-t", file, "--sessions", "2", "--listen", "127.0.0.1:0", "--listen-file", dir+"/address", "--data-dir", filepath.Join(dir, "data"))
	defer projector.stop(t)
	awaitReady(t, dir+"/address")
	address := addressOf(t, dir+"/address")
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{box.RegistryURL()}})
	if err != nil {
		t.Fatal(err)
	}
	wider, err := codec.ParseSchema(`{"type": "record", "name": "Click", "fields": [{"name": "id", "type": "string"}, {"name": "n", "type": "long"}, {"name": "segment", "type": "long", "default": 0}]}`)
	if err != nil {
		t.Fatal(err)
	}
	id, err := registry.Register(t.Context(), codec.TopicRecordName.Value("in", wider), wider)
	if err != nil {
		t.Fatal(err)
	}
	w, err := kafka.NewWriter(kafka.Config{Brokers: box.Brokers()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	for n := range int64(4) {
		key := fmt.Sprint("e-", n)
		value := codec.AppendLong(codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, id), key), n), 5)
		w.Write(t.Context(), &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: []byte(key), Value: value, Time: time.Now()}, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	if err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range int64(4) {
		awaitState(t, address, "sum", fmt.Sprint("e-", n), n)
		awaitState(t, address, "last", fmt.Sprint("e-", n), n)
	}
	const line = `the writer's schema has fields that ours lacks: they are dropped; add them to our schema to keep them`
	if log := projector.output.String(); strings.Count(log, line) != 1 || !strings.Contains(log, `"fields":"segment"`) {
		t.Errorf("the log has it %d times:\n%s", strings.Count(log, line), log)
	}
}

// A projection whose live version was made by a later release does not hold up the others,
// neither when the version becomes live nor at the next start. It runs again when a version
// of this release is live.
func TestAProjectionOfALaterReleaseDoesNotHoldUpTheOthers(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldProjections)
	box := harness.Sandbox(t)
	cfg := kafka.Config{Brokers: box.Brokers()}
	start := func() (projector *program, address string) {
		listening := filepath.Join(t.TempDir(), "address")
		projector = run(programs.Projector, box, "run", "-t", file, "--sessions", "1", "--listen", "127.0.0.1:0", "--listen-file", listening, "--data-dir", filepath.Join(dir, "data"))
		awaitReady(t, listening)
		return projector, addressOf(t, listening)
	}
	live := func(records ...control.Record) {
		if err := control.WriteRecords(t.Context(), cfg, "t-control", time.Now(), records...); err != nil {
			t.Fatal(err)
		}
	}
	projector, address := start()
	clicks := newClickSender(t, box, "in")
	clicks.send(1)
	awaitState(t, address, "strict", "e-1", 1)
	live(
		control.Record{Key: control.VersionKey("strict", 2), Value: control.VersionRecord{Format: control.Format, Version: 2, Fold: "0123", By: "9.0", Definition: control.Definition{Semantics: topology.Semantics + 1}}},
		control.Record{Key: control.LiveKey("strict"), Value: control.LiveRecord{Format: control.Format, Version: 2, Previous: 1}},
	)
	for n := int64(2); n <= 3; n++ {
		var status int
		var reasons map[string]string
		const why = "version 2 of projection strict, which is live, was made by release 9.0"
		if !until(t, func() bool {
			status, reasons = readyChecks(address)
			return strings.Contains(reasons["projection strict"], why)
		}) || status != http.StatusOK || len(reasons) != 1 {
			t.Errorf("ready: %d %q", status, reasons)
		}
		if status, body := get("http://" + address + "/v1/projections/strict/e-1"); status != http.StatusServiceUnavailable || !strings.Contains(body, why) {
			t.Errorf("a question about it: %d %s", status, body)
		}
		clicks.send(n)
		awaitState(t, address, "sum", fmt.Sprint("e-", n), n)
		if _, metrics := get("http://" + address + "/metrics"); !hasLines(metrics, `millrace_projection_running{projection="sum"} 1`, `millrace_projection_running{projection="strict"} 0`) {
			t.Errorf("metrics of the projections:\n%s", metrics)
		}
		harness.WantLines(t, projector.output.String(), "a projection cannot start until the control topic changes")
		projector.stop(t)
		projector, address = start()
	}
	live(control.Record{Key: control.LiveKey("strict"), Value: control.LiveRecord{Format: control.Format, Version: 1, Previous: 2}})
	awaitState(t, address, "strict", "e-3", 3)
	if _, reasons := readyChecks(address); len(reasons) != 0 {
		t.Errorf("still not running: %q", reasons)
	}
	projector.stop(t)
}

// A record of the control topic that a later release wrote in a newer format holds up its
// projection only, while the projector runs and at the next start. Without it, the
// projection runs again.
func TestAControlRecordInANewerFormatHoldsUpItsProjectionOnly(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, heldProjections)
	box := harness.Sandbox(t)
	write := func(key string, value any) {
		t.Helper()
		if err := control.WriteRecords(t.Context(), kafka.Config{Brokers: box.Brokers()}, "t-control", time.Now(), control.Record{Key: key, Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	start := func() (projector *program, address string) {
		listening := filepath.Join(t.TempDir(), "address")
		projector = run(programs.Projector, box, "run", "-t", file, "--sessions", "1", "--listen", "127.0.0.1:0", "--listen-file", listening, "--data-dir", filepath.Join(dir, "data"))
		awaitReady(t, listening)
		return projector, addressOf(t, listening)
	}
	projector, address := start()
	clicks := newClickSender(t, box, "in")
	clicks.send(1)
	awaitState(t, address, "strict", "e-1", 1)
	newer := map[string]int{"format": control.Format + 1, "version": 7}
	n := int64(1)
	for key, last := range map[string]any{
		control.LiveKey("strict"):             control.LiveRecord{Format: control.Format, Version: 1},
		control.ForgottenKey("strict", "e-9"): nil,
	} {
		write(key, newer)
		for range 2 {
			awaitHeld(t, address, map[string]string{"projection strict": fmt.Sprintf("the record %q of the control topic", key)})
			_, reasons := readyChecks(address)
			harness.WantLines(t, reasons["projection strict"], "the record is in format 2, but this program knows format 1: use the newer program")
			n++
			clicks.send(n)
			awaitState(t, address, "sum", fmt.Sprint("e-", n), n)
			if status, body := get("http://" + address + "/v1/projections/strict/e-1"); status != http.StatusServiceUnavailable || !strings.Contains(body, "use the newer program") {
				t.Errorf("a question about it: %d %s", status, body)
			}
			if _, metrics := get("http://" + address + "/metrics"); !hasLines(metrics, `millrace_projection_running{projection="sum"} 1`, `millrace_projection_running{projection="strict"} 0`, "millrace_control_unreadable_records 1") {
				t.Errorf("metrics of the projections:\n%s", metrics)
			}
			projector.stop(t)
			projector, address = start()
		}
		write(key, last)
		awaitHeld(t, address, nil)
		awaitState(t, address, "strict", fmt.Sprint("e-", n), n)
	}
	projector.stop(t)
}
