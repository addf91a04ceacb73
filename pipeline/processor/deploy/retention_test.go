package deploy_test

import (
	"strings"
	"testing"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/processortest"
)

const gapText = "its records keep the times of their events, so Kafka deletes events older than"

// The source keeps everything, and the output has the brokers' default.
func TestPlanDryRunAndExplainWarnOfOutputThatIsDeletedAtOnce(t *testing.T) {
	b := processortest.NewBench(t, planTopology)
	file := b.File(planTopology)
	for _, command := range []string{"plan", "dry-run", "explain"} {
		_, out := b.Processor(file, command)
		if plain := strings.Join(strings.Fields(out), " "); strings.Count(plain, gapText) != 2 {
			t.Errorf("%s does not warn of out and dead:\n%s", command, out)
		}
	}
	kept := edit(t, "out: {partitions: 4}", `out: {partitions: 4, config: {retention.ms: "-1"}}`, "dead: {partitions: 1}", `dead: {partitions: 1, config: {retention.ms: "-1"}}`)
	for _, command := range []string{"plan", "dry-run", "explain"} {
		if _, out := b.Processor(b.File(kept), command); strings.Contains(out, "keep the times") {
			t.Errorf("%s warns without a reason:\n%s", command, out)
		}
	}
	// What the cluster has counts, if the topology declares nothing.
	b.Topics(kafka.TopicSpec{Name: "in", Partitions: 4, Config: map[string]string{"retention.ms": "-1"}},
		kafka.TopicSpec{Name: "out", Partitions: 4, Config: map[string]string{"retention.ms": "-1"}}, kafka.TopicSpec{Name: "dead", Partitions: 1})
	_, out := b.Processor(file, "plan")
	if strings.Count(strings.Join(strings.Fields(out), " "), gapText) != 1 {
		t.Errorf("plan does not look at the settings of the cluster:\n%s", out)
	}
}

// The projector creates a topic of snapshots, but sets nothing of one that exists.
func TestApplySetsTheDeclaredConfigOfSnapshotTopics(t *testing.T) {
	text := strings.Replace(planTopology, "  out: {", "  homes: {partitions: 4, config: {cleanup.policy: compact, segment.ms: \"1000\"}}\n  out: {", 1) + `
projections:
  home: {from: other, state: Page, on: {Click: {set: {id: id, views: n}}}, snapshots: homes}
`
	b := processortest.NewBench(t, text)
	b.Topics(kafka.TopicSpec{Name: "homes", Partitions: 4, Config: map[string]string{"cleanup.policy": "compact"}})
	code, out := b.Processor(b.File(text), "apply")
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "~ set config of topic homes: segment.ms not set -> 1000")
	d, err := kafka.Describe(t.Context(), b.Config(), []string{"homes"}, nil, nil)
	if err != nil || d.Topics["homes"].Config["segment.ms"] != "1000" {
		t.Errorf("%v, %v", d.Topics["homes"].Config, err)
	}
}
