package programs_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

// TestProjectorScripts runs the scripts that need a sandbox and a projector of the shop's
// topology. Their addresses are in the environment.
func TestProjectorScripts(t *testing.T) { projectorScripts(t, "projector", harness.ShopTopology()) }

// TestDecimalScripts does the same with the shop that has decimals.
func TestDecimalScripts(t *testing.T) {
	projectorScripts(t, "decimals", harness.RepoFile("examples", "shop-decimal", "topology.yaml"))
}

// TestKeyScripts does the same with topics whose keys and partitioners are those of other
// clients.
func TestKeyScripts(t *testing.T) {
	projectorScripts(t, "keys", filepath.Join("testdata", "keys", "topology.yaml"))
}

func projectorScripts(t *testing.T, dir, file string) {
	topology, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script", dir),
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			box, err := sandbox.New(sandbox.Config{})
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := box.Close(); err != nil {
					t.Error(err)
				}
			})
			address, stop, err := startProjector(t.Context(), topology, env.WorkDir, box)
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
			env.Setenv("MILLRACE_BROKERS", strings.Join(box.Brokers(), ","))
			env.Setenv("MILLRACE_REGISTRY", box.RegistryURL())
			env.Setenv("MILLRACE_ADDRESS", address)
			env.Setenv("TOPOLOGY", topology)
			return nil
		},
	})
}

// startProjector starts a projector in this process, waits until it is ready, and returns its
// address. stop stops it.
func startProjector(ctx context.Context, topology, dir string, box *sandbox.Sandbox, flags ...string) (address string, stop func() error, err error) {
	listening := filepath.Join(dir, "projector.address")
	var output harness.Buffer
	signals := make(chan os.Signal, 1)
	env := &cli.Env{
		Stdout: &output, Stderr: &output, Now: time.Now, Exit: func(int) {},
		Notify: func() (<-chan os.Signal, func()) { return signals, func() {} },
	}
	exit := make(chan int, 1)
	if !slices.Contains(flags, "-r") {
		flags = append(flags, "-r", box.RegistryURL())
	}
	go func() {
		exit <- env.Main(append([]string{
			"run", "-t", topology, "-b", box.Brokers()[0], "--sessions", "1", "--commit-interval", "20ms",
			"--listen", "127.0.0.1:0", "--listen-file", listening, "--data-dir", filepath.Join(dir, "projector"),
		}, flags...), programs.Projector)
	}()
	stop = func() error {
		signals <- syscall.SIGTERM
		if code := <-exit; code != cli.ExitOK {
			return fmt.Errorf("the projector ended with code %d: %s", code, output.String())
		}
		return nil
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case code := <-exit:
			return "", nil, fmt.Errorf("the projector ended with code %d: %s", code, output.String())
		case <-ctx.Done():
			return "", nil, fmt.Errorf("the projector is not ready: %s", output.String())
		case <-tick.C:
		}
		text, err := os.ReadFile(listening)
		if err != nil {
			continue // it does not listen yet
		}
		address = string(bytes.TrimSpace(text))
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/readyz", nil)
		if err != nil {
			return "", nil, err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		if err := resp.Body.Close(); err != nil {
			return "", nil, err
		}
		if resp.StatusCode == http.StatusOK {
			return address, stop, nil
		}
	}
}
