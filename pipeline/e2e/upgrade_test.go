package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
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

	"millrace/pipeline/harness"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/topology"
)

// The tests in this file upgrade projectors of an earlier release, whose binary
// MILLRACE_OLD names, to the binary under test:
//
//	make upgrade-test OLD=a86e439

const (
	upgradeCustomers = 500
	upgradeFirst     = 40_000 // events before the upgrade
)

const upgradeSchemas = `{"type": "record", "name": "Bought", "namespace": "up", "fields": [
  {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
  {"name": "type", "type": "string", "default": "Bought"},
  {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-micros"}},
  {"name": "version", "type": "int", "default": 1},
  {"name": "metadata", "type": {"type": "map", "values": "string"}, "default": {}},
  {"name": "data", "type": {"type": "record", "name": "BoughtData", "fields": [
    {"name": "id", "type": "string"}, {"name": "quantity", "type": "long"},
    {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}}]}}]}
{"type": "record", "name": "Customer", "namespace": "up", "fields": [
  {"name": "id", "type": "string", "default": ""}, {"name": "orders", "type": "long", "default": 0},
  {"name": "quantity", "type": "long", "default": 0}, {"name": "chain", "type": "long", "default": 0}]}
{"type": "record", "name": "Spend", "namespace": "up", "fields": [
  {"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}, "default": "\u0000"}]}
`

// upgradeTopology folds the same events into two projections. The order of the events
// determines chain.
const upgradeTopology = `name: up
topics:
  up.bought: {partitions: 4, types: [Bought]}
projections:
  customer:
    from: up.bought
    key: data.id
    state: Customer
    on: {Bought: {set: {id: data.id, orders: state.orders + 1, quantity: state.quantity + data.quantity, chain: (state.chain * 31 + data.quantity) % 1000003}}}
    snapshots: up.customer
`

const upgradeSpend = `  spend:
    from: up.bought
    key: data.id
    state: Spend
    on: {Bought: {set: {total: state.total + data.amount}}}
    snapshots: up.spend
`

// customer is the state of a customer, folded by the test.
type customer struct{ orders, quantity, chain, cents int64 }

// upgrading is a sandbox with projectors of two releases.
type upgrading struct {
	*rebuildBox
	old string // the projector of the earlier release

	mu     sync.Mutex // guards the fields below
	urls   map[string]string
	want   map[string]*customer
	sent   int
	asked  map[string]int // unanswered questions, by worker
	reads  int
	faults []string // at most 10
	worst  time.Duration
}

