package programs_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/harness"
	"millrace/pipeline/producer"
	"millrace/pipeline/programs"
)

// awaitAddress waits until a program has written its address to a file.
func awaitAddress(t *testing.T, file string) (address string) {
	t.Helper()
	if !until(t, func() bool {
		text, err := os.ReadFile(file)
		address = strings.TrimSpace(string(text))
		return err == nil && address != ""
	}) {
		t.Fatal("the program does not listen")
	}
	return address
}

// Records with an unknown schema are rejected. The workers stay ready, and show the schema.
func TestUnknownSchemasAreInReadyzAndAMetric(t *testing.T) {
	dir := t.TempDir()
	box := harness.Sandbox(t)
	file := clickTopology(t, dir, sumTopology)
	listening := filepath.Join(dir, "processor.address")
	processor := run(programs.Processor, box, "run", "-t", file, "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0", "--listen-file", listening)
	defer processor.stop(t)
	projector, stop, err := startProjector(t.Context(), file, dir, box)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	workers := []string{awaitAddress(t, listening), projector}
	shown := func(metric string, contains func(reason string) bool) bool {
		for _, address := range workers {
			status, reasons := readyChecks(address)
			_, metrics := get("http://" + address + "/metrics")
			if status != http.StatusOK || !contains(reasons["schemas"]) || !hasLines(metrics, metric, "millrace_schemas_waiting 0") {
				return false
			}
		}
		return true
	}
	if !until(t, func() bool {
		return shown("millrace_schemas_unknown 0", func(reason string) bool { return reason == "" })
	}) {
		t.Fatal("the workers are not ready, or show schemas before any record")
	}

	w, err := kgo.NewClient(kgo.SeedBrokers(box.Brokers()...))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, id := range []byte{254, 255} {
		if err := w.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Key: []byte("x"), Value: []byte{0, 0, 0, 255, id, 1}}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	want := fmt.Sprintf("the registry at %s has no schema id 65534, id 65535; records with it are rejected as unknown_schema", box.RegistryURL())
	if !until(t, func() bool {
		return shown("millrace_schemas_unknown 2", func(reason string) bool { return strings.HasPrefix(reason, want) })
	}) {
		for _, address := range workers {
			status, reasons := readyChecks(address)
			t.Errorf("%s: %d %v", address, status, reasons)
		}
	}
}

const peopleTopology = `
name: t
encryption: {key_topic: people.keys, subject: {Person: id}}
topics:
  in: {partitions: 1, types: [Person], envelope: none, id: id}
  people: {partitions: 1, config: {retention.ms: "-1"}}
  dead: {partitions: 1}
  receipts: {partitions: 1}
pipelines:
  p: {from: in, to: people, dead_letter: dead, receipts: receipts}
projections:
  count: {from: people, key: id, state: Count, on: {Person: {set: {n: state.n + 1}}}, snapshots: counts}
`

// A projector that shows the data of people is not ready while it cannot learn who was
// forgotten. One that shows no data is ready, and reports it.
func TestKeysThatCannotBeReadAreInReadyzAndAMetric(t *testing.T) {
	dir := t.TempDir()
	box := harness.Sandbox(t)
	file := clickTopology(t, dir, peopleTopology)
	harness.Write(t, filepath.Join(dir, "schemas", "Person.avsc"), []byte(`{"type": "record", "name": "Person", "fields": [{"name": "id", "type": "string"}, {"name": "email", "type": "string", "millrace.pii": true}]}`))
	keks := filepath.Join(dir, "keks")
	harness.Write(t, keks, []byte("a "+base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n"))
	begin := func(name string, flags ...string) (address string) {
		t.Helper()
		own := filepath.Join(dir, name)
		if err := os.Mkdir(own, 0o700); err != nil {
			t.Fatal(err)
		}
		address, stop, err := startProjector(t.Context(), file, own, box, append(flags, "--instance", name)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
		return address
	}
	shows, hides := begin("shows", "--kek-file", keks), begin("hides", "--no-decrypt")
	shown := func(address string, status int, reason, keys string) bool {
		got, reasons := readyChecks(address)
		_, metrics := get("http://" + address + "/metrics")
		return got == status && strings.HasPrefix(reasons["keys"], reason) && (reasons["keys"] == "") == (reason == "") && reasons["receipts"] == "" &&
			hasLines(metrics, `millrace_following{follower="keys",topic="people.keys"} `+keys, `millrace_following{follower="receipts",topic="receipts"} 1`)
	}
	if !until(t, func() bool { return shown(shows, http.StatusOK, "", "1") && shown(hides, http.StatusOK, "", "1") }) {
		t.Fatal("the projectors are not ready")
	}
	listening := filepath.Join(dir, "producer.address")
	server := run(producer.Command, box, "serve", "--topic", "in", "--key", "id", "-t", file, "--kek-file", keks, "--listen", "127.0.0.1:0", "--listen-file", listening)
	if address := awaitAddress(t, listening); !until(t, func() bool {
		status, body := get("http://" + address + "/readyz?verbose")
		_, metrics := get("http://" + address + "/metrics")
		return status == http.StatusOK && strings.Contains(body, `"keys"`) && hasLines(metrics, `millrace_following{follower="keys",topic="people.keys"} 1`)
	}) {
		status, body := get("http://" + address + "/readyz?verbose")
		t.Errorf("the producer that encrypts does not show that it reads the keys: %d %s", status, body)
	}
	server.stop(t)

	if _, err := admin(t, box).DeleteTopics(t.Context(), "people.keys"); err != nil {
		t.Fatal(err)
	}
	const reason = "the key topic people.keys is not followed: reading topic people.keys: "
	if !until(t, func() bool {
		return shown(shows, http.StatusServiceUnavailable, reason, "0") && shown(hides, http.StatusOK, reason, "0")
	}) {
		for _, address := range []string{shows, hides} {
			status, reasons := readyChecks(address)
			t.Errorf("%d %v", status, reasons)
		}
	}
}
