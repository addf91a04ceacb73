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

// edit returns the topology with replacements, each of something that is there.
func edit(t *testing.T, pairs ...string) string {
	t.Helper()
	text := planTopology
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("there is no %q", pairs[i])
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text
}

func TestApplyDoesWhatPlanShowsOnce(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	file := b.File(planTopology)
	before := b.Traces()
	code, out := b.Processor(file, "plan")
	t.Log(out)
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "nothing was applied yet",
		"+ create topic in: with 4 partitions, retention.ms=-1",
		"+ create topic t-p-once-state: with 4 partitions, cleanup.policy=delete",
		"+ register schema out-Click: compatible",
		"~ write down t-control: what is applied, for the first time",
		"to do: create topic: 5, register schema: 1, write down: 1")
	if code, _ := b.Processor(file, "plan", "--exit-code"); code != deploy.ExitChanges {
		t.Errorf("exit code %d with something to do", code)
	}
	if after := b.Traces(); after != before {
		t.Errorf("plan left traces:\n%s\nbefore:\n%s", after, before)
	}
	if code, out = b.Processor(file, "apply"); code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, out)
	}
	harness.WantLines(t, out, "done: create topic: 5, register schema: 1, write down: 1")
	before = b.Traces()
	for _, args := range [][]string{{"apply"}, {"plan", "--exit-code"}} {
		code, out := b.Processor(file, args...)
		if code != cli.ExitOK {
			t.Errorf("%s: exit code %d", args, code)
		}
		harness.WantLines(t, out, "; applied was ", "nothing to do")
	}
	if after := b.Traces(); after != before {
		t.Errorf("the second time it did something:\n%s\nbefore:\n%s", after, before)
	}
	stop := b.Start("0") // workers find everything as they want it
	b.Clicks(10)
	b.CaughtUp()
	stop()
	_, out = b.Processor(file, "plan", "--json")
	harness.WantLines(t, out, `"steps": []`, `"remembers": "1h0m0s"`)
}

func TestPlanRefusesWhatIsUnsafe(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	if code, out := b.Processor(b.File(planTopology), "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	stop := b.Start("0")
	b.Clicks(10)
	b.CaughtUp()
	stop()
	b.Clicks(5) // these are not read yet
	tests := []struct {
		name  string
		text  string
		allow string // "" if it cannot be
		want  []string
	}{
		{"a stage that remembers has another name", edit(t, "name: once", "name: twice"), "orphaned-state:p/once",
			[]string{"give the stage the name once again", "and twice would begin", "+ create topic t-p-twice-state"}},
		{"a stage that remembers is gone", edit(t, "      - dedupe: {name: once, by: id, within: 1h}\n", ""), "orphaned-state:p/once", nil},
		{"a pipeline with something to read is gone", edit(t, "  p:\n", "  q:\n"), "removed:p",
			[]string{"group t-p has yet to read 5 offsets of in", ". pipeline:q: it is new: it begins at the start of in"}},
		{"a pipeline reads another topic", edit(t, "from: in", "from: other"), "from:p", []string{"pipeline p read in and would read other"}},
		{"a guarantee is given up", edit(t, "to: out\n", "to: out\n    guarantee: at_least_once\n"), "guarantee:p", []string{"may come out twice"}},
		{"records are deleted sooner", edit(t, `"-1"`, `"1000"`), "config:in/retention.ms",
			[]string{"~ set config of topic in: retention.ms -1 -> 1000", "older records are", "deleted at once"}},
		{"records are compacted", edit(t, `retention.ms: "-1"`, "cleanup.policy: compact"), "config:in/cleanup.policy", []string{". topic:in: retention.ms is no longer declared; it stays at -1"}},
		{"partitions", edit(t, "in: {partitions: 4", "in: {partitions: 8"), "", []string{"topic in has 4 partitions, and would have to have 8", "refused: partitions:in"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := *b
			b.T = t
			file := b.File(test.text)
			before := b.Traces()
			code, out := b.Processor(file, "plan")
			t.Log(out)
			if code != cli.ExitFailure {
				t.Errorf("exit code %d", code)
			}
			harness.WantLines(t, out, append(test.want, "1 edit refused")...)
			if code, _ := b.Processor(file, "apply"); code != cli.ExitFailure {
				t.Errorf("apply: exit code %d", code)
			}
			if after := b.Traces(); after != before {
				t.Errorf("what is refused left traces:\n%s\nbefore:\n%s", after, before)
			}
			if test.allow == "" {
				if code, out = b.Processor(file, "plan", "--allow", "partitions:in"); code != cli.ExitFailure {
					t.Errorf("exit code %d for what cannot be allowed", code)
				}
				harness.WantLines(t, out, "cannot be allowed")
				return
			}
			harness.WantLines(t, out, "! refused: "+test.allow, "--allow "+test.allow)
			if code, out = b.Processor(file, "plan", "--allow", test.allow); code != cli.ExitOK {
				t.Errorf("exit code %d when it is allowed: %s", code, out)
			}
			harness.WantLines(t, out, "! allowed: "+test.allow)
		})
	}
}

func TestPlanNotesWhatIsSafe(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	if code, out := b.Processor(b.File(planTopology), "apply"); code != cli.ExitOK {
		t.Fatal(out)
	}
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"remembers longer", edit(t, "within: 1h", "within: 3h"), []string{". stage:p/once: it remembers 3h0m0s instead of 1h0m0s; what it has forgotten already stays forgotten, so this is so only after 2h0m0s more"}},
		{"remembers shorter", edit(t, "within: 1h", "within: 1m"), []string{". stage:p/once: it remembers 1m0s instead of 1h0m0s: what is older is forgotten"}},
		{"a stage more", planTopology + "      - filter: {keep: n > 0}\n", []string{". stage:p/filter: it is new"}},
		{"writes elsewhere", edit(t, "to: out", "to: out2", "  out: {partitions: 4}", "  out2: {partitions: 4}"), []string{". pipeline:p: it wrote to out, and will write to out2", "+ create topic out2"}},
		{"writes receipts", edit(t, "  dead: {partitions: 1}", "  dead: {partitions: 1}\n  told: {partitions: 1}", "dead_letter: dead", "dead_letter: dead\n    receipts: told"),
			[]string{". pipeline:p: receipts went to nowhere, and will go to told", "+ create topic told: with 1 partition, cleanup.policy=delete, retention.ms=259200000"}},
		{"kept longer", edit(t, `retention.ms: "-1"`, `retention.bytes: "-1"`), []string{"retention.bytes not set -> -1"}},
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
	harness.WantLines(t, out, "2 sessions are at work by the topology that they began with: restart them after apply")
	stop()
}

// A schema that the registry would not take is refused, with the registry's words.
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

// A topic that is not the one that was applied is noticed.
func TestPlanNoticesThatATopicIsAnother(t *testing.T) {
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
	harness.WantLines(t, out, "! refused: recreated:in", "topic in was deleted and made anew")
	b.Write(1, func(int) *pipeline.Record {
		return &pipeline.Record{Topic: "t-control", Partition: 0, Key: []byte(deploy.DeploymentKey), Value: []byte(`{"format": 99}`), Time: time.UnixMilli(0)}
	})
	if code, out = b.Processor(file, "plan"); code != cli.ExitFailure {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "what was applied is in format 99, this program knows 1")
}
