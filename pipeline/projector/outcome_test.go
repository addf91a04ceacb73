package projector

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/client"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/receipt"
	"millrace/pipeline/topology"
)

// Progress is the progress of a projection in an answer.
type Progress struct {
	Name       string           `json:"name"`
	Partitions []query.Position `json:"partitions"`
	Absent     []struct {
		Partition int32  `json:"partition"`
		Detail    string `json:"detail"`
	} `json:"absent"`
}

// String returns each partition with its offset, or the reason why it is absent.
func (p Progress) String() string {
	var all []string
	for _, at := range p.Partitions {
		all = append(all, fmt.Sprint(at.Partition, "-", at.Offset))
	}
	for _, gone := range p.Absent {
		all = append(all, fmt.Sprint(gone.Partition, ": ", gone.Detail))
	}
	return strings.Join(all, ", ")
}

// progress asks a worker for the positions of all workers.
func (w *peer) progress() string {
	w.t.Helper()
	got := w.ask(http.MethodGet, "/v1/projections")
	got.Is(200)
	var all struct{ Projections []Progress }
	if err := json.Unmarshal([]byte(got.Body), &all); err != nil || len(all.Projections) != 1 {
		w.t.Fatalf("%v: %s", err, got.Body)
	}
	return all.Projections[0].String()
}

func TestAnyWorkerReturnsThePositionsOfAllWorkers(t *testing.T) {
	p, a, b := split(t)
	for n := range int32(4) {
		for i := range n + 1 {
			p.add(projectiontest.UserCreated, p.id(n, int(i)), false)
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

	// Partitions with an unknown position have a reason.
	b.revoke(3)
	is("0-1, 1-2, 2-3, 3: no worker has it", a, b)
	b.behind.Store(true)
	at := "worker b at " + b.advertise
	is("0-1, 1-2, 2: "+at+" has it, and has yet to catch up, 3: no worker has it", a)
	is("0-1, 1-2, 2: worker b has it, and has yet to catch up, 3: no worker has it", b)
	b.behind.Store(false)

	// Until all workers know that a partition has moved, it may be with two of them.
	p.add(projectiontest.UserCreated, p.id(2, 9), false)
	a.assign(2, 3)
	is("0-1, 1-2, 2-4, 3-4", a, b)
	a.revoke(2, 3)
	b.work()
	b.announce(false)
	is("0-1, 1-2, 2-4, 3: no worker has it", a, b)

	var out, talk bytes.Buffer
	env := &cli.Env{Stdout: &out, Stderr: &talk, Now: time.Now}
	if code := env.Main([]string{"list", "--address", a.advertise}, func(e *cli.Env) *cobra.Command {
		root := &cobra.Command{Use: "projector"}
		root.AddCommand(client.Commands(e)...)
		return root
	}); code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, &talk)
	}
	if got := strings.Fields(out.String()); !slices.Equal(got[len(got)-5:], []string{"3", "of", "4", "7", fmt.Sprint(3<<30 - 7)}) || talk.String() != "user, partition 3: no worker has it\n" {
		t.Errorf("%s%s", &out, &talk)
	}

	// A worker that cannot be reached may know the position: there is no partial answer.
	b.kill()
	got := a.ask(http.MethodGet, "/v1/projections")
	got.Is(421, "partitions 2 of "+projectiontest.EventsTopic+" are with "+at)
	if got.Header.Get("Retry-After") == "" {
		t.Error("it does not say when to try again")
	}
	b.announce(true)
	p.start("c", vfs.NewMem()).announce(false) // alone, a would answer for the partitions that it had
	is("0-1, 1-2, 2: no worker has it, 3: no worker has it", a)
}

// observe returns a channel that gets a value when the worker gets a request that waits,
// from another worker.
func (w *peer) observe(path string) <-chan struct{} {
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
	w.advertise = strings.TrimPrefix(w.front.URL, "http://")
	w.announce(false)
	return heard
}

const outcomePath = "/internal/v1/outcome/"

