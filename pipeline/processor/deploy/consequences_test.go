package deploy_test

import (
	"strings"
	"testing"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor/deploy"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// A new parameter needs a decision: what does its change mean for what was written
// before? Only parameters of stages have a default: later output differs.
func TestEveryParameterHasAConsequence(t *testing.T) {
	for _, path := range topology.Parameters(stage.Builtin()) {
		if _, ok := deploy.Consequences[path]; !ok && !strings.HasPrefix(path, "pipelines/*/stages/") {
			t.Errorf("the table in consequences.go has no %s", path)
		}
	}
	for path, c := range deploy.Consequences {
		if c.Refuse() != "" && (c.Text() == "" || c.Hint() == "") {
			t.Errorf("%s is refused without a reason or a hint", path)
		}
	}
}

const wideTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click, Page], envelope: none, id: id, config: {retention.ms: "-1"}}
  other: {partitions: 2, types: [Click], envelope: none, id: id}
  out: {partitions: 2}
  keyed: {partitions: 2}
  dead: {partitions: 1}
tables:
  rows: {file: rows.json, key: id, schema: Page}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - dedupe: {by: id, within: 1h, on: [Click]}
      - mask: {fields: {id: hash}, key: "0123456789abcdef0123456789abcdef"}
      - filter: {keep: "id != 'x'", on_error: skip}
  k:
    from: in
    to: keyed
    dead_letter: dead
    stages:
      - lookup: {table: rows, key: id, on: [Page], set: {title: row.title}}
      - rekey: {key: id}
      - http: {on: [Page], url: "'http://127.0.0.1:1/' + id"}
projections:
  home:
    from: other
    state: Page
    on: {Click: {set: {id: id, title: "'home'", views: n}}}
    snapshots: homes
