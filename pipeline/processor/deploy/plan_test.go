package deploy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/deploy"
	"millrace/pipeline/processor/processortest"
)

const planTopology = `
name: t
topics:
  in: {partitions: 4, types: [Click], envelope: none, config: {retention.ms: "-1"}}
  other: {partitions: 4, types: [Click], envelope: none}
  out: {partitions: 4}
  dead: {partitions: 1}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - dedupe: {name: once, by: id, within: 1h}
      - assert: {that: "n != 13", message: "'thirteen'"}
`

// edit returns planTopology with replacements. pairs holds old and new texts in
// turn.
func edit(t *testing.T, pairs ...string) string {
	t.Helper()
	text := planTopology
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("the topology does not contain %q", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

func TestApplyCarriesOutThePlanOnce(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	file := b.File(planTopology)
	before := b.ClusterState()
	code, out := b.Processor(file, "plan")
	t.Log(out)
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "nothing was applied yet",
		"+ create topic in: with 4 partitions, retention.ms=-1",
		"+ create topic t-p-once-state: with 4 partitions, cleanup.policy=delete",
		"+ register schema out-Click: compatible",
		"~ write down t-control: the applied topology, for the first time",
		"to do: create topic: 5, register schema: 1, write down: 1")
	if code, _ := b.Processor(file, "plan", "--exit-code"); code != deploy.ExitChanges {
		t.Errorf("exit code %d with something to do", code)
	}
	if after := b.ClusterState(); after != before {
		t.Errorf("plan changed the cluster to\n%s\nbefore:\n%s", after, before)
	}
	if code, out = b.Processor(file, "apply"); code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, out)
	}
	harness.WantLines(t, out, "done: create topic: 5, register schema: 1, write down: 1")
	before = b.ClusterState()
	for _, args := range [][]string{{"apply"}, {"plan", "--exit-code"}} {
		code, out := b.Processor(file, args...)
		if code != cli.ExitOK {
			t.Errorf("%s: exit code %d", args, code)
		}
		harness.WantLines(t, out, "; last applied: ", "nothing to do")
	}
	if after := b.ClusterState(); after != before {
		t.Errorf("the second apply changed the cluster to\n%s\nbefore:\n%s", after, before)
	}
	stop := b.Start("0") // a worker accepts what apply created
	b.Clicks(10)
	b.CaughtUp()
	stop()
	_, out = b.Processor(file, "plan", "--json")
	harness.WantLines(t, out, `"steps": []`, `"remembers": "1h0m0s"`)
}

