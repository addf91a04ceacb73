package worker_test

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
	"millrace/pipeline/worker"
)

func TestStartListensAndTunesTheCollectorButConnectsToNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "topology.yaml")
	if err := os.WriteFile(file, []byte("name: t\ntopics: {in: {partitions: 1, types: [UserCreated]}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	percent := 0
	e := &cli.Env{Stderr: &bytes.Buffer{}, Now: time.Now, SetGCPercent: func(n int) int { percent = n; return 100 }}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f := worker.AddFlags(e, flags, "processor", worker.ProcessorListen)
	if err := flags.Parse([]string{"-t", file, "-b", "127.0.0.1:1", "--listen", "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	w, err := f.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if percent != 300 {
		t.Errorf("the collector's target is %d, want 300", percent)
	}
	if f.Instance == "" || w.Server.Addr() == "" || w.Topology.Name != "t" {
		t.Errorf("instance %q, address %q, topology %q", f.Instance, w.Server.Addr(), w.Topology.Name)
	}
}

// The second worker on a machine learns everything that it needs of its own.
func TestAPortInUseNamesWhatASecondWorkerNeeds(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "topology.yaml")
	if err := os.WriteFile(file, []byte("name: t\ntopics: {in: {partitions: 1, types: [UserCreated]}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := &cli.Env{Stderr: &bytes.Buffer{}, Now: time.Now, SetGCPercent: func(int) int { return 100 }}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f := worker.AddFlags(e, flags, "processor", worker.ProcessorListen)
	if err := flags.Parse([]string{"-t", file, "-b", "127.0.0.1:1", "--listen", taken.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	_, err = f.Start()
	for _, want := range []string{taken.Addr().String() + " is in use", "--listen 127.0.0.1:0", "its own --instance", "its own --data-dir"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}