func newUpgrading(t *testing.T, topology string) *upgrading {
	t.Helper()
	old := os.Getenv("MILLRACE_OLD")
	if old == "" {
		t.Skip("needs the projector of an earlier release: make upgrade-test OLD=COMMIT") //nolint:forbidigo // the repository has no binaries
	}
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &rebuildBox{t: t, dir: t.TempDir(), brokers: box.Brokers()}
	schemas := filepath.Join(b.dir, "schemas")
	if err := os.Mkdir(schemas, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, text := range strings.SplitAfter(upgradeSchemas, "\n{") {
		name := []string{"Bought", "Customer", "Spend"}[i]
		if i > 0 {
			text = "{" + text
		}
		if err := os.WriteFile(filepath.Join(schemas, name+".avsc"), []byte(strings.TrimSuffix(text, "\n{")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.env = append(os.Environ(), "MILLRACE_BROKERS="+strings.Join(box.Brokers(), ","), "MILLRACE_REGISTRY="+box.RegistryURL(), "MILLRACE_SCHEMAS="+schemas, "MILLRACE_LOG_FORMAT=text")
	b.topology = filepath.Join(b.dir, "topology.yaml")
	if err := os.WriteFile(b.topology, []byte(topology), 0o600); err != nil {
		t.Fatal(err)
	}
	return &upgrading{rebuildBox: b, old: old, urls: map[string]string{}, asked: map[string]int{}, want: map[string]*customer{}}
}

// event returns the next event, and folds it.
func (u *upgrading) event(rng *rand.Rand) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	id := fmt.Sprintf("c-%04d", rng.IntN(upgradeCustomers))
	quantity, cents := 1+rng.Int64N(9), rng.Int64N(100_000)
	c := u.want[id]
	if c == nil {
		c = &customer{}
		u.want[id] = c
	}
	c.orders++
	c.quantity += quantity
	c.chain = (c.chain*31 + quantity) % 1000003
	c.cents += cents
	u.sent++
	return fmt.Sprintf(`{"type":"Bought","data":{"id":%q,"quantity":%d,"amount":"%d.%02d"}}`+"\n", id, quantity, cents/100, cents%100)
}

// write sends the first events, and then events until stop is called.
func (u *upgrading) write() (stop func()) {
	u.t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var first strings.Builder
	for range upgradeFirst {
		first.WriteString(u.event(rng))
	}
	u.send(first.String())
	return u.sendLines(func() string { return u.event(rng) })
}

// upgradeWorker is a projector of either release.
type upgradeWorker struct {
	name string
	cmd  *exec.Cmd
	done chan error
	log  *harness.Buffer
}

// launch starts a projector of a release. When it is ready, clients ask it.
func (u *upgrading) launch(projector, name string) *upgradeWorker {
	u.t.Helper()
	file := filepath.Join(u.dir, name+".addr")
	if err := os.RemoveAll(file); err != nil {
		u.t.Fatal(err)
	}
	w := &upgradeWorker{name: name, done: make(chan error, 1), log: &harness.Buffer{}}
	w.cmd = exec.CommandContext(context.WithoutCancel(u.t.Context()), projector, "run", "-t", u.topology, "--instance", name,
		"--data-dir", filepath.Join(u.dir, name), "--listen", "127.0.0.1:0", "--listen-file", file, "--sessions", "1")
	w.cmd.Env = u.env
	w.cmd.Stdout, w.cmd.Stderr = w.log, w.log
	if err := w.cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	go func() { w.done <- w.cmd.Wait() }() // ends with the process
	u.t.Cleanup(func() {
		_ = w.cmd.Process.Kill() // fails if the process has ended, which is normal
		if u.t.Failed() {
			u.t.Logf("log of %s:\n%s", name, w.log)
		}
	})
	began := time.Now()
	u.await("the projector "+name+" to be ready", func() error {
		select {
		case err := <-w.done:
			u.t.Fatalf("projector %s ended: %v", name, err)
		default:
		}
		addr, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		url := scheme + strings.TrimSpace(string(addr))
		if _, _, err = fetch(url + "/readyz"); err == nil {
			u.mu.Lock()
			u.urls[name] = url
			u.mu.Unlock()
		}
		return err
	})
	u.t.Logf("%s of %s is ready after %v", name, filepath.Dir(projector), time.Since(began).Round(time.Millisecond))
	return w
}

// halt takes a projector from the clients and stops it.
func (u *upgrading) halt(w *upgradeWorker) {
	u.t.Helper()
	u.mu.Lock()
	delete(u.urls, w.name)
	u.mu.Unlock()
	u.await("the questions to "+w.name+" to be answered", func() error {
		u.mu.Lock()
		defer u.mu.Unlock()
		if n := u.asked[w.name]; n > 0 {
			return fmt.Errorf("%d are not", n)
		}
		return nil
	})
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		u.t.Fatal(err)
	}
	if err := <-w.done; err != nil {
		u.t.Errorf("projector %s: %v\n%s", w.name, err, w.log)
	}
}

// read asks for random customers until stop is called. Each answer must be there, and a
// customer never goes back.
func (u *upgrading) read(projections ...string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for client := range 2 {
		work.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(client), 7))
			seen := map[string]int64{}
			pause := time.NewTicker(time.Millisecond)
			defer pause.Stop()
			for ctx.Err() == nil {
				name, url := u.choose(rng)
				if url == "" {
					continue
				}
				path := "/v1/projections/" + projections[rng.IntN(len(projections))] + fmt.Sprintf("/c-%04d", rng.IntN(upgradeCustomers))
				began := time.Now()
				body, _, err := fetch(url + path)
				took := time.Since(began)
				var answer struct {
					Version int64 `json:"version"`
				}
				if err == nil {
					err = json.Unmarshal(body, &answer)
				}
				if err == nil && answer.Version < seen[path] {
					err = fmt.Errorf("%s went back from version %d to %d", path, seen[path], answer.Version)
				}
				seen[path] = max(seen[path], answer.Version)
				u.mu.Lock()
				u.reads++
				u.asked[name]--
				u.worst = max(u.worst, took)
				if err != nil && len(u.faults) < 10 {
					u.faults = append(u.faults, time.Now().Format("15:04:05.000 ")+err.Error())
				}
				u.mu.Unlock()
				<-pause.C // leaves the processors to the workers
			}
		})
	}
	return func() {
		cancel()
		work.Wait()
	}
}

