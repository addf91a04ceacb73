package stage_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// newTrips returns a chain over events with nullable records.
func newTrips(t *testing.T, stages string) (*run, *topology.Topology) {
	t.Helper()
	plan, err := tripsOf(stages)
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Tables) > 0 {
		plan.Tables[0].Rows = someMembers(t)
	}
	return &run{t: t, pipeline: plan.Pipelines[0], chain: plan.Pipelines[0].Chain()}, plan
}

func tripsOf(stages string) (*topology.Topology, error) {
	return topology.Load(topology.Source{Name: "topology.yaml", Text: fmt.Appendf(nil, `
name: t
topics: {in: {partitions: 4, types: [Trip], envelope: none}, out: {partitions: 4}, dead: {partitions: 1}}
tables: {members: {file: members.jsonl, key: id, schema: Member}}
pipelines: {p: {from: in, to: out, dead_letter: dead, stages: [%s]}}
`, stages)}, topology.Options{
		Schemas: fstest.MapFS{"Member.avsc": visits["Member.avsc"], "Trip.avsc": {Data: []byte(`{"type": "record", "name": "Trip", "fields": [
			{"name": "version", "type": "int"},
			{"name": "rider", "type": [{"type": "record", "name": "Rider", "fields": [
				{"name": "id", "type": "string"}, {"name": "name", "type": "string"}, {"name": "tags", "type": {"type": "map", "values": "string"}},
				{"name": "under", "type": ["null", "Rider"]}]}, "null"]}]}`)}, "Ride.avsc": {Data: []byte(`{"type": "record", "name": "Ride", "fields": [
			{"name": "version", "type": "long"}, {"name": "who", "type": ["null", "string"], "default": null}, {"name": "name", "type": ["null", "string"], "default": null},
			{"name": "rider", "type": [{"type": "record", "name": "Person", "fields": [
				{"name": "id", "type": "string"}, {"name": "label", "type": "string"}, {"name": "tags", "type": {"type": "map", "values": "string"}, "default": {}},
				{"name": "under", "type": ["null", {"type": "record", "name": "x.Rider", "fields": [{"name": "id", "type": "string", "default": ""}, {"name": "of", "type": ["null", "int"], "default": null}]}], "default": null}]}, "null"]}]}`)}},
		File:   func(string) ([]byte, error) { return []byte("{}"), nil },
		Stages: withGo(swap),
	})
}

// swap is a Go stage that exchanges texts within a nullable record.
var swap = stage.Func{Name: "swap", Doc: "Exchanges texts.", New: func(f *stage.Fields, _ map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
	from, to, tag := stage.Read[string](f, "rider.tags.from"), stage.Write[string](f, "rider.under.name"), stage.Write[string](f, "rider.tags.to")
	return func(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
		v, ok := from.Get(e)
		if !ok {
			v = "none"
		}
		if err := to.Set(e, v); err != nil {
			return pipeline.Drop, err
		}
		return pipeline.Pass, tag.Set(e, v+"!")
	}, stage.Deterministic, nil
}}

func rider(id, name, tags, under string) string {
	return `{"id":"` + id + `","name":"` + name + `","tags":{` + tags + `},"under":` + under + `}`
}

func trip(rider string) string { return `{"version":1,"rider":` + rider + `}` }

