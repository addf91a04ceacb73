package topology_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// changeSchemas have records within nullable records.
var changeSchemas = fstest.MapFS{
	"Change.avsc": {Data: []byte(`{"type": "record", "name": "Change", "fields": [
		{"name": "version", "type": "int"}, {"name": "before", "type": ["null", {"type": "record", "name": "Row", "fields": [
			{"name": "id", "type": "string"}, {"name": "name", "type": "string"}, {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
			{"name": "tags", "type": {"type": "map", "values": "string"}},
			{"name": "items", "type": {"type": "array", "items": {"type": "record", "name": "Item", "fields": [{"name": "sku", "type": "string"}, {"name": "n", "type": "int"}]}}},
			{"name": "who", "type": [{"type": "record", "name": "Who", "fields": [{"name": "id", "type": ["null", "string"]}, {"name": "name", "type": "string"}]}, "null"]}]}]},
		{"name": "after", "type": ["null", "Row"]}]}`)},
	"Secret.avsc": {Data: []byte(`{"type": "record", "name": "Secret", "fields": [
		{"name": "email", "type": "string", "millrace.pii": true},
		{"name": "ref", "type": ["null", {"type": "record", "name": "Ref", "fields": [{"name": "user", "type": "string"}]}]}]}`)},
	"State.avsc": {Data: []byte(`{"type": "record", "name": "State", "fields": [
		{"name": "n", "type": "int", "default": 0},
		{"name": "last", "default": null, "type": ["null", {"type": "record", "name": "Last", "fields": [{"name": "name", "type": "string"}, {"name": "who", "type": ["null", {"type": "record", "name": "By", "fields": [{"name": "name", "type": "string"}]}]}]}]}]}`)},
	"Flat.avsc": {Data: []byte(`{"type": "record", "name": "Flat", "fields": [
		{"name": "version", "type": "int"}, {"name": "label", "type": ["null", "string"]}, {"name": "before", "type": ["null", {"type": "record", "name": "Short", "fields": [{"name": "id", "type": "string"}, {"name": "title", "type": "string"}]}]}]}`)},
}

// load loads a topology with one pipeline, table and projection. more are parameters of the
// topic of the input, of the table and so on, by the path of topology.Parameters.
func loadChanges(option, text string) error {
	params := map[string]string{"topics": "", "tables": "file: rows.jsonl, schema: Change, key: before.id", "stages": "", "projections": "key: after.id", "on": "Change: {set: {n: version}}", "encryption": "{Secret: ref.user}"}
	kind, name, _ := strings.Cut(option, "/")
	switch {
	case kind == "pipelines":
		kind = "stages"
		text = fmt.Sprintf("{%s: {%s}}", strings.Split(option, "/")[3], text)
	case strings.HasSuffix(name, "/on"):
		kind = "on"
	case kind == "topics":
		text = ", " + text
	case kind == "tables":
		text = "file: rows.jsonl, schema: Change, " + text
	}
	params[kind] = text
	_, err := topology.Load(topology.Source{Name: "topology.yaml", Text: fmt.Appendf(nil, `
name: t
topics:
  in: {partitions: 1, types: [Change], envelope: none%s}
  secrets: {partitions: 1, types: [Secret], envelope: none}
  out: {partitions: 1, envelope: none}
  dead: {partitions: 1}
tables: {rows: {%s}}
pipelines: {p: {from: in, to: out, dead_letter: dead, stages: [%s]}}
projections: {states: {from: in, %s, state: State, snapshots: states, on: {%s}}}
encryption: {key_topic: keys, subject: %s}
`, params["topics"], params["tables"], params["stages"], params["projections"], params["on"], params["encryption"])},
		topology.Options{Schemas: changeSchemas, Stages: stage.Builtin(), File: func(string) ([]byte, error) { return []byte(""), nil }})
	return err
}

