package stage_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// visits are the schemas for the tests of lookup, dedupe and http.
var visits = fstest.MapFS{
	"Visit.avsc": {Data: []byte(`{"type": "record", "name": "Visit", "fields": [
		{"name": "id", "type": "string"},
		{"name": "metadata", "type": {"type": "map", "values": "string"}, "default": {}},
		{"name": "data", "type": {"type": "record", "name": "VisitData", "fields": [
			{"name": "page", "type": "string"},
			{"name": "user", "type": ["null", "string"], "default": null}]}}]}`)},
	"Leave.avsc": {Data: []byte(`{"type": "record", "name": "Leave", "fields": [{"name": "id", "type": "string"}]}`)},
	"Member.avsc": {Data: []byte(`{"type": "record", "name": "Member", "fields": [
		{"name": "id", "type": "string"},
		{"name": "name", "type": "string"},
		{"name": "address", "type": {"type": "record", "name": "Address", "fields": [{"name": "city", "type": ["null", "string"], "default": null}]}}]}`)},
}

// run is a chain with the stages of a test.
type run struct {
	t        testing.TB
	pipeline *topology.Pipeline
	chain    *pipeline.Chain
	event    pipeline.Event
}

const head = `
name: t
topics: {in: {partitions: 4, types: [Visit, Leave], envelope: none}, out: {partitions: 4}, dead: {partitions: 1}}
tables: {members: {file: members.jsonl, key: id, schema: Member}}
pipelines: {p: {from: in, to: out, dead_letter: dead, stages: [%s]}}
`

func loadVisits(stages string) (*topology.Topology, error) {
	return topology.Load(topology.Source{Name: "topology.yaml", Text: fmt.Appendf(nil, head, stages)},
		topology.Options{Schemas: visits, File: func(string) ([]byte, error) { return []byte("{}"), nil }})
}

func newRun(t testing.TB, rows stage.Rows, stages string) *run {
	t.Helper()
	plan, err := loadVisits(stages)
	if err != nil {
		t.Fatal(err)
	}
	plan.Tables[0].Rows = rows
	return &run{t: t, pipeline: plan.Pipelines[0], chain: plan.Pipelines[0].Chain()}
}

// process runs an event of the first type through the chain and returns its body as
// JSON, or "" if it was dropped.
func (r *run) process(text string) (string, error) {
	r.t.Helper()
	body := encode(r.t, r.pipeline.Types[0], text)
	out := ""
	err := r.processBody(body, &pipeline.Record{}, func(e *pipeline.Event) error {
		json, err := codec.AppendJSON(nil, r.pipeline.Output[0].Root(), e.Append(nil))
		out = string(json)
		return err
	})
	return out, err
}

func (r *run) processBody(body []byte, record *pipeline.Record, out func(*pipeline.Event) error) error {
	e := &r.event
	e.Record, e.Type, e.OldType, e.Arena = record, 0, -1, e.Arena[:0]
	if err := r.pipeline.Layouts[0].Walk(body, &e.View); err != nil {
		return err
	}
	return r.chain.Process(r.t.Context(), e, out)
}