// choose returns a worker that is ready, and notes that it is asked.
func (u *upgrading) choose(rng *rand.Rand) (name, url string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	names := slices.Sorted(maps.Keys(u.urls))
	if len(names) == 0 {
		return "", ""
	}
	name = names[rng.IntN(len(names))]
	u.asked[name]++
	return name, u.urls[name]
}

// awaitReads waits until clients have got n more answers.
func (u *upgrading) awaitReads(n int) {
	u.t.Helper()
	u.mu.Lock()
	n += u.reads
	u.mu.Unlock()
	u.await("answers", func() error {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.reads < n {
			return fmt.Errorf("%d of %d", u.reads, n)
		}
		return nil
	})
}

// check compares all states of a worker with those that the test has folded.
func (u *upgrading) check(url string, spend bool) {
	u.t.Helper()
	client := &http.Client{Timeout: patience}
	get := func(path string, into any) error {
		resp, err := client.Get(url + path) //nolint:noctx // the client has a timeout
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(resp.Body)
			return fmt.Errorf("%s: %s: %s", path, resp.Status, body)
		}
		return json.NewDecoder(resp.Body).Decode(into)
	}
	for id, c := range u.want {
		u.await("the state of "+id, func() error {
			var got struct {
				Version int64
				State   struct {
					ID                      string
					Orders, Quantity, Chain int64
				}
			}
			if err := get("/v1/projections/customer/"+id, &got); err != nil {
				return err
			}
			if got.Version > c.orders {
				u.t.Fatalf("%s has version %d after %d events", id, got.Version, c.orders)
			}
			if got.Version < c.orders {
				return fmt.Errorf("version %d of %d", got.Version, c.orders)
			}
			if s := got.State; s.ID != id || s.Orders != c.orders || s.Quantity != c.quantity || s.Chain != c.chain {
				u.t.Fatalf("%s is %+v, want %+v", id, s, *c)
			}
			return nil
		})
		if !spend {
			continue
		}
		u.await("the spending of "+id, func() error {
			var got struct {
				Version int64
				State   struct{ Total json.RawMessage }
			}
			if err := get("/v1/projections/spend/"+id, &got); err != nil {
				return err
			}
			if got.Version < c.orders {
				return fmt.Errorf("version %d of %d", got.Version, c.orders)
			}
			if want := fmt.Sprintf("%d.%02d", c.cents/100, c.cents%100); strings.Trim(string(got.State.Total), `"`) != want {
				u.t.Fatalf("%s has spent %s, want %s", id, got.State.Total, want)
			}
			return nil
		})
	}
}

// roll replaces both workers of the earlier release, one by one, while events are written
// and clients ask.
func (u *upgrading) roll(projections ...string) (a, b *upgradeWorker) {
	u.t.Helper()
	stopWriting := u.write()
	a, b = u.launch(u.old, "a"), u.launch(u.old, "b")
	stopReading := u.read(projections...)
	now := filepath.Join(bin, "projector")
	u.awaitReads(500)
	u.halt(a)
	a = u.launch(now, "a")
	u.awaitReads(500)
	u.halt(b)
	b = u.launch(now, "b")
	u.awaitReads(500)
	stopReading()
	stopWriting()
	if len(u.faults) > 0 {
		u.t.Errorf("some of %d reads failed:\n%s", u.reads, strings.Join(u.faults, "\n"))
	}
	u.t.Logf("%d events, %d reads, the longest took %v", u.sent, u.reads, u.worst.Round(time.Millisecond))
	return a, b
}

