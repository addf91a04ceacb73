package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/programs"
)

// TestMain makes the test binary behave as a program when it is called by the program's
// name. plain is the processor without the stage of this directory.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"processor": main,
		"producer":  main,
		"plain":     func() { os.Exit(programs.Main("processor", nil)) },
	})
}

func TestEveryCommandKnowsTheStage(t *testing.T) {
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("EXAMPLE", dir)
			return nil
		},
	})
}

func TestLuhn(t *testing.T) {
	for number, want := range map[string]bool{
		"4111111111111111": true, "378282246310005": true, "4111111111111112": false, "1411111111111111": false,
		"": false, "0": false, "4111 1111 1111 1111": false, "00000000000000000000": false,
	} {
		if got := luhn([]byte(number)); got != want {
			t.Errorf("%q is %v, want %v", number, got, want)
		}
	}
}

// TestTheStageRunsOnKafka runs the program on a sandbox, sends events and reads the output.
func TestTheStageRunsOnKafka(t *testing.T) {
	box := harness.Sandbox(t)
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// program returns the command of a program on the sandbox.
	program := func(name string, args ...string) *exec.Cmd {
		link := filepath.Join(dir, name)
		if err := os.Symlink(self, link); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		return exec.CommandContext(t.Context(), link, append(args, "-t", "topology.yaml", "-b", strings.Join(box.Brokers(), ","), "-r", box.RegistryURL())...)
	}

	address := filepath.Join(dir, "address")
	var out harness.Buffer
	run := program("processor", "run", "--sessions", "1", "--commit-interval", "20ms", "--listen", "127.0.0.1:0", "--listen-file", address)
	run.Stdout, run.Stderr = &out, &out
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(run.Process.Signal(syscall.SIGTERM), run.Wait()); err != nil {
			t.Errorf("the program did not stop cleanly: %v\n%s", err, out.String())
		}
	}()
	harness.Awaited(t, "the program is ready", func() bool {
		text, err := os.ReadFile(address)
		if err != nil {
			return false // it does not listen yet
		}
		resp, err := http.Get("http://" + string(bytes.TrimSpace(text)) + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})

	send := program("producer", "send", "-")
	send.Stdin = strings.NewReader(`{"id": "00000000-0000-4000-8000-000000000001", "type": "PaymentRequested", "timestamp": "2026-01-01T00:00:00Z", "data": {"id": "p-1", "card_number": "4111111111111111", "amount_cents": 500}}
{"id": "00000000-0000-4000-8000-000000000002", "type": "PaymentRequested", "timestamp": "2026-01-01T00:00:01Z", "data": {"id": "p-2", "card_number": "4111111111111112", "amount_cents": 500}}
`)
	if text, err := send.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}

	var checked, dead []string
	harness.Awaited(t, "both events are processed", func() bool {
		checked, dead = records(t, box.Brokers(), box.RegistryURL(), "payments.checked", 4), records(t, box.Brokers(), box.RegistryURL(), "payments.dead_letters", 1)
		return len(checked)+len(dead) >= 2
	})
	if len(checked) != 1 || !strings.Contains(checked[0], `"network":"visa"`) || !strings.Contains(checked[0], `"id":"p-1"`) {
		t.Errorf("checked payments: %q", checked)
	}
	if len(dead) != 1 || !strings.Contains(dead[0], `"id":"p-2"`) {
		t.Errorf("dead letters: %q", dead)
	}
}

// records returns the committed events of a topic as JSON.
func records(t *testing.T, brokers []string, registryURL, topic string, partitions int32) (events []string) {
	t.Helper()
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{registryURL}})
	if err != nil {
		t.Fatal(err)
	}
	for p := range partitions {
		_, err := kafka.ReadPartition(t.Context(), kafka.Config{Brokers: brokers}, topic, p, 0, func(r *pipeline.Record) error {
			ref, body, err := codec.Unframe(r)
			if err != nil {
				return err
			}
			schema, err := registry.Schema(t.Context(), ref)
			if err != nil {
				return err
			}
			text, err := codec.AppendJSON(nil, schema.Root(), body)
			if err != nil {
				return err
			}
			var compact bytes.Buffer
			if err := json.Compact(&compact, text); err != nil {
				return err
			}
			events = append(events, compact.String())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return events
}
