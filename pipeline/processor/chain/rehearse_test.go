package chain_test

import (
	"fmt"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
)

// A rehearsal returns what a worker would write for each event: nothing, an event, or a
// dead letter. A duplicate is filtered, and the id of a rejected event is not in the state.
func TestRehearsalReturnsTheOutputOfEachEvent(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(processortest.DedupeTopology, "exactly_once"))
	pl := b.Plan.Pipelines[0]
	r, err := chain.NewOfflineRehearsal(b.Plan, pl, eventtest.SchemaList(pl.Types), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var counts chain.Counts
	got := ""
	for i, n := range []int64{13, 1, 2} { // rejected, new, duplicate
		value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, 0), "a"), n)
		in := &pipeline.Record{Topic: "in", Offset: int64(i), Key: []byte("a"), Value: value, Time: time.UnixMilli(0)}
		out, err := r.Run(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		counts.Add(out)
		for j := range out {
			s := out[j].Sample(in)
			got += fmt.Sprintf("%d to %s: %s%s %s; ", s.Offset, s.To, s.Event, s.Stage, s.Reason)
		}
	}
	if want := `0 to dead: assert assert; 1 to out: {"id":"a","n":1} ; `; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if want := "{3 1 1 map[assert:1] 0 {0 0 0}}"; fmt.Sprint(counts) != want {
		t.Errorf("counts are %v, want %s", counts, want)
	}
	stages := ""
	r.StageCounts(func(stage string, n pipeline.StageCounts) {
		stages += fmt.Sprintf("%s %d %d %d; ", stage, n.In, n.Passed, n.Filtered)
	})
	if want := "dedupe 3 2 1; assert 2 1 0; "; stages != want {
		t.Errorf("stage counts are %s, want %s", stages, want)
	}
}
