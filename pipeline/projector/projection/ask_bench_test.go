package projection_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/reader"
	"millrace/pipeline/store"
)

// asking is a projection of one partition on disk, with a handler that answers questions
// about it.
type asking struct {
	set     *projection.Set
	handler *projection.Handler
	api     http.Handler
	next    int64
	types   []*codec.Schema
}

func newAsking(b *testing.B) *asking {
	b.Helper()
	types := projectiontest.UserTypes(b)
	s, err := store.Open(b.TempDir(), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	ps := projection.New(projection.Config{
		Store: s, Registry: eventtest.SchemaList(types), Progress: func(topic string, partition int32) kafka.PartitionProgress {
			return kafka.PartitionProgress{Topic: topic, Partition: partition, End: 1 << 40}
		},
		Restore: func(context.Context, string, int32, func(*pipeline.Record) error) (int64, error) { return 0, nil },
		Projections: []projection.Spec{{
			Fold: projectiontest.UserFold(b, "user", "active"), Events: kafka.TopicInfo{Name: projectiontest.EventsTopic, ID: "t-1", Partitions: 1}, Types: types,
			Identity: "bench", Snapshots: projectiontest.SnapshotsTopic, SnapshotID: 100,
		}},
	})
	a := &asking{set: ps, handler: ps.NewHandler(), types: types}
	if _, err := a.handler.Assign(b.Context(), []kafka.Partition{{Topic: projectiontest.EventsTopic, Committed: -1, End: 1 << 40}}); err != nil {
		b.Fatal(err)
	}
	a.api = query.Handler(slog.New(slog.DiscardHandler), query.DefaultFeeds, reader.New(ps, ps.Projection("user"), reader.Config{}))
	b.Cleanup(func() {
		ps.Close()
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	return a
}

// discarded is an Emitter that is as fast as can be.
type discarded struct{}

func (discarded) Emit(*pipeline.Record) {}

// fold folds one event, and ends a batch after every 50,000 events.
func (a *asking) fold(b *testing.B, value []byte) {
	in := pipeline.Record{Topic: projectiontest.EventsTopic, Offset: a.next, Value: value, Time: time.UnixMilli(1767225600_000 + a.next)}
	if err := a.handler.Handle(b.Context(), &in, discarded{}); err != nil {
		b.Fatal(err)
	}
	if a.next++; a.next%50_000 == 0 {
		a.flush(b)
	}
}

// settle writes everything that was folded to the store.
func (a *asking) settle(b *testing.B) {
	a.flush(b)
	// A partition that was folded just now is not stored for a question.
	time.Sleep(100 * time.Millisecond) //nolint:forbidigo // a benchmark, before it measures
	for _, p := range a.set.Partitions(a.set.Projection("user")) {
		p.Freshen()
		if next, _, err := p.Position(); next != a.next || err != nil {
			b.Fatalf("the store is at offset %d (%v), want %d", next, err, a.next)
		}
	}
}

func (a *asking) flush(b *testing.B) {
	if err := a.handler.Flush(b.Context(), discarded{}); err != nil {
		b.Fatal(err)
	}
	a.handler.EndBatch(true)
}

// BenchmarkAsk measures questions about an aggregate with a history of 100,000 events,
// among as many events of other aggregates.
func BenchmarkAsk(b *testing.B) {
	a := newAsking(b)
	const events = 100_000
	for i := range events {
		typ := projectiontest.UserUpdated
		if i == 0 {
			typ = projectiontest.UserCreated
		}
		a.fold(b, projectiontest.UserEvent(b, a.types, typ, 2*i, "u"))
		a.fold(b, projectiontest.UserEvent(b, a.types, projectiontest.UserCreated, 2*i+1, fmt.Sprint("other-", i)))
	}
	a.settle(b)
	rng := rand.New(rand.NewPCG(1, 2))
	for name, path := range map[string]func() string{
		"now":     func() string { return "/v1/projections/user/u" },
		"version": func() string { return fmt.Sprint("/v1/projections/user/u?at_version=", 1+rng.IntN(events)) },
		"time": func() string {
			return "/v1/projections/user/u?at_time=" + time.UnixMicro(1767225600_000000+int64(rng.IntN(2*events))).UTC().Format(time.RFC3339Nano)
		},
		"history": func() string {
			return fmt.Sprint("/v1/projections/user/u/history?limit=100&before=", 101+rng.IntN(events-101))
		},
		"why":    func() string { return "/v1/projections/user/u/why" },
		"diff":   func() string { return fmt.Sprint("/v1/projections/user/u/diff?to=", 2+rng.IntN(events-1)) },
		"list":   func() string { return "/v1/projections/user?limit=100" },
		"filter": func() string { return "/v1/projections/user?limit=100&filter=state.name.endsWith('77')" },
		"sort":   func() string { return "/v1/projections/user?limit=100&sort=-state.name" },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				w := httptest.NewRecorder()
				r := httptest.NewRequest(http.MethodGet, path(), nil)
				a.api.ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					b.Fatalf("%s: %d %s", r.URL, w.Code, w.Body)
				}
			}
		})
	}
}