func encode(t testing.TB, s *codec.Schema, text string) []byte {
	t.Helper()
	body, err := codec.EncodeJSON(s, parseJSON(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// members are rows of a table.
type members map[string][]byte

func (m members) Get(key []byte) ([]byte, bool) {
	row, ok := m[string(key)]
	return row, ok
}

func someMembers(t testing.TB) members {
	s, err := codec.ParseSchema(string(visits["Member.avsc"].Data))
	if err != nil {
		t.Fatal(err)
	}
	return members{
		"u1": encode(t, s, `{"id": "u1", "name": "Ada", "address": {"city": "London"}}`),
		"u2": encode(t, s, `{"id": "u2", "name": "Bob", "address": {}}`),
	}
}

const byUser = `lookup: {on: [Visit], table: members, key: data.user, set: {metadata.name: row.name, metadata.city: "row.address.city != null ? row.address.city : '-'"}`

func TestLookupSetsFieldsFromTheRow(t *testing.T) {
	for _, tc := range []struct{ name, stage, event, want, fault string }{
		{"found", byUser + `}`, `{"id": "1", "data": {"page": "/", "user": "u1"}}`,
			`{"id":"1","metadata":{"name":"Ada","city":"London"},"data":{"page":"/","user":"u1"}}`, ""},
		{"null in the row", byUser + `}`, `{"id": "1", "metadata": {"a": "b"}, "data": {"page": "/", "user": "u2"}}`,
			`{"id":"1","metadata":{"a":"b","name":"Bob","city":"-"},"data":{"page":"/","user":"u2"}}`, ""},
		{"no row, kept", byUser + `}`, `{"id": "1", "data": {"page": "/", "user": "u9"}}`,
			`{"id":"1","metadata":{},"data":{"page":"/","user":"u9"}}`, ""},
		{"null key, kept", byUser + `}`, `{"id": "1", "data": {"page": "/"}}`, `{"id":"1","metadata":{},"data":{"page":"/","user":null}}`, ""},
		{"no row, dropped", byUser + `, missing: drop}`, `{"id": "1", "data": {"page": "/", "user": "u9"}}`, ``, ""},
		{"no row, rejected", byUser + `, missing: dead_letter}`, `{"id": "1", "data": {"page": "/", "user": "u9"}}`, ``,
			`stage lookup: missing_row: table members has no row "u9"`},
		{"null key, rejected", byUser + `, missing: dead_letter}`, `{"id": "1", "data": {"page": "/"}}`, ``,
			`stage lookup: missing_row: the key of the row in table members is null`},
		{"no row in rows that never change", byUser + `, missing: wait, wait: 1h}`, ``, ``, `at most 1m0s`},
		{"added", `lookup: {on: [Visit], table: members, key: data.user, add: {data.name: {type: "string?", value: row.name}}}`,
			`{"id": "1", "data": {"page": "/", "user": "u1"}}`, `{"id":"1","metadata":{},"data":{"page":"/","user":"u1","name":"Ada"}}`, ""},
		{"added, no row", `lookup: {on: [Visit], table: members, key: data.user, add: {data.name: {type: "string?", value: row.name}}}`,
			`{"id": "1", "data": {"page": "/", "user": "u9"}}`, `{"id":"1","metadata":{},"data":{"page":"/","user":"u9","name":null}}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.event == "" {
				if _, err := loadVisits(tc.stage); err == nil || !strings.Contains(err.Error(), tc.fault) {
					t.Fatalf("got %v, want %s", err, tc.fault)
				}
				return
			}
			got, err := newRun(t, someMembers(t), tc.stage).process(tc.event)
			if got != tc.want || (err == nil) != (tc.fault == "") || err != nil && err.Error() != tc.fault {
				t.Errorf("got %s, %v\nwant %s, %s", got, err, tc.want, tc.fault)
			}
		})
	}
}

func TestLookupFaults(t *testing.T) {
	for _, tc := range []struct{ stage, want string }{
		{`lookup: {on: [Visit], table: member, key: data.user, set: {metadata.a: row.name}}`, "there is no table member"},
		{`lookup: {on: [Visit], table: members, key: data.usr, set: {metadata.a: row.name}}`, "usr"},
		{`lookup: {on: [Visit], table: members, key: data.user, set: {metadata.a: row.nam}}`, "row.nam"},
		{`lookup: {on: [Visit], table: members, key: data.user, set: {metadata.a: row.address.city}}`, "can be null"},
		{`lookup: {on: [Visit], table: members, key: data.user, set: {metadata.a: "1"}}`, "string"},
		{`lookup: {on: [Visit], table: members, key: data.user}`, "needs set or add"},
		{`lookup: {table: members, key: data.user, missing: drop}`, "Leave"},
		{`dedupe: {by: id}`, "within"},
		{`dedupe: {by: id, within: 60d}`, "at most 31d"},
		{`dedupe: {by: data.user, within: 1m, on: [Visit]}`, "can be null"},
	} {
		if _, err := loadVisits(tc.stage); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s:\n%v\ndoes not contain %s", tc.stage, err, tc.want)
		}
	}
}

// arriving are rows that arrive while a stage waits.
type arriving struct {
	mu      sync.Mutex
	members members
	changed chan struct{}
}

func newArriving() *arriving { return &arriving{members: members{}, changed: make(chan struct{})} }

func (a *arriving) Get(key []byte) ([]byte, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.members.Get(key)
}

func (a *arriving) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func (a *arriving) arrive(key string, row []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.members[key] = row
	close(a.changed)
	a.changed = make(chan struct{})
}

func TestLookupWaitsForTheRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := someMembers(t)
		rows := newArriving()
		r := newRun(t, rows, byUser+`, missing: wait, wait: 10s}`)
		time.AfterFunc(3*time.Second, func() { rows.arrive("u2", all["u2"]) })
		time.AfterFunc(6*time.Second, func() { rows.arrive("u1", all["u1"]) })
		begin := time.Now()
		got, err := r.process(`{"id": "1", "data": {"page": "/", "user": "u1"}}`)
		if err != nil || !strings.Contains(got, "Ada") {
			t.Fatalf("got %s, %v", got, err)
		}
		if took := time.Since(begin); took != 6*time.Second {
			t.Errorf("the lookup took %v, want 6s", took)
		}
	})
}

// A batch is delayed by one wait, regardless of the number of events without a row.
func TestLookupWaitsOncePerBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRun(t, newArriving(), byUser+`, missing: wait, wait: 10s}`)
		var ends []func(bool)
		r.chain.Each(func(_ string, s pipeline.Stage) { ends = append(ends, s.(stage.Batcher).EndBatch) })
		for range 2 {
			begin := time.Now()
			for range 100 {
				if _, err := r.process(`{"id": "1", "data": {"page": "/", "user": "u1"}}`); pipeline.ReasonOf(err) != stage.ReasonMissingRow {
					t.Fatalf("got %v", err)
				}
			}
			if took := time.Since(begin); took != 10*time.Second {
				t.Errorf("a batch took %v, want 10s", took)
			}
			ends[0](true)
		}
	})
}

func TestLookupStopsWaitingWhenTheBatchIsCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRun(t, newArriving(), byUser+`, missing: wait, wait: 10s}`)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		e := &r.event
		e.Record = &pipeline.Record{}
		if err := r.pipeline.Layouts[0].Walk(encode(t, r.pipeline.Types[0], `{"id": "1", "data": {"page": "/", "user": "u1"}}`), &e.View); err != nil {
			t.Fatal(err)
		}
		err := r.chain.Process(ctx, e, func(*pipeline.Event) error { return nil })
		if err == nil || pipeline.ClassOf(err) != pipeline.ClassAbort {
			t.Errorf("got %v", err)
		}
	})
}

func TestLookupAndDedupeAllocateNothing(t *testing.T) {
	r := newRun(t, someMembers(t), byUser+`}, dedupe: {by: id, within: 1h}`)
	r.chain.Each(func(_ string, s pipeline.Stage) {
		if k, ok := s.(stage.Keeper); ok {
			if err := k.Assign(0, 0, func(func([]byte) error) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
	})
	body := encode(t, r.pipeline.Types[0], `{"id": "1", "data": {"page": "/", "user": "u1"}}`)
	record := &pipeline.Record{}
	passed := 0
	out := func(*pipeline.Event) error { passed++; return nil }
	if n := testing.AllocsPerRun(100, func() {
		if err := r.processBody(body, record, out); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per event, want 0", n)
	}
	if passed != 1 {
		t.Errorf("%d events passed, want only the first", passed)
	}
}

// reference is a dedupe with unlimited memory: it maps each id to the times of the
// events that passed. An event is a duplicate if one of them is close enough in time.
type reference map[string][]int64

func (r reference) passes(id string, at, within int64, rejected bool) bool {
	for _, first := range r[id] {
		if d := at - first; -within < d && d < within {
			return false
		}
	}
	if !rejected {
		r[id] = append(r[id], at)
	}
	return true
}

// A logged is an event of a log for dedupe.
type logged struct {
	id       string
	at       int64 // milliseconds since 1970
	rejected bool  // by a later stage, if the event reaches it
	passes   bool  // wanted, by the reference
}

const logWithin = 60_000 // milliseconds

// drawLog draws a log that is out of order, but within four spans.
func drawLog(rt *rapid.T) []logged {
	log := make([]logged, rapid.IntRange(0, 150).Draw(rt, "events"))
	all := reference{}
	now := int64(1_000_000_000)
	for i := range log {
		now += rapid.Int64Range(0, logWithin/4).Draw(rt, "step")
		e := &log[i]
		e.id = fmt.Sprint(rapid.IntRange(0, 11).Draw(rt, "id"))
		e.at = now - rapid.SampledFrom([]int64{0, 0, 0, 1, logWithin - 1, logWithin, logWithin + 1}).Draw(rt, "late")
		e.rejected = rapid.IntRange(0, 4).Draw(rt, "rejected") == 0
		e.passes = all.passes(e.id, e.at, logWithin, e.rejected)
	}
	return log
}

// A dedupeRun runs a log through a dedupe stage, on one partition.
type dedupeRun struct {
	*run
	rt      *rapid.T
	keeper  stage.Keeper
	changes [][]byte // the state topic
}

const logPartition = 3

// restart replaces the stage with one that loads the written changes.
func (d *dedupeRun) restart(next int) {
	d.chain = d.pipeline.Chain()
	d.chain.Each(func(_ string, s pipeline.Stage) { d.keeper = s.(stage.Keeper) })
	if err := d.keeper.Assign(logPartition, int64(next), func(add func([]byte) error) error {
		for _, c := range d.changes {
			if err := add(c); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		d.rt.Fatal(err)
	}
}

// process runs one event and checks whether it passes.
func (d *dedupeRun) process(offset int, e logged) {
	body := encode(d.t, d.pipeline.Types[0], fmt.Sprintf(`{"id": %q, "data": {"page": "/"}}`, e.id))
	passed := false
	if err := d.processBody(body, &pipeline.Record{Partition: logPartition, Offset: int64(offset), Time: time.UnixMilli(e.at)},
		func(*pipeline.Event) error { passed = true; return nil }); err != nil {
		d.rt.Fatal(err)
	}
	if passed != e.passes {
		d.rt.Fatalf("offset %d: id %s at %d: passed is %v, want %v", offset, e.id, e.at, passed, e.passes)
	}
	if e.rejected {
		d.keeper.Undo(logPartition, int64(offset))
	}
}

// end ends a batch and reports whether it was committed.
func (d *dedupeRun) end() (committed bool) {
	var made [][]byte
	d.keeper.Changes(func(partition int32, change []byte) {
		if partition != logPartition {
			d.rt.Fatalf("a change of partition %d", partition)
		}
		made = append(made, bytes.Clone(change))
	})
	committed = rapid.Bool().Draw(d.rt, "committed")
	d.keeper.EndBatch(committed)
	// With at-least-once delivery, changes can be written without the offsets.
	if committed || rapid.Bool().Draw(d.rt, "written without offsets") {
		d.changes = append(d.changes, made...)
	}
	return committed
}

// Some batches are aborted, and the stage restarts from the written changes, sometimes at
// an older offset. The same events must pass as with a dedupe that has unlimited memory
// and never restarts.
func TestDedupeAgreesWithOneOfUnlimitedMemory(t *testing.T) {
	r := newRun(t, nil, `dedupe: {by: id, within: 1m, on: [Visit]}`)
	rapid.Check(t, func(rt *rapid.T) {
		log := drawLog(rt)
		d := &dedupeRun{run: r, rt: rt}
		d.restart(0)
		for next := 0; next < len(log); {
			to := min(len(log), next+rapid.IntRange(1, 20).Draw(rt, "batch"))
			for i := next; i < to; i++ {
				d.process(i, log[i])
			}
			if d.end() {
				next = to
			}
			if rapid.IntRange(0, 3).Draw(rt, "restart") > 0 {
				continue
			}
			if rapid.IntRange(0, 3).Draw(rt, "reset") == 0 {
				next = rapid.IntRange(0, next).Draw(rt, "to")
			}
			d.restart(next)
		}
	})
}

// A record from the far future must not make all other records look old.
func TestDedupeToleratesASingleWrongTime(t *testing.T) {
	r := newRun(t, nil, `dedupe: {by: id, within: 1m, on: [Visit]}`)
	r.chain.Each(func(_ string, s pipeline.Stage) {
		if err := s.(stage.Keeper).Assign(0, 0, func(func([]byte) error) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
	times := map[string][]int64{"a": {0, 1000, 59_999, 60_000}, "stray": {4e12, 4e12}, "b": {50_000, 60_001}, "old": {-5e11, -5e11 - 1}}
	passes := map[string]int{}
	for _, id := range []string{"a", "stray", "a", "b", "old", "a", "stray", "b", "old", "a"} {
		body := encode(t, r.pipeline.Types[0], fmt.Sprintf(`{"id": %q, "data": {"page": "/"}}`, id))
		at := times[id][0]
		times[id] = times[id][1:]
		if err := r.processBody(body, &pipeline.Record{Time: time.UnixMilli(at)}, func(*pipeline.Event) error { passes[id]++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if want := map[string]int{"a": 2, "stray": 1, "b": 1, "old": 1}; !maps.Equal(passes, want) {
		t.Errorf("passed %v, want %v", passes, want)
	}
}

func TestDedupeRejectsInvalidChanges(t *testing.T) {
	r := newRun(t, nil, `dedupe: {by: id, within: 1m, on: [Visit]}`)
	r.chain.Each(func(_ string, s pipeline.Stage) {
		for _, change := range []string{"", "\x03", "\x01short", "\x010123456789abcdef", "\x010123456789abcdef\x00"} {
			if err := s.(stage.Keeper).Assign(0, 1, func(add func([]byte) error) error { return add([]byte(change)) }); err == nil {
				t.Errorf("%q was accepted", change)
			}
		}
	})
}