// await asks for a list after the next event, in the background.
func (w *peer) await(wait, more string) <-chan projectiontest.Answer {
	answer := make(chan projectiontest.Answer, 1)
	path := fmt.Sprintf("/v1/projections/user?after_event=%s&wait=%s%s", projectiontest.FoldedID(w.sent), wait, more)
	go func() { answer <- w.ask(http.MethodGet, path) }()
	return answer
}

func TestAListWaitsForAnEventOfAnyWorker(t *testing.T) {
	p := newParty(t, 4, "a", "b", "c")
	a, b, c := p.peers["a"], p.peers["b"], p.peers["c"]
	a.assign(0, 1)
	b.assign(2, 3)
	c.announce(false)
	heard := b.observe(outcomePath)

	// The event comes to another worker during the wait, or to the worker that is asked.
	for i, at := range []int32{3, 1} {
		answer := a.await("30s", "")
		<-heard
		p.add(projectiontest.UserCreated, p.id(at, i), false)
		p.workAll()
		got := <-answer
		got.Is(200, `"after_event":"applied"`)
		if ids := got.Items("id"); !slices.Contains(ids, p.id(at, i)) {
			t.Errorf("the list is %v", ids)
		}
	}
	// The event is applied already.
	applied := "/v1/projections/user?after_event=" + projectiontest.FoldedID(0)
	for _, w := range []*peer{a, b, c} {
		w.ask(http.MethodGet, applied).Is(200, `"after_event":"applied"`)
	}

	// Another worker did not apply the event.
	gone := p.id(2, 5)
	p.add(projectiontest.UserCreated, gone, false)
	p.add(projectiontest.UserDeleted, gone, false)
	late := p.sent
	p.add(projectiontest.UserUpdated, gone, false)
	answer := a.await("30s", fmt.Sprint("&after_position=2:", len(p.logs[2])))
	p.add(projectiontest.OrderCreated, gone, false)
	p.workAll()
	(<-answer).Is(409, `"outcome":"passed"`, "is past offset 3 of partition 2")
	a.ask(http.MethodGet, "/v1/projections/user?wait=30s&after_event="+projectiontest.FoldedID(late)).Is(409, `"outcome":"late"`, "deleted before")
	pending := <-a.await("1ms", "")
	pending.Is(504, `"outcome":"pending"`, "was not applied by any partition: it may be on its way")
	if pending.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}

	// The partition moves during the wait.
	for len(heard) > 0 {
		<-heard
	}
	answer = a.await("30s", "")
	<-heard
	b.revoke(3)
	(<-a.await("0s", "")).Is(504, "partition 3 of "+projectiontest.EventsTopic+": no worker has it")
	p.add(projectiontest.UserCreated, p.id(3, 7), false)
	c.assign(3)
	(<-answer).Is(200, `"after_event":"applied"`)

	// The worker of the partition stops, and is back in time.
	b.kill()
	(<-a.await("1ms", "")).Is(504, `"outcome":"pending"`, "partitions 2 of "+projectiontest.EventsTopic+" are with worker b at "+b.advertise)
	a.ask(http.MethodGet, applied).Is(421, "worker b at") // the list needs b, too
	answer = a.await("30s", "")
	p.add(projectiontest.UserCreated, p.id(2, 8), false)
	p.start("b", b.disk).assign(2)
	(<-answer).Is(200, `"after_event":"applied"`)
}

// knownReceipts returns a reader that has read these receipts, for the events with the
// ids FoldedID(0), FoldedID(1) and so on.
func knownReceipts(t *testing.T, receipts ...receipt.Receipt) *receipt.Reader {
	t.Helper()
	known := receipt.NewReader(kafka.Config{}, []*topology.Topic{{Name: "receipts"}}, time.Hour, func() time.Time { return time.Unix(0, 0) },
		slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry())
	for i, r := range receipts {
		r.Stage = "s-clean"
		value, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := known.Take(&pipeline.Record{Topic: "receipts", Key: []byte(projectiontest.FoldedID(i)), Value: value, Time: time.Unix(int64(i+1), 0)}); err != nil {
			t.Fatal(err)
		}
	}
	return known
}