// BenchmarkReadsWhileFolding sends 2,000 requests for states per second over HTTP while
// events are folded, at a fixed rate or at full speed, and reports the latency of the
// answers. Client and server share the cores with the folding.
func BenchmarkReadsWhileFolding(b *testing.B) {
	b.Run("fold=20000", func(b *testing.B) { benchmarkReads(b, 20_000) })
	b.Run("fold=max", func(b *testing.B) { benchmarkReads(b, 0) })
}

func benchmarkReads(b *testing.B, pace int) {
	const users, rate = 100_000, 2000
	a := newAsking(b)
	values := make([][]byte, users)
	for i := range values {
		values[i] = projectiontest.UserEvent(b, a.types, projectiontest.UserUpdated, i, fmt.Sprint("u-", i))
		a.fold(b, projectiontest.UserEvent(b, a.types, projectiontest.UserCreated, users+i, fmt.Sprint("u-", i)))
	}
	a.settle(b)
	srv := httptest.NewServer(a.api)
	defer srv.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

	// Each event gets an id of its own when it is folded.
	done := make(chan struct{})
	var folding sync.WaitGroup
	var folded atomic.Int64
	folding.Go(func() {
		rng := rand.New(rand.NewPCG(3, 4))
		pause := time.NewTicker(10 * time.Millisecond)
		defer pause.Stop()
		for n := 0; ; n++ {
			if pace > 0 && n%(pace/100) == 0 {
				a.flush(b) // as a worker that keeps up does
				<-pause.C
			}
			select {
			case <-done:
				return
			default:
			}
			v := values[rng.IntN(users)]
			copy(v[6+24:6+36], fmt.Sprintf("%012x", 1<<40+n))
			a.fold(b, v)
			folded.Add(1)
		}
	})

	var mu sync.Mutex
	var took []time.Duration
	var asking sync.WaitGroup
	rng := rand.New(rand.NewPCG(5, 6))
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	began := time.Now()
	b.ResetTimer()
	for range b.N {
		<-tick.C
		url := fmt.Sprint(srv.URL, "/v1/projections/user/u-", rng.IntN(users))
		asking.Go(func() {
			at := time.Now()
			resp, err := client.Get(url)
			if err != nil {
				b.Error(err)
				return
			}
			if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
				b.Error(resp.Status, err)
			}
			mu.Lock()
			took = append(took, time.Since(at))
			mu.Unlock()
		})
	}
	asking.Wait()
	seconds := time.Since(began).Seconds()
	close(done)
	folding.Wait()
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(len(took)-1, int(q*float64(len(took))))].Microseconds()) / 1000
	}
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(at(0.999), "p999-ms")
	b.ReportMetric(float64(len(took))/seconds, "requests/s")
	b.ReportMetric(float64(folded.Load())/seconds, "events/s")
	b.ReportMetric(0, "ns/op")
}
