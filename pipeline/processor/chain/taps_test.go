package chain

import (
	"encoding/json"
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

// tapBench is a session without Kafka.
func tapBench(t *testing.T) (*Taps, *Handler, *pipeline.Record) {
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(harness.PlainTopology)}, topology.Options{Schemas: harness.ClickSchemas})
	if err != nil {
		t.Fatal(err)
	}
	pl := plan.Pipelines[0]
	reg := prometheus.NewRegistry()
	watched := NewTaps(reg, plan.Pipelines, nil, time.Now)
	h := Config{
		Topology: plan, Schemas: eventtest.SchemaList(pl.Types), IDs: map[string][]int{"out": {1}},
		Metrics: NewMetrics(reg), StateMetrics: NewStateMetrics(reg), taps: watched, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	}.NewHandler(pl)
	value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, 0), "a"), 1)
	return watched, h, &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: []byte("a"), Value: value, Time: time.UnixMilli(0)}
}

// One who does not read is not waited for: what does not fit is counted.
func TestTapNeverHoldsUpAPipeline(t *testing.T) {
	watched, h, rec := tapBench(t)
	c, err := watched.client(url.Values{"rate": {"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	leave, ok := watched.join(c)
	if !ok {
		t.Fatal("it is full")
	}
	c.tokens = 1e9 // as if it had waited for long
	c.rate = 1e9
	const perEvent = 6
	n := tapBuffer/perEvent + 100
	var out Records
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
		t.Errorf("the first line after those says %s", line)
	}
	leave()
	before := len(c.lines)
	if err := h.Handle(t.Context(), rec, &out); err != nil || len(c.lines) != before || h.tap.on {
		t.Errorf("it goes on after it has left: %v", err)
	}
}

func TestTapCostsNothingWhenNobodyWatches(t *testing.T) {
	_, h, rec := tapBench(t)
	if n := testing.AllocsPerRun(100, func() {
		h.tap.begin(rec)
		h.tap.end(rec, "", nil)
	}); n != 0 {
		t.Errorf("%v allocations an event", n)
	}
}

// What is no event has no stage, and is shown all the same.
func TestTapShowsWhatCannotBeDecoded(t *testing.T) {
	watched, h, rec := tapBench(t)
	c, err := watched.client(url.Values{"stage": {deadletter.StageDecode}})
	if err != nil {
		t.Fatal(err)
	}
	leave, _ := watched.join(c)
	defer leave()
	rec.Value = []byte("{}")
	if err := h.Handle(t.Context(), rec, &Records{}); err != nil {
		t.Fatal(err)
	}
	select {
	case line := <-c.lines:
		harness.WantLines(t, string(line), `"stage":"decode","at":"failed"`, `"reason":"bad_frame"`)
	default:
		t.Error("it is not shown")
	}
}

func TestMasksHideFields(t *testing.T) {
	event := `{"id":"u-1","data":{"email":"a@b","items":[{"sku":"x","price":2}],"name":null}}`
	for _, test := range []struct {
		mask []string
		want string
	}{
		{nil, event},
		{[]string{"data.email"}, `{"id":"u-1","data":{"email":"***","items":[{"sku":"x","price":2}],"name":null}}`},
		{[]string{"email"}, `{"id":"u-1","data":{"email":"***","items":[{"sku":"x","price":2}],"name":null}}`},
		{[]string{"data.items.sku"}, `{"id":"u-1","data":{"email":"a@b","items":[{"sku":"***","price":2}],"name":null}}`},
		{[]string{"items"}, `{"id":"u-1","data":{"email":"a@b","items":"***","name":null}}`},
		{[]string{"*"}, `{"id":"***","data":{"email":"***","items":[{"sku":"***","price":"***"}],"name":"***"}}`},
	} {
		l := TraceLine{Key: "u-1", Event: json.RawMessage(event), Error: "a@b is bad"}
		maskLine(&l, test.mask)
		if string(l.Event) != test.want {
			t.Errorf("%v: %s\nwant %s", test.mask, l.Event, test.want)
		}
		if (l.Error == maskedValue) != (test.mask != nil) {
			t.Errorf("%v: the error is %q", test.mask, l.Error)
		}
	}
}
