package verify_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/producer"
	"millrace/pipeline/topology"
)

// redriveTopology has two pipelines that read the same topic. The argument is the value
// that the first one rejects.
const redriveTopology = `
name: t
topics: {in: {partitions: 4, types: [Click], envelope: none}, out: {partitions: 4}, all: {partitions: 4}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - dedupe: {by: id + string(n), within: 1h}
      - assert: {name: lucky, that: "n %% 10 != 3", message: "'three'"}
      - assert: {name: last, that: "n != %d", message: "'bad'"}
  q: {from: in, to: all, dead_letter: dead, stages: [{assert: {that: "n != 7"}}]}
`

// runAll runs the pipelines of a topology one after the other, until each has read its
// input.
func runAll(b *processortest.Bench, text string) {
	b.Helper()
	plan := b.Load(text)
	for i := range plan.Pipelines {
		one := *plan
		one.Pipelines = []*topology.Pipeline{plan.Pipelines[i]}
		b.Plan = &one
		stop := b.Start("0")
		b.CaughtUp()
		stop()
	}
}

func redrive(b *processortest.Bench, file string, args ...string) {
	b.Helper()
	var out bytes.Buffer
	env := &cli.Env{Stdout: &out, Stderr: &out, Now: time.Now}
	args = append([]string{"redrive", "-t", file, "-b", strings.Join(b.Broker.ListenAddrs(), ",")}, args...)
	if code := env.Main(args, producer.Command); code != cli.ExitOK {
		b.Fatalf("redrive: exit code %d: %s", code, out.String())
	}
}

// The stages change between the failure and the redrive, a letter stays and is copied,
// and a letter fails again: verify finds every outcome in its place.
func TestVerifyAgreesAfterRedrives(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(redriveTopology, 20))
	b.Topics(kafka.TopicSpec{Name: "in", Partitions: 4})
	b.Write(30, func(i int) *pipeline.Record {
		return b.Click(fmt.Sprint("user-", i), int64(i), time.UnixMilli(1_800_000_000_000+int64(i)))
	})
	runAll(b, fmt.Sprintf(redriveTopology, 20)) // letters of p: 3, 13, 23, 20; of q: 7

	file := b.File(fmt.Sprintf(redriveTopology, 20))
	redrive(b, file, "--stage", "p/lucky") // 3, 13 and 23 fail again, and 20 and 7 are copied
	runAll(b, fmt.Sprintf(redriveTopology, 20))
	if code, out := b.Processor(file, "verify"); code != cli.ExitOK {
		t.Errorf("after the first redrive: exit code %d: %s", code, out)
	}

	repaired := fmt.Sprintf(redriveTopology, 99)
	file = b.File(repaired)
	redrive(b, file) // 20 passes
	runAll(b, repaired)
	code, out := b.Processor(file, "verify")
	if code != cli.ExitOK {
		t.Errorf("after the second redrive: exit code %d", code)
	}
	harness.WantLines(t, out, "dead letters that were sent back: 7. The outcome of the first",
		"37 events in = 27 out + 0 filtered + 10 dead letters", "31 events in = 29 out + 0 filtered + 2 dead letters")

	seen := map[string]int{}
	b.Read("all", func(r *pipeline.Record) { seen[string(r.Key)]++ })
	for id, n := range seen {
		if n != 1 {
			t.Errorf("q wrote %s %d times", id, n)
		}
	}
	passed := 0
	b.Read("out", func(r *pipeline.Record) {
		passed++
		if len(r.Headers) > 0 {
			t.Errorf("the output has the headers %v", r.Headers)
		}
	})
	if len(seen) != 29 || passed != 27 {
		t.Errorf("%d events on all, %d on out", len(seen), passed)
	}

	// A second copy that no redrive wrote is a fault.
	rewrite(b, "dead", func(all []pipeline.Record) []pipeline.Record {
		for i := range all {
			if deadletter.Parse(&all[i]).Pipeline == "p" && !deadletter.IsCopy(&all[i]) {
				return append(all, all[i])
			}
		}
		return all
	})
	if code, out := b.Processor(file, "verify", "p"); code != cli.ExitFailure || !strings.Contains(out, "1 duplicated") {
		t.Errorf("a letter that is there twice: exit code %d: %s", code, out)
	}
}

// The letter of an earlier topic names a place at which the topic has another event now.
func TestVerifyAgreesAboutLettersOfAnEarlierTopic(t *testing.T) {
	text := fmt.Sprintf(redriveTopology, 20)
	b := processortest.NewBench(t, text)
	b.Topics(kafka.TopicSpec{Name: "in", Partitions: 4})
	event := func(i int) *pipeline.Record {
		return b.Click("user", int64(i), time.UnixMilli(1_800_000_000_000+int64(i)))
	}
	lost := event(1)
	lost.Partition = kafka.PartitionOf(lost.Key, 4)
	letter := deadletter.New(lost, "dead", "p", "last", pipeline.Reject("assert", "bad"), time.UnixMilli(1))
	deadletter.SetSourceID(&letter, "earlier")
	back := deadletter.Original(&letter)
	records := []*pipeline.Record{event(5), &back}
	b.Write(len(records), func(i int) *pipeline.Record { return records[i] })
	runAll(b, text)
	code, out := b.Processor(b.File(text), "verify")
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "2 events in = 2 out + 0 filtered + no dead letters")
}