func TestPlanRefusesUnsafeEditsUnlessAllowed(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	if code, out := b.Processor(b.File(planTopology), "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	stop := b.Start("0")
	b.Clicks(10)
	b.CaughtUp()
	stop()
	b.Clicks(5) // no worker reads these
	tests := []struct {
		name  string
		text  string
		allow string // name of the refused edit; "" if it cannot be allowed
		want  []string
	}{
		{"a stage with state is renamed", edit(t, "name: once", "name: twice"), "orphaned-state:p/once",
			[]string{"give the stage the name once again", "and twice would start", "+ create topic t-p-twice-state"}},
		{"a stage with state is removed", edit(t, "      - dedupe: {name: once, by: id, within: 1h}\n", ""), "orphaned-state:p/once", nil},
		{"a pipeline with a backlog is removed", edit(t, "  p:\n", "  q:\n", "to: out\n", "to: out2\n", "  out: {partitions: 4}\n", "  out: {partitions: 4}\n  out2: {partitions: 4}\n"), "removed:p",
			[]string{"group t-p has not read 5 offsets of in", ". pipeline:q: new: it starts at the beginning of in, and writes the result of every event there to out2"}},
		{"a pipeline reads another topic", edit(t, "from: in", "from: other"), "from:p", []string{"pipeline p read in and would read other"}},
		{"a guarantee is given up", edit(t, "to: out\n", "to: out\n    guarantee: at_least_once\n"), "guarantee:p", []string{"may write events twice"}},
		{"the retention is shorter", edit(t, `"-1"`, `"1000"`), "config:in/retention.ms",
			[]string{"~ set config of topic in: retention.ms -1 -> 1000", "would change from -1 to 1000"}},
		{"records are compacted", edit(t, `retention.ms: "-1"`, "cleanup.policy: compact"), "config:in/cleanup.policy", []string{". topic:in: retention.ms is no longer declared; its value stays -1"}},
		{"the number of partitions changes", edit(t, "in: {partitions: 4", "in: {partitions: 8"), "", []string{"topic in has 4 partitions, but needs 8", "refused: partitions:in"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := *b
			b.T = t
			file := b.File(test.text)
			before := b.ClusterState()
			code, out := b.Processor(file, "plan")
			t.Log(out)
			if code != cli.ExitFailure {
				t.Errorf("exit code %d", code)
			}
			harness.WantLines(t, out, append(test.want, "1 edit refused")...)
			if code, _ := b.Processor(file, "apply"); code != cli.ExitFailure {
				t.Errorf("apply: exit code %d", code)
			}
			if after := b.ClusterState(); after != before {
				t.Errorf("a refused plan changed the cluster to\n%s\nbefore:\n%s", after, before)
			}
			if test.allow == "" {
				if code, out = b.Processor(file, "plan", "--allow", "partitions:in"); code != cli.ExitFailure {
					t.Errorf("exit code %d for an edit that cannot be allowed", code)
				}
				harness.WantLines(t, out, "cannot be allowed")
				return
			}
			harness.WantLines(t, out, "! refused: "+test.allow, "--allow "+test.allow)
			if code, out = b.Processor(file, "plan", "--allow", test.allow); code != cli.ExitOK {
				t.Errorf("exit code %d with --allow: %s", code, out)
			}
			harness.WantLines(t, out, "! allowed: "+test.allow)
		})
	}
}

// A misspelled --allow is a usage error, but a name that is not refused any more is
// not: the command line of an apply must work again after it succeeded.
func TestAllowRejectsUnknownNames(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	file := b.File(planTopology)
	before := b.ClusterState()
	for _, name := range []string{"foo", "foo:in", "removed", "removed:", ":p"} {
		for _, command := range []string{"plan", "apply"} {
			code, out := b.Processor(file, command, "--allow", name)
			if code != cli.ExitUsage {
				t.Errorf("%s --allow %s: exit code %d", command, name, code)
			}
			harness.WantLines(t, out, fmt.Sprintf("--allow: %q is not the name of an edit", name), "config:TOPIC/SETTING", "orphaned-state:PIPELINE/STAGE", "removed:PIPELINE")
		}
	}
	if after := b.ClusterState(); after != before {
		t.Errorf("a usage error changed the cluster to\n%s\nbefore:\n%s", after, before)
	}
	code, out := b.Processor(file, "apply", "--allow", "removed:q,recreated:in")
	if code != cli.ExitOK {
		t.Errorf("exit code %d for names that are not refused: %s", code, out)
	}
	harness.WantLines(t, out, ". allow: no refused edit has the name removed:q", ". allow: no refused edit has the name recreated:in", "done: ")
}

func TestPlanNotesSafeEdits(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	if code, out := b.Processor(b.File(planTopology), "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"a stage keeps ids longer", edit(t, "within: 1h", "within: 3h"), []string{". stage:p/once: it keeps ids for 3h0m0s instead of 1h0m0s; ids that are gone do not come back, so the new period is complete only after 2h0m0s more"}},
		{"a stage keeps ids for a shorter time", edit(t, "within: 1h", "within: 1m"), []string{". stage:p/once: it keeps ids for 1m0s instead of 1h0m0s: older ids are dropped"}},
		{"a stage is added", planTopology + "      - filter: {keep: n > 0}\n", []string{". stage:p/filter: new"}},
		{"the output topic changes", edit(t, "to: out", "to: out2", "  out: {partitions: 4}", "  out2: {partitions: 4}"), []string{". pipeline:p: its output topics change from out to out2", "+ create topic out2"}},
		{"receipts are added", edit(t, "  dead: {partitions: 1}", "  dead: {partitions: 1}\n  receipts: {partitions: 1}", "dead_letter: dead", "dead_letter: dead\n    receipts: receipts"),
			[]string{". pipeline:p: its receipt topic changes from none to receipts", "+ create topic receipts: with 1 partition, cleanup.policy=delete, retention.ms=259200000"}},
		{"the retention is longer", edit(t, `retention.ms: "-1"`, `retention.bytes: "-1"`), []string{"retention.bytes not set -> -1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := *b
			b.T = t
			code, out := b.Processor(b.File(test.text), "plan")
			if code != cli.ExitOK {
				t.Errorf("exit code %d", code)
			}
			harness.WantLines(t, out, append(test.want, "to do: ")...)
		})
	}
	stop := b.Start("0")
	b.CaughtUp()
	_, out := b.Processor(b.File(edit(t, "within: 1h", "within: 3h")), "plan")
	harness.WantLines(t, out, "2 sessions run with the topology of their start: restart the workers after apply")
	stop()
}

// The refusal contains the registry's message.
func TestPlanRefusesAnIncompatibleSchema(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	with := func(typ string) string {
		return planTopology + fmt.Sprintf("      - enrich: {add: {extra: {type: %s, value: %s}}}\n", typ, map[string]string{"long": "n", "string": "id"}[typ])
	}
	if code, out := b.Processor(b.File(with("long")), "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	code, out := b.Processor(b.File(with("string")), "plan")
	t.Log(out)
	if code != cli.ExitFailure {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "! refused: schema:out-Click", "schema is incompatible")
	if code, out = b.Processor(b.File(planTopology), "plan"); code != cli.ExitOK {
		t.Errorf("exit code %d without the field: %s", code, out)
	}
}

func TestPlanRefusesARecreatedTopic(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	file := b.File(planTopology)
	if code, out := b.Processor(file, "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	b.Remove("in")
	b.Topics(kafka.TopicSpec{Name: "in", Partitions: 4})
	code, out := b.Processor(file, "plan")
	if code != cli.ExitFailure {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "! refused: recreated:in", "topic in was deleted and created again")
}

func TestPlanFailsOnADeploymentOfAnotherFormat(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	file := b.File(planTopology)
	if code, out := b.Processor(file, "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	b.Write(1, func(int) *pipeline.Record {
		return &pipeline.Record{Topic: "t-control", Partition: 0, Key: []byte(deploy.DeploymentKey), Value: []byte(`{"format": 99}`), Time: time.UnixMilli(0)}
	})
	code, out := b.Processor(file, "plan")
	if code != cli.ExitFailure {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "the last applied topology has format 99, but this program supports 1")
}

// A record that is no deployment is as good as none: plan says so, and apply replaces it.
func TestApplyReplacesADeploymentThatCannotBeRead(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	file := b.File(planTopology)
	if code, out := b.Processor(file, "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	for _, value := range []string{"{", "", "[]", "{}", `{"format":"1"}`, `{"format":1,"topics":7}`} {
		b.Write(1, func(int) *pipeline.Record {
			return &pipeline.Record{Topic: "t-control", Partition: 0, Key: []byte(deploy.DeploymentKey), Value: []byte(value), Time: time.UnixMilli(0)}
		})
		_, out := b.Processor(file, "plan")
		harness.WantLines(t, out, "the last applied topology on t-control cannot be read")
		if code, out := b.Processor(file, "apply"); code != cli.ExitOK {
			t.Fatalf("after %q: %s", value, out)
		}
		if code, out := b.Processor(file, "plan"); code != cli.ExitOK || strings.Contains(out, "cannot be read") {
			t.Errorf("after apply: %s", out)
		}
	}
}
