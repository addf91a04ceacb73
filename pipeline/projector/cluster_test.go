package projector

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/reader"
	"millrace/pipeline/receipt"
	"millrace/pipeline/server/dial"
	"millrace/pipeline/store"
)

// party is a group of workers without Kafka: each has a store and an HTTP server, and the
// partitions that the test assigns.
type party struct {
	t          *testing.T
	types      []*codec.Schema
	fold       *fold.Fold
	partitions int
	logs       [][]pipeline.Record
	sent       int
	control    *control.Follower // shared by all workers
	offset     int64             // next offset of the control topic
	peers      map[string]*peer

	// What the workers that are started later get.
	noHistory bool
	upstream  *receipt.Upstream
}

// peer is a worker of a party.
type peer struct {
	*party
	name    string
	disk    vfs.FS
	store   *store.Store
	handler *projection.Handler
	reader  *clusterReader

	roster    *roster
	others    *peers
	announcer *announcer
	advertise string // address that the worker announces

	server *httptest.Server
	front  *httptest.Server // in front of server, if its requests are observed
	at     map[int32]int64  // next offset to be read
	behind atomic.Bool      // it has not caught up
}

const partyGroup = "party-projector"

func newParty(t *testing.T, partitions int, names ...string) *party {
	t.Helper()
	p := &party{t: t, types: projectiontest.UserTypes(t), fold: projectiontest.UserFold(t, "user", "active"), partitions: partitions, logs: make([][]pipeline.Record, partitions), control: control.NewFollower(kafka.Config{}, "shop-control"), peers: map[string]*peer{}}
	for _, name := range names {
		p.start(name, vfs.NewMem())
	}
	return p
}