// pathOptions are the options that hold paths or expressions, with paths that lead through
// nullable records.
var pathOptions = map[string][]string{
	"topics/*/id":       {`id: "after == null ? '' : after.id"`},
	"topics/*/time":     {`time: "after == null ? timestamp(0) : after.at"`},
	"topics/*/key":      {`key: "after == null ? '' : after.id"`},
	"topics/*/identity": {"identity: [after.id]", "identity: [after.who.id, after.tags.source]"},
	"tables/*/key":      {"key: after.id", "key: after.who.id"},
	"projections/*/key": {"key: after.id", "key: after.who.id"},
	"projections/*/on": {"Change: {set: {last.name: 'state.last.name + \"x\"'}}", "Change: {set: {last.who.name: \"after == null ? '' : after.name\", last.name: \"'y'\"}}",
		"Change: {when: 'state.last != null && state.last.name == \"\"', set: {n: version}}"},
	"encryption/subject":               {"{Secret: ref.user}"},
	"pipelines/*/stages/assert/that":   {"that: after == null || after.id != ''"},
	"pipelines/*/stages/dedupe/by":     {"within: 1h, by: \"after == null ? '' : after.id\""},
	"pipelines/*/stages/enrich/set":    {"set: {after.name: after.id, before.who.name: \"'x'\", after.tags.x: after.name}"},
	"pipelines/*/stages/enrich/add":    {"add: {after.more: {type: string, value: after.id}}"},
	"pipelines/*/stages/filter/keep":   {"keep: after != null && after.id != ''"},
	"pipelines/*/stages/filter/drop":   {"drop: after == null || after.id != ''"},
	"pipelines/*/stages/http/url":      {"url: \"'http://localhost/' + (after == null ? '' : after.id)\", response: Flat, set: {version: response.status}"},
	"pipelines/*/stages/http/query":    {"url: \"'http://localhost'\", query: {id: \"after == null ? '' : after.id\"}, response: Flat, set: {version: response.status}"},
	"pipelines/*/stages/http/headers":  {"url: \"'http://localhost'\", headers: {X-Id: \"after == null ? '' : after.id\"}, response: Flat, set: {version: response.status}"},
	"pipelines/*/stages/http/body":     {"url: \"'http://localhost'\", method: POST, body: \"after == null ? '' : after.id\", response: Flat, set: {version: response.status}"},
	"pipelines/*/stages/http/set":      {"url: \"'http://localhost'\", response: Flat, set: {after.name: \"string(response.status)\"}"},
	"pipelines/*/stages/http/add":      {"url: \"'http://localhost'\", response: Flat, add: {after.status: {type: int, value: response.status}}"},
	"pipelines/*/stages/lookup/key":    {"table: rows, key: 'after == null ? null : after.id', set: {version: row.version}"},
	"pipelines/*/stages/lookup/set":    {"table: rows, key: string(version), set: {after.who.name: \"row.after == null ? '' : row.after.name\"}"},
	"pipelines/*/stages/lookup/add":    {"table: rows, key: string(version), add: {after.who.rows: {type: int, value: row.version}}"},
	"pipelines/*/stages/mask/fields":   {"fields: {after.name: hash, after.who.name: redact, 'before.items[].sku': redact, 'before.tags[]': redact}"},
	"pipelines/*/stages/rekey/key":     {"key: \"after == null ? '' : after.id\""},
	"pipelines/*/stages/route/cases":   {"cases: [{when: after == null || after.name == '', to: out}]"},
	"pipelines/*/stages/select/from":   {"from: after", "from: after.who"},
	"pipelines/*/stages/select/keep":   {"keep: [after.id, after.who.name, 'after.items[].sku', before.id, before.who.name, 'before.items[].sku'], type: Kept"},
	"pipelines/*/stages/select/drop":   {"drop: [after.id, after.who.name, 'after.items[].sku', before.id, before.who.name, 'before.items[].sku'], type: Kept"},
	"pipelines/*/stages/select/rename": {"rename: {after.name: title, before.name: title, before.who.id: key, after.who.id: key}, type: Kept", "to: Flat, rename: {after.who.name: label, before.name: before.title}"},
	"pipelines/*/stages/select/set":    {"to: Flat, set: {before.title: before.name, label: 'after == null ? null : after.name'}"},
	"pipelines/*/stages/select/delete": {"delete: after == null || after.id == '', drop: [version], type: Kept"},
	"pipelines/*/stages/split/field":   {"field: after.items"},
	"pipelines/*/stages/split/set":     {"field: after.items, set: {after.name: item.sku, before.name: item.sku}"},
	"pipelines/*/stages/upcast/set":    {"below: 2, set: {after.name: after.id}"},
}

// notPaths are the options that hold neither paths nor expressions.
var notPaths = strings.Fields(`tables/*/rows topics/*/partitions topics/*/replication topics/*/types topics/*/config topics/*/envelope topics/*/headers topics/*/key_format topics/*/key_schema
	topics/*/partitioner topics/*/tombstone topics/*/subjects tables/*/topic tables/*/file tables/*/schema projections/*/from projections/*/state projections/*/snapshots projections/*/partitioner
	projections/*/window projections/*/grace projections/*/keep projections/*/late projections/*/wait projections/*/duplicates projections/*/on_gap projections/*/publish projections/*/max_state encryption/key_topic
	pipelines/*/from pipelines/*/stages pipelines/*/to pipelines/*/dead_letter pipelines/*/receipts pipelines/*/guarantee assert/message dedupe/within go/use go/with
	http/method http/response http/missing http/timeout http/retries http/unavailable http/cache http/concurrency lookup/table lookup/missing lookup/wait mask/key mask/salt
	route/match route/otherwise select/type select/to split/max upcast/below upcast/from`)

// A path leads through nullable records in every option. A new option needs an entry in one
// of the two lists.
func TestPathsOfEveryOptionLeadThroughNullableRecords(t *testing.T) {
	for _, option := range topology.Parameters(stage.Builtin()) {
		texts, ok := pathOptions[option]
		short, inStage := strings.CutPrefix(option, "pipelines/*/stages/")
		if !ok && !slices.Contains(notPaths, short) && !(inStage && (strings.HasSuffix(short, "/on") || strings.HasSuffix(short, "/on_error"))) {
			t.Errorf("%s: does it hold paths?", option)
		}
		for _, text := range texts {
			if err := loadChanges(option, text); err != nil {
				t.Errorf("%s: %s: %v", option, text, err)
			}
		}
	}
}
