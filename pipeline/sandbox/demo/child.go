package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"millrace/pipeline/server/dial"
	"millrace/pipeline/worker"
)

// child is a process of a program.
type child struct {
	name     string
	workers  *workers
	addrFile string // the file that the process writes its address to
	url      string // set by awaitReady
	cmd      *exec.Cmd
	output   *tail
	exited   chan struct{}
	err      error // of the process; set before exited is closed
}

// wait waits for the end of the process. It runs in its own goroutine.
func (c *child) wait() {
	c.err = c.cmd.Wait()
	close(c.exited)
}

func (c *child) ended() bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// exitError returns the error for a process that ended unexpectedly.
func (c *child) exitError() error {
	how := "exit code 0"
	if c.err != nil {
		how = c.err.Error()
	}
	return fmt.Errorf("%s ended unexpectedly: %s; its last output:\n%s", c.name, how, c.output)
}

// awaitReady waits until /readyz has status 200.
func (c *child) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	last := errors.New("it does not listen yet")
	for {
		if addr, err := os.ReadFile(c.addrFile); err == nil && len(addr) > 0 {
			c.url = c.workers.call.URL(strings.TrimSpace(string(addr)), "")
			err := c.workers.getJSON(ctx, c.url+"/readyz?verbose", nil)
			if err == nil {
				return nil
			}
			if ctx.Err() == nil {
				last = err // after the timeout, the error before is more useful
			}
		}
		select {
		case <-c.exited:
			return c.exitError()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its last output:\n%s", c.name, errors.Join(ctx.Err(), last), c.output)
		case <-tick.C:
		}
	}
}

// stop stops the process with SIGTERM, or, after a timeout, with SIGKILL. A process that
// ended before is not an error here; [child.wait] has kept it.
func (c *child) stop() error {
	if c.ended() {
		return nil
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", c.name, err)
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-c.exited:
	case <-timer.C:
		err := c.cmd.Process.Kill()
		<-c.exited
		return errors.Join(err, fmt.Errorf("%s did not stop within %v of SIGTERM; its last output:\n%s", c.name, stopTimeout, c.output))
	}
	if c.err != nil {
		return fmt.Errorf("%s did not stop cleanly: %w; its last output:\n%s", c.name, c.err, c.output)
	}
	return nil
}

// workers calls the HTTP servers of the processes.
type workers struct {
	call   *dial.Caller
	client *http.Client
}

func newWorkers(flags *worker.DialFlags) (*workers, error) {
	call, err := flags.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return &workers{call, &http.Client{Transport: call.Transport(&http.Transport{})}}, nil
}

// getJSON requests a URL and decodes the answer into v, if v is not nil.
func (w *workers) getJSON(ctx context.Context, url string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := w.client.Do(req)
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
	case v == nil:
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}

// tail keeps the end of a process's output. If next is not nil, it also writes the complete
// lines to next.
type tail struct {
	next   io.Writer
	prefix string // of each line

	mu   sync.Mutex
	last []byte // guarded by mu
	line []byte // guarded by mu; the incomplete line
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, p...)
	if over := len(t.last) - keptOutput; over > 0 {
		t.last = append(t.last[:0], t.last[over:]...)
	}
	if t.next == nil {
		return len(p), nil
	}
	t.line = append(t.line, p...)
	for {
		end := bytes.IndexByte(t.line, '\n')
		if end < 0 {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(t.next, "%s%s", t.prefix, t.line[:end+1]); err != nil {
			return 0, err
		}
		t.line = append(t.line[:0], t.line[end+1:]...)
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimRight(string(t.last), "\n")
}
