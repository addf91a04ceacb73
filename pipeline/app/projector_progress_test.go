package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/query"
	"millrace/pipeline/sandbox"
	"millrace/pipeline/topology"
)

// progress is how far the partitions of a projection are, as an answer says.
type progress struct {
	Name       string           `json:"name"`
	Partitions []query.Position `json:"partitions"`
	Absent     []struct {
		Partition int32  `json:"partition"`
		Detail    string `json:"detail"`
	} `json:"absent"`
}

// String is each partition with its offset, and those that are absent with why.
func (p progress) String() string {
	var all []string
	for _, at := range p.Partitions {
		all = append(all, fmt.Sprint(at.Partition, "-", at.Offset))
	}
	for _, gone := range p.Absent {
		all = append(all, fmt.Sprint(gone.Partition, ": ", gone.Detail))
	}
	return strings.Join(all, ", ")
}

// progress asks a worker how far the partitions are of all workers.
func (w *peer) progress() string {
	w.t.Helper()
	got := w.ask(http.MethodGet, "/v1/projections")
	got.is(200)
	var all struct{ Projections []progress }
	if err := json.Unmarshal([]byte(got.body), &all); err != nil || len(all.Projections) != 1 {
		w.t.Fatalf("%v: %s", err, got.body)
	}
	return all.Projections[0].String()
}

func TestAnyWorkerSaysHowFarThePartitionsOfAllAre(t *testing.T) {
	p, a, b := split(t)
	for n := range int32(4) {
		for i := range n + 1 {
			p.add(userCreated, p.id(n, int(i)), false)
		}
	}
	p.workAll()
	is := func(want string, of ...*peer) {
		t.Helper()
		for _, w := range of {
			if got := w.progress(); got != want {
				t.Errorf("%s says %s, want %s", w.name, got, want)
			}
		}
	}
	is("0-1, 1-2, 2-3, 3-4", a, b)

	// Of which nobody can tell, that is said.
	b.revoke(3)
	is("0-1, 1-2, 2-3, 3: no worker has it", a, b)
	b.behind.Store(true)
	at := "worker b at " + b.v.advertise
	is("0-1, 1-2, 2: "+at+" has it, and has yet to catch up, 3: no worker has it", a)
	is("0-1, 1-2, 2: worker b has it, and has yet to catch up, 3: no worker has it", b)
	b.behind.Store(false)

	// Before the others know that a partition has moved, it may be with two workers.
	p.add(userCreated, p.id(2, 9), false)
	a.assign(2, 3)
	is("0-1, 1-2, 2-4, 3-4", a, b)
	a.revoke(2, 3)
	b.work()
	b.announce(false)
	is("0-1, 1-2, 2-4, 3: no worker has it", a, b)

	var out, talk bytes.Buffer
	env := &Env{Stdout: &out, Stderr: &talk, Now: time.Now}
	if code := env.Main([]string{"list", "--address", a.v.advertise}, Projector); code != ExitOK {
		t.Fatalf("exit code %d: %s", code, &talk)
	}
	if got := strings.Fields(out.String()); !slices.Equal(got[len(got)-5:], []string{"3", "of", "4", "7", fmt.Sprint(3<<30 - 7)}) || talk.String() != "user, partition 3: no worker has it\n" {
		t.Errorf("%s%s", &out, &talk)
	}

	// A worker that cannot be reached may know: a part is no answer.
	b.kill()
	got := a.ask(http.MethodGet, "/v1/projections")
	got.is(421, "partitions 2 of "+testTopic+" are with "+at)
	if got.header.Get("Retry-After") == "" {
		t.Error("it does not say when to try again")
	}
	b.announce(true)
	p.start("c", vfs.NewMem()).announce(false) // alone, a would tell of what it had
	is("0-1, 1-2, 2: no worker has it, 3: no worker has it", a)
}

// overheard makes a worker tell when it is asked for something that comes from another
// worker, and waits.
func (w *peer) overheard(path string) <-chan struct{} {
	w.t.Helper()
	heard := make(chan struct{}, 1)
	next := w.server.Config.Handler
	w.front = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if wait := r.FormValue("wait"); strings.HasPrefix(r.URL.Path, path) && wait != "" && wait != "0s" {
			select {
			case heard <- struct{}{}:
			default:
			}
		}
		next.ServeHTTP(out, r)
	}))
	w.v.advertise = strings.TrimPrefix(w.front.URL, "http://")
	w.announce(false)
	return heard
}

const outcomePath = "/internal/v1/outcome/"

// await asks for a list that has the last event but n, in the background, and returns
// the answer.
func (w *peer) await(wait, more string) <-chan asked {
	answer := make(chan asked, 1)
	path := fmt.Sprintf("/v1/projections/user?after_event=%s&wait=%s%s", foldedID(w.sent), wait, more)
	go func() { answer <- w.ask(http.MethodGet, path) }()
	return answer
}