// start starts a worker.
func (p *party) start(name string, disk vfs.FS) *peer {
	p.t.Helper()
	w := &peer{party: p, name: name, disk: disk, at: map[int32]int64{}}
	var err error
	if w.store, err = store.Open("data", store.Options{FS: disk}); err != nil {
		p.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	events := kafka.TopicInfo{Name: projectiontest.EventsTopic, ID: "t-1", Partitions: p.partitions}
	set := projection.New(projection.Config{
		Store: w.store, Registry: projectiontest.Registry(p.t, p.types), Log: log, NoHistory: p.noHistory,
		Projections: []projection.Spec{{
			Fold: p.fold, Events: events, Types: p.types, Identity: projection.Identity("c", events, kafka.TopicInfo{ID: "s-1"}, kafka.TopicInfo{}, p.fold),
			Snapshots: projectiontest.SnapshotsTopic, SnapshotID: 100,
		}},
		Restore: func(context.Context, string, int32, func(*pipeline.Record) error) (int64, error) { return 0, nil },
		Tail: func(_ context.Context, _ string, partition int32, from int64, f func(*pipeline.Record) error) error {
			for i := from; i < int64(len(p.logs[partition])); i++ {
				if err := f(&p.logs[partition][i]); err != nil {
					return err
				}
			}
			return nil
		},
		Hidden: func(_ projection.Key, left bool) bool { return left && w.others.exist() || w.behind.Load() },
		Progress: func(topic string, partition int32) kafka.PartitionProgress {
			return kafka.PartitionProgress{Topic: topic, Partition: partition, End: 1 << 30}
		}, // readers ask for it while events are added
	})
	w.handler = set.NewHandler()
	one := set.Projection("user")
	local := reader.New(set, one, reader.Config{Group: partyGroup, Upstream: p.upstream})
	wanted := wantedVersion{name: one.Name(), record: control.VersionRecord{Version: 1}}
	w.roster = newRoster()
	w.roster.add(&groupLoop{group: partyGroup, wanted: []wantedVersion{wanted}, set: set, readers: []*reader.Reader{local}})
	w.roster.setLive(map[string]liveVersion{one.Name(): {local, 1, false}})
	call, _ := dial.Open(log, dial.Files{}) // no file can fail
	w.others = &peers{instance: name, control: p.control, caller: call, transport: call.Transport(&http.Transport{})}
	w.announcer = &announcer{instance: name, roster: w.roster, address: func() string { return w.advertise }}
	w.reader = &clusterReader{local: local, name: one.Name(), version: 1, peers: w.others, roster: w.roster}
	mux := http.NewServeMux()
	mux.Handle("/v1/", query.Handler(log, query.DefaultFeeds, w.reader))
	(&internalAPI{roster: w.roster, log: log}).register(mux)
	w.server = httptest.NewServer(mux)
	w.advertise = strings.TrimPrefix(w.server.URL, "http://")
	p.peers[name] = w
	p.t.Cleanup(func() { w.stop() })
	return w
}

// announce announces the partitions of a worker; with gone, that it stops.
func (w *peer) announce(gone bool) {
	w.t.Helper()
	r := &pipeline.Record{Key: []byte(control.WorkerPrefix + w.name), Offset: w.offset}
	w.offset++
	if !gone {
		var err error
		if r.Value, err = json.Marshal(w.announcer.record()); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.control.Apply(r); err != nil {
		w.t.Fatal(err)
	}
}

// assign assigns partitions to a worker.
func (w *peer) assign(partitions ...int32) {
	w.t.Helper()
	for _, n := range partitions {
		from, err := w.handler.Assign(w.t.Context(), []kafka.Partition{{Topic: projectiontest.EventsTopic, Partition: n, Committed: -1, End: int64(len(w.logs[n]))}})
		if err != nil {
			w.t.Fatal(err)
		}
		w.at[n] = from[0]
	}
	w.work()
	w.announce(false)
}

// revoke revokes partitions.
func (w *peer) revoke(partitions ...int32) {
	for _, n := range partitions {
		w.handler.Revoke([]kafka.Partition{{Topic: projectiontest.EventsTopic, Partition: n}})
		delete(w.at, n)
	}
	w.announce(false)
}

// work reads to the end of each partition.
func (w *peer) work() {
	w.t.Helper()
	var out harness.Emitted
	for n := range w.at {
		for ; w.at[n] < int64(len(w.logs[n])); w.at[n]++ {
			if err := w.handler.Handle(w.t.Context(), &w.logs[n][w.at[n]], &out); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	if err := w.handler.Flush(w.t.Context(), &out); err != nil {
		w.t.Fatal(err)
	}
	w.handler.EndBatch(true)
}

// kill ends a worker without an announcement. Its disk is left.
func (w *peer) kill() {
	w.t.Helper()
	if w.peers[w.name] != w {
		return
	}
	delete(w.peers, w.name)
	w.server.CloseClientConnections()
	if w.front != nil {
		w.front.CloseClientConnections()
		w.front.Close()
	}
	w.roster.all()[0].set.Close()
	w.server.CloseClientConnections()
	w.server.Close()
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
	w.others.transport.CloseIdleConnections()
}

func (w *peer) stop() {
	if w.peers[w.name] == w {
		w.announce(true)
		w.kill()
	}
}

// add adds an event; a poisoned one cannot be folded.
func (p *party) add(typ int, id string, poisoned bool) int32 {
	n := kafka.PartitionOf([]byte(id), p.partitions)
	r := pipeline.Record{Topic: projectiontest.EventsTopic, Partition: n, Offset: int64(len(p.logs[n])), Key: []byte(id), Value: projectiontest.UserEvent(p.t, p.types, typ, p.sent, id), Time: time.UnixMilli(int64(p.sent))}
	if poisoned {
		r.Value = append(codec.AppendFrame(nil, typ), 0xff)
	}
	p.logs[n] = append(p.logs[n], r)
	p.sent++
	return n
}

func (p *party) workAll() {
	for _, w := range p.peers {
		w.work()
	}
}

// ask sends a request to a worker.
func (w *peer) ask(method, path string) projectiontest.Answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		w.t.Fatal(err)
	}
	a := projectiontest.Answer{T: w.t, Status: resp.StatusCode, Header: resp.Header, Body: body.String()}
	if err := json.Unmarshal(body.Bytes(), &a.JSON); err != nil {
		w.t.Fatalf("%s: %v: %s", path, err, a.Body)
	}
	return a
}

// id returns the nth id of an aggregate that belongs to a partition.
func (p *party) id(partition int32, n int) string {
	for i := 0; ; i++ {
		if id := fmt.Sprintf("u-%d-%d", n, i); kafka.PartitionOf([]byte(id), p.partitions) == partition {
			return id
		}
	}
}

// split returns a party of two workers with two partitions each.
func split(t *testing.T) (p *party, a, b *peer) {
	p = newParty(t, 4, "a", "b")
	a, b = p.peers["a"], p.peers["b"]
	a.assign(0, 1)
	b.assign(2, 3)
	return p, a, b
}

func TestAnyWorkerListsTheEventsOfAllWorkers(t *testing.T) {
	p, a, b := split(t)
	const n = 20
	var want []string // the latest first
	for i := range n {
		p.add(projectiontest.UserCreated, p.id(int32(i%4), i), false)
		want = append([]string{projectiontest.FoldedID(i)}, want...)
	}
	p.workAll()
	for _, w := range []*peer{a, b} {
		for _, limit := range []int{1, 7, n, n + 1} {
			var got []string
			for cursor := ""; ; {
				page := w.ask(http.MethodGet, fmt.Sprint("/v1/events?type=UserCreated&limit=", limit, "&cursor=", url.QueryEscape(cursor)))
				page.Is(200)
				if at := page.JSON["partitions"].([]any); len(at) != 4 {
					t.Errorf("a page of %d partitions", len(at))
				}
				got = append(got, page.Items("id")...)
				var more bool
				if cursor, more = page.JSON["next_cursor"].(string); !more {
					break
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, by pages of %d: %v, want %v", w.name, limit, got, want)
			}
		}
		if got := w.ask(http.MethodGet, "/v1/projections/user").Items("id"); len(got) != n || !slices.IsSorted(got) {
			t.Errorf("%s lists %v", w.name, got)
		}
	}
	// If a worker cannot be reached, or partitions are with no worker, there is no answer.
	b.kill()
	for _, path := range []string{"/v1/events?type=UserCreated", "/v1/projections/user", "/v1/blocked/user", "/v1/projections/user/feed"} {
		got := a.ask(http.MethodGet, path)
		got.Is(421, "worker b at "+b.advertise)
		if got.Header.Get("Retry-After") == "" {
			t.Errorf("%s does not say when to try again", path)
		}
	}
	b.announce(true)
	for _, path := range []string{"/v1/events?type=UserCreated", "/v1/projections/user", "/v1/blocked/user"} {
		a.ask(http.MethodGet, path).Is(421, "no worker that is ready has 2, 3")
	}
	// A worker that is gone is not needed when others have its partitions.
	a.assign(2, 3)
	if got := a.ask(http.MethodGet, "/v1/events?type=UserCreated&limit=100").Items("id"); !slices.Equal(got, want) {
		t.Errorf("alone: %v, want %v", got, want)
	}
}

func TestAnyWorkerListsAndReleasesTheBlockedAggregatesOfAllWorkers(t *testing.T) {
	p, a, b := split(t)
	here, there := p.id(0, 1), p.id(3, 2)
	for _, id := range []string{here, there} {
		p.add(projectiontest.UserCreated, id, false)
		p.add(projectiontest.UserUpdated, id, true)
		p.add(projectiontest.UserUpdated, id, false)
	}
	well := p.id(2, 3)
	p.add(projectiontest.UserCreated, well, false)
	p.workAll()
	first := a.ask(http.MethodGet, "/v1/blocked/user?limit=1")
	first.Is(200, `"id":"`+here+`","partition":0,"offset":1,`)
	a.ask(http.MethodGet, "/v1/blocked/user?limit=1&cursor="+first.JSON["next_cursor"].(string)).Is(200, `"id":"`+there+`","partition":3,"offset":1,`)
	if got := b.ask(http.MethodGet, "/v1/blocked/user").Items("id"); !slices.Equal(got, []string{here, there}) {
		t.Errorf("b lists %v", got)
	}

	release := func(w *peer, id, query string) projectiontest.Answer {
		t.Helper()
		return w.ask(http.MethodPost, "/v1/blocked/user/"+id+"/release"+query)
	}
	release(a, there, "").Is(200, `"events":0,"blocked":{"id":"`+there+`"`)
	release(a, there, "?skip=true").Is(200, `"id":"`+there+`","events":2}`)
	release(b, here, "?skip=true").Is(200, `"events":2}`)
	p.workAll()
	for _, id := range []string{here, there, well} {
		release(a, id, "").Is(409, "is not blocked", "projector blocked user")
	}
	release(b, "nobody", "").Is(404, "projector blocked user")
	b.ask(http.MethodGet, "/v1/blocked/user").Is(200, `"items":[]`)

	// The worker that may have the aggregate cannot be reached.
	b.kill()
	started := time.Now()
	release(a, there, "").Is(421, "worker b at")
	if took := time.Since(started); took < forwardWait {
		t.Errorf("it gave up after %v, although b may come back", took)
	}
}

// A worker that got a request for a release and did not answer may have released the
// aggregate.
func TestAReleaseWithoutAnAnswerIsNotTriedAgain(t *testing.T) {
	p, a, b := split(t)
	b.revoke(2, 3)
	var asked int
	var mu sync.Mutex
	gone := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodPost {
			asked++
		}
		panic(http.ErrAbortHandler)
	}))
	defer gone.Close()
	b.advertise = strings.TrimPrefix(gone.URL, "http://")
	b.at = map[int32]int64{}
	b.assign(2, 3)
	a.ask(http.MethodPost, "/v1/blocked/user/"+p.id(2, 1)+"/release").Is(504, "the result is unknown", "projector blocked user")
	mu.Lock()
	if asked != 1 {
		t.Errorf("%d requests for a release", asked)
	}
	mu.Unlock()
	a.ask(http.MethodGet, "/v1/blocked/user").Is(421, "worker b at")
}

