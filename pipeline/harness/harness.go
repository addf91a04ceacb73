// Package harness holds what the tests of several packages need: a sandbox,
// files of the repository, a buffer for concurrent writers.
package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/sandbox"

	"github.com/spf13/cobra"
)

// Noise is a text that does not compress.
func Noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('0' + rand.Uint32()%64)
	}
	return string(b)
}

func Write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func WantLines(t *testing.T, got string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(got, l) {
			t.Errorf("it does not say %q:\n%s", l, got)
		}
	}
}

var (
	Now = time.Date(2026, 3, 4, 5, 6, 7, 89_000_000, time.UTC)
	ID  = "00000000-0000-4000-8000-000000000001"
)

func Sandbox(t testing.TB) *sandbox.Sandbox {
	t.Helper()
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	})
	return box
}

type Emitted []pipeline.Record

func (e *Emitted) Emit(r *pipeline.Record) {
	c := *r
	c.Key, c.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
	*e = append(*e, c)
}

// Buffer is what several may write to.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// RepoFile returns the path of a file of the repository. It finds the module's
// root above the current directory, which is the package's in a test.
func RepoFile(path ...string) string {
	root := "."
	for range 8 {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		root = filepath.Join("..", root)
	}
	return filepath.Join(append([]string{root}, path...)...)
}

// ShopTopology returns the path of the repository's topology.yaml.
func ShopTopology() string { return RepoFile("topology.yaml") }

// Program returns the command of a program that has only these commands.
func Program(name string, commands ...func(*cli.Env) *cobra.Command) func(*cli.Env) *cobra.Command {
	return func(e *cli.Env) *cobra.Command {
		root := &cobra.Command{Use: name}
		for _, c := range commands {
			root.AddCommand(c(e))
		}
		return root
	}
}

// GetJSON fetches a URL and decodes the answer into v.
func GetJSON(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %s: %s", url, resp.Status, bytes.TrimSpace(body))
	}
	return json.Unmarshal(body, v)
}

// Awaited waits until a condition holds.
func Awaited(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("still waiting: %s", what)
		case <-tick.C:
		}
	}
}
