package chain_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/fold"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/rows"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

const tableTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none}
  pages: {partitions: 2, types: [Page], envelope: none, config: {cleanup.policy: compact}}
  out: {partitions: 2}
  dead: {partitions: 1}
tables:
  pages: {topic: pages}
  homes: {topic: homes}
projections:
  home:
    from: in
    key: id
    state: Page
    on: {Click: {set: {id: id, title: "'home'", views: n}}}
    snapshots: homes
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - lookup: {table: pages, key: id, add: {title: {type: string, value: row.title}}, missing: wait, wait: 2s}
`

// openedTables opens and loads the tables of the bench, and follows them until the test
// ends. ready has their readiness checks.
func openedTables(b *processortest.Bench) (all map[string]*chain.Table, ready map[string]func(context.Context) error, w *worker.Worker) {
	b.Helper()
	w = b.Worker("0")
	ready = map[string]func(context.Context) error{}
	ts, err := chain.OpenTables(w, w.Topology.Tables, func(name string, f func(context.Context) error) { ready[name] = f })
	if err != nil {
		b.Fatal(err)
	}
	all = map[string]*chain.Table{}
	for _, t := range ts {
		all[t.Name()] = t
	}
	ctx, cancel := context.WithCancel(b.Context())
	began, done := make(chan error), make(chan error)
	go func() {
		done <- ts.RunDuring(ctx, func(ctx context.Context) error {
			began <- ts.Load(ctx, w)
			<-ctx.Done()
			return nil
		})
	}()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	if err := <-began; err != nil {
		b.Fatal(err)
	}
	return all, ready, w
}

// pageRecord returns a record of the topic pages: a tombstone if title is empty.
func pageRecord(b *processortest.Bench, id, title string) *pipeline.Record {
	r := &pipeline.Record{Topic: "pages", Partition: pipeline.KeyPartition, Key: []byte(id)}
	if title != "" {
		r.Value = encodeJSON(b.T, b.Plan.Topic("pages").Types[0], fmt.Sprintf(`{"id": %q, "title": %q}`, id, title))
		r.Value = append(codec.AppendFrame(nil, registerPage(b, "pages", b.Plan.Topic("pages").Types[0])), r.Value...)
	}
	return r
}

func registerPage(b *processortest.Bench, topic string, s *codec.Schema) int {
	b.Helper()
	id, err := b.Registry.Register(b.Context(), codec.TopicRecordName.Value(topic, s), s)
	if err != nil {
		b.Fatal(err)
	}
	return id
}

func putPages(b *processortest.Bench, records ...*pipeline.Record) {
	b.Helper()
	b.Write(len(records), func(i int) *pipeline.Record { return records[i] })
}

func encodeJSON(t *testing.T, s *codec.Schema, text string) []byte {
	t.Helper()
	var v any
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	body, err := codec.EncodeJSON(s, v)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func titleOf(b *processortest.Bench, t *chain.Table, id string) string {
	b.Helper()
	row, ok := t.Get([]byte(id))
	if !ok {
		return ""
	}
	_, rest, err := codec.ReadText(row)
	if err != nil {
		b.Fatal(err)
	}
	title, _, err := codec.ReadText(rest)
	if err != nil {
		b.Fatal(err)
	}
	return string(title)
}

func TestTableIsReadWhollyThenFollowed(t *testing.T) {
	b := processortest.NewBench(t, tableTopology)
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	var before []*pipeline.Record
	for i := range 1000 {
		before = append(before, pageRecord(b, fmt.Sprint(i), fmt.Sprint("title ", i)))
	}
	before = append(before, pageRecord(b, "1", "newer"), pageRecord(b, "2", ""), &pipeline.Record{Topic: "pages", Partition: pipeline.KeyPartition, Key: []byte("3"), Value: []byte("garbage")})
	putPages(b, before...)
	all, ready, w := openedTables(b)
	pages := all["pages"]
	for id, want := range map[string]string{"0": "title 0", "1": "newer", "2": "", "3": "", "999": "title 999", "1000": ""} {
		if got := titleOf(b, pages, id); got != want {
			t.Errorf("page %s is %q, want %q", id, got, want)
		}
	}
	if n := pages.Len(); n != 998 {
		t.Errorf("%d rows", n)
	}
	if err := ready["table pages"](t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	changed := pages.Changed()
	putPages(b, pageRecord(b, "1000", "late"), pageRecord(b, "0", ""))
	select {
	case <-changed:
	case <-time.After(30 * time.Second):
		t.Fatal("Changed did not report the change")
	}
	harness.Awaited(t, "two changes", func() bool { return titleOf(b, pages, "1000") == "late" && titleOf(b, pages, "0") == "" })

	families, err := w.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if (l.GetName() == "table" && l.GetValue() == "pages" || l.GetName() == "follower" && l.GetValue() == "table pages") && !strings.HasSuffix(f.GetName(), "_bytes") {
					got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
	}
	if want := map[string]float64{"millrace_following": 1, "millrace_table_rows": 998, "millrace_table_lag_records": 0, "millrace_table_rejected_total": 1, "millrace_table_redriven_total": 0}; !maps.Equal(got, want) {
		t.Errorf("metrics are %v, want %v", got, want)
	}
}

// A dead letter of a pipeline that reads the same topic was the row of its key before.
func TestATableSkipsRecordsThatWereSentBackToAPipeline(t *testing.T) {
	b := processortest.NewBench(t, tableTopology)
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	old := pageRecord(b, "1", "old")
	letter := deadletter.New(old, "dead", "p", "lookup", pipeline.Reject("missing_row", "x"), time.Now())
	back := deadletter.Original(&letter)
	putPages(b, old, pageRecord(b, "1", "new"), &back)
	all, _, _ := openedTables(b)
	if got := titleOf(b, all["pages"], "1"); got != "new" {
		t.Errorf("the row is %q, want the newest one that was not sent back", got)
	}
}

// In a table of snapshots, a row is the state of an aggregate. A deleted aggregate has no
// row.
func TestTableOfSnapshotsHoldsStates(t *testing.T) {
	b := processortest.NewBench(t, tableTopology)
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	home := b.Plan.Projections[0].Fold
	id := registerPage(b, "homes", home.Snapshot())
	snapshot := func(key, title string, deleted bool) *pipeline.Record {
		a := &fold.Aggregate{Version: 3, Deleted: deleted, EventID: []byte("e"), Source: fold.Source{Topic: "in", TopicID: "x"}}
		a.State = encodeJSON(t, b.Plan.Tables[1].Schema, fmt.Sprintf(`{"id": %q, "title": %q, "views": 5}`, key, title))
		return &pipeline.Record{Topic: "homes", Partition: pipeline.KeyPartition, Key: []byte(key),
			Value: home.AppendSnapshot(codec.AppendFrame(nil, id), []byte(key), a)}
	}
	putPages(b, snapshot("a", "one", false), snapshot("b", "two", false), snapshot("b", "two", true))
	all, _, _ := openedTables(b)
	homes := all["homes"]
	if got := titleOf(b, homes, "a"); got != "one" {
		t.Errorf("a is %q", got)
	}
	if row, ok := homes.Get([]byte("b")); ok {
		t.Errorf("the deleted b has the row %q", row)
	}
	row, _ := homes.Get([]byte("a"))
	if err := codec.Validate(b.Plan.Tables[1].Schema.Root(), row); err != nil {
		t.Errorf("the row is not a state: %v", err)
	}
}

// Events wait for their rows. An event whose row does not arrive becomes a dead letter,
// and its batch commits.
func TestEventsWaitForRows(t *testing.T) {
	b := processortest.NewBench(t, tableTopology)
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	putPages(b, pageRecord(b, "here", "Here"))
	openedTables(b)
	stop := b.Start("0")
	at := time.UnixMilli(1_800_000_000_000)
	var events []*pipeline.Record
	for i, id := range []string{"here", "later", "never", "never", "here"} {
		events = append(events, b.Click(id, int64(i), at))
	}
	putPages(b, append(events, pageRecord(b, "later", "Later"))...)
	b.CaughtUp()
	stop()
	got := map[string]int{}
	b.Read("out", func(r *pipeline.Record) {
		text, err := codec.AppendJSON(nil, b.Plan.Pipelines[0].Output[0].Root(), r.Value[codec.FrameSize:])
		if err != nil {
			t.Fatal(err)
		}
		got[string(text)]++
	})
	b.Read("dead", func(r *pipeline.Record) {
		got[string(r.Key)+" "+string(deadletter.Parse(r).Reason)]++
	})
	want := map[string]int{
		`{"id":"here","n":0,"title":"Here"}`: 1, `{"id":"here","n":4,"title":"Here"}`: 1,
		`{"id":"later","n":1,"title":"Later"}`: 1, "never missing_row": 2,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// In a table from a file, the key and the columns of a CSV file can be within records that
// can be null. Such a record is null if all its cells are empty.
func TestFileRowsWithinNullableRecords(t *testing.T) {
	schema, err := codec.ParseSchema(`{"type": "record", "name": "City", "fields": [
		{"name": "ref", "type": ["null", {"type": "record", "name": "Ref", "fields": [{"name": "id", "type": "string"}]}], "default": null},
		{"name": "mayor", "type": [{"type": "record", "name": "Mayor", "fields": [{"name": "name", "type": "string"}, {"name": "age", "type": ["null", "int"]}]}, "null"]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, text, want, fault string }{
		{"c.jsonl", `{"ref":{"id":"oslo"},"mayor":null}`, `{"ref":{"id":"oslo"},"mayor":null}`, ""},
		{"c.jsonl", `{"ref":null,"mayor":null}`, "", "c.jsonl:1: the row has no ref.id, the key of the table"},
		{"c.csv", "ref.id,mayor.name,mayor.age\noslo,,\n", `{"ref":{"id":"oslo"},"mayor":null}`, ""},
		{"c.csv", "mayor.age,mayor.name,ref.id\n,Anne,oslo\n", `{"ref":{"id":"oslo"},"mayor":{"name":"Anne","age":null}}`, ""},
		{"c.csv", "mayor.age,mayor.name,ref.id\n60,,oslo\n", `{"ref":{"id":"oslo"},"mayor":{"name":"","age":60}}`, ""},
		{"c.csv", "mayor.age,mayor.name,ref.id\n60,Anne,\n", "", "c.csv:2: the row has no ref.id, the key of the table"},
		{"c.csv", "mayor.eyes,ref.id\n", "", "c.csv:1: City has no field mayor.eyes"},
	} {
		decl := &topology.Table{File: tc.name, Text: []byte(tc.text), Key: "ref.id"}
		decl.Schema = schema
		rows, err := chain.FileRows(decl)
		if tc.fault != "" {
			if err == nil || err.Error() != tc.fault {
				t.Errorf("%s: got %v\nwant %s", tc.text, err, tc.fault)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.text, err)
			continue
		}
		row, _ := rows.Get([]byte("oslo"))
		if got, err := codec.AppendJSON(nil, schema.Root(), row); err != nil || string(got) != tc.want {
			t.Errorf("%s: got %s, %v\nwant %s", tc.text, got, err, tc.want)
		}
	}
}

func TestFileRows(t *testing.T) {
	schema, err := codec.ParseSchema(`{"type": "record", "name": "City", "fields": [
		{"name": "id", "type": "string"},
		{"name": "people", "type": "long", "default": 7},
		{"name": "mayor", "type": ["null", "string"], "default": null},
		{"name": "at", "type": {"type": "record", "name": "At", "fields": [{"name": "lat", "type": "double"}, {"name": "north", "type": "boolean"}]}}]}`)
	if err != nil {
		t.Fatal(err)
	}
	const oslo = `{"id":"oslo","people":700000,"mayor":"Anne","at":{"lat":59.9,"north":true}}`
	const lima = `{"id":"lima","people":7,"mayor":null,"at":{"lat":-12,"north":false}}`
	for _, tc := range []struct{ name, text, want, fault string }{
		{"c.json", "[\n" + oslo + ",\n" + `{"id": "lima", "at": {"lat": -12, "north": false}}` + "]\n", oslo + lima, ""},
		{"c.json", "{}", "", "c.json:1: expected an array of objects"},
		{"c.json", "[" + oslo + ",\n\n{\"id\": 7}]", "", `c.json:3: id: expected string, found number 7`},
		{"c.json", "[" + oslo + "] x", "", "c.json:1: unexpected data after the array"},
		{"c.jsonl", oslo + "\n\n" + lima, oslo + lima, ""},
		{"c.jsonl", oslo + "\n{\n" + lima + "\n" + oslo, "", "c.jsonl:2: unexpected EOF\nc.jsonl:4: duplicate key \"oslo\": line 1 has it too"},
		{"c.csv", "\ufeffid,people,mayor,at.lat,at.north\noslo,700000,Anne,59.9,true\nlima,,,-12.0,false\n", oslo + lima, ""},
		{"c.json", "[" + oslo + ",\n " + `{"id": "\ud800", "at": {"lat": 1, "north": true}}]`, "", `c.json:2: column 10: not Unicode: \ud800 is half of a surrogate pair`},
		{"c.json", "[" + oslo + ",\n{\"id\": \"\xff\"}]", "", "c.json:2: column 9: not UTF-8: byte 0xff"},
		{"c.jsonl", oslo + "\n" + `{"id":"a\udfff"}`, "", `c.jsonl:2: column 9: not Unicode: \udfff is half of a surrogate pair`},
		{"c.csv", "id,at.lat,at.north\na\xffb,1,true\n", "", "c.csv:2: id: expected string, found text that is not UTF-8"},
		{"c.csv", "id,at.lon\n", "", "c.csv:1: City has no field at.lon"},
		{"c.csv", "id,at.lat,at.north\noslo,north,true\nlima,1\n", "", "c.csv:2: at.lat: expected double, found string \"north\"\nc.csv:3: wrong number of fields"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			decl := &topology.Table{File: tc.name, Text: []byte(tc.text), Key: "id"}
			decl.Schema = schema
			got, err := chain.FileRows(decl)
			if tc.fault != "" {
				if err == nil || err.Error() != tc.fault {
					t.Errorf("got %v\nwant %s", err, tc.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			text := ""
			for _, id := range []string{"oslo", "lima"} {
				row, _ := got.Get([]byte(id))
				json, err := codec.AppendJSON(nil, schema.Root(), row)
				if err != nil {
					t.Fatal(err)
				}
				text += string(json)
			}
			if text != tc.want {
				t.Errorf("got %s\nwant %s", text, tc.want)
			}
		})
	}
}

// A tail that failed continues at the record that failed.
func TestTailContinuesAfterAFailure(t *testing.T) {
	b := processortest.NewBench(t, tableTopology)
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		putPages(b, pageRecord(b, fmt.Sprint(i), "x"))
	}
	tail := kafka.NewTail(b.Config(), "pages")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := map[string]int{}
	for failed := 0; ; failed++ {
		n := 0
		err := tail.Run(ctx, func(r *pipeline.Record) error {
			if n++; n == 8 {
				return fmt.Errorf("failed")
			}
			seen[string(r.Key)]++
			if len(seen) == 50 {
				cancel()
			}
			return nil
		})
		if err == nil {
			break
		}
		if tail.Err() == nil || failed > 50 {
			t.Fatalf("after %v: %v", err, tail.Err())
		}
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s was read %d times", id, n)
		}
	}
	if lag, known := tail.Lag(); lag != 0 || !known {
		t.Errorf("the lag is %d, %v", lag, known)
	}
	select {
	case <-tail.Loaded():
	default:
		t.Error("not loaded")
	}
}

// No file causes a panic, and all rows of a valid file match the schema.
func FuzzFileRows(f *testing.F) {
	schema, err := codec.ParseSchema(string(harness.ClickSchemas["Page.avsc"].Data))
	if err != nil {
		f.Fatal(err)
	}
	for i, text := range []string{`[{"id": "a", "views": 1}, {}]`, "{\"id\": \"a\"}\n{\"id\": \"b\", \"title\": null}", "id,title,views\na,b,\n\"c\",d,7"} {
		f.Add(i, []byte(text))
	}
	f.Fuzz(func(t *testing.T, kind int, text []byte) {
		names := []string{"p.json", "p.jsonl", "p.csv"}
		decl := &topology.Table{File: names[uint(kind)%3], Text: text, Key: "id"}
		decl.Schema = schema
		held, err := chain.FileRows(decl)
		if err != nil {
			if !strings.HasPrefix(err.Error(), decl.File+":") {
				t.Errorf("the fault does not begin with the file: %v", err)
			}
			return
		}
		if row, ok := held.Get([]byte("a")); ok {
			if err := codec.Validate(schema.Root(), row); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestTablesOfReturnsOnlyTheTablesOfThePipelines(t *testing.T) {
	b := processortest.NewBench(t, strings.Replace(tableTopology, "  dead: {", "  other: {partitions: 1}\n  dead: {", 1)+`
  copy: {from: in, to: other, dead_letter: dead}
`)
	names := func(pipelines ...*topology.Pipeline) (out []string) {
		for _, table := range chain.TablesOf(b.Plan, pipelines...) {
			out = append(out, table.Name)
		}
		return out
	}
	if got := names(b.Plan.Pipelines...); fmt.Sprint(got) != "[pages]" {
		t.Errorf("all pipelines have the tables %v", got)
	}
	if got := names(b.Plan.Pipelines[1]); len(got) != 0 {
		t.Errorf("a pipeline without lookup has the tables %v", got)
	}
}

// An event without a row is counted once, with its stage, when its batch commits.
func TestMissingRowsAreCountedPerStage(t *testing.T) {
	b := processortest.NewBench(t, strings.Replace(tableTopology, "missing: wait, wait: 2s", "name: titles, missing: keep", 1))
	w := b.Worker("0")
	held := rows.New()
	held.Set([]byte("there"), codec.AppendString(codec.AppendString(nil, "there"), "title"))
	b.Plan.Tables[0].Rows = held
	metrics := chain.NewMetrics(w.Metrics)
	h := chain.NewHandler(w, b.Registry, b.IDs, metrics, time.Now)
	var out harness.Emitted
	for _, committed := range []bool{false, true} {
		for _, id := range []string{"gone", "lost"} {
			if err := h.Handle(t.Context(), b.Click(id, 1, time.Now()), &out); err != nil {
				t.Fatal(err)
			}
		}
		h.EndBatch(committed)
	}
	if got := testutil.ToFloat64(metrics.Missed("p", "titles")); got != 2 || len(out) != 4 {
		t.Errorf("%v missing rows are counted, want 2, and %d events were emitted, want 4", got, len(out))
	}
}

// Rows have the key that the topic's expression returns. A record that moves to another
// key, and a tombstone of its record key, delete the row of before.
func TestRowsAreKeyedByTheExpressionOfTheTopic(t *testing.T) {
	b := processortest.NewBench(t, strings.Replace(tableTopology, "types: [Page], envelope: none,", `types: [Page], envelope: none, key: "'page ' + id", key_format: bytes,`, 1))
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	page := func(key, id, title string) *pipeline.Record {
		r := pageRecord(b, id, title)
		r.Partition, r.Key = 0, []byte(key)
		return r
	}
	putPages(b, page("\xff1", "a", "A"), page("\xff2", "b", "B"), page("\xff3", "c", "C"), page("\xff2", "d", "D"), page("\xff3", "", ""), page("\xff4", "e", "E"), page("\xff4", "e", "E2"))
	all, _, _ := openedTables(b)
	for id, want := range map[string]string{"page a": "A", "page b": "", "page c": "", "page d": "D", "page e": "E2", "\xff1": "", "a": ""} {
		if got := titleOf(b, all["pages"], id); got != want {
			t.Errorf("row %q is %q, want %q", id, got, want)
		}
	}
	if n := all["pages"].Len(); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
}
