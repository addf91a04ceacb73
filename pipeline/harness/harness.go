// Package harness has helpers for the tests of several packages: a sandbox, files of
// the repository, example schemas, a buffer for concurrent writers. It knows no
// package above cli and sandbox.
//
// Start at [Sandbox] and [Program]. Only [Buffer] may be shared between goroutines.
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

// Noise returns a random text of n bytes. It compresses badly, so its size also counts
// in compressed batches.
func Noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('0' + rand.Uint32()%64)
	}
	return string(b)
}

// Write writes a file.
func Write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// WantLines fails the test for each text that got does not contain.
func WantLines(t *testing.T, got string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(got, text) {
			t.Errorf("%q is missing in:\n%s", text, got)
		}
	}
}

// The time and the event id of tests.
var (
	Now = time.Date(2026, 3, 4, 5, 6, 7, 89_000_000, time.UTC)
	ID  = "00000000-0000-4000-8000-000000000001"
)

// Sandbox starts a broker and a registry, which stop with the test.
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

// Emitted is a [pipeline.Emitter] that keeps the records.
type Emitted []pipeline.Record

// Emit appends a copy of the record.
func (e *Emitted) Emit(r *pipeline.Record) {
	c := *r
	c.Key, c.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
	*e = append(*e, c)
}

// Buffer is a buffer for concurrent writers.
type Buffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

// Write implements [io.Writer].
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns the text so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// RepoFile returns the path of a file of the repository, relative to the current
// directory. In a test that is the directory of the package.
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

// Program returns a program with the given commands.
func Program(name string, commands ...func(*cli.Env) *cobra.Command) func(*cli.Env) *cobra.Command {
	return func(e *cli.Env) *cobra.Command {
		root := &cobra.Command{Use: name}
		for _, c := range commands {
			root.AddCommand(c(e))
		}
		return root
	}
}

// GetJSON fetches a URL and decodes the answer into v. A status other than 200 is an
// error.
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

// Awaited waits until a condition holds, or fails the test after 30 seconds. what
// describes the condition.
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