// Every stage that sets fields reaches those within nullable records, and leaves an event
// without the record as it is.
func TestStagesSetFieldsWithinNullableRecords(t *testing.T) {
	s := newService(t)
	request := `http: {url: "'` + s.URL + `' + (rider == null ? '/gone' : '/member')", query: {user: "rider == null ? '' : rider.id"}, response: Member, missing: keep, `
	const find = `lookup: {table: members, key: "rider == null ? null : rider.id", `
	one, none := trip(rider("u1", "x", "", rider("u2", "y", `"from":"a"`, "null"))), trip("null")
	for _, test := range []struct{ stages, in, want string }{
		{find + `set: {rider.name: row.name, rider.under.tags.a: row.id}}`, one, trip(rider("u1", "Ada", "", rider("u2", "y", `"from":"a","a":"u1"`, "null")))},
		{find + `set: {rider.name: row.name, rider.under.tags.a: row.id}}`, none, none},
		{find + `add: {rider.city: {type: string?, value: row.address.city}}}`, trip(rider("u1", "x", "", "null")), trip(`{"id":"u1","name":"x","tags":{},"under":null,"city":"London"}`)},
		{find + `add: {rider.city: {type: string?, value: row.address.city}}}`, trip(rider("u9", "x", "", "null")), trip(`{"id":"u9","name":"x","tags":{},"under":null,"city":null}`)},
		{find + `add: {rider.city: {type: string?, value: row.address.city}}}`, none, none},
		{request + `set: {rider.name: response.body.name}}`, one, strings.Replace(one, `"x"`, `"GET "`, 1)},
		{request + `set: {rider.name: response.body.name}}`, none, none},
		{request + `add: {rider.status: {type: int, value: response.status}}}`, trip(rider("u1", "x", "", "null")), trip(`{"id":"u1","name":"x","tags":{},"under":null,"status":200}`)},
		{request + `add: {rider.under.status: {type: int, value: response.status}}}`, trip(rider("u1", "x", "", rider("u2", "y", "", "null"))),
			trip(`{"id":"u1","name":"x","tags":{},"under":{"id":"u2","name":"y","tags":{},"under":null,"status":200},"status":0}`)},
		{`upcast: {below: 2, set: {rider.name: "rider.name + '2'"}}`, one, strings.Replace(strings.Replace(one, `"x"`, `"x2"`, 1), `"version":1`, `"version":2`, 1)},
		{`upcast: {below: 2, set: {rider.name: "rider.name + '2'"}}`, none, `{"version":2,"rider":null}`},
		{`go: {use: swap}`, trip(rider("u1", "x", `"from":"a"`, rider("u2", "y", "", "null"))), trip(rider("u1", "x", `"from":"a","to":"a!"`, rider("u2", "a", "", "null")))},
		{`go: {use: swap}`, trip(rider("u1", "x", "", "null")), trip(rider("u1", "x", `"to":"none!"`, "null"))},
		{`go: {use: swap}`, none, none},
		{`mask: {fields: {rider.under.name: redact}}}, {filter: {keep: "rider == null || rider.under == null || rider.under.name == '***'"}`, one, strings.Replace(one, `"y"`, `"***"`, 1)},
	} {
		r, _ := newTrips(t, "{"+test.stages+"}")
		for range 2 { // the second time, memory is reused
			if got, err := r.process(test.in); got != test.want || err != nil {
				t.Errorf("%s\ngot  %s, %v\nwant %s", test.stages, got, err, test.want)
			}
		}
	}
}

// The default of an added field can nest an event more deeply than any reader accepts. Such
// an event is rejected, even if the stage skips events, because later stages do not know its
// old form.
func TestEventWithoutRoomForAnAddedFieldIsRejected(t *testing.T) {
	r, _ := newTrips(t, `{enrich: {on_error: skip, add: {rider.extra: {type: int?, value: "1"}}}}`)
	for depth, want := range map[int]string{30: "", 31: "bad_body"} {
		body := codec.AppendLong([]byte{2}, 0)
		for range depth {
			body = append(body, "\x00\x00\x00\x02"...)
		}
		body = append(body, "\x00\x00\x00\x00"...)
		passed := false
		err := r.processBody(body, &pipeline.Record{}, func(e *pipeline.Event) error {
			passed = true
			return codec.Validate(r.pipeline.Output[0].Root(), e.Append(nil))
		})
		if string(pipeline.ReasonOf(err)) != want || passed != (want == "") {
			t.Errorf("%d riders: %v", depth, err)
		}
	}
}

