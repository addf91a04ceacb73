package programs_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/harness"
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
	if !until(t, func() bool { return shown("millrace_schemas_unknown 0", func(reason string) bool { return reason == "" }) }) {
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