`

// wide writes wideTopology, with replacements, and its table.
func wide(b *processortest.Bench, pairs ...string) string {
	b.Helper()
	text := wideTopology
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			b.Fatalf("the topology does not contain %q", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

func TestPlanNamesTheConsequenceOfEveryEdit(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	file := b.File(wideTopology)
	rows := b.Rows(file, `[{"id": "a", "title": "x"}]`)
	if code, out := b.Processor(file, "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	for _, test := range []struct {
		name    string
		edit    []string
		refused string // "" if the plan is not refused
		want    string
	}{
		{"dedupe by", []string{"by: id,", "by: id + 'x',"}, "state:p/dedupe/by", "it remembers ids of another expression"},
		{"dedupe on", []string{"1h, on: [Click]", "1h, on: [Click, Page]"}, "state:p/dedupe/on", "it does not remember the events of types"},
		{"the key of a mask", []string{"0123456789abcdef0", "1123456789abcdef0"}, "mask:p/mask/key", "the same value gets another digest"},
		{"the key of rekey", []string{"rekey: {key: id}", "rekey: {key: id + 'x'}"}, "key:k/rekey/key", "the events of one aggregate have another key"},
		{"a condition", []string{"id != 'x'", "id != 'y'"}, "", ". stage:p/filter: keep changed: what the pipeline writes differs from now on"},
		{"on_error", []string{", on_error: skip", ""}, "", ". stage:p/filter: on_error changed: what the pipeline writes differs"},
		{"the address of a service", []string{"127.0.0.1:1/", "127.0.0.1:2/"}, "", ". stage:k/http: url changed: what the pipeline writes differs"},
		{"the order of stages", []string{"      - rekey: {key: id}\n", "", "'http://127.0.0.1:1/' + id\"}\n", "'http://127.0.0.1:1/' + id\"}\n      - rekey: {key: id}\n"}, "", ". pipeline:k: stages changed: stages are added, removed or in another order"},
		{"the id of a topic's events", []string{"other: {partitions: 2, types: [Click], envelope: none, id: id}", "other: {partitions: 2, types: [Click], envelope: none, id: id + 'x'}"}, "", ". topic:other: id changed: events have other ids from now on"},
		{"the types of a topic", []string{"  in: {partitions: 2, types: [Click, Page]", "  in: {partitions: 2, types: [Page, Click]"}, "", ". topic:in: types changed"},
		{"a renamed pipeline", []string{"  k:\n", "  k2:\n"}, "rewritten:k2", "pipeline k2 starts at the beginning of in and writes to keyed, to which the removed pipeline k has written: readers see every event a second time"},
		{"a removed projection", []string{wideTopology[strings.Index(wideTopology, "projections:"):], ""}, "projection:home", "projection home was removed"},
		{"a renamed projection", []string{"  home:\n", "  house:\n"}, "projection:home", ". projection:house: new: it folds other from its beginning, and publishes every state on homes"},
		{"other snapshots", []string{"snapshots: homes", "snapshots: houses"}, "projection:home", "published on homes and would publish on houses"},
		{"another source of a projection", []string{"    from: other\n", "    from: in\n"}, "projection:home", "folded other and would fold in"},
		{"a fold", []string{"'home'", "'house'"}, "", ". projection:home: its fold changed: the live version continues"},
		{"when snapshots are published", []string{"    snapshots: homes", "    publish: {events: 9}\n    snapshots: homes"}, "", ". projection:home: publish changed: snapshots are published at other times"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := *b
			b.T = t
			edited := b.File(wide(&b, test.edit...))
			b.Rows(edited, `[{"id": "a", "title": "x"}]`)
			code, out := b.Processor(edited, "plan")
			if (code == cli.ExitFailure) != (test.refused != "") {
				t.Errorf("exit code %d: %s", code, out)
			}
			plain := strings.Join(strings.Fields(out), " ")
			for _, want := range []string{test.want, test.refused} {
				if !strings.Contains(plain, want) {
					t.Errorf("%q is missing in:\n%s", want, out)
				}
			}
			if test.refused != "" {
				if code, out := b.Processor(edited, "plan", "--allow", test.refused); code != cli.ExitOK {
					t.Errorf("allowed: exit code %d: %s", code, out)
				}
			}
		})
	}
	rows(`[{"id": "a", "title": "y"}]`)
	if code, out := b.Processor(file, "plan"); code != cli.ExitOK || !strings.Contains(out, ". table:rows: rows changed: lookups see the new rows") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// The digests of settings are on a topic, and some settings are secrets.
func TestTheAppliedTopologyHoldsNoSecret(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	file := b.File(wideTopology)
	b.Rows(file, `[]`)
	if code, out := b.Processor(file, "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	if _, out := b.Processor(file, "plan", "--json"); strings.Contains(out, "0123456789abcdef0123456789abcdef") || !strings.Contains(out, `"pipelines/p/stages/mask/key"`) {
		t.Error(out)
	}
}

func TestPlanOfARemovedPipeline(t *testing.T) {
	without := strings.Replace(planTopology[:strings.Index(planTopology, "  p:")], "  in:", "  extra: {partitions: 1, types: [Click], envelope: none}\n  in:", 1) + "  q: {from: extra, to: out, dead_letter: dead}\n"
	for _, test := range []struct {
		name    string
		prepare func(b *processortest.Bench)
		allow   bool
		want    string
	}{
		{"its group never existed", func(b *processortest.Bench) { b.Clicks(5) }, true, "its group t-p has not read 5 offsets of in yet"},
		{"its source is gone", func(b *processortest.Bench) { b.Remove("in") }, false, ". pipeline:p: removed, and its source in is gone or hidden"},
		{"its source is empty", func(*processortest.Bench) {}, false, ". pipeline:p: removed after it read everything"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := processortest.NewBench(t, planTopology)
			if code, out := b.Processor(b.File(planTopology), "apply"); code != cli.ExitOK {
				t.Fatal(out)
			}
			test.prepare(b)
			code, out := b.Processor(b.File(without), "plan", "--allow", "orphaned-state:p/once")
			if (code == cli.ExitFailure) != test.allow || !strings.Contains(strings.Join(strings.Fields(out), " "), test.want) {
				t.Errorf("exit code %d: %s", code, out)
			}
		})
	}
}
