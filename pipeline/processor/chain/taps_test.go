package chain

import (
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
)

// tapBench returns a handler without Kafka, the Taps that show its events, and a record.
func tapBench(t *testing.T) (*Taps, *handler, *pipeline.Record) {
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(harness.PlainTopology)}, topology.Options{Schemas: harness.ClickSchemas})
	if err != nil {
		t.Fatal(err)
	}
	pl := plan.Pipelines[0]
	reg := prometheus.NewRegistry()
	watched := NewTaps(reg, plan.Pipelines, nil, time.Now)
	h := config{
		topology: plan, schemas: eventtest.SchemaList(pl.Types), ids: map[string][]int{"out": {1}},
		metrics: NewMetrics(reg), taps: watched, now: time.Now, log: slog.New(slog.DiscardHandler),
	}.newHandler(pl)
	value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, 0), "a"), 1)
	return watched, h, &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: []byte("a"), Value: value, Time: time.UnixMilli(0)}
}

// A client that does not read delays nothing. Lines that do not fit into its queue are
// counted.
func TestSlowTapClientDoesNotDelayThePipeline(t *testing.T) {
	watched, h, rec := tapBench(t)
	c, err := watched.client(url.Values{"rate": {"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	leave, ok := watched.join(c)
	if !ok {
		t.Fatal("the client was refused")
	}
	c.tokens, c.rate = 1e9, 1e9 // no limit
	const perEvent = 6
	n := tapBuffer/perEvent + 100
	var out collector
	for range n {
		if err := h.Handle(t.Context(), rec, &out); err != nil {
			t.Fatal(err)
		}
	}
	if want := int64(n*perEvent - tapBuffer); c.dropped.Load() != want || testutil.ToFloat64(watched.dropped) != float64(want) {
		t.Errorf("%d lines dropped, %v in the metric, want %d", c.dropped.Load(), testutil.ToFloat64(watched.dropped), want)
	}
	<-c.lines
	if err := h.Handle(t.Context(), rec, &out); err != nil {
		t.Fatal(err)
	}
	for len(c.lines) > 1 {
		<-c.lines
	}
	if line := string(<-c.lines); !strings.Contains(line, fmt.Sprintf(`"dropped":%d}`, n*perEvent-tapBuffer)) {
		t.Errorf("the first line after the dropped ones is %s", line)
	}
	leave()
	before := len(c.lines)
	if err := h.Handle(t.Context(), rec, &out); err != nil || len(c.lines) != before || h.tap.on {
		t.Errorf("the client still receives events after it left: %v", err)
	}
}

func TestTapAllocatesNothingWithoutClients(t *testing.T) {
	_, h, rec := tapBench(t)
	if n := testing.AllocsPerRun(100, func() {
		h.tap.begin(t.Context(), rec, h.input.keys)
		h.tap.end(rec, "", nil)
	}); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}

// A record that cannot be decoded reaches no stage, but a client can watch it.
func TestTapShowsRecordsThatCannotBeDecoded(t *testing.T) {
	watched, h, rec := tapBench(t)
	c, err := watched.client(url.Values{"stage": {deadletter.StageDecode}})
	if err != nil {
		t.Fatal(err)
	}
	leave, _ := watched.join(c)
	defer leave()
	rec.Value = []byte("{}")
	if err := h.Handle(t.Context(), rec, &collector{}); err != nil {
		t.Fatal(err)
	}
	select {
	case line := <-c.lines:
		harness.WantLines(t, string(line), `"stage":"decode","at":"failed"`, `"reason":"bad_frame"`)
	default:
		t.Error("the record is not shown")
	}
}
