package chain_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
)

// The expressions of a topic give the id, time and key that stages use, the key of the
// output, and the headers of a dead letter. The record itself stays unchanged.
func TestExpressionsReplaceTheEnvelope(t *testing.T) {
	b := processortest.NewBench(t, `
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
	stop := b.Start("0")
	at := time.UnixMilli(1_800_000_000_000)
	events := []struct {
		id string
		n  int64 // the event's time, in seconds
	}{{"a", 3600}, {"a", 3601}, {"a", 7200}, {"b", 13}, {"", 1}}
	b.Write(len(events), func(i int) *pipeline.Record {
		r := b.Click(events[i].id, events[i].n, at)
		r.Key = []byte(fmt.Sprint("record ", i))
		return r
	})
	b.CaughtUp()
	stop()
	var out []string
	b.Read("out", func(r *pipeline.Record) {
		out = append(out, string(r.Key))
		if !r.Time.Equal(at) {
			t.Errorf("%s was written with time %v, want the time of the record", r.Key, r.Time)
		}
	})
	// By the time of the records, the third would be a duplicate of the first. The id of
	// the last is empty, which dedupe treats like any other id.
	if want := []string{"key of a", "key of a", "key of "}; !slices.Equal(out, want) {
		t.Errorf("written with keys %q, want %q", out, want)
	}
	letters := 0
	b.Read("dead", func(r *pipeline.Record) {
		letters++
		if string(r.Key) != "record 3" || !r.Time.Equal(at) {
			t.Errorf("the dead letter has key %q and time %v", r.Key, r.Time)
		}
		if l := deadletter.Parse(r); l.EventID != "b" || l.EventKey != "key of b" || !l.EventTime.Equal(time.Unix(13, 0)) {
			t.Errorf("its event is %+v", l)
		}
	})
	if letters != 1 {
		t.Errorf("%d dead letters, want 1", letters)
	}
}

// The key of the event selects the lane, not the key of its record.
func TestKeyOfTheEventSelectsTheLane(t *testing.T) {
	b := processortest.NewBench(t, `
name: t
topics: {in: {partitions: 1, types: [Click], envelope: none, key: id}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines: {p: {from: in, to: out, dead_letter: dead}}
`)
	w := b.Worker("0")
	h := chain.NewLanes(w, b.Registry, b.IDs, 8)
	lanes := map[int]bool{}
	var out harness.Emitted
	for i := range 16 {
		r := b.Click("one", 1, time.Now())
		r.Key, r.Offset = []byte(fmt.Sprint(i)), int64(i)
		if err := h.Handle(t.Context(), r, &out); err != nil {
			t.Fatal(err)
		}
		lanes[h.LastLane()] = true
	}
	bad := pipeline.Record{Topic: "in", Offset: 16, Key: []byte("k"), Value: []byte{1}}
	if err := h.Handle(t.Context(), &bad, &out); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	if len(lanes) != 1 || len(out) != 17 {
		t.Errorf("events of one key were in the lanes %v, and %d records were emitted, want 17", lanes, len(out))
	}
}

// Equal ids of two sources are two events, and so are equal ids of two sources of a
// topic that declares the source as a part of the identity.
func TestDedupeAndReceiptsGoByTheIdentityOfTheTopic(t *testing.T) {
	for _, declared := range []string{"headers: cloudevents", "identity: [headers.ce_source, id]"} {
		b := processortest.NewBench(t, `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none, id: id, `+declared+`}
  out: {partitions: 1}
  dead: {partitions: 1}
  receipts: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    receipts: receipts
    stages:
      - dedupe: {within: 1h}
`)
		stop := b.Start("0")
		at := time.UnixMilli(1_800_000_000_000)
		sources := []string{"/a", "/b", "/a", "", "t"}
		b.Write(len(sources), func(i int) *pipeline.Record {
			r := b.Click("1", int64(i), at)
			if sources[i] != "" {
				r.Headers = append(r.Headers, pipeline.Header{Key: "ce_source", Value: []byte(sources[i])})
			}
			return r
		})
		b.CaughtUp()
		stop()
		n := 0
		b.Read("out", func(*pipeline.Record) { n++ })
		// An event without a source has the topology's name as its source, if the topic has
		// CloudEvents.
		want, receipts := 3, []string{`["/a","1"]`, `["t","1"]`}
		if declared != "headers: cloudevents" {
			want, receipts = 4, receipts[:1]
		}
		if n != want {
			t.Errorf("%s: %d of %d events passed, want %d", declared, n, len(sources), want)
		}
		var got []string
		b.Read("receipts", func(r *pipeline.Record) { got = append(got, b.Plan.Topics[0].Identity.Text(r.Key)) })
		if !slices.Equal(got, receipts) {
			t.Errorf("%s: receipts for %v, want %v", declared, got, receipts)
		}
	}
}