// A select to another type sets and renames fields within nullable records. A null stays
// null, and an expression for a field below it is not evaluated.
func TestSelectReachesIntoNullableRecords(t *testing.T) {
	one, none := trip(rider("u1", "x", `"a":"b"`, rider("u2", "y", "", "null"))), trip("null")
	alone := trip(rider("u1", "x", "", "null"))
	ride := func(version int, who, name, rider string) string {
		return fmt.Sprintf(`{"version":%d,"who":%s,"name":%s,"rider":%s}`, version, who, name, rider)
	}
	person := func(id, label, tags, under string) string {
		return `{"id":"` + id + `","label":"` + label + `","tags":{` + tags + `},"under":` + under + `}`
	}
	for _, test := range []struct{ stages, in, want string }{
		{`rename: {rider.name: rider.label}`, one, ride(1, "null", "null", person("u1", "x", `"a":"b"`, `{"id":"u2","of":null}`))},
		{`rename: {rider.name: rider.label}`, none, ride(1, "null", "null", "null")},
		{`set: {rider.label: rider.name + rider.id}`, one, ride(1, "null", "null", person("u1", "xu1", `"a":"b"`, `{"id":"u2","of":null}`))},
		{`set: {rider.label: rider.name + rider.id}`, none, ride(1, "null", "null", "null")},
		{`set: {rider.label: "''", rider.tags.c: "'d'", rider.under.id: "rider.under.id + '/' + rider.id"}`, one, ride(1, "null", "null", person("u1", "", `"a":"b","c":"d"`, `{"id":"u2/u1","of":null}`))},
		{`set: {rider.label: "''", rider.tags.c: "'d'", rider.under.id: "rider.under.id + '/' + rider.id"}`, alone, ride(1, "null", "null", person("u1", "", `"c":"d"`, "null"))},
		{`set: {rider.label: "''", rider.tags.c: "'d'", rider.under.id: "rider.under.id + '/' + rider.id"}`, none, ride(1, "null", "null", "null")},
		{`rename: {rider.name: rider.label, rider.id: who}, set: {rider.id: "'new'"}`, one, ride(1, `"u1"`, "null", person("new", "x", `"a":"b"`, `{"id":"u2","of":null}`))},
		{`rename: {rider.name: rider.label, rider.under.id: who, rider.under.name: name}`, one, ride(1, `"u2"`, `"y"`, person("u1", "x", `"a":"b"`, `{"id":"","of":null}`))},
		{`rename: {rider.name: rider.label, rider.under.id: who, rider.under.name: name}`, alone, ride(1, "null", "null", person("u1", "x", "", "null"))},
		{`rename: {rider.name: rider.label, rider.under.id: who, rider.under.name: name}`, none, ride(1, "null", "null", "null")},
		{`rename: {rider.name: rider.label, version: rider.under.of}, set: {version: "7"}`, one, ride(7, "null", "null", person("u1", "x", `"a":"b"`, `{"id":"u2","of":1}`))},
		{`rename: {rider.name: rider.label, version: rider.under.of}, set: {version: "7"}`, alone, ride(7, "null", "null", person("u1", "x", "", "null"))},
		{`rename: {rider.under.name: rider.label}, set: {rider: "null"}`, one, ""},
		{`from: rider, rename: {name: rider.label, under: rider}, set: {version: "2"}`, one, ride(2, "null", "null", person("u2", "x", "", "null"))},
		{`from: rider, rename: {name: rider.label, under: rider}, set: {version: "2"}`, alone, ride(2, "null", "null", "null")},
		{`set: {rider: "null", rider.label: "'x'"}`, one, ""},
		{`rename: {rider.under.name: rider.label}`, one, ""},
	} {
		stages := "{select: {to: Ride, " + test.stages + "}}"
		if test.want == "" {
			if _, faults := tripsOf(stages); faults == nil {
				t.Errorf("%s has no fault", stages)
			}
			continue
		}
		r, plan := newTrips(t, stages)
		for _, w := range plan.Warnings() {
			if w.Rule == string(expr.RuleNull) {
				t.Errorf("%s: %v", stages, w)
			}
		}
		for range 2 { // the second time, memory is reused
			if got, err := r.process(test.in); got != test.want || err != nil {
				t.Errorf("%s\ngot  %s, %v\nwant %s", stages, got, err, test.want)
			}
		}
	}
}

// A select that reaches into nullable records allocates nothing per event. (An expression
// that reads one is interpreted, and allocates.)
func TestSelectIntoNullableRecordsAllocatesNothing(t *testing.T) {
	r, _ := newTrips(t, `{select: {to: Ride, rename: {rider.name: rider.label, rider.under.id: who, version: rider.under.of}, set: {version: "7", rider.tags.c: "'d'", rider.id: "'n'"}}}`)
	body, err := codec.EncodeJSON(r.pipeline.Types[0], parseJSON(t, trip(rider("u1", "x", `"a":"b"`, rider("u2", "y", "", "null")))))
	if err != nil {
		t.Fatal(err)
	}
	var e pipeline.Event
	record, layout := &pipeline.Record{}, r.pipeline.Layouts[0]
	out := make([]byte, 0, 1<<10)
	keep := func(e *pipeline.Event) error { out = e.Append(out[:0]); return nil }
	if n := testing.AllocsPerRun(200, func() {
		e.Record, e.OldType, e.Arena = record, -1, e.Arena[:0]
		if err := layout.Walk(body, &e.View); err != nil {
			t.Fatal(err)
		}
		if err := r.chain.Process(t.Context(), &e, keep); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What a filter ensures about a nullable record holds after a stage that sets a field within
// it.
func TestFactsAboutNullableRecordsHoldAfterSets(t *testing.T) {
	for _, stages := range []string{
		`{filter: {keep: rider != null}}, {enrich: {set: {rider.name: "'x'"}}}, {rekey: {key: rider.id}}`,
		`{filter: {keep: rider != null}}, {mask: {fields: {rider.name: redact}}}, {rekey: {key: rider.id}}`,
		`{filter: {keep: rider != null}}, {enrich: {add: {rider.n: {type: int, value: "1"}}}}, {rekey: {key: string(rider.n)}}`,
		`{enrich: {set: {rider.name: "rider.name + rider.id"}}}`,
	} {
		_, plan := newTrips(t, stages)
		for _, w := range plan.Warnings() {
			if w.Rule == string(expr.RuleNull) {
				t.Errorf("%s: %v", stages, w)
			}
		}
	}
}
