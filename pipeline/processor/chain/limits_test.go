package chain_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/producer"
)

// limitedTopology has size limits for each of its topics; %d are those of out and dead.
const limitedTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, config: {max.message.bytes: "5000000"}}
  out: {partitions: 2, config: {max.message.bytes: "%d"}}
  dead: {partitions: 1, config: {max.message.bytes: "%d"}}
pipelines: {p: {from: in, to: out, dead_letter: dead}}
`

// sized returns the event n with an id of size bytes.
func sized(b *processortest.Bench, n int64, size int) *pipeline.Record {
	r := b.Click(harness.Noise(size), n, time.UnixMilli(1_800_000_000_000))
	r.Key = fmt.Append(nil, n)
	return r
}

// sendClicks writes records to the topic in, with its size limit.
func sendClicks(b *processortest.Bench, records ...*pipeline.Record) {
	b.Helper()
	w, err := kafka.NewWriter(b.Config())
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	w.Limits(b.Context(), "in")
	for _, r := range records {
		w.Write(b.Context(), r, func(err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	if err := w.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// keysOf returns the number of records of each key on a topic, and the last record of each.
func keysOf(b *processortest.Bench, topic string) (counts map[string]int, last map[string]pipeline.Record) {
	b.Helper()
	counts, last = map[string]int{}, map[string]pipeline.Record{}
	b.Read(topic, func(r *pipeline.Record) {
		counts[string(r.Key)]++
		kept := pipeline.Record{Value: bytes.Clone(r.Value)}
		for _, h := range r.Headers {
			kept.Headers = append(kept.Headers, pipeline.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
		}
		last[string(r.Key)] = kept
	})
	return counts, last
}

// Each event is on the output or a dead letter exactly once, also when a batch fails. A
// record that is too large for its topic becomes a dead letter, truncated to the limit of
// the dead-letter topic.
func TestTooLargeRecordBecomesADeadLetter(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault *kfake.Fault
	}{
		{"no fault", nil},
		{"EndTxn refused", &kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError, Count: 2}},
		{"EndTxn applied, answered with a timeout", &kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.RequestTimedOut, Count: 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := processortest.NewBench(t, fmt.Sprintf(limitedTopology, 20_000, 10_000))
			b.Start("0")
			if test.fault != nil {
				b.Broker.Fault(*test.fault)
			}
			const n = 600
			large := func(i int) bool { return i%100 == 50 }
			var sent []*pipeline.Record
			for i := range n {
				sent = append(sent, sized(b, int64(i), map[bool]int{false: 300, true: 30_000}[large(i)]))
			}
			sendClicks(b, sent...)
			b.CaughtUp()
			out, _ := keysOf(b, "out")
			dead, letters := keysOf(b, "dead")
			for i, r := range sent {
				key := fmt.Sprint(i)
				if out[key] != map[bool]int{false: 1}[large(i)] || dead[key] != map[bool]int{true: 1}[large(i)] {
					t.Fatalf("event %d is on the output %d times, and a dead letter %d times", i, out[key], dead[key])
				}
				if !large(i) {
					continue
				}
				letter := letters[key]
				parsed := deadletter.Parse(&letter)
				if parsed.Reason != "too_large" || parsed.Error != fmt.Sprintf("too_large: %d bytes, but out takes at most 19488", r.Size()) {
					t.Errorf("the letter says %s: %s", parsed.Reason, parsed.Error)
				}
				if size := letter.Size(); parsed.Truncated != len(r.Value) || size > 10_000-512 || size < 9000 || !bytes.HasPrefix(r.Value, letter.Value) {
					t.Errorf("the letter has %d bytes, of %d", size, parsed.Truncated)
				}
			}
		})
	}
}

// No record can have a time before 1970, so such an event is a dead letter with its time,
// and not an output of another time. Where the broker sets the times, it passes.
func TestAnEventBefore1970IsADeadLetter(t *testing.T) {
	for config, want := range map[string]string{"CreateTime": "dead", "LogAppendTime": "out"} {
		b := processortest.NewBench(t, `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none, time: "n == 1 ? timestamp('1969-07-20T20:17:40Z') : timestamp('1970-01-01T00:00:00Z')"}
  out: {partitions: 1, config: {message.timestamp.type: `+config+`}}
  dead: {partitions: 1}
