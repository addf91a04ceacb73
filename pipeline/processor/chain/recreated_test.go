package chain_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/processortest"
)

// sentBack returns a record as it was sent back to another pipeline. id is the id of the
// topic in which it failed, "" if the letter has none.
func sentBack(r *pipeline.Record, id string) *pipeline.Record {
	letter := deadletter.New(r, "dead", "other", "s", pipeline.Reject("assert", "bad"), time.UnixMilli(1))
	deadletter.SetSourceID(&letter, id)
	back := deadletter.Original(&letter)
	back.Topic = r.Topic
	return &back
}

// A letter of an earlier topic is new to every reader of the topic as it is now. One of
// this topic, or of an unknown one, was read before.
func TestPipelinesTakeLettersOfAnEarlierTopic(t *testing.T) {
	b := processortest.NewBench(t, `
name: t
topics: {in: {partitions: 2, types: [Click], envelope: none}, out: {partitions: 2}, dead: {partitions: 1}}
pipelines:
  p: {from: in, to: out, dead_letter: dead, stages: [{filter: {name: odd, keep: "n != 5"}}]}
`)
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	ids := []string{"", b.TopicID("in"), "another", "another", b.TopicID("in"), "another"}
	b.Write(len(ids), func(i int) *pipeline.Record {
		return sentBack(b.Click(fmt.Sprint("e-", i), int64(i), time.UnixMilli(1_800_000_000_000)), ids[i])
	})
	defer b.Start("0")()
	b.CaughtUp()
	var got []string
	b.Read("out", func(r *pipeline.Record) {
		got = append(got, string(r.Key))
		if len(r.Headers) > 0 {
			t.Errorf("%s has the headers %v", r.Key, r.Headers)
		}
	})
	if slices.Sort(got); !slices.Equal(got, []string{"e-2", "e-3"}) {
		t.Errorf("the pipeline wrote %q, want the letters of another topic, except for the one that it filters", got)
	}
}

// The rows of a table are those of the topic as it is now, so they lack a letter of an
// earlier one.
func TestATableTakesLettersOfAnEarlierTopic(t *testing.T) {
	b := processortest.NewBench(t, tableTopology)
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	putPages(b, sentBack(pageRecord(b, "1", "unknown"), ""), sentBack(pageRecord(b, "2", "this"), b.TopicID("pages")), sentBack(pageRecord(b, "3", "another"), "another"))
	all, _, w := openedTables(b)
	for id, want := range map[string]string{"1": "", "2": "", "3": "another"} {
		if got := titleOf(b, all["pages"], id); got != want {
			t.Errorf("page %s is %q, want %q", id, got, want)
		}
	}
	want := `# HELP millrace_table_redriven_total Records of a table's topic that were skipped, because they are dead letters that were sent back to a pipeline.
# TYPE millrace_table_redriven_total counter
millrace_table_redriven_total{table="homes"} 0
millrace_table_redriven_total{table="pages"} 2
`
	if err := testutil.GatherAndCompare(w.Metrics, strings.NewReader(want), "millrace_table_redriven_total"); err != nil {
		t.Error(err)
	}
}

// Rows that are keyed by a field of the old topic leave nothing behind either: a tombstone
// in the new topic deletes no row that the old topic had under its key.
func TestATopicThatIsCreatedAgainHasItsOwnRowKeys(t *testing.T) {
	b := processortest.NewBench(t, `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none}
  pages: {partitions: 1, types: [Page], envelope: none, key: title, config: {cleanup.policy: compact}}
  out: {partitions: 1}
  dead: {partitions: 1}
tables: {pages: {topic: pages}}
pipelines:
  p: {from: in, to: out, dead_letter: dead, stages: [lookup: {table: pages, key: id, add: {title: {type: string, value: row.id}}}]}
`)
	if _, err := b.Worker("0").EnsureTopics(t.Context(), b.Plan.Topics); err != nil {
		t.Fatal(err)
	}
	putPages(b, pageRecord(b, "1", "a"), pageRecord(b, "2", "b"))
	all, _, _ := openedTables(b)
	pages := all["pages"]
	changed := pages.Changed()
	b.Remove("pages")
	b.Topics(kafka.TopicSpec{Name: "pages", Partitions: 1})
	putPages(b, pageRecord(b, "3", "a"), pageRecord(b, "1", ""))
	id := func(title string) string {
		row, _ := pages.Get([]byte(title))
		text, _, _ := codec.ReadText(row)
		return string(text)
	}
	harness.Awaited(t, "the rows of the new topic", func() bool { return id("a") == "3" && id("b") == "" && pages.Len() == 1 })
	select {
	case <-changed:
	default:
		t.Error("those that wait for a row were not woken")
	}
}
