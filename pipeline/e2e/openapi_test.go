package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/pipeline/sandbox"
)

// TestSchemathesisFindsNothing drives the OpenAPI documents of the producer and the projector
// with schemathesis, all checks on: without callers, and with a list of them.
func TestSchemathesisFindsNothing(t *testing.T) {
	program := os.Getenv("MILLRACE_SCHEMATHESIS")
	if program == "" {
		t.Log("NOT run: needs MILLRACE_SCHEMATHESIS, the path of schemathesis; `make test-openapi` runs it")
		return
	}
	const token = "3b1f6a0c9d5e4872a1c0"
	callers := filepath.Join(t.TempDir(), "callers.yaml")
	if err := os.WriteFile(callers, []byte("tokens: [{name: tests, roles: [admin], token: "+token+"}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []struct {
		name         string
		server, args []string
		// Without callers, this machine is admin, so the check that routes ask for a token is of no use.
	}{
		{"without callers", nil, []string{"--exclude-checks", "ignored_auth"}},
		{"with callers", []string{"--auth-file", callers}, []string{"-H", "Authorization: Bearer " + token}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			box, err := sandbox.New(sandbox.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := box.Close(); err != nil {
					t.Error(err)
				}
			})
			where := []string{"-t", "../../topology.yaml", "-b", strings.Join(box.Brokers(), ","), "-r", box.RegistryURL()}
			generate := exec.Command(filepath.Join(bin, "producer"), append([]string{"generate", "--events", "300"}, where...)...)
			if out, err := generate.CombinedOutput(); err != nil {
				t.Fatalf("producer generate: %v\n%s", err, out)
			}
			where = append(where, mode.server...)
			producer := startProgram(t, "producer", append([]string{"serve"}, where...)...)
			projector := startWorker(t, "projector", append(where, "--data-dir", t.TempDir())...)
			schemathesis(t, program, "openapi-producer.json", producer.url, mode.args)
			schemathesis(t, program, "openapi.json", projector.url, mode.args)
			projector.stop(t)
			producer.stop(t)
		})
	}
}

// schemathesis drives the API at a URL with a document. Every operation must be tested.
func schemathesis(t *testing.T, program, document, url string, args []string) {
	t.Helper()
	document, err := filepath.Abs(filepath.Join("../../docs", document))
	if err != nil {
		t.Fatal(err)
	}
	config, err := filepath.Abs("testdata/schemathesis.toml")
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.json")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"--config-file", config, "run", document, "--url", url,
		"--no-color", "--report", "json", "--report-json-path", report}, args...)...)
	cmd.Dir = filepath.Dir(report) // it keeps what it found for the next run, which must not depend on it
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("schemathesis: %v\n%s", err, out)
	}
	var found struct {
		Complete   bool
		Operations struct{ Total, Tested int }
		Cases      struct {
			Generated int
			Unchecked int `json:"without_checks"`
			Errored   int
		} `json:"test_cases"`
	}
	text, err := os.ReadFile(report)
	if err == nil {
		err = json.Unmarshal(text, &found)
	}
	if err != nil {
		t.Fatalf("the report of schemathesis: %v\n%s", err, out)
	}
	var doc struct{ Paths map[string]map[string]any }
	if text, err = os.ReadFile(document); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	operations := 0
	for _, path := range doc.Paths {
		operations += len(path)
	}
	if n := found.Cases; !found.Complete || found.Operations.Tested != operations || n.Generated < 20*operations || n.Errored > 0 || n.Unchecked > n.Generated/10 {
		t.Errorf("schemathesis tested %d of %d operations with %+v\n%s", found.Operations.Tested, operations, n, out)
	}
	t.Logf("%s: %d operations, %d requests", document, found.Operations.Tested, found.Cases.Generated)
}