// watching reads a feed in the background.
type watching struct {
	t      *testing.T
	mu     sync.Mutex
	more   chan struct{}
	order  map[int]int64    // by partition, the last event's offset
	have   map[string]int64 // versions
	states int
	last   string // last event id
	kinds  map[string]int
	data   map[string]string // the last of each kind
}

func newWatching(t *testing.T) *watching {
	return &watching{t: t, more: make(chan struct{}, 1), order: map[int]int64{}, have: map[string]int64{}, kinds: map[string]int{}, data: map[string]string{}}
}

// take takes a message. No state may come twice, or out of the order of its partition.
func (w *watching) take(m projectiontest.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kinds[m.Event]++
	w.data[m.Event] = m.Data
	if m.ID != "" {
		w.last = m.ID
	}
	if m.Event == "snapshot" {
		var s struct {
			ID        string `json:"id"`
			Partition int    `json:"partition"`
			Version   int64  `json:"version"`
			Offset    int64  `json:"event_offset"`
		}
		if err := json.Unmarshal([]byte(m.Data), &s); err != nil {
			w.t.Error(err)
		}
		if before := w.have[s.ID]; s.Version <= before {
			w.t.Errorf("%s comes at version %d after %d", s.ID, s.Version, before)
		}
		if before, ok := w.order[s.Partition]; ok && s.Offset <= before {
			w.t.Errorf("in partition %d offset %d comes after %d", s.Partition, s.Offset, before)
		}
		w.have[s.ID], w.order[s.Partition] = s.Version, s.Offset
		w.states++
	}
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// follow reads a feed until it is stopped, and connects again when it ends.
func (w *watching) follow(at string) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			if err := w.connect(ctx, at); err != nil && ctx.Err() == nil {
				w.t.Error(err)
				return
			}
		}
	})
	return func() { cancel(); work.Wait() }
}

