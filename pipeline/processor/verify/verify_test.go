package verify_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/processor/verify"
)

// verifyTopology has a field that depends on now() and a stage with state. Of 60
// clicks, 40 pass the filter, and the assertion rejects one of these.
const verifyTopology = `
name: t
topics: {in: {partitions: 4, types: [Click], envelope: none}, out: {partitions: 4}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - filter: {keep: "n % 3 != 0"}
      - assert: {that: "n != 13", message: "'thirteen'"}
      - enrich: {set: {n: "n * 10"}, add: {at: {type: timestamp-millis, value: "now()"}}}
      - dedupe: {by: "id + string(n)", within: 1h}
`

// allRecords returns copies of the committed records of a topic, in order within each
// partition.
func allRecords(b *processortest.Bench, topic string) (out []pipeline.Record) {
	b.Helper()
	b.Read(topic, func(r *pipeline.Record) {
		c := *r
		c.Key, c.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
		c.Headers = nil
		for _, h := range r.Headers {
			c.Headers = append(c.Headers, pipeline.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
		}
		out = append(out, c)
	})
	return out
}

// rewrite replaces the records of a topic by the result of f.
func rewrite(b *processortest.Bench, topic string, f func([]pipeline.Record) []pipeline.Record) {
	b.Helper()
	was := allRecords(b, topic)
	n := len(b.Broker.PartitionInfos(topic))
	b.Remove(topic)
	b.Topics(kafka.TopicSpec{Name: topic, Partitions: n})
	now := f(was)
	b.Write(len(now), func(i int) *pipeline.Record { return &now[i] })
}

// number returns the field n of an enriched click.
func number(t *testing.T, r *pipeline.Record) int64 {
	t.Helper()
	_, rest, err := codec.ReadText(r.Value[codec.FrameSize:])
	if err != nil {
		t.Fatal(err)
	}
	n, _, err := codec.ReadLong(rest)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ofUser1 returns the indexes of the records with the key user-1.
func ofUser1(all []pipeline.Record) (at []int) {
	for i := range all {
		if string(all[i].Key) == "user-1" {
			at = append(at, i)
		}
	}
	return at
}

// A spoiling changes the output of a pipeline, for verify to report.
type spoiling struct {
	name  string
	topic string
	spoil func(t *testing.T, all []pipeline.Record) []pipeline.Record
	code  int
	want  []string
}

// spoilings are applied one at a time to the output of 60 clicks.
var spoilings = []spoiling{
	{
		name: "nothing is changed", topic: "out", code: cli.ExitOK,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record { return all },
		want: []string{
			"60 events in = 39 out + 20 filtered + 1 dead letter\n", "40 records expected, 40 matched", "the output is as expected",
			"not compared: Click.at",
		},
	},
	{
		name: "a record is dropped", topic: "out", code: cli.ExitFailure,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record {
			at := ofUser1(all)[1]
			return slices.Delete(all, at, at+1)
		},
		want: []string{"38 out + 20 filtered + 1 dead letter: these do not add up", "39 matched", "1 missing", `missing on out, key "user-1", of the event in/`, `expected Click {"id":"user-1","n":80`, "the output is NOT as expected"},
	},
	{
		name: "a record is duplicated", topic: "out", code: cli.ExitFailure,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record { return append(all, all[ofUser1(all)[1]]) },
		want:  []string{"40 matched", "1 duplicated", `twice on out, key "user-1", of the event in/`, ", at out/"},
	},
	{
		name: "two records are swapped", topic: "out", code: cli.ExitFailure,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record {
			at := ofUser1(all)
			all[at[1]], all[at[2]] = all[at[2]], all[at[1]]
			return all
		},
		want: []string{"40 matched", "1 out of order", `out of order on out, key "user-1"`},
	},
	{
		name: "a record is altered", topic: "out", code: cli.ExitFailure,
		spoil: func(t *testing.T, all []pipeline.Record) []pipeline.Record {
			r := &all[ofUser1(all)[1]]
			if n := number(t, r); n != 80 {
				t.Fatalf("n is %d, want 80", n)
			}
			head := codec.FrameSize + len(codec.AppendString(nil, "user-1"))
			tail := r.Value[head+len(codec.AppendLong(nil, 80)):]
			r.Value = append(codec.AppendLong(slices.Clone(r.Value[:head]), 81), tail...)
			return all
		},
		want: []string{"39 matched", "1 different", `different on out, key "user-1"`, "n: 80 -> 81"},
	},
	{
		name: "a record is added", topic: "out", code: cli.ExitFailure,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record {
			r := all[ofUser1(all)[0]]
			r.Key = []byte("nobody")
			return append(all, r)
		},
		want: []string{"40 matched", "1 too many", `too many on out, key "nobody", at out/`, `found    Click {"id":"user-1"`},
	},
	{
		name: "a record that is not an event is added", topic: "out", code: cli.ExitFailure,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record {
			return append(all, pipeline.Record{Topic: "out", Partition: pipeline.KeyPartition, Key: []byte("user-1"), Value: []byte("hello")})
		},
		want: []string{"40 matched", "1 too many", "5 bytes that are not an event: 68656c6c6f"},
	},
	{
		name: "a dead letter is dropped", topic: "dead", code: cli.ExitFailure,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record { return nil },
		want:  []string{"39 out + 20 filtered + no dead letters: these do not add up", "1 missing", "expected a dead letter of assert: stage assert: assert: "},
	},
	{
		name: "a dead letter is duplicated", topic: "dead", code: cli.ExitFailure,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record { return append(all, all...) },
		want:  []string{"1 duplicated"},
	},
	{
		name: "a dead letter has another reason", topic: "dead", code: cli.ExitFailure,
		spoil: func(_ *testing.T, all []pipeline.Record) []pipeline.Record {
			all[0].Headers = slices.Clone(all[0].Headers)
			letter, in := deadletter.Parse(&all[0]), deadletter.Original(&all[0])
			in.Partition, in.Offset = letter.SourcePartition, letter.SourceOffset
			return []pipeline.Record{deadletter.New(&in, all[0].Topic, letter.Pipeline, letter.Stage, pipeline.Reject("panic", "x"), letter.Time)}
		},
		want: []string{"1 different"},
	},
}

func TestVerifyReportsEachDisagreement(t *testing.T) {
	b := processortest.NewBench(t, verifyTopology)
	stop := b.Start("0")
	b.Clicks(60)
	b.CaughtUp()
	stop()
	file := b.File(verifyTopology)
	good := map[string][]pipeline.Record{"out": allRecords(b, "out"), "dead": allRecords(b, "dead")}
	for _, test := range spoilings {
		t.Run(test.name, func(t *testing.T) {
			b := *b
			b.T = t
			rewrite(&b, test.topic, func([]pipeline.Record) []pipeline.Record { return test.spoil(t, slices.Clone(good[test.topic])) })
			code, out := b.Processor(file, "verify")
			if code != test.code {
				t.Errorf("exit code %d", code)
			}
			harness.WantLines(t, out, test.want...)
			t.Log(out)
			rewrite(&b, test.topic, func([]pipeline.Record) []pipeline.Record { return good[test.topic] })
		})
	}
}

// Uncommitted events may or may not have output. Several passes with little memory
// agree with a single pass.
func TestVerifyAgreesWhileWorkersRun(t *testing.T) {
	b := processortest.NewBench(t, verifyTopology)
	stop := b.Start("0")
	b.Write(36_000, func(i int) *pipeline.Record {
		return b.Click(fmt.Sprint("user-", i%1000), int64(i), time.UnixMilli(1_800_000_000_000+int64(i)))
	})
	file := b.File(verifyTopology)
	for range 3 {
		code, out := b.Processor(file, "verify", "--memory", "1")
		for strings.Contains(out, "has committed nothing") || strings.Contains(out, "not registered") {
			code, out = b.Processor(file, "verify", "--memory", "1")
		}
		if code != cli.ExitOK {
			t.Fatalf("exit code %d: %s", code, out)
		}
	}
	b.CaughtUp()
	stop()
	_, out := b.Processor(file, "verify", "--memory", "1", "--json")
	harness.WantLines(t, out, `"agrees":true`, `"in":36000,"out":23999,"filtered":12000,"dead_letters":1,"expected":24000,"matched":24000`, `"passes":2`)
	_, all := b.Processor(file, "verify", "--json")
	harness.WantLines(t, all, `"agrees":true`, `"passes":1`)
}

func TestFieldsAndStagesThatDependOnNowAreVolatile(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	plan := b.Load(`
name: t
topics: {in: {partitions: 1, types: [Click], envelope: none}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - enrich: {name: stamp, add: {at: {type: timestamp-millis, value: "now()"}}}
      - enrich: {name: follow, add: {later: {type: timestamp-millis, value: "at + duration('1h')"}, twice: {type: long, value: "n * 2"}}}
      - filter: {name: free, keep: "twice > 0 || n > 0"}
      - filter: {name: bound, keep: "at > timestamp('2020-01-01T00:00:00Z')"}
`)
	fields, deciding := verify.VolatileFields(plan.Pipelines[0], 0)
	var names []string
	for _, f := range fields {
		names = append(names, strings.Join(f, "."))
	}
	// The field twice does not depend on now(), but its stage does. Stages report what
	// they read and write as a whole, not by field.
	if got := fmt.Sprint(names, deciding); got != "[at later twice] [free bound]" {
		t.Errorf("the volatile fields and stages are %s", got)
	}
}

// A select gives events another schema: the fields that cannot be compared are those of the
// new schema, and the stages before it set none of them.
func TestVolatileFieldsFollowASelect(t *testing.T) {
	b := processortest.NewBench(t, harness.PlainTopology)
	const stamp = `{name: stamp, add: {at: {type: timestamp-millis, value: "now()"}, more: {type: long, value: "n"}}}`
	for name, c := range map[string]struct{ stages, fields, deciding string }{
		"left out":         {"- enrich: " + stamp + "\n- select: {drop: [at]}", "", ""},
		"renamed":          {"- enrich: " + stamp + "\n- select: {keep: [at, n], rename: {at: seen}}", "seen", ""},
		"all left out":     {"- enrich: " + stamp + "\n- select: {keep: [n]}\n- filter: {keep: n > 0}", "", ""},
		"of no other type": {"- enrich: " + stamp + "\n- select: {to: Page, set: {title: string(at)}}", "title", ""},
		"own":              {"- select: {to: Page, set: {title: string(now())}}\n- filter: {name: by, keep: title != ''}", "title", "by"},
		"a deletion":       {"- enrich: " + stamp + "\n- select: {keep: [n], delete: at < now()}", "", "select"},
		"followed":         {"- enrich: " + stamp + "\n- select: {keep: [at, n], rename: {at: a}}\n- select: {name: second, rename: {a: b}}\n- enrich: {set: {n: int(b)}}", "b n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			plan := b.Load(`
name: t
topics: {in: {partitions: 1, types: [Click], envelope: none}, out: {partitions: 1, envelope: none}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      ` + strings.ReplaceAll(c.stages, "\n", "\n      ") + "\n")
			fields, deciding := verify.VolatileFields(plan.Pipelines[0], 0)
			var names []string
			for _, f := range fields {
				names = append(names, strings.Join(f, "."))
			}
			if got := strings.Join(names, " "); got != c.fields || strings.Join(deciding, " ") != c.deciding {
				t.Errorf("volatile fields %q and stages %q, want %q and %q", got, deciding, c.fields, c.deciding)
			}
		})
	}
}

// The output agrees behind a stage that sets now() and a select, which lacks the field or
// renames it.
func TestVerifyAgreesAfterASelect(t *testing.T) {
	text := strings.TrimRight(harness.PlainTopology, "\n") + `
      - enrich: {name: stamp, add: {at: {type: timestamp-millis, value: "now()"}, gone: {type: timestamp-millis, value: "now()"}}}
      - select: {delete: n % 5 == 4, drop: [gone], rename: {at: seen}, type: Seen}
`
	b := processortest.NewBench(t, text)
	stop := b.Start("0")
	b.Clicks(60)
	b.CaughtUp()
	stop()
	code, out := b.Processor(b.File(text), "verify")
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "the output is as expected", "Seen.seen")
}

// Records that retention deleted are not missing. The report notes that they are lost.
func TestVerifyAcceptsThatOldRecordsAreDeleted(t *testing.T) {
	for topic, note := range map[string]string{"in": "a source lost its oldest events", "out": "an output topic lost its oldest records"} {
		t.Run(topic, func(t *testing.T) {
			b := processortest.NewBench(t, harness.PlainTopology)
			stop := b.Start("0")
			b.Clicks(60)
			b.CaughtUp()
			stop()
			if err := kafka.DeleteBefore(t.Context(), b.Config(), topic, map[int32]int64{0: 3, 1: 2}); err != nil {
				t.Fatal(err)
			}
			code, out := b.Processor(b.File(harness.PlainTopology), "verify")
			if code != cli.ExitOK {
				t.Errorf("exit code %d", code)
			}
			harness.WantLines(t, out, note, "the output is as expected")
		})
	}
}

// A missing record is still a fault.
func TestVerifyAllowsDuplicatesWithAtLeastOnce(t *testing.T) {
	text := strings.Replace(harness.PlainTopology, "    to: out\n", "    to: out\n    guarantee: at_least_once\n", 1)
	b := processortest.NewBench(t, text)
	stop := b.Start("0")
	b.Clicks(60)
	b.CaughtUp()
	stop()
	file := b.File(text)
	rewrite(b, "out", func(all []pipeline.Record) []pipeline.Record { return append(all, all[3]) })
	code, out := b.Processor(file, "verify")
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "1 duplicated", "duplicated records are not faults", "the output is as expected")
	rewrite(b, "out", func(all []pipeline.Record) []pipeline.Record { return all[1:] })
	if code, out = b.Processor(file, "verify"); code != cli.ExitFailure {
		t.Errorf("exit code %d with a missing record: %s", code, out)
	}
}

func TestVerifyComparesPipelinesThatWriteToOneTopicSeparately(t *testing.T) {
	text := harness.PlainTopology + `  q:
    from: in
    to: out
    dead_letter: dead
    stages:
      - filter: {keep: "n % 3 == 0"}
`
	b := processortest.NewBench(t, text)
	file := b.File(text)
	b.Topics(kafka.TopicSpec{Name: "in", Partitions: 4})
	b.Clicks(60)
	processortest.RunTapped(b, file)
	for _, name := range []string{"p", "q"} {
		lag := int64(1)
		for lag > 0 {
			var err error
			if lag, err = kafka.Lag(t.Context(), b.Config(), "t-"+name, "in"); err != nil {
				lag = 1 // the group does not exist yet
			}
		}
	}
	code, out := b.Processor(file, "verify")
	if code != cli.ExitOK {
		t.Errorf("exit code %d", code)
	}
	harness.WantLines(t, out, "60 events in = 39 out + 20 filtered + 1 dead letter\n", "60 events in = 20 out + 40 filtered + no dead letters\n",
		"pipeline q writes to a topic of this one")
}
