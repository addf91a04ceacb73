package programs_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/producer"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

const valueSubjects = `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none, id: "id + ''", subjects: topic, key_format: avro, key_schema: Count}
  out: {partitions: 1, subjects: topic}
  counts: {partitions: 1, subjects: record, config: {cleanup.policy: compact}}
  dead: {partitions: 1}
pipelines:
  p: {from: in, to: out, dead_letter: dead, stages: [rekey: {key: id}]}
projections:
  count: {from: out, key: id, state: Count, on: {Click: {set: {n: state.n + n}}}, snapshots: counts}
`

// toRegistry sends a request to the registry of a sandbox. It fails with a status of 300 or more.
func toRegistry(t *testing.T, box *sandbox.Sandbox, method, path, body string) (answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, box.RegistryURL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %d %s (%v)", method, path, resp.StatusCode, text.String(), err)
	}
	return text.String()
}

// once runs a program to its end.
func once(args ...string) (code int, stdout, stderr string) {
	var out, errs harness.Buffer
	env := &cli.Env{Stdin: strings.NewReader(`{"id":"e-1","n":7}`), Stdout: &out, Stderr: &errs, Now: time.Now, Exit: func(int) {}}
	program := programs.Processor
	if args[0] == "send" {
		program = producer.Command
	}
	code = env.Main(args, program)
	return code, out.String(), errs.String()
}

// Schemas that are registered beforehand, as another user, are all that the programs need:
// they start with a registry that accepts no change, and register nothing.
func TestProgramsStartWithSchemasThatAreRegisteredBeforehand(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, valueSubjects)
	box := harness.Sandbox(t)
	code, list, errs := once("explain", "-t", file, "--subjects")
	if code != cli.ExitOK {
		t.Fatal(errs)
	}
	var subjects []string
	for lines := bufio.NewScanner(strings.NewReader(list)); lines.Scan(); {
		var one struct{ Subject, Schema string }
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			t.Fatal(err)
		}
		subjects = append(subjects, one.Subject)
		toRegistry(t, box, "POST", "/subjects/"+one.Subject+"/versions", lines.Text())
	}
	if want := []string{"in-value", "in-key", "out-value"}; len(subjects) != 4 || !slices.Equal(subjects[:3], want) {
		t.Fatalf("the subjects are %v, want %v and the snapshots' record", subjects, want)
	}
	toRegistry(t, box, "PUT", "/mode", `{"mode":"READONLY"}`)

	processor := run(programs.Processor, box, "run", "-t", file, "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0")
	defer processor.stop(t)
	address, stop, err := startProjector(t.Context(), file, dir, box)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	if code, _, errs := once("send", "-t", file, "--topic", "in", "--key", "n", "-b", box.Brokers()[0], "-r", box.RegistryURL(), "--no-register"); code != cli.ExitOK {
		t.Fatal(errs)
	}
	awaitState(t, address, "count", "e-1", 7)
	var has []string
	if err := json.Unmarshal([]byte(toRegistry(t, box, "GET", "/subjects", "")), &has); err != nil {
		t.Fatal(err)
	}
	slices.Sort(has)
	slices.Sort(subjects)
	if !slices.Equal(has, subjects) {
		t.Errorf("the registry has %v, want %v", has, subjects)
	}
}

// A registry that refuses to register a missing schema: the producer stops, and a worker
// waits and tells why.
func TestARefusedSchemaIsReportedWithItsSubject(t *testing.T) {
	dir := t.TempDir()
	file := clickTopology(t, dir, valueSubjects)
	box := harness.Sandbox(t)
	toRegistry(t, box, "PUT", "/mode", `{"mode":"READONLY"}`)
	const advice = "subject %s has no version with the fields of Click: let a user with that right register it"
	code, _, errs := once("send", "-t", file, "--topic", "in", "--key", "n", "-b", box.Brokers()[0], "-r", box.RegistryURL())
	if code == cli.ExitOK || !strings.Contains(errs, fmt.Sprintf(advice, "in-value")) || !strings.Contains(errs, "read-only mode") {
		t.Errorf("code %d\n%s", code, errs)
	}
	processor := run(programs.Processor, box, "run", "-t", file, "--listen", "127.0.0.1:0")
	defer processor.stop(t)
	if !until(t, func() bool { return strings.Contains(processor.output.String(), fmt.Sprintf(advice, "out-value")) }) {
		t.Error(processor.output.String())
	}
}