func (w *watching) connect(ctx context.Context, at string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return err
	}
	w.mu.Lock()
	if w.last != "" {
		r.Header.Set("Last-Event-ID", w.last)
	}
	w.mu.Unlock()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	f := &projectiontest.Feed{T: w.t, In: bufio.NewScanner(resp.Body)}
	for {
		m, ok := f.Read()
		if !ok {
			return nil
		}
		w.take(m)
	}
}

// await waits for a condition.
func (w *watching) await(what string, cond func() bool) {
	w.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for {
		w.mu.Lock()
		done := cond()
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-w.more:
		case <-deadline.C:
			w.mu.Lock()
			defer w.mu.Unlock()
			w.t.Fatalf("waiting for %s took too long: %d states, %v, %v", what, w.states, w.kinds, w.data)
		}
	}
}

// end returns the event id of a feed that has reported everything.
func (p *party) end() string {
	var at []string
	for n, log := range p.logs {
		at = append(at, fmt.Sprint(n, "-", len(log)))
	}
	return strings.Join(at, ",")
}

func TestAFeedCoversAllWorkersAndContinuesAtAny(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	p, a, b := split(t)
	want := map[string]bool{}
	add := func(n int) {
		for range n {
			id := fmt.Sprint("u-", rng.IntN(2*p.sent+10))
			p.add(projectiontest.UserCreated, id, false)
			want[id] = true
		}
		p.workAll()
	}
	add(50)
	clear(want) // a feed from now on does not report these
	w := newWatching(t)
	path := "/v1/projections/user/feed"
	stop := w.follow(a.server.URL + path)
	w.await("the first frontier", func() bool { return w.kinds["frontier"] > 0 })
	if got := w.data["frontier"]; strings.Count(got, `"partition":`) != 4 {
		t.Errorf("the first frontier is %s", got)
	}
	caughtUp := func() {
		t.Helper()
		w.await("all that changed", func() bool { return w.last == p.end() })
	}
	add(40)
	caughtUp()
	// A partition moves to the other worker and back, with events before, in between and
	// after.
	for range 3 {
		add(10)
		b.revoke(3)
		add(5)
		a.assign(3)
		add(10)
		caughtUp()
		a.revoke(3, 0)
		add(5)
		b.assign(3, 0)
		add(10)
		caughtUp()
		b.revoke(0)
		a.assign(0)
	}
	// The client continues at the other worker.
	for range 3 {
		stop()
		add(20)
		stop = w.follow(b.server.URL + path)
		add(20)
		caughtUp()
		stop()
		add(20)
		stop = w.follow(a.server.URL + path)
		add(20)
		caughtUp()
	}
	stop()
	if w.kinds["end"] > 0 || w.kinds["stalled"] > 0 {
		t.Errorf("%v: %s %s", w.kinds, w.data["end"], w.data["stalled"])
	}
	// The last reported state of each aggregate is that of the store.
	for id, version := range w.have {
		got := a.ask(http.MethodGet, fmt.Sprint("/v1/projections/user?filter=", url.QueryEscape(fmt.Sprintf("id == '%s'", id))))
		if at := got.Items("version"); len(at) != 1 || at[0] != fmt.Sprint(version) {
			t.Errorf("%s was reported at version %d, and is at %v", id, version, at)
		}
	}
	for id := range want {
		if w.have[id] == 0 {
			t.Errorf("%s changed and was not reported", id)
		}
	}
}

