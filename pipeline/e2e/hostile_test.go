package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/pipeline/sandbox"
)

// siege is the number of hostile clients of each kind, and how long each waits between two
// connections.
type siege struct {
	halfOpen, slowBodies, noReaders, bombs int
	again                                  time.Duration
}

const (
	// The limits of `make hostile`, which runs alone on the machine and without the race
	// detector.
	mostP99    = 100 * time.Millisecond
	mostMemory = 64 << 20 // bytes of producer serve
	requests   = 200      // of the normal client, each before and during the attack
)

// target is a program that is attacked, and a normal client of it.
type target struct {
	name string
	url  string
	pid  int

	method, path string        // of the normal client
	body         func() string // nil: none
	large        string        // path of a large answer, for clients that never read
	takes        int64         // most bytes of a body; 0: none
}

// TestHostileClientsDoNotKeepOthersOut attacks each program while a normal client works: every
// request of the normal client is answered well, and afterwards connections, descriptors and
// memory are as before. With MILLRACE_HOSTILE (make hostile), there are more hostile clients,
// and latency and memory have limits.
func TestHostileClientsDoNotKeepOthersOut(t *testing.T) {
	full := os.Getenv("MILLRACE_HOSTILE") != ""
	clients := siege{halfOpen: 200, slowBodies: 50, noReaders: 50, bombs: 2, again: 2 * time.Second}
	limit := []string{"--pprof", "--max-connections", "128"}
	if full {
		clients = siege{halfOpen: 10_000, slowBodies: 1_000, noReaders: 1_000, bombs: 16, again: 10 * time.Second}
		limit = []string{"--pprof"}
	}
	bomb := gzipBomb(t)
	for _, start := range []func(*testing.T, []string) target{startServe, startProjector, startProcessor} {
		at := start(t, limit)
		t.Run(at.name, func(t *testing.T) {
			calm := at.work(t, requests)
			before := at.settled(t)
			attack := begin(t, at, clients, bomb)
			busy := at.work(t, requests)
			during := at.usage(t)
			attack.end()
			after := at.await(t, before)
			t.Logf("p99 of the normal client: %v calm, %v attacked; before, during and after: anonymous memory %d, %d, %d MiB, descriptors %d, %d, %d; live heap %d and %d MiB",
				calm, busy, before.memory>>20, during.memory>>20, after.memory>>20, before.files, during.files, after.files, before.live>>20, after.live>>20)
			if !full {
				return
			}
			if busy > mostP99 {
				t.Errorf("the normal client's p99 is %v, more than %v", busy, mostP99)
			}
			if at.takes > 0 && during.memory > mostMemory {
				t.Errorf("the program has %d MiB, more than %d", during.memory>>20, mostMemory>>20)
			}
		})
	}
}

// besieged returns the arguments for a program on a sandbox with the shop's topology, and
// sends events to it.
func besieged(t *testing.T) []string {
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
	return []string{"-t", "../../topology.yaml", "-b", strings.Join(box.Brokers(), ","), "-r", box.RegistryURL()}
}

func startServe(t *testing.T, limit []string) target {
	t.Helper()
	w := startProgram(t, "producer", slices.Concat([]string{"serve"}, besieged(t), limit)...)
	n := 0
	return target{
		name: "producer serve", url: w.url, pid: w.cmd.Process.Pid, method: http.MethodPost, path: "/v1/events", large: "/metrics", takes: 4 << 20,
		body: func() string {
			n++
			return fmt.Sprintf(`{"type":"OrderPaid","data":{"id":"o-%d"}}`, n)
		},
	}
}

