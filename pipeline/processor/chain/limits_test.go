package chain_test

import (
	"bytes"
	"context"
	"fmt"
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
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/processor/processortest"
	"millrace/pipeline/producer"
)

// All that look at the size of what they emit are told how large that may be.
const limitedTopology = `
name: t
topics:
  in: {partitions: 2, types: [Click], envelope: none, config: {max.message.bytes: "5000000"}}
  out: {partitions: 2, config: {max.message.bytes: "%d"}}
  dead: {partitions: 1, config: {max.message.bytes: "%d"}}
pipelines: {p: {from: in, to: out, dead_letter: dead}}
`

// sized is the event n, whose id has so many bytes.
func sized(b *processortest.Bench, n int64, size int) *pipeline.Record {
	r := b.Click(harness.Noise(size), n, time.UnixMilli(1_800_000_000_000))
	r.Key = fmt.Append(nil, n)
	return r
}

// sendClicks writes to "in" what that takes.
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

// keysOf returns how often each key stands on a topic, and the last of its records.
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

// Each event is either on the output or a dead letter, once, whatever goes wrong with
// a batch: that which is too large for its topic is a dead letter, cut off as that
// one's topic says.
func TestARecordThatIsTooLargeForItsTopicBecomesADeadLetterAndTheOthersGoOn(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault *kfake.Fault
	}{
		{"nothing goes wrong", nil},
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
					t.Fatalf("event %d is %d times on the output, and %d times a dead letter", i, out[key], dead[key])
				}
				if !large(i) {
					continue
				}
				letter := letters[key]
				parsed := deadletter.Parse(&letter)
				if parsed.Reason != "too_large" || parsed.Error != fmt.Sprintf("too_large: %d bytes after the last stage, but out takes at most 19488", r.Size()) {
					t.Errorf("the letter says %s: %s", parsed.Reason, parsed.Error)
				}
				if size := letter.Size(); parsed.Truncated != len(r.Value) || size > 10_000-512 || size < 9000 || !bytes.HasPrefix(r.Value, letter.Value) {
					t.Errorf("the letter has %d bytes, of %d", size, parsed.Truncated)
				}
			}
		})
	}
}

func TestALargeEventPassesWhereTheTopicsTakeIt(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(limitedTopology, 5_000_000, 1_000_000))
	b.Start("0")
	sendClicks(b, sized(b, 1, 4_000_000), sized(b, 2, 10))
	b.CaughtUp()
	if out, last := keysOf(b, "out"); len(out) != 2 || len(last["1"].Value) < 4_000_000 {
		t.Errorf("%v came out, the large one with %d bytes", out, len(last["1"].Value))
	}
}

// When the limit is lowered while the worker runs, it mends itself.
func TestALoweredLimitMakesDeadLettersFromThenOn(t *testing.T) {
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

func TestProducerSendGoesByWhatItsTopicTakes(t *testing.T) {
	for _, test := range []struct {
		takes, size int
		want        string
	}{
		{20_000, 19_000, ""},
		{20_000, 19_500, "too large: 19"},
		{4_000_000, 3_000_000, ""},
	} {
		text := fmt.Sprintf(limitedTopology, 1_000_000, 1_000_000)
		text = strings.Replace(text, "5000000", strconv.Itoa(test.takes), 1)
		b := processortest.NewBench(t, text)
		input := filepath.Join(t.TempDir(), "in.jsonl")
		large := fmt.Sprintf(`{"id":"k","n":1,"x":%q}`, harness.Noise(test.size))
		if err := os.WriteFile(input, []byte(large+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		env := &cli.Env{Stdout: &said, Stderr: &said, Now: time.Now}
		file := b.File(text)
		harness.Write(t, filepath.Join(filepath.Dir(file), "schemas", "Click.avsc"), []byte(`{"type": "record", "name": "Click", "fields": [
			{"name": "id", "type": "string"}, {"name": "n", "type": "long"}, {"name": "x", "type": "string", "default": ""}]}`))
		code := env.Main([]string{"send", input, "-t", file, "-b", b.Config().Brokers[0], "-r", b.Where, "--topic", "in", "--key", "id"}, producer.Command)
		if (code == cli.ExitOK) != (test.want == "") || !strings.Contains(said.String(), test.want) {
			t.Errorf("%+v: exit code %d:\n%.500s", test, code, &said)
		}
	}
}

// A chain of several lanes knows the limits in each of them.
func TestEveryLaneKnowsTheLimits(t *testing.T) {
	b := processortest.NewBench(t, fmt.Sprintf(limitedTopology, 20_000, 10_000))
	l := chain.NewLanes(chain.Config{Topology: b.Plan, Schemas: b.Registry, IDs: map[string][]int{"out": b.IDs}, Now: time.Now,
		Metrics: chain.NewMetrics(b.Worker("0").Metrics), Log: b.Worker("0").Log}, b.Plan.Pipelines[0], 4)
	l.Limit(kafka.Limits{"out": 1000})
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
		t.Errorf("%d came out", len(out))
	}
}
