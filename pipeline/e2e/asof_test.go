package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace/pipeline/sandbox"
)

// fileEvent is an event of a file.
type fileEvent struct {
	ID   string         `json:"id"`
	Type string         `json:"type"`
	Time time.Time      `json:"timestamp"`
	Data map[string]any `json:"data"`
}

// chronicle holds the events of a file by aggregate, in the order of the file.
type chronicle struct {
	events      int                    // number of events
	of          map[string][]fileEvent // by projection and id: "user u-00001"
	names       []string               // keys of "of", in the order of their first events
	first, last time.Time
}

func readChronicle(t *testing.T, file string) *chronicle {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var in io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if in, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	c := &chronicle{of: map[string][]fileEvent{}}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var e fileEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		c.events++
		name := "order "
		if strings.HasPrefix(e.Type, "User") {
			name = "user "
		}
		name += e.Data["id"].(string)
		if c.of[name] == nil {
			c.names = append(c.names, name)
		}
		c.of[name] = append(c.of[name], e)
		if c.first.IsZero() || e.Time.Before(c.first) {
			c.first = e.Time
		}
		if e.Time.After(c.last) {
			c.last = e.Time
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return c
}

// asOf returns the state of an aggregate before its first event after a time, and its
// version, or version 0 if there was no event before. It is an independent implementation
// of the folds in topology.yaml.
func (c *chronicle) asOf(name string, at time.Time) (state map[string]any, version int) {
	state = map[string]any{}
	for _, e := range c.of[name] {
		if e.Time.After(at) {
			return state, version
		}
		if state["status"] == "deleted" {
			continue // events after a deletion are late and change nothing
		}
		version++
		switch e.Type {
		case "UserCreated":
			state = map[string]any{"id": e.Data["id"], "email": e.Data["email"], "name": e.Data["name"], "status": "active"}
		case "UserUpdated":
			for _, field := range []string{"email", "name"} {
				if e.Data[field] != nil {
					state[field] = e.Data[field]
				}
			}
		case "UserDeleted":
			state["status"] = "deleted"
		case "OrderCreated":
			state = map[string]any{"id": e.Data["id"], "user_id": e.Data["user_id"], "items": e.Data["items"], "total_amount": e.Data["total_amount"], "status": "created"}
		case "OrderPaid":
			state["status"] = "paid"
		case "OrderShipped":
			state["status"] = "shipped"
		}
	}
	return state, version
}

// TestStatesOfThePastMatchTheFile queries 1,000 past states of users and orders, and
// compares them with states folded from the sent file. The file is MILLRACE_CDNOW, or
// synthetic events if that is not set. A quarter of the times is the end of the real
// file's first year.
func TestStatesOfThePastMatchTheFile(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MILLRACE_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MILLRACE_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	dir := t.TempDir()
	run := func(program string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, filepath.Join(bin, program), args...)
		cmd.Env = append(os.Environ(), "MILLRACE_BROKERS="+strings.Join(box.Brokers(), ","), "MILLRACE_REGISTRY="+box.RegistryURL(), "MILLRACE_TOPOLOGY=../../topology.yaml")
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 20 * time.Second
		return cmd
	}
	file := os.Getenv("MILLRACE_CDNOW")
	if file == "" {
		t.Log("MILLRACE_CDNOW is not set: using synthetic events")
		file = filepath.Join(dir, "events.jsonl")
		if out, err := run("producer", "generate", "-n", "20000", "--seed", fmt.Sprint(seed), "--out", file).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	c := readChronicle(t, file)

	var output bytes.Buffer
	address := filepath.Join(dir, "address")
	projector := run("projector", "run", "--listen", "127.0.0.1:0", "--listen-file", address, "--data-dir", filepath.Join(dir, "data"))
	projector.Stdout, projector.Stderr = &output, &output
	if err := projector.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- projector.Wait() }()
	defer func() {
		_ = projector.Process.Signal(syscall.SIGTERM) // fails if the process has ended
		if err := <-ended; err != nil {
			t.Errorf("the projector: %v\n%s", err, output.String())
		}
	}()
	if out, err := run("producer", "send", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	// Wait until all events are folded.
	var base string
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for folded := false; !folded; {
		select {
		case <-ctx.Done():
			t.Fatalf("not all events were folded in time: %s", output.String())
		case <-tick.C:
		}
		text, err := os.ReadFile(address)
		if err != nil {
			continue // still starting
		}
		base = scheme + string(bytes.TrimSpace(text)) + "/v1/projections"
		var all struct {
			Projections []struct {
				Partitions []struct{ Offset int }
			}
		}
		if status := getJSON(ctx, t, base, &all); status != http.StatusOK {
			continue
		}
		folded = len(all.Projections) > 0
		for _, p := range all.Projections {
			sum := 0
			for _, at := range p.Partitions {
				sum += at.Offset
			}
			folded = folded && sum == c.events
		}
	}

	year := time.Date(1997, 12, 31, 0, 0, 0, 0, time.UTC)
	const times = 1000
	none := 0
	for n := range times {
		name := c.names[rng.IntN(len(c.names))]
		at := c.first.Add(time.Duration(rng.Int64N(int64(c.last.Sub(c.first)) + 1))).Truncate(time.Microsecond)
		switch n % 4 {
		case 1: // at the time of one of its events, or one microsecond before
			of := c.of[name]
			at = of[rng.IntN(len(of))].Time.Add(-time.Duration(rng.IntN(2)) * time.Microsecond)
		case 2:
			if year.After(c.first) && year.Before(c.last) {
				at = year
			}
		}
		want, version := c.asOf(name, at)
		projection, id, _ := strings.Cut(name, " ")
		var got struct {
			Version int            `json:"version"`
			State   map[string]any `json:"state"`
		}
		status := getJSON(ctx, t, base+"/"+projection+"/"+url.PathEscape(id)+"?at_time="+at.UTC().Format(time.RFC3339Nano), &got)
		switch {
		case version == 0:
			none++
			if status != http.StatusNotFound {
				t.Fatalf("%s as of %s: status %d, but the aggregate did not exist yet", name, at, status)
			}
		case status != http.StatusOK || got.Version != version || !reflect.DeepEqual(got.State, want):
			t.Fatalf("%s as of %s: status %d, version %d, %v\nwant version %d, %v", name, at, status, got.Version, got.State, version, want)
		}
	}
	t.Logf("%d past states match, %d of them before the aggregate's first event", times, none)
}

// getJSON returns the status of a GET request, and decodes an answer with status 200.
func getJSON(ctx context.Context, t *testing.T, at string, into any) (status int) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	return resp.StatusCode
}
