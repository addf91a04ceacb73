package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"millrace/pipeline/sandbox"
)

const (
	rebuildUsers = 300
	patience     = time.Minute
)

// rebuildBox is a sandbox and a topology with one projection, on which a test runs
// programs.
type rebuildBox struct {
	t        *testing.T
	dir      string
	topology string
	env      []string
	brokers  []string
}

func newRebuildBox(t *testing.T, partitions int) *rebuildBox {
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
	return newRebuildBoxOn(t, partitions, box.Brokers(), box.RegistryURL())
}

// newRebuildBoxOn is newRebuildBox with a broker and a registry that run.
func newRebuildBoxOn(t *testing.T, partitions int, brokers []string, registry string) *rebuildBox {
	t.Helper()
	b := &rebuildBox{t: t, dir: t.TempDir(), brokers: brokers}
	schemas, err := filepath.Abs("../../schemas")
	if err != nil {
		t.Fatal(err)
	}
	b.env = append(os.Environ(), "MILLRACE_BROKERS="+strings.Join(brokers, ","), "MILLRACE_REGISTRY="+registry, "MILLRACE_SCHEMAS="+schemas)
	b.topology = filepath.Join(b.dir, "topology.yaml")
	b.declare(partitions, "")
	return b
}

// declare writes the topology. more is appended to the assignments of UserUpdated.
func (b *rebuildBox) declare(partitions int, more string) {
	b.t.Helper()
	text := fmt.Sprintf(`name: rebuilt
topics:
  rebuilt.events: {partitions: %d, types: [UserCreated, UserUpdated]}
projections:
  user:
    from: rebuilt.events
    key: data.id
    state: User
    on:
      UserCreated: {set: {id: data.id, email: data.email, name: data.name, status: "'active'"}}
      UserUpdated: {set: {name: "data.name != null ? data.name : state.name"%s}}
    snapshots: rebuilt.user.snapshots
`, partitions, more)
	if err := os.WriteFile(b.topology, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *rebuildBox) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, program), append(args, "-t", b.topology)...)
	cmd.Env = b.env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// run runs a command to its end and returns its stdout.
func (b *rebuildBox) run(program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	cmd := b.command(ctx, program, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, &out, &errs)
	}
	return out.Bytes(), nil
}

// must is run for commands that must succeed.
func (b *rebuildBox) must(program string, args ...string) []byte {
	b.t.Helper()
	out, err := b.run(program, args...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

// rebuildWorker is a projector process.
type rebuildWorker struct {
	*rebuildBox
	name string
	cmd  *exec.Cmd
	url  string
	done chan error // receives the result of Wait
}

// start starts a projector with the data directory b.dir/name and waits until it is
// ready.
func (b *rebuildBox) start(name string, args ...string) *rebuildWorker {
	b.t.Helper()
	file := filepath.Join(b.dir, name+".addr")
	if err := os.RemoveAll(file); err != nil {
		b.t.Fatal(err)
	}
	w := &rebuildWorker{rebuildBox: b, name: name, done: make(chan error, 1)}
	w.cmd = b.command(context.WithoutCancel(b.t.Context()), "projector", append([]string{"run", "--instance", name, "--data-dir", filepath.Join(b.dir, name),
		"--listen", "127.0.0.1:0", "--listen-file", file, "--sessions", "1"}, args...)...)
	w.cmd.Stdout, w.cmd.Stderr = b.t.Output(), b.t.Output()
	if err := w.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	go func() { w.done <- w.cmd.Wait() }() // ends with the process
	b.t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // fails if the process has ended, which is normal
	})
	b.await("the projector "+name+" to be ready", func() error {
		addr, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		w.url = scheme + strings.TrimSpace(string(addr))
		_, _, err = fetch(w.url + "/readyz")
		return err
	})
	return w
}

// stop ends the projector with SIGTERM.
func (w *rebuildWorker) stop() {
	w.t.Helper()
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	if err := <-w.done; err != nil {
		w.t.Errorf("projector %s: %v", w.name, err)
	}
}