// An event that is sent twice may be dropped once by a pipeline, and applied once.
func TestAListUsesTheOutcomeWithTheHighestRank(t *testing.T) {
	p := newParty(t, 2)
	in, out := &topology.Topic{Name: "in"}, &topology.Topic{Name: projectiontest.EventsTopic}
	plan := &topology.Topology{Pipelines: []*topology.Pipeline{{Name: "clean", From: in, To: out, DeadLetter: &topology.Topic{Name: "dead"}, Receipts: &topology.Topic{Name: "receipts"}}}}
	p.upstream = receipt.NewUpstream(plan, out, knownReceipts(t,
		receipt.Receipt{Pipeline: "clean", Outcome: receipt.OutcomeFiltered},
		receipt.Receipt{Pipeline: "clean", Outcome: receipt.OutcomeDeadLetter, Reason: "bad"},
		receipt.Receipt{Pipeline: "clean", Outcome: receipt.OutcomeFiltered},
		receipt.Receipt{Pipeline: "clean", Outcome: receipt.OutcomeFiltered, Duplicate: true},
	))
	a, b := p.start("a", vfs.NewMem()), p.start("b", vfs.NewMem())
	a.assign(0)
	b.assign(1)
	gone := p.id(1, 0)
	p.add(projectiontest.UserCreated, gone, false)
	p.workAll()
	ask := func(n int, wait string) projectiontest.Answer {
		t.Helper()
		return a.ask(http.MethodGet, "/v1/projections/user?after_event="+projectiontest.FoldedID(n)+"&wait="+wait)
	}
	ask(0, "30s").Is(200, `"after_event":"applied"`)
	ask(1, "30s").Is(409, `"outcome":"dead_letter"`, `"pipeline":"clean"`, `"stage":"s-clean"`, `"reason":"bad"`)
	ask(2, "30s").Is(409, `"outcome":"filtered"`, `"stage":"s-clean"`)
	ask(3, "1ms").Is(409, `"outcome":"filtered"`, "ask again") // the outcome stayed open
	p.add(projectiontest.UserDeleted, gone, false)
	p.add(projectiontest.UserUpdated, gone, false)
	p.workAll()
	ask(2, "30s").Is(409, `"outcome":"late"`)
}

func TestWithoutHistoryAListCannotWaitForAnEvent(t *testing.T) {
	p := newParty(t, 2)
	p.noHistory = true
	a, b := p.start("a", vfs.NewMem()), p.start("b", vfs.NewMem())
	a.assign(0)
	b.assign(1)
	a.ask(http.MethodGet, "/v1/projections/user?wait=30s&after_event="+projectiontest.FoldedID(0)).Is(404, "--no-history")
}

// A question about one aggregate waits at the worker that has it.
func TestAForwardedQuestionWaitsAtTheOwnerOfTheAggregate(t *testing.T) {
	p, a, b := split(t)
	id, bad := p.id(3, 0), p.id(3, 1)
	api := (&forwarder{peers: a.others, roster: a.roster}).wrap(query.Handler(slog.New(slog.DiscardHandler), query.DefaultFeeds, a.reader))
	path := "/v1/projections/user/" + id
	heard := b.observe(path)
	answer := make(chan projectiontest.Answer, 1)
	go func() { answer <- projectiontest.Ask(t, api, path+"?wait=30s&after_event="+projectiontest.FoldedID(0)) }()
	<-heard
	p.add(projectiontest.UserCreated, id, false)
	p.workAll()
	(<-answer).Is(200, `"after_event":"applied"`, `"partition":3`)
	p.add(projectiontest.UserCreated, bad, false)
	p.add(projectiontest.UserUpdated, bad, true)
	p.add(projectiontest.UserUpdated, bad, false)
	p.workAll()
	projectiontest.Ask(t, api, "/v1/projections/user/"+bad+"?wait=30s&after_event="+projectiontest.FoldedID(3)).Is(409, `"outcome":"blocked"`)
}