func TestAFeedReportsStalledPartitionsWithAReason(t *testing.T) {
	p, a, b := split(t)
	for n := range int32(4) {
		p.add(projectiontest.UserCreated, p.id(n, 0), false)
	}
	p.workAll()
	w := newWatching(t)
	stop := w.follow(a.server.URL + "/v1/projections/user/feed?from=beginning")
	w.await("all states", func() bool { return w.states == 4 && w.last == "0-1,1-1,2-1,3-1" })
	b.kill()
	w.await("a report of the stall", func() bool { return w.kinds["stalled"] == 1 })
	for _, has := range []string{`{"partition":2,"offset":1,"detail":"worker b at ` + b.advertise, `{"partition":3,`} {
		if got := w.data["stalled"]; !strings.Contains(got, has) || strings.Contains(got, `"partition":0`) {
			t.Errorf("no %s in %s", has, got)
		}
	}
	// The other partitions continue, and frontiers cover only them.
	p.add(projectiontest.UserCreated, p.id(1, 1), false)
	a.work()
	w.await("the change at the other worker", func() bool { return w.states == 5 && w.last == "0-1,1-2,2-1,3-1" })
	was := w.frontiers()
	w.await("a frontier", func() bool { return w.kinds["frontier"] > was })
	if got := w.data["frontier"]; strings.Count(got, `"partition":`) != 2 {
		t.Errorf("the frontier is %s", got)
	}
	w.await("another report of the stall", func() bool { return w.kinds["stalled"] > 1 })
	stop()

	// A client that connects meanwhile gets the report, too.
	late := newWatching(t)
	late.last = w.last
	stop = late.follow(a.server.URL + "/v1/projections/user/feed")
	late.await("a report of the stall", func() bool { return late.kinds["stalled"] == 1 })

	p.add(projectiontest.UserCreated, p.id(2, 1), false)
	p.add(projectiontest.UserCreated, p.id(3, 1), false)
	was = late.frontiers()
	p.start("b", b.disk).assign(2, 3)
	late.await("the rest", func() bool { return late.states == 2 && late.last == "0-1,1-2,2-2,3-2" })
	late.await("a frontier", func() bool {
		return late.kinds["frontier"] > was && strings.Count(late.data["frontier"], `"partition":`) == 4
	})
	stop()
	if late.kinds["end"] > 0 {
		t.Errorf("it ended: %s", late.data["end"])
	}
}