func TestAListWaitsForAnEventWhicheverWorkerHasIt(t *testing.T) {
	p := newParty(t, 4, "a", "b", "c")
	a, b, c := p.peers["a"], p.peers["b"], p.peers["c"]
	a.assign(0, 1)
	b.assign(2, 3)
	c.announce(false)
	heard := b.overheard(outcomePath)

	// It comes to another worker while it is waited for, or to the one that is asked.
	for i, at := range []int32{3, 1} {
		answer := a.await("30s", "")
		<-heard
		p.add(userCreated, p.id(at, i), false)
		p.workAll()
		got := <-answer
		got.is(200, `"after_event":"applied"`)
		if ids := got.items("id"); !slices.Contains(ids, p.id(at, i)) {
			t.Errorf("the list is %v", ids)
		}
	}
	// It is there already.
	applied := "/v1/projections/user?after_event=" + foldedID(0)
	for _, w := range []*peer{a, b, c} {
		w.ask(http.MethodGet, applied).is(200, `"after_event":"applied"`)
	}

	// What another worker did not apply, it says.
	gone := p.id(2, 5)
	p.add(userCreated, gone, false)
	p.add(userDeleted, gone, false)
	late := p.sent
	p.add(userUpdated, gone, false)
	answer := a.await("30s", fmt.Sprint("&after_position=2:", len(p.logs[2])))
	p.add(orderCreated, gone, false)
	p.workAll()
	(<-answer).is(409, `"outcome":"passed"`, "is past 3 of partition 2")
	a.ask(http.MethodGet, "/v1/projections/user?wait=30s&after_event="+foldedID(late)).is(409, `"outcome":"late"`, "deleted before")
	pending := <-a.await("1ms", "")
	pending.is(504, `"outcome":"pending"`, "was not applied by any partition: it may be on its way")
	if pending.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}

	// The partition moves while it is waited for.
	for len(heard) > 0 {
		<-heard
	}
	answer = a.await("30s", "")
	<-heard
	b.revoke(3)
	(<-a.await("0s", "")).is(504, "partition 3 of "+testTopic+": no worker has it")
	p.add(userCreated, p.id(3, 7), false)
	c.assign(3)
	(<-answer).is(200, `"after_event":"applied"`)

	// Its worker goes, and is back in time.
	b.kill()
	(<-a.await("1ms", "")).is(504, `"outcome":"pending"`, "partitions 2 of "+testTopic+" are with worker b at "+b.v.advertise)
	a.ask(http.MethodGet, applied).is(421, "worker b at") // the list is of b, too
	answer = a.await("30s", "")
	p.add(userCreated, p.id(2, 8), false)
	p.start("b", b.disk).assign(2)
	(<-answer).is(200, `"after_event":"applied"`)
}

// Whoever sends one event twice may have it dropped on its way, and applied.
func TestAListGoesByTheWordThatCountsMost(t *testing.T) {
	p := newParty(t, 2, "a", "b")
	in, out := &topology.Topic{Name: "in"}, &topology.Topic{Name: testTopic}
	plan := &topology.Topology{Pipelines: []*topology.Pipeline{{Name: "clean", From: in, To: out, DeadLetter: &topology.Topic{Name: "dead"}, Receipts: &topology.Topic{Name: "receipts"}}}}
	for _, w := range p.peers {
		w.reader.upstream = newUpstream(plan, out, knownReceipts(t, time.Hour, foldedID(0)+" clean filtered", foldedID(1)+" clean dead_letter", foldedID(2)+" clean filtered", foldedID(3)+" clean duplicate"))
	}
	a, b := p.peers["a"], p.peers["b"]
	a.assign(0)
	b.assign(1)
	gone := p.id(1, 0)
	p.add(userCreated, gone, false)
	p.workAll()
	ask := func(n int, wait string) asked {
		t.Helper()
		return a.ask(http.MethodGet, "/v1/projections/user?after_event="+foldedID(n)+"&wait="+wait)
	}
	ask(0, "30s").is(200, `"after_event":"applied"`)
	ask(1, "30s").is(409, `"outcome":"dead_letter"`, `"pipeline":"clean"`, `"stage":"s-clean"`, `"reason":"bad"`)
	ask(2, "30s").is(409, `"outcome":"filtered"`, `"stage":"s-clean"`)
	ask(3, "1ms").is(409, `"outcome":"filtered"`, "ask again") // it was open until the end
	p.add(userDeleted, gone, false)
	p.add(userUpdated, gone, false)
	p.workAll()
	ask(2, "30s").is(409, `"outcome":"late"`)
}