// upgradeStatus is a line of `projector status`.
type upgradeStatus struct {
	Projection         string
	Version, Semantics int
	State              string
}

func (u *upgrading) status() (out []upgradeStatus) {
	u.t.Helper()
	if err := json.Unmarshal(u.must("projector", "status", "--json", "--interval", "0s"), &out); err != nil {
		u.t.Fatal(err)
	}
	return out
}

func TestAnUpgradeContinuesStatesWhoseMeaningIsTheSame(t *testing.T) {
	u := newUpgrading(t, upgradeTopology)
	a, b := u.roll("customer")
	u.check(u.urls["a"], false)
	u.check(u.urls["b"], false)
	if got := u.status(); len(got) != 1 || got[0].Version != 1 || got[0].State != "live" {
		t.Errorf("status %+v, want version 1", got)
	}
	for _, w := range []*upgradeWorker{a, b} {
		if text := w.log.String(); strings.Contains(text, "from snapshots") {
			t.Errorf("%s did not continue from the store of the earlier release:\n%s", w.name, text)
		}
	}
}

func TestAnUpgradeBuildsAVersionWhoseMeaningHasChangedBesideTheOldOne(t *testing.T) {
	u := newUpgrading(t, upgradeTopology+upgradeSpend)
	u.roll("customer", "spend")
	u.check(u.urls["a"], true)
	u.check(u.urls["b"], true)
	want := []upgradeStatus{{"customer", 1, 1, "live"}, {"spend", 1, 1, "previous"}, {"spend", 2, 2, "live"}}
	if u.status()[0].Semantics == topology.Semantics { // the meaning has not changed since the earlier release
		want = []upgradeStatus{{"customer", 1, topology.Semantics, "live"}, {"spend", 1, topology.Semantics, "live"}}
	}
	u.await("the right version of spend to be live", func() error {
		if got := u.status(); !slices.Equal(got, want) {
			return fmt.Errorf("status %+v, want %+v", got, want)
		}
		return nil
	})
	u.check(u.urls["a"], true)
}

// A release that does not know the topic of internal records would write them to the
// snapshots topic, beside those of this release.
func TestAnUpgradeKeepsEarlierReleasesFromAVersionWithATopicOfInternalRecords(t *testing.T) {
	u := newUpgrading(t, upgradeTopology)
	stopWriting := u.write()
	a := u.launch(u.old, "a")
	was := u.status()
	u.must("projector", "rebuild", "customer", "--force")
	b := u.launch(filepath.Join(bin, "projector"), "b")
	u.await("version 2 to be ready", func() error {
		want := append(slices.Clone(was), upgradeStatus{"customer", 2, topology.Semantics, "ready"})
		if got := u.status(); !slices.Equal(got, want) {
			return fmt.Errorf("status %+v, want %+v", got, want)
		}
		return nil
	})
	stopWriting()
	u.check(u.urls["a"], false)
	u.check(u.urls["b"], false)
	u.halt(a)
	if text := a.log.String(); strings.Contains(text, "up-projector-customer-v2") {
		t.Errorf("the earlier release ran version 2:\n%s", text)
	}
	for _, topic := range []string{"up.customer", "up.customer.v2"} {
		keys, _ := u.recordsOf(topic, 4)
		reserved := slices.ContainsFunc(keys, func(key string) bool { return strings.HasPrefix(key, "\x00") })
		if want := topic == "up.customer"; reserved != want {
			t.Errorf("internal records are on %s: %v, want %v", topic, reserved, want)
		}
	}
	u.await("the comparison of the versions", func() error {
		_, err := u.run("projector", "diff", "customer")
		return err
	})
	u.must("projector", "promote", "customer")
	u.check(u.urls["b"], false)
	u.halt(b)
}