func (w *watching) frontiers() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kinds["frontier"]
}

// hang makes a worker accept connections and send nothing.
func (w *peer) hang() {
	w.t.Helper()
	until := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-until }))
	w.t.Cleanup(func() { close(until); silent.Close() })
	w.advertise = strings.TrimPrefix(silent.URL, "http://")
	w.announce(false)
}

func TestAFeedReportsAWorkerThatHangs(t *testing.T) {
	p, a, b := split(t)
	p.add(projectiontest.UserCreated, p.id(0, 0), false)
	p.workAll()
	w := newWatching(t)
	stop := w.follow(a.server.URL + "/v1/projections/user/feed")
	w.await("the first frontier", func() bool { return w.kinds["frontier"] > 0 })
	b.hang()
	w.await("a report of the stall", func() bool { return w.kinds["stalled"] > 0 })
	if got := w.data["stalled"]; !strings.Contains(got, "worker b at "+b.advertise) {
		t.Error(got)
	}
	stop()
	a.ask(http.MethodGet, "/v1/events?type=UserCreated").Is(421, "no answer within 5s")
}

func TestAFeedEndsIfItCannotContinue(t *testing.T) {
	p, a, b := split(t)
	p.add(projectiontest.UserCreated, p.id(2, 0), false)
	p.workAll()
	for _, c := range []struct{ last, has string }{
		{"0-0,1-0,2-9999999999,3-0", "ends at"}, // at the other worker
		{"0-9999999999,1-0,2-0,3-0", "ends at"},
		{"0-0,4-0", "has 4"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/v1/projections/user/feed", nil)
		r.Header.Set("Last-Event-ID", c.last)
		out := httptest.NewRecorder()
		query.Handler(slog.New(slog.DiscardHandler), query.DefaultFeeds, a.reader).ServeHTTP(out, r)
		if out.Code != 400 || !strings.Contains(out.Body.String(), c.has) {
			t.Errorf("%s: %d %s", c.last, out.Code, out.Body)
		}
	}
	// Another version becomes live.
	all := projectiontest.Follow(t, b.server.URL+"/v1/projections/user/feed", "")
	all.Next("frontier")
	b.roster.setLive(nil)
	if m := all.Next("end"); !strings.Contains(m.Data, `"reason":"moved"`) || !strings.Contains(m.Data, "another version") {
		t.Errorf("%+v", m)
	}
	all.Done()
}
