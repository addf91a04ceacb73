package processortest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/programs"
)

// RunTapped runs `processor run` with one session until the test ends, and returns the
// address of its HTTP server. args are more flags, for example --tap.
func RunTapped(b *Bench, file string, args ...string) (addr string) {
	b.Helper()
	addrFile := filepath.Join(b.TempDir(), "address")
	signals := make(chan os.Signal, 1)
	var out bytes.Buffer
	env := &cli.Env{Stdout: &out, Stderr: &out, Now: time.Now, Build: cli.ReadBuild(),
		Notify: func() (<-chan os.Signal, func()) { return signals, func() {} }}
	args = append([]string{"run", "-t", file, "-b", strings.Join(b.Broker.ListenAddrs(), ","), "-r", b.RegistryURL,
		"--listen", "127.0.0.1:0", "--listen-file", addrFile, "--sessions", "1", "--instance", "0", "--commit-interval", "20ms"}, args...)
	done := make(chan int, 1)
	go func() { done <- env.Main(args, programs.Processor) }()
	b.Cleanup(func() {
		signals <- syscall.SIGTERM
		if code := <-done; code != cli.ExitOK {
			b.Errorf("the worker stopped with exit code %d: %s", code, out.String())
		}
	})
	for {
		if text, err := os.ReadFile(addrFile); err == nil {
			return strings.TrimSpace(string(text))
		}
		select {
		case code := <-done:
			done <- code
			b.Fatalf("the worker stopped with exit code %d: %s", code, out.String())
		case <-b.Context().Done():
			b.Fatal("the worker did not write its address")
		default:
		}
	}
}
