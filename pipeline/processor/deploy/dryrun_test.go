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
	"millrace/pipeline/processor/processortest"
)

func TestDryRunReportsOutcomesAndWritesNothing(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	b.Topics(kafka.TopicSpec{Name: "in", Partitions: 4})
	b.Clicks(60)
	before := b.ClusterState()
	code, out := b.Processor(b.File(harness.PlainTopology), "dry-run", "--num", "1000")
	t.Log(out)
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out,
		"ok     topic in: 4 partitions",
		"new    topic out: it does not exist; a worker would create it with 4 partitions",
		"new    schema out-Click: not registered yet",
		"new    group t-p: no worker has run yet",
		"ok     transactional id t-p-",
		"60 events of in: 39 would be written, 20 filtered, 1 dead letter",
		"1 assert",
		`"id":"user-1"`,
		"assert: ",
	)
	if after := b.ClusterState(); after != before {
		t.Errorf("the dry run changed the cluster to\n%s\nbefore:\n%s", after, before)
	}
	_, out = b.Processor(b.File(harness.PlainTopology), "dry-run", "--num", "10", "--offset", "-10", "--json")
	harness.WantLines(t, out, `{"pipeline":"p","in":10,`, `"stage":"filter","in":10,`, `{"check":"topic in","state":"ok"`)
}

func TestDryRunReportsAllFaults(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	b.Topics(kafka.TopicSpec{Name: "in", Partitions: 3}, kafka.TopicSpec{Name: "dead", Partitions: 2})
	before := b.ClusterState()
	code, out := b.Processor(b.File(harness.PlainTopology), "dry-run")
	if code != cli.ExitFailure {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out,
		"fault  topic in: it has 3 partitions, but is declared with 4",
		"fault  topic dead: it has 2 partitions, but is declared with 1",
		"2 faults: it would not work")
	if after := b.ClusterState(); after != before {
		t.Errorf("the dry run changed the cluster to\n%s\nbefore:\n%s", after, before)
	}

	if code, out = b.Processor(b.File(strings.Replace(harness.PlainTopology, "n % 3", "m % 3", 1)), "dry-run"); code != cli.ExitUsage {
		t.Errorf("exit code %d for an invalid topology: %s", code, out)
	}
	where := b.RegistryURL
	b.RegistryURL = "http://127.0.0.1:1"
	code, out = b.Processor(b.File(harness.PlainTopology), "dry-run")
	b.RegistryURL = where
	if code != cli.ExitFailure {
		t.Errorf("exit code %d without a registry", code)
	}
	harness.WantLines(t, out, "fault  registry: ", "1 fault: it would not work")
}

// A dedupe stage knows the events before the first one that the dry run reads.
func TestDryRunRestoresTheStateOfStages(t *testing.T) {
	text := fmt.Sprintf(processortest.DedupeTopology, "exactly_once")
	b := processortest.NewBench(t, text)
	stop := b.Start("0")
	at := time.UnixMilli(1_800_000_000_000)
	b.Write(4, func(i int) *pipeline.Record { return b.Click("a", int64(i), at) })
	b.CaughtUp()
	stop()
	before := b.ClusterState()
	_, out := b.Processor(b.File(text), "dry-run", "--offset", "-2", "--num", "2")
	harness.WantLines(t, out, "2 events of in: 0 would be written, 2 filtered, no dead letters")
	_, out = b.Processor(b.File(text), "dry-run")
	harness.WantLines(t, out, "4 events of in: 1 would be written, 3 filtered, no dead letters")
	if after := b.ClusterState(); after != before {
		t.Errorf("the dry run changed the cluster to\n%s\nbefore:\n%s", after, before)
	}
}

// A pipeline that workers would refuse to start is reported before it is deployed.
func TestPlanApplyAndDryRunReportStagesThatWaitTooLong(t *testing.T) {
	const text = `
name: t
topics:
  in: {partitions: 4, types: [Click], envelope: none}
  rows: {partitions: 1, types: [Click], envelope: none, config: {cleanup.policy: compact}}
  out: {partitions: 4}
  dead: {partitions: 1}
tables:
  rows: {topic: rows}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages: [lookup: {table: rows, key: id, set: {n: row.n}, missing: wait, wait: 6s}]
`
	b := processortest.NewBench(t, text)
	b.Topics(kafka.TopicSpec{Name: "in", Partitions: 4}, kafka.TopicSpec{Name: "rows", Partitions: 1, Config: map[string]string{"cleanup.policy": "compact"}})
	file := b.File(text)
	const why = "its stages may delay a transaction by 6s, but --transaction-timeout is only 10s: set it to at least 12s"
	for command, want := range map[string]string{"plan": "! refused: delay:p", "apply": "! refused: delay:p", "dry-run": "fault  pipeline p: " + why} {
		code, out := b.Processor(file, command)
		if code != cli.ExitFailure {
			t.Errorf("%s: exit code %d", command, code)
		}
		harness.WantLines(t, strings.Join(strings.Fields(out), " "), strings.Join(strings.Fields(want), " "), why)
		if code, out = b.Processor(file, command, "--transaction-timeout", "12s"); code != cli.ExitOK || strings.Contains(out, "may delay a transaction by 6s, but") {
			t.Errorf("%s with a longer timeout: exit code %d:\n%s", command, code, out)
		}
	}
	if code, out := b.Processor(file, "plan", "--allow", "delay:p"); code != cli.ExitOK {
		t.Errorf("plan with --allow: exit code %d:\n%s", code, out)
	}
}