pipelines: {p: {from: in, to: out, dead_letter: dead}}
`)
		b.Start("0")
		sendClicks(b, sized(b, 1, 10), sized(b, 2, 10))
		b.CaughtUp()
		out, _ := keysOf(b, "out")
		dead, letters := keysOf(b, "dead")
		if got := map[string]int{"out": out["1"], "dead": dead["1"]}; got[want] != 1 || out["1"]+dead["1"] != 1 || out["2"] != 1 {
			t.Errorf("%s: %v were written, %v are dead letters", config, out, dead)
		}
		if letter := letters["1"]; want == "dead" {
			parsed := deadletter.Parse(&letter)
			if parsed.Error != "bad_time: 1969-07-20T20:17:40Z is before 1970, which a Kafka record's time cannot be" {
				t.Errorf("the letter says %s", parsed.Error)
			}
			back := deadletter.Original(&letter)
			if id := b.TopicID("in"); id == "" || !deadletter.IsTaken(&back, id) || deadletter.IsTaken(&back, "another") {
				t.Errorf("the letter of the topic %s has the headers %v", id, letter.Headers)
			}
		}
	}
}

func TestLargeEventPassesIfTheTopicsAllowIt(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(limitedTopology, 5_000_000, 1_000_000))
	b.Start("0")
	sendClicks(b, sized(b, 1, 4_000_000), sized(b, 2, 10))
	b.CaughtUp()
	if out, last := keysOf(b, "out"); len(out) != 2 || len(last["1"].Value) < 4_000_000 {
		t.Errorf("%v were written, the large one with %d bytes", out, len(last["1"].Value))
	}
}

// When the limit of a topic is lowered while the worker runs, the worker notices it.
func TestLoweredLimitMakesDeadLetters(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(limitedTopology, 1_000_000, 1_000_000))
	b.Start("0")
	sendClicks(b, sized(b, 1, 300_000), sized(b, 2, 10))
	b.CaughtUp()
	if err := kafka.SetTopicConfig(t.Context(), b.Config(), "out", map[string]string{"max.message.bytes": "20000"}); err != nil {
		t.Fatal(err)
	}
	sendClicks(b, sized(b, 3, 300_000), sized(b, 4, 10))
	b.CaughtUp()
	out, _ := keysOf(b, "out")
	dead, _ := keysOf(b, "dead")
	if fmt.Sprint(out) != "map[1:1 2:1 4:1]" || fmt.Sprint(dead) != "map[3:1]" {
		t.Errorf("out %v, dead %v", out, dead)
	}
}

func TestProducerSendUsesTheLimitOfItsTopic(t *testing.T) {
	for _, test := range []struct {
		limit, size int
		want        string
	}{
		{20_000, 19_000, ""},
		{20_000, 19_500, "too large: 19"},
		{4_000_000, 3_000_000, ""},
	} {
		text := fmt.Sprintf(limitedTopology, 1_000_000, 1_000_000)
		text = strings.Replace(text, "5000000", strconv.Itoa(test.limit), 1)
		b := processortest.NewBench(t, text)
		input := filepath.Join(t.TempDir(), "in.jsonl")
		large := fmt.Sprintf(`{"id":"k","n":1,"x":%q}`, harness.Noise(test.size))
		if err := os.WriteFile(input, []byte(large+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var output bytes.Buffer
		env := &cli.Env{Stdout: &output, Stderr: &output, Now: time.Now}
		file := b.File(text)
		harness.Write(t, filepath.Join(filepath.Dir(file), "schemas", "Click.avsc"), []byte(`{"type": "record", "name": "Click", "fields": [
			{"name": "id", "type": "string"}, {"name": "n", "type": "long"}, {"name": "x", "type": "string", "default": ""}]}`))
		code := env.Main([]string{"send", input, "-t", file, "-b", b.Config().Brokers[0], "-r", b.RegistryURL, "--topic", "in", "--key", "id"}, producer.Command)
		if (code == cli.ExitOK) != (test.want == "") || !strings.Contains(output.String(), test.want) {
			t.Errorf("%+v: exit code %d:\n%.500s", test, code, &output)
		}
	}
}

func TestEveryLaneHasTheLimits(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(limitedTopology, 20_000, 10_000))
	l := chain.NewLanes(b.Worker("0"), b.Registry, b.IDs, 4)
	l.SetLimits(kafka.Limits{"out": {Bytes: 1000}})
	var out harness.Emitted
	for i := range 20 {
		r := sized(b, int64(i), 600)
		r.Offset = int64(i)
		if err := l.Handle(context.Background(), r, &out); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Flush(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	for _, r := range out {
		if r.Topic != "dead" {
			t.Errorf("%d bytes on %s", r.Size(), r.Topic)
		}
	}
	if len(out) != 20 {
		t.Errorf("%d records were emitted, want 20", len(out))
	}
}

// A small --memory bounds neither the events nor the dead letters that the topics take, and
// the worker warns that it will use more.
func TestALittleMemoryDoesNotLimitTheSizeOfRecords(t *testing.T) {
	for _, test := range []struct {
		name      string
		out       int // size limit of the topic
		topic     string
		wantError string
	}{
		{"the output", 8_000_000, "out", ""},
		{"the dead letter", 20_000, "dead", "out takes at most 19488"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := strings.Replace(fmt.Sprintf(limitedTopology, test.out, 8_000_000), "5000000", "8000000", 1)
			b := processortest.NewBench(t, text)
			var log harness.Buffer
			w := b.Worker("0")
			w.Log = slog.New(slog.NewTextHandler(&log, nil))
			ctx, cancel := context.WithCancel(t.Context())
			loop, err := chain.NewLoop(ctx, w, b.Plan.Pipelines[0], chain.LoopOptions{Metrics: chain.NewMetrics(w.Metrics), Loops: kafka.NewMetrics(w.Metrics), Memory: 32 << 20, Now: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- loop.Run(ctx) }()
			sent := sized(b, 1, 5_000_000)
			sendClicks(b, sent)
			b.CaughtUp()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			counts, last := keysOf(b, test.topic)
			got := last["1"]
			if counts["1"] != 1 || !bytes.HasSuffix(got.Value, sent.Value[codec.FrameSize:]) {
				t.Errorf("%s has %v, the event with %d bytes", test.topic, counts, len(got.Value))
			}
			if parsed := deadletter.Parse(&got); test.wantError != "" && (parsed.Truncated != 0 || !strings.Contains(parsed.Error, test.wantError)) {
				t.Errorf("the letter was cut from %d bytes: %s", parsed.Truncated, parsed.Error)
			}
			harness.WantLines(t, log.String(), "topic=in max.message.bytes=8000000 memory_mib=32 sessions=2 flag=--memory needed_mib=62")
		})
	}
}
