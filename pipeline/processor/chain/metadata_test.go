package chain_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
)

// The expressions of a topic may read the key and the headers of the record: for dedupe,
// the key of the output, dead letters, and the lane.
func TestTheRecordReplacesTheEnvelope(t *testing.T) {
	for format, key := range map[string]struct {
		read string
		raw  []byte
	}{
		"text":                    {"key", []byte("7")},
		"long":                    {"string(key)", []byte{0, 0, 0, 0, 0, 0, 0, 7}},
		"avro, key_schema: Click": {"string(key.n)", codec.AppendLong(codec.AppendString(nil, "a"), 7)},
	} {
		b := processortest.NewBench(t, fmt.Sprintf(`
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none, id: headers.id, time: timestamp(headers.at), key: "headers.tenant + '/' + %s", key_format: %s}
  out: {partitions: 1, envelope: none, types: [Click], key_format: text}
  dead: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - dedupe: {within: 1h}
      - assert: {that: n != 13}
`, key.read, format))
		stop := b.Start("0")
		events := []struct {
			n                int64
			id, tenant, hour string
		}{{1, "a", "t", "10"}, {2, "a", "t", "10"}, {3, "a", "t", "12"}, {13, "b", "t", "12"}, {5, "c", "", "12"}}
		b.Write(len(events), func(i int) *pipeline.Record {
			e := &events[i]
			r := b.Click("x", e.n, time.UnixMilli(1))
			if r.Key = key.raw; strings.HasPrefix(format, "avro") {
				r.Key = append(bytes.Clone(r.Value[:codec.FrameSize]), key.raw...)
			}
			r.Headers = []pipeline.Header{{Key: "id", Value: []byte(e.id)}, {Key: "at", Value: []byte("2026-01-01T" + e.hour + ":00:00Z")}}
			if e.tenant != "" {
				r.Headers = append(r.Headers, pipeline.Header{Key: "tenant", Value: []byte(e.tenant)})
			}
			return r
		})
		b.CaughtUp()
		stop()
		var got []string
		b.Read("out", func(r *pipeline.Record) { got = append(got, string(r.Key)) })
		b.Read("dead", func(r *pipeline.Record) {
			l := deadletter.Parse(r)
			got = append(got, fmt.Sprintf("%s of %s: %s", l.EventID, l.EventKey, l.Reason))
		})
		slices.Sort(got)
		if want := []string{" of : expression", "b of t/7: assert", "t/7", "t/7"}; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", format, got, want)
		}
	}
}

// A key of the event that comes from its record selects the lane.
func TestHeadersSelectTheLane(t *testing.T) {
	b := processortest.NewBench(t, `
name: t
topics: {in: {partitions: 1, types: [Click], envelope: none, key: headers.tenant + string(key), key_format: long}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines: {p: {from: in, to: out, dead_letter: dead}}
`)
	w := b.Worker("0")
	h := chain.NewLanes(w, b.Registry, b.IDs, 8)
	lanes := map[string]map[int]bool{}
	var out harness.Emitted
	for i := range 16 {
		r := b.Click(fmt.Sprint(i), 1, time.UnixMilli(1))
		tenant := fmt.Sprint("t-", i%8)
		r.Offset, r.Key, r.Headers = int64(i), []byte{0, 0, 0, 0, 0, 0, 0, 7}, []pipeline.Header{{Key: "tenant", Value: []byte(tenant)}}
		if err := h.Handle(t.Context(), r, &out); err != nil {
			t.Fatal(err)
		}
		if lanes[tenant] == nil {
			lanes[tenant] = map[int]bool{}
		}
		lanes[tenant][h.LastLane()] = true
	}
	if err := h.Flush(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	all := map[int]bool{}
	for tenant, of := range lanes {
		if len(of) != 1 {
			t.Errorf("events of %s were in the lanes %v", tenant, of)
		}
		maps.Copy(all, of)
	}
	if len(all) < 2 {
		t.Error("all events were in one lane")
	}
}

// The key of a row may come from the record.
func TestRowsAreKeyedByHeaders(t *testing.T) {
	b := processortest.NewBench(t, strings.Replace(tableTopology, "types: [Page], envelope: none,", `types: [Page], envelope: none, key: "headers.tenant + '/' + key",`, 1))
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	page := func(key, tenant, title string) *pipeline.Record {
		r := pageRecord(b, "x", title)
		r.Partition, r.Key, r.Headers = 0, []byte(key), []pipeline.Header{{Key: "tenant", Value: []byte(tenant)}}
		return r
	}
	putPages(b, page("1", "a", "A"), page("2", "a", "B"), page("2", "b", "C"))
	all, _, _ := openedTables(b)
	for id, want := range map[string]string{"a/1": "A", "a/2": "", "b/2": "C", "1": ""} {
		if got := titleOf(b, all["pages"], id); got != want {
			t.Errorf("row %q is %q, want %q", id, got, want)
		}
	}
}
