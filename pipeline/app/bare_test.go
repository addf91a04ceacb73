package app

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
)

// A topic's expressions say what stages take for an event's id, time and key, what
// it is written under, and what its dead letter says. The record stays as it came.
func TestExpressionsStandForTheEnvelopeInPipelines(t *testing.T) {
	b := newBench(t, `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none, id: id, time: timestamp(n), key: "'key of ' + id"}
  out: {partitions: 1}
  dead: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - dedupe: {within: 1h}
      - assert: {that: "n != 13", message: "'thirteen'"}
`)
	stop := b.start("0")
	at := time.UnixMilli(1_800_000_000_000)
	events := []struct {
		id string
		n  int64 // the event's time, in seconds
	}{{"a", 3600}, {"a", 3601}, {"a", 7200}, {"b", 13}, {"", 1}}
	b.write(len(events), func(i int) *pipeline.Record {
		r := b.click(events[i].id, events[i].n, at)
		r.Key = []byte(fmt.Sprint("record ", i))
		return r
	})
	b.caughtUp()
	stop()
	var out []string
	b.read("out", func(r *pipeline.Record) {
		out = append(out, string(r.Key))
		if !r.Time.Equal(at) {
			t.Errorf("%s was written with the time %v, not that of the record", r.Key, r.Time)
		}
	})
	// By the records' time, the third would have come with the first. The last has
	// an id, which is empty, as every dedupe takes it.
	if want := []string{"key of a", "key of a", "key of "}; !slices.Equal(out, want) {
		t.Errorf("written under %q, want %q", out, want)
	}
	letters := 0
	b.read("dead", func(r *pipeline.Record) {
		letters++
		if string(r.Key) != "record 3" || !r.Time.Equal(at) {
			t.Errorf("the dead letter has key %q and time %v", r.Key, r.Time)
		}
		for name, want := range map[string]string{headerEventID: "b", headerEventKey: "key of b", headerEventTime: "1970-01-01T00:00:13Z"} {
			if got, _ := r.Header(name); string(got) != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	})
	if letters != 1 {
		t.Errorf("%d dead letters", letters)
	}
}

// Lanes go by the event's key, not by that of its record.
func TestLanesGoByTheKeyOfTheEvent(t *testing.T) {
	b := newBench(t, `
name: t
topics: {in: {partitions: 1, types: [Click], envelope: none, key: id}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines: {p: {from: in, to: out, dead_letter: dead}}
`)
	w := b.worker("0")
	h := newLanes(chainSetup{topology: b.plan, schemas: b.registry, ids: map[string][]int{"out": b.ids}, now: time.Now, log: w.log,
		chains: newChainMetrics(w.metrics), kept: newKeepMetrics(w.metrics)}, b.plan.Pipelines[0], 8)
	lanes := map[int]bool{}
	var out emitted
	for i := range 16 {
		r := b.click("one", 1, time.Now())
		r.Key, r.Offset = []byte(fmt.Sprint(i)), int64(i)
		if err := h.Handle(t.Context(), r, &out); err != nil {
			t.Fatal(err)
		}
		lanes[h.queue[len(h.queue)-1].lane] = true
	}
	bad := pipeline.Record{Topic: "in", Offset: 16, Key: []byte("k"), Value: []byte{1}}
	if err := h.Handle(t.Context(), &bad, &out); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	if len(lanes) != 1 || len(out) != 17 {
		t.Errorf("events of one key were in the lanes %v, and %d records came out", lanes, len(out))
	}
}

// The same event in an envelope and without one: bare says where it is then.
func bareCounts(bare expr.Bare, change func(*fold.Spec)) func(*fold.Spec) {
	return func(s *fold.Spec) {
		s.Bare, s.Key = &bare, expr.Source{}
		if change != nil {
			change(s)
		}
	}
}

func text(s string) expr.Source { return expr.Source{Text: s} }

// A topic's expressions say what folds take for an event's id, time and aggregate,
// and its history as well.
func TestExpressionsStandForTheEnvelopeInFolds(t *testing.T) {
	w := newCounts(t, bareCounts(expr.Bare{ID: text("'e/' + data.text"), Time: text("timestamp + duration('24h')"), Key: text("'k/' + data.id")}, nil))
	w.counted("k", 0, 0, "a")
	w.counted("k", 7, time.Minute, "b") // the number is one of envelopes
	w.counted("k", 0, 2*time.Minute, "a")
	w.counted("j", 0, 3*time.Minute, "c")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k/k": "a b", "k/j": "c"})
	h := fw.api()
	ask(t, h, "/v1/events/e%2Fb").is(http.StatusOK, `"k/k"`, `2026-01-02T10:01:00Z`)
	ask(t, h, "/v1/projections/texts/k%2Fk?at_time=2026-01-02T10:00:30Z").is(http.StatusOK, `"all":["a"]`)
	ask(t, h, "/v1/projections/texts/k%2Fk/history").is(http.StatusOK, `"e/a"`, `"e/b"`)
	fw.stop()
}

// What a topic does not say is left to the record: its key and its timestamp. Such
// events have no id, so none is a duplicate.
func TestRecordsStandForTheEnvelopeInFolds(t *testing.T) {
	w := newCounts(t, bareCounts(expr.Bare{}, hours(0, 0)))
	for i, at := range []time.Duration{0, 30 * time.Minute, 61 * time.Minute, time.Minute} {
		w.counted("x", 0, 0, "a")
		w.log[i].Key, w.log[i].Time = []byte("r"), epoch.Add(at)
	}
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"r@2026-01-01T10:00:00Z": "a a", "r@2026-01-01T11:00:00Z": "a"})
	if len(w.letters) != 1 {
		t.Fatalf("%d dead letters of the event that is late", len(w.letters))
	}
	if key, _ := w.letters[0].Header(headerEventKey); string(key) != "r" {
		t.Errorf("its key is %q", key)
	}
	if at, _ := w.letters[0].Header(headerEventTime); string(at) != "2026-01-01T10:01:00Z" {
		t.Errorf("its time is %q", at)
	}
	fw.stop()
}

// An event that cannot be read blocks the aggregate of its record's key, unless
// the topic says that it is not the aggregate's id.
func TestAKeyThatIsNotTheAggregatesBlocksNobody(t *testing.T) {
	for bare, want := range map[expr.Bare]string{
		{}:                     "blocked",
		{Key: text("data.id")}: "rejected",
	} {
		w := newCounts(t, bareCounts(bare, nil))
		w.counted("k", 0, 0, "a")
		w.log[0].Key, w.log[0].Value = []byte("k"), w.log[0].Value[:8]
		fw := w.start()
		fw.run()
		got := "rejected"
		for _, u := range fw.ps.units {
			if u.lanes[0].own.blocked["k"] != nil {
				got = "blocked"
			}
		}
		if got != want {
			t.Errorf("with %v the event is %s, want %s", bare, got, want)
		}
		fw.stop()
	}
}