func startProjector(t *testing.T, limit []string) target {
	t.Helper()
	args := besieged(t)
	if out, err := exec.Command(filepath.Join(bin, "producer"), append([]string{"generate", "--events", "2000"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("producer generate: %v\n%s", err, out)
	}
	w := startProgram(t, "projector", slices.Concat([]string{"run", "--data-dir", filepath.Join(t.TempDir(), "data")}, args, limit)...)
	const user = "/v1/projections/user/u-1-00001"
	w.await(t, "the first user", func(ctx context.Context) (bool, error) {
		code, _, err := get(ctx, w.url+user)
		return code == http.StatusOK, err
	})
	return target{name: "projector run", url: w.url, pid: w.cmd.Process.Pid, method: http.MethodGet, path: user, large: "/v1/projections/order?limit=1000"}
}

func startProcessor(t *testing.T, limit []string) target {
	t.Helper()
	w := startProgram(t, "processor", slices.Concat([]string{"run"}, besieged(t), limit)...)
	return target{name: "processor run", url: w.url, pid: w.cmd.Process.Pid, method: http.MethodGet, path: "/version", large: "/metrics"}
}

// work sends requests as a normal client, one after the other, and returns the 99th
// percentile of their durations.
func (a target) work(t *testing.T, n int) time.Duration {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	took := make([]time.Duration, n)
	for i := range took {
		text := ""
		if a.body != nil {
			text = a.body()
		}
		r, err := http.NewRequestWithContext(t.Context(), a.method, a.url+a.path, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if text != "" {
			r.Header.Set("Content-Type", "application/json")
			// The client may repeat the request on another connection.
			r.Header.Set("Idempotency-Key", strconv.Itoa(i))
		}
		began := time.Now()
		resp, err := client.Do(r)
		if err != nil {
			t.Fatalf("%s: request %d: %v", a.name, i, err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // read to its end
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: request %d: %s %v %s", a.name, i, resp.Status, err, body)
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[n*99/100].Round(10 * time.Microsecond)
}

// usage is what a process uses.
type usage struct {
	memory int64 // anonymous, in bytes
	live   int64 // bytes of the heap after a collection; 0: not asked for
	files  int   // open descriptors
}

var (
	anonymous = regexp.MustCompile(`RssAnon:\s+(\d+) kB`)
	heap      = regexp.MustCompile(`\ngo_memstats_heap_alloc_bytes (\S+)`)
)

func (a target) usage(t *testing.T) (u usage) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", a.pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	return usage{memory: int64(number(t, anonymous, status)) << 10, files: len(files)}
}

func number(t *testing.T, of *regexp.Regexp, text []byte) float64 {
	t.Helper()
	found := of.FindSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in\n%s", of, text)
	}
	n, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// settled is usage after a garbage collection. It needs that the program is not attacked.
func (a target) settled(t *testing.T) usage {
	t.Helper()
	ask := func(path string) []byte {
		code, text, err := get(t.Context(), a.url+path)
		if err != nil || code != http.StatusOK {
			t.Fatalf("%s: %d, %v", path, code, err)
		}
		return text
	}
	ask("/debug/pprof/heap?gc=1")
	u := a.usage(t)
	u.live = int64(number(t, heap, ask("/metrics")))
	return u
}

// await waits until a process uses about what it used before.
func (a target) await(t *testing.T, before usage) (now usage) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		now = a.settled(t)
		// Connections to Kafka come and go, and buffers grow.
		if now.files <= before.files+8 && now.live <= before.live+8<<20 {
			return now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s uses %+v, before the attack it was %+v", a.name, now, before)
		}
	}
}

// attack are the hostile clients of a program.
type attack struct {
	address string
	again   time.Duration
	ctx     context.Context
	end     func() // and waits until they are gone
}

// dripping is the time between two bytes of a hostile client.
const dripping = time.Second

// begin starts the clients and waits until each has connected and begun its harm.
func begin(t *testing.T, at target, n siege, bomb []byte) *attack {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &attack{address: strings.TrimPrefix(at.url, "http://"), again: n.again, ctx: ctx}
	var running, first sync.WaitGroup
	a.end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(a.end)
	start := func(n int, hostile func(net.Conn, func()) error) {
		for range n {
			first.Add(1)
			running.Go(func() { a.repeat(sync.OnceFunc(first.Done), hostile) })
		}
	}
	start(n.halfOpen, halfOpen)
	start(n.slowBodies, func(conn net.Conn, done func()) error { return a.slowly(conn, done, at) })
	start(n.noReaders, func(conn net.Conn, done func()) error { return a.unread(conn, done, at) })
	start(n.bombs, func(conn net.Conn, done func()) error { return explode(conn, done, at, bomb) })
	first.Wait()
	return a
}

// repeat connects and lets the client do its harm, again and again until the attack ends.
// done is called after the first time.
func (a *attack) repeat(done func(), hostile func(net.Conn, func()) error) {
	defer done()
	for a.ctx.Err() == nil {
		var dialer net.Dialer
		conn, err := dialer.DialContext(a.ctx, "tcp", a.address)
		if err == nil {
			stop := context.AfterFunc(a.ctx, func() { _ = conn.Close() })
			_ = hostile(conn, done) // ends when the program closes the connection, or the attack
			stop()
			_ = conn.Close()
		}
		if !pause(a.ctx, a.again) {
			return
		}
	}
}

// pause waits between two steps of a hostile client. It returns false at the end of the
// attack.
func pause(ctx context.Context, d time.Duration) bool {
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wait.C:
		return true
	}
}

// drip sends a byte again and again. Each must be taken within a second.
func (a *attack) drip(conn net.Conn) error {
	for pause(a.ctx, dripping) {
		if err := conn.SetWriteDeadline(time.Now().Add(dripping)); err != nil {
			return err
		}
		if _, err := conn.Write([]byte(" ")); err != nil {
			return err
		}
	}
	return nil
}

// halfOpen sends a part of a request.
func halfOpen(conn net.Conn, done func()) error {
	_, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: local")
	done()
	if err == nil {
		_, err = io.Copy(io.Discard, conn)
	}
	return err
}

// slowly sends 64 KiB of a body, and then drips.
func (a *attack) slowly(conn net.Conn, done func(), at target) error {
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", at.path, max(at.takes, 1000))
	_, err := io.WriteString(conn, head+strings.Repeat(" ", 64<<10))
	done()
	if err == nil {
		err = a.drip(conn)
	}
	return err
}

// unread asks for large answers and reads none of them.
func (a *attack) unread(conn net.Conn, done func(), at target) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("%T is not TCP", conn)
	}
	err := tcp.SetReadBuffer(4 << 10)
	if err == nil {
		_, err = io.WriteString(conn, strings.Repeat(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", at.large), 50))
	}
	done()
	if err == nil {
		err = a.drip(conn)
	}
	return err
}

// gzipBomb returns a compressed body that is a thousand times larger when unpacked.
func gzipBomb(t *testing.T) []byte {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(bytes.Repeat([]byte(" "), 64<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// explode sends a compressed body.
func explode(conn net.Conn, done func(), at target, packed []byte) error {
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", at.path, len(packed))
	_, err := conn.Write(append([]byte(head), packed...))
	done()
	if err == nil {
		_, err = io.Copy(io.Discard, conn)
	}
	return err
}