// await calls cond until it returns no error.
func (b *rebuildBox) await(what string, cond func() error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			b.t.Fatalf("timeout waiting for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// fetch returns the answer to a GET request. A status other than 200 is an error.
func fetch(url string) (body []byte, status int, err error) {
	resp, err := http.Get(url) //nolint:noctx // bounded by the test's own timeout
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, resp.Status, body)
	}
	return body, resp.StatusCode, err
}

func rebuildUser(i int) string { return fmt.Sprintf("u-%04d", i) }

func created(i int) string {
	return fmt.Sprintf(`{"type":"UserCreated","data":{"id":%q,"email":"%d@example.com","name":"user %d"}}`+"\n", rebuildUser(i), i, i)
}

func updated(i, n int) string {
	return fmt.Sprintf(`{"type":"UserUpdated","data":{"id":%q,"email":"new-%d@example.com","name":"name %d"}}`+"\n", rebuildUser(i), i, n)
}

// load sends updates of every second user until stop is called.
func (b *rebuildBox) load() (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	cmd := b.command(context.WithoutCancel(ctx), "producer", "send", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				_ = in.Close() // the end of its input ends the producer
				return
			case <-tick.C:
			}
			if _, err := io.WriteString(in, updated(n*2%rebuildUsers, n)); err != nil {
				return // the producer's exit code reports the error
			}
		}
	})
	return func() {
		b.t.Helper()
		cancel()
		work.Wait()
		if err := cmd.Wait(); err != nil {
			b.t.Errorf("producer: %v\n%s", err, &errs)
		}
	}
}

// reader queries users one after another and collects the faults. The fields below mu are
// guarded by it while the reader runs.
type reader struct {
	urls []string

	mu       sync.Mutex
	reads    int
	versions map[string]int // number of answers by projection version
	faults   []string       // at most 10
	longest  time.Duration  // maximum response time
}

// read queries random users in a goroutine until stop is called. Every query must
// succeed, and answers of the same projection version must never go back.
func (r *reader) read(seed uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	r.versions = map[string]int{}
	work.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 0))
		type place struct {
			made string // projection version
			of   string // partition or user
		}
		offsets, versions := map[place]int64{}, map[place]int64{}
		for ctx.Err() == nil {
			id := rebuildUser(rng.IntN(rebuildUsers))
			began := time.Now()
			body, _, err := fetch(r.urls[rng.IntN(len(r.urls))] + "/v1/projections/user/" + id)
			took := time.Since(began)
			var answer struct {
				Made      string `json:"projection_version"`
				Partition int32  `json:"partition"`
				Offset    int64  `json:"offset"`
				ID        string `json:"id"`
				Version   int64  `json:"version"`
			}
			if err == nil {
				err = json.Unmarshal(body, &answer)
			}
			at, of := place{answer.Made, fmt.Sprint(answer.Partition)}, place{answer.Made, id}
			switch {
			case err != nil:
			case answer.ID != id:
				err = fmt.Errorf("requested %s, got %s", id, answer.ID)
			case answer.Version < versions[of]:
				err = fmt.Errorf("%s went back from version %d to %d", id, versions[of], answer.Version)
			case answer.Offset < offsets[at]:
				err = fmt.Errorf("partition %s went back from offset %d to %d", at.of, offsets[at], answer.Offset)
			}
			offsets[at], versions[of] = answer.Offset, answer.Version
			r.mu.Lock()
			r.reads++
			r.versions[answer.Made]++
			r.longest = max(r.longest, took)
			if err != nil && len(r.faults) < 10 {
				r.faults = append(r.faults, err.Error())
			}
			r.mu.Unlock()
		}
	})
	return func() {
		cancel()
		work.Wait()
	}
}

// seen returns the number of answers of a projection version.
func (r *reader) seen(version string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.versions[version]
}