func TestWithoutAHistoryAListCannotWaitAnywhere(t *testing.T) {
	p := newParty(t, 2)
	a, b := p.start("a", vfs.NewMem()), p.start("b", vfs.NewMem())
	for _, w := range []*peer{a, b} {
		w.reader.history = false
	}
	a.assign(0)
	b.assign(1)
	a.ask(http.MethodGet, "/v1/projections/user?wait=30s&after_event="+foldedID(0)).is(404, "--no-history")
}

// Whoever waits for one aggregate waits where it is.
func TestWhoeverAsksAnotherWorkerWaitsWithTheOwnerOfTheAggregate(t *testing.T) {
	p, a, b := split(t)
	id, bad := p.id(3, 0), p.id(3, 1)
	api := a.v.forwarding(query.Handler(slog.New(slog.DiscardHandler), a.reader))
	path := "/v1/projections/user/" + id
	heard := b.overheard(path)
	answer := make(chan asked, 1)
	go func() { answer <- ask(t, api, path+"?wait=30s&after_event="+foldedID(0)) }()
	<-heard
	p.add(userCreated, id, false)
	p.workAll()
	(<-answer).is(200, `"after_event":"applied"`, `"partition":3`)
	p.add(userCreated, bad, false)
	p.add(userUpdated, bad, true)
	p.add(userUpdated, bad, false)
	p.workAll()
	ask(t, api, "/v1/projections/user/"+bad+"?wait=30s&after_event="+foldedID(3)).is(409, `"outcome":"blocked"`)
}

// Two workers share the partitions of a broker.
func TestOfTwoProjectorsAnyWaitsAndTellsForBoth(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "schemas"), 0o700), os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Mkdir(filepath.Join(dir, "b"), 0o700)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "topology.yaml")
	write(t, file, []byte(`
name: t
topics:
  clicks: {partitions: 2, types: [Click], envelope: none, id: "id + ''"}
projections:
  count: {from: clicks, key: id, state: Count, on: {Click: {set: {n: n}}}, snapshots: counts}
`))
	write(t, filepath.Join(dir, "schemas", "Click.avsc"), clicks["Click.avsc"].Data)
	write(t, filepath.Join(dir, "schemas", "Count.avsc"), []byte(`{"type": "record", "name": "Count", "fields": [{"name": "n", "type": "long", "default": 0}]}`))
	box, err := sandbox.New(sandbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = box.Close() })
	var addresses []string
	for _, name := range []string{"a", "b"} {
		address, stop, err := startProjector(t.Context(), file, filepath.Join(dir, name), box, "--instance", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
		addresses = append(addresses, "http://"+address)
	}
	// Until each has one.
	type worker struct{ Offsets map[int32]int64 }
	shared := func() bool {
		for _, at := range addresses {
			var has []worker
			if err := getJSON(t.Context(), at+"/internal/v1/versions", &has); err != nil || len(has) != 1 || len(has[0].Offsets) != 1 {
				return false
			}
		}
		return true
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); !shared(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the partitions are never shared out")
		}
	}

	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{box.RegistryURL()}})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := codec.ParseSchema(string(clicks["Click.avsc"].Data))
	if err != nil {
		t.Fatal(err)
	}
	id, err := registry.Register(t.Context(), codec.Subject("clicks", schema), schema)
	if err != nil {
		t.Fatal(err)
	}
	w, err := kafka.NewWriter(kafka.Config{Brokers: box.Brokers()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const n = 12
	for i := range int64(n) {
		name := fmt.Sprint("e-", i)
		at := addresses[i%2]
		var page struct {
			Items []struct{ ID string }
			After string `json:"after_event"`
		}
		answer := make(chan error, 1)
		go func() { answer <- getJSON(t.Context(), at+"/v1/projections/count?wait=30s&after_event="+name, &page) }()
		value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, id), name), i)
		w.Write(t.Context(), &pipeline.Record{Topic: "clicks", Partition: pipeline.KeyPartition, Key: []byte(name), Value: value, Time: time.Now()}, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		if err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-answer; err != nil || page.After != "applied" || !slices.ContainsFunc(page.Items, func(it struct{ ID string }) bool { return it.ID == name }) {
			t.Errorf("%s: %v, %+v", name, err, page)
		}
	}
	for _, at := range addresses {
		var all struct{ Projections []progress }
		if err := getJSON(t.Context(), at+"/v1/projections", &all); err != nil || len(all.Projections) != 1 || len(all.Projections[0].Partitions) != 2 || len(all.Projections[0].Absent) > 0 {
			t.Fatalf("%v %v", err, all)
		}
		var folded int64
		for _, p := range all.Projections[0].Partitions {
			folded += p.Offset
		}
		if folded < n {
			t.Errorf("%d are folded, as %s says: %v", folded, at, all)
		}
	}
}
