package chain

import (
	"encoding/binary"
	"encoding/json"
	"io/fs"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/harness"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/schemas"
)

// benchChain returns the handler of the pipeline that make bench measures, and one record
// of each of its two types.
func benchChain(t testing.TB) (*handler, []*pipeline.Record) {
	t.Helper()
	text, err := os.ReadFile(harness.RepoFile("pipeline", "e2e", "bench", "topology.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return chainOf(t, text, schemas.FS, map[string]string{
		"shop.OrderCreated": `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","timestamp":"1997-01-01T00:00:00.050Z","version":1,"metadata":{"channel":"web","region":"eu"},` +
			`"data":{"id":"o-000001","user_id":"u-00001","items":[{"product_id":"cd-17","quantity":1,"price":11.5},{"product_id":"lp-3","quantity":2,"price":8.5}],"total_amount":28.5}}`,
		"shop.UserCreated": `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e8","timestamp":"1997-01-01T00:00:00.050Z","version":1,"metadata":{"channel":"web","region":"eu"},` +
			`"data":{"id":"u-000001","email":"user-00001@example.com","name":"User Example"}}`,
	})
}

// decimalChain is benchChain with a decimal and a nullable field: a filter compares them,
// and a field is computed from them.
func decimalChain(t testing.TB) (*handler, []*pipeline.Record) {
	t.Helper()
	return chainOf(t, []byte(`
name: ${GROUP}
topics:
  ${INPUT}: {partitions: 4, types: [OrderPlaced]}
  ${OUTPUT}: {partitions: 4}
  ${OUTPUT}.dead_letters: {partitions: 1}
pipelines:
  enrich:
    from: ${INPUT}
    stages:
      - filter: {keep: "data.total > 10 && (data.discount == null || data.discount < data.total)"}
      - enrich:
          set:
            metadata.pipeline: "'bench'"
            metadata.processed_at: string(now())
            data.vat: "data.discount != null ? ((data.total - data.discount) * 19).div(119, 2, 'half_even') : null"
    to: ${OUTPUT}
    dead_letter: ${OUTPUT}.dead_letters
    guarantee: ${GUARANTEE}
`), os.DirFS(harness.RepoFile("examples", "shop-decimal", "schemas")), map[string]string{
		"money.OrderPlaced": `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","timestamp":"1997-01-01T00:00:00.050Z","version":1,"metadata":{"channel":"web","region":"eu"},` +
			`"data":{"id":"o-000001","user_id":"u-00001","items":[{"product_id":"cd-17","quantity":1,"price":"11.50"},{"product_id":"lp-3","quantity":2,"price":"8.50"}],"discount":"0.50","total":"28.00"}}`,
	})
}

// chainOf returns the handler of the pipeline enrich, and one record of each of its types.
func chainOf(t testing.TB, text []byte, types fs.FS, events map[string]string) (*handler, []*pipeline.Record) {
	t.Helper()
	variables := map[string]string{"GROUP": "bench", "INPUT": "events", "OUTPUT": "out", "GUARANTEE": "exactly_once"}
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: text}, topology.Options{
		Schemas: types, SchemasName: "schemas", Stages: stage.Builtin(), Clock: time.Now,
		LookupEnv: func(name string) (string, bool) { v, ok := variables[name]; return v, ok },
		File:      func(string) ([]byte, error) { return []byte("id,email,name,status\n"), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	pl := plan.Pipelines[0]
	if pl.Name != "enrich" {
		t.Fatalf("the pipeline is %s, want enrich", pl.Name)
	}
	known := eventtest.Schemas{}
	var records []*pipeline.Record
	ids := make([]int, len(pl.Types))
	for i, s := range pl.Types {
		ids[i] = 100 + i
		known[ids[i]] = s
		var event any
		if err := json.Unmarshal([]byte(events[s.Name()]), &event); err != nil {
			t.Fatal(err)
		}
		value, err := codec.AppendAvro(codec.AppendFrame(nil, ids[i]), s, event)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, &pipeline.Record{Topic: "events", Key: []byte("key-1"), Value: value, Time: time.UnixMilli(1), Started: time.UnixMilli(2)})
	}
	c := config{
		topology: plan, schemas: known, ids: map[string][]int{pl.To.Name: ids}, metrics: NewMetrics(prometheus.NewRegistry()),
		now: time.Now, log: slog.New(slog.DiscardHandler),
	}
	return c.newHandler(pl), records
}

// lastRecord counts the emitted records and keeps the last one.
type lastRecord struct {
	n    int
	last pipeline.Record
}

func (l *lastRecord) Emit(r *pipeline.Record) { l.n, l.last = l.n+1, *r }

// batchOfBench is the number of events in a batch.
const batchOfBench = 4096

// An event that is decoded, filtered, enriched, encoded and emitted allocates nothing.
func TestChainAllocatesNothingPerEvent(t *testing.T) {
	t.Run("doubles", func(t *testing.T) { allocatesNothing(t, benchChain) })
	t.Run("decimals", func(t *testing.T) { allocatesNothing(t, decimalChain) })
}

func allocatesNothing(t *testing.T, chain func(testing.TB) (*handler, []*pipeline.Record)) {
	h, records := chain(t)
	var out lastRecord
	batch := func() {
		for i := range batchOfBench {
			if err := h.Handle(t.Context(), records[i%len(records)], &out); err != nil {
				t.Fatal(err)
			}
		}
		h.batch.reset() // without the rest of EndBatch, which allocates per batch
		h.output.memory.reset()
	}
	if n := testing.AllocsPerRun(20, batch); n != 0 {
		t.Errorf("%v allocations in %d events", n, batchOfBench)
	}
	if want := 21 * batchOfBench; out.n != want {
		t.Errorf("%d of %d events were emitted", out.n, want)
	}
	last := len(records) - 1
	if got, in := out.last.Value, records[last].Value; len(got) <= len(in) || binary.BigEndian.Uint32(got[1:]) != uint32(100+last) {
		t.Errorf("%q became %q", in, got)
	}
}

func BenchmarkChain(b *testing.B) { measured(b, benchChain) }

func BenchmarkChainDecimals(b *testing.B) { measured(b, decimalChain) }

func measured(b *testing.B, chain func(testing.TB) (*handler, []*pipeline.Record)) {
	h, records := chain(b)
	var out lastRecord
	ctx := b.Context()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if err := h.Handle(ctx, records[n%len(records)], &out); err != nil {
			b.Fatal(err)
		}
		if n++; n%batchOfBench == 0 {
			h.EndBatch(true)
		}
	}
	if out.n != n {
		b.Fatalf("%d of %d events were emitted", out.n, n)
	}
}