// TestChangedFoldIsRebuiltPromotedAndRolledBackWithoutFailedReads rebuilds, compares,
// promotes and rolls back a changed fold while events arrive and a client reads.
func TestChangedFoldIsRebuiltPromotedAndRolledBackWithoutFailedReads(t *testing.T) {
	t.Parallel() // mostly waits
	b := newRebuildBox(t, 4)
	var first strings.Builder
	for i := range rebuildUsers {
		first.WriteString(created(i))
	}
	for i := 0; i < rebuildUsers; i += 2 {
		first.WriteString(updated(i, 0)) // users with odd numbers are never updated
	}
	b.send(first.String())
	w := b.start("one")
	r := &reader{urls: []string{w.url}}
	stopReading := r.read(1)
	stopLoad := b.load()

	type status struct {
		Version int    `json:"version"`
		State   string `json:"state"`
		Fold    string `json:"fold"`
		Done    int64  `json:"done"`
	}
	look := func() (out []status) {
		if err := json.Unmarshal(b.must("projector", "status", "--json", "--interval", "0s"), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := look()
	if len(before) != 1 || before[0].Version != 1 || before[0].State != "live" {
		t.Fatalf("before: %+v", before)
	}
	if _, err := b.run("projector", "rebuild", "user"); err == nil || !strings.Contains(err.Error(), "there is nothing to rebuild") {
		t.Errorf("rebuild of an unchanged fold: %v", err)
	}
	b.declare(4, `, email: "data.email != null ? data.email : state.email", status: "'changed'"`)
	b.must("projector", "rebuild", "user")
	b.await("version 2 to have caught up", func() error {
		for _, s := range look() {
			if s.Version == 2 && s.State == "ready" && s.Done > 0 {
				return nil
			}
		}
		return fmt.Errorf("%+v", look())
	})
	if _, err := b.run("projector", "promote", "user"); err == nil || !strings.Contains(err.Error(), "has not been compared") {
		t.Errorf("promote without a diff: %v", err)
	}

	var d struct {
		Old, New, Aggregates, Same, Differ, Unknown int
		Fields                                      map[string]struct{ Differ int }
		IDs                                         []string
	}
	if err := json.Unmarshal(b.must("projector", "diff", "user", "--json", "--ids", "1000"), &d); err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := 0; i < rebuildUsers; i += 2 {
		want = append(want, rebuildUser(i))
	}
	slices.Sort(d.IDs)
	if d.Old != 1 || d.New != 2 || d.Aggregates != rebuildUsers || d.Same != rebuildUsers/2 || d.Differ != rebuildUsers/2 || d.Unknown != 0 || !slices.Equal(d.IDs, want) {
		t.Errorf("diff: %+v, want the users with even numbers", d)
	}
	if len(d.Fields) != 2 || d.Fields["email"].Differ != rebuildUsers/2 || d.Fields["status"].Differ != rebuildUsers/2 {
		t.Errorf("diff by field: %+v, want email and status of the updated users", d.Fields)
	}

	b.must("projector", "promote", "user")
	after := look()
	old, fresh := after[0].Fold, after[1].Fold
	b.await("answers of version 2", func() error {
		if r.seen(fresh) < 100 {
			return fmt.Errorf("%d so far", r.seen(fresh))
		}
		return nil
	})
	b.must("projector", "rollback", "user")
	had := r.seen(old)
	b.await("answers of version 1 again", func() error {
		if r.seen(old) < had+100 {
			return fmt.Errorf("%d more so far", r.seen(old)-had)
		}
		return nil
	})
	stopReading()
	stopLoad()
	if len(r.faults) > 0 {
		t.Errorf("some of %d reads failed:\n%s", r.reads, strings.Join(r.faults, "\n"))
	}
	t.Logf("%d reads, none failed, the longest took %v; answers by version: %v", r.reads, r.longest, r.versions)

	b.must("projector", "retire", "user", "--version", "2")
	if s := look(); len(s) != 1 || s[0].Version != 1 {
		t.Errorf("after retire: %+v", s)
	}
	w.stop()
}
