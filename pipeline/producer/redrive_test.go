package producer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
)

// graveyard is a broker with the shop's topics, for tests of dead letters.
type graveyard struct {
	t   *testing.T
	cfg kafka.Config
}

const (
	graveSource = "shop.events"
	graveDead   = "shop.dead_letters"
)

func newGraveyard(t *testing.T) *graveyard {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	g := &graveyard{t, kafka.Config{Brokers: fake.ListenAddrs()}}
	specs := []kafka.TopicSpec{{Name: graveSource, Partitions: 3}, {Name: graveDead, Partitions: 2}}
	if _, err := kafka.EnsureTopics(t.Context(), g.cfg, specs, true); err != nil {
		t.Fatal(err)
	}
	return g
}

// letter returns a dead letter of shop.events.
func letter(key string, reason pipeline.Reason, attempt int) pipeline.Record {
	return letterOf(graveSource, key, reason, attempt, time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC))
}

// letterOf returns a dead letter of any topic, which failed at a time.
func letterOf(source, key string, reason pipeline.Reason, attempt int, at time.Time) pipeline.Record {
	r := pipeline.Record{Key: []byte(key), Value: []byte("\x00value of " + key), Time: time.UnixMilli(1000), Headers: []pipeline.Header{{Key: "traceparent", Value: []byte("00-1-2-01")}}}
	for range attempt {
		r.Topic, r.Partition, r.Offset = source, 1, 7
		r = deadletter.New(&r, graveDead, "enrich", "stamp", pipeline.Reject(reason, "it is \x1b[31mbad"), at)
	}
	return r
}

func (g *graveyard) write(records ...pipeline.Record) {
	g.t.Helper()
	w, err := kafka.NewWriter(g.cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	defer w.Close()
	for i := range records {
		w.Write(g.t.Context(), &records[i], func(err error) {
			if err != nil {
				g.t.Error(err)
			}
		})
	}
	if err := w.Flush(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
}

// read returns every committed record of a topic, by key.
func (g *graveyard) read(topic string, partitions int) map[string][]pipeline.Record {
	g.t.Helper()
	all := map[string][]pipeline.Record{}
	for p := range partitions {
		if _, err := kafka.ReadPartition(g.t.Context(), g.cfg, topic, int32(p), 0, func(r *pipeline.Record) error {
			kept := *r
			kept.Key, kept.Value = bytes.Clone(r.Key), bytes.Clone(r.Value)
			kept.Headers = nil
			for _, h := range r.Headers {
				kept.Headers = append(kept.Headers, pipeline.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
			}
			all[string(kept.Key)] = append(all[string(kept.Key)], kept)
			return nil
		}); err != nil {
			g.t.Fatal(err)
		}
	}
	return all
}

// redrive runs the command and returns its exit code, stdout and stderr.
func (g *graveyard) redrive(args ...string) (int, string, string) {
	g.t.Helper()
	var stdout, stderr harness.Buffer
	env := &cli.Env{Stdout: &stdout, Stderr: &stderr, Now: func() time.Time { return harness.Now }}
	code := env.Main(append([]string{"redrive", "-t", harness.ShopTopology(), "-b", g.cfg.Brokers[0], "--log-level", "error"}, args...), Command)
	return code, stdout.String(), stderr.String()
}

// sentBack runs the command and returns its summary.
func (g *graveyard) sentBack(args ...string) redriveCounts {
	g.t.Helper()
	code, out, stderr := g.redrive(append(args, "--json")...)
	var got redriveCounts
	if err := json.Unmarshal([]byte(out), &got); code != cli.ExitOK || err != nil {
		g.t.Fatalf("exit code %d, %v: %s%s", code, err, out, stderr)
	}
	return got
}

func TestLettersGoBackOnceAndByteForByte(t *testing.T) {
	g := newGraveyard(t)
	var letters []pipeline.Record
	for i := range 40 {
		letters = append(letters, letter(fmt.Sprint("k", i%10), "expression", 2))
		letters[i].Value = fmt.Appendf(nil, "\x00\xff%d", i)
	}
	g.write(letters...)
	if got := g.sentBack(); got.Sent != 40 || got.To[graveSource] != 40 || len(got.Stayed) > 0 {
		t.Errorf("%+v", got)
	}
	if got := g.sentBack(); got.Sent != 0 || len(got.Stayed) > 0 {
		t.Errorf("second run: %+v", got)
	}
	back := g.read(graveSource, 3)
	for i, want := range letters {
		key := string(want.Key)
		if len(back[key]) != 4 {
			t.Fatalf("%d of %s came back", len(back[key]), key)
		}
		got := back[key][i/10] // in order
		if !bytes.Equal(got.Value, want.Value) || !got.Time.Equal(want.Time) {
			t.Errorf("%s: %q at %v", key, got.Value, got.Time)
		}
		partition, offset, ok := deadletter.RedrivenFrom(&got)
		if len(got.Headers) != 4 || got.Headers[0].Key != "traceparent" || string(got.Headers[0].Value) != "00-1-2-01" ||
			deadletter.Parse(&got).Attempt != 2 || string(deadletter.RedrivenTo(&got)) != "enrich" || partition != 1 || offset != 7 || !ok {
			t.Errorf("%s: headers %v", key, got.Headers)
		}
		if got.Partition != kafka.PartitionOf(want.Key, 3) {
			t.Errorf("%s is in partition %d", key, got.Partition)
		}
	}
}

// A letter that stays, for any reason, is found by the next run.
func TestLettersThatStayArePendingAgain(t *testing.T) {
	g := newGraveyard(t)
	forged := letterOf("__consumer_offsets", "forged", "expression", 1, harness.Now)
	old := letterOf(graveSource, "old", "expression", 1, time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC))
	cut := letter("cut", "expression", 1)
	deadletter.Truncate(&cut, cut.Size()-1)
	kept := string(cut.Value)
	bare := pipeline.Record{Topic: graveDead, Partition: pipeline.KeyPartition, Key: []byte("bare"), Value: []byte("x"), Time: time.UnixMilli(1)}
	g.write(letter("a", "expression", 1), letter("b", "bad_body", 1), letter("worn", "expression", 5), forged, old, bare, cut)

	got := g.sentBack("--reason", "expression", "--since", "48h")
	if got.Sent != 1 || got.Stayed[staysFiltered] != 3 || got.Stayed[staysAttempts] != 1 || got.Stayed[staysNoSource] != 1 || got.Stayed[staysTruncated] != 1 {
		t.Errorf("first run: %+v", got)
	}
	if got := g.sentBack("--max-attempts", "0", "--max", "2"); got.Sent != 2 {
		t.Errorf("second run: %+v", got)
	}
	if got := g.sentBack("--max-attempts", "0"); got.Sent != 1 || got.Stayed[staysNoSource] != 2 || got.Stayed[staysTruncated] != 1 {
		t.Errorf("third run: %+v", got)
	}
	back := g.read(graveSource, 3)
	if len(back) != 4 || len(back["a"]) != 1 || len(back["b"]) != 1 || len(back["worn"]) != 1 || len(back["old"]) != 1 {
		t.Errorf("sent back: %v", back)
	}
	// A letter that stayed is unchanged, and marked once as a copy.
	dead := g.read(graveDead, 2)["cut"]
	if last := dead[len(dead)-1]; len(last.Headers) != 12 || !deadletter.IsCopy(&last) || string(last.Value) != kept || !last.Time.Equal(time.UnixMilli(1000)) {
		t.Errorf("the letter is now %+v", last)
	}
}

func TestRedriveDryRunListsAndChangesNothing(t *testing.T) {
	g := newGraveyard(t)
	if code, out, stderr := g.redrive("--dry-run"); code != cli.ExitOK || out != "" || !strings.HasPrefix(stderr, "0 dead letters are pending for group shop-redrive") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	g.write(letter("a", "expression", 1), letter("b", "bad_body", 1))
	for range 2 {
		code, out, stderr := g.redrive("--dry-run", "--reason", "bad_body")
		if code != cli.ExitOK || stderr != "2 dead letters are pending for group shop-redrive: 1 would be sent back, 1 would stay\n" {
			t.Errorf("exit code %d: %s", code, stderr)
		}
		for _, want := range []string{"LETTER", "stays: not chosen", "enrich/stamp", "bad_body", `it is \x1b[31mbad`} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is missing in:\n%s", want, out)
			}
		}
	}
	_, out, _ := g.redrive("--dry-run", "--json")
	for line := range strings.Lines(out) {
		var l listedLetter
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.To != graveSource || l.Attempt != 1 || l.Stays != "" || l.Error != "expression: it is \x1b[31mbad" && l.Error != "bad_body: it is \x1b[31mbad" {
			t.Errorf("%s: %v", line, err)
		}
	}
	if len(g.read(graveSource, 3)) != 0 {
		t.Error("something was sent")
	}
}

func TestLettersOfACompactedTopicStay(t *testing.T) {
	g := newGraveyard(t)
	if err := kafka.SetTopicConfig(t.Context(), g.cfg, graveSource, map[string]string{"cleanup.policy": "compact,delete"}); err != nil {
		t.Fatal(err)
	}
	g.write(letter("a", "expression", 1))
	if got := g.sentBack(); got.Sent != 0 || got.Stayed[staysCompacted] != 1 {
		t.Errorf("%+v", got)
	}
	if got := g.sentBack("--compacted"); got.Sent != 1 {
		t.Errorf("with --compacted: %+v", got)
	}
}

func TestALetterReturnsOnlyToAPipelineThatReadsItsTopic(t *testing.T) {
	f := letterFilter{sources: map[string]string{"a": "in", "b": "other"}}
	if got := f.stays(&deadletter.Letter{Pipeline: "hourly", SourceTopic: "in", Stage: "fold", Reason: "late"}); got != staysLateEvent {
		t.Errorf("a late event of a projection: %q", got)
	}
	for _, test := range []struct{ pipeline, source, want string }{
		{"a", "in", ""}, {"b", "in", staysNoSource}, {"gone", "in", staysNoSource}, {"gone", "", staysNoSource}, {"a", "other", staysNoSource},
	} {
		if got := f.stays(&deadletter.Letter{Pipeline: test.pipeline, SourceTopic: test.source}); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

func TestRedriveFiltersByTheNamesThatCommandsPrint(t *testing.T) {
	g := newGraveyard(t)
	g.write(letter("a", "expression", 1), letter("b", "of_a_function", 1))
	for args, want := range map[string]string{
		"--reason nosuch":     `--reason: there is no reason "nosuch", neither in the topology nor in a pending letter; --dry-run lists`,
		"--reason expresion":  `did you mean "expression"?`,
		"--stage stmap":       `did you mean "stamp"?`,
		"--stage other/stamp": `--stage: there is no stage "other/stamp"`,
		"--pipeline enrihc":   `did you mean "enrich"?`,
		"--pipeline user":     "--pipeline: user is a projection",
	} {
		if code, _, stderr := g.redrive(strings.Fields(args)...); code != cli.ExitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d: %s", args, code, stderr)
		}
	}
	if n := len(g.read(graveDead, 2)["a"]); n != 1 {
		t.Errorf("the letter was written %d times", n)
	}
	if got := g.sentBack("--stage", "enrich/stamp", "--reason", "of_a_function"); got.Sent != 1 || got.Stayed[staysFiltered] != 1 {
		t.Errorf("%+v", got)
	}
}

func TestRedriveRefusesBadFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--max -1":          "--max: -1 is negative",
		"--max-attempts -1": "--max-attempts: -1 is negative",
		"--rate -1":         "--rate: -1 is not a number of letters per second",
		"--since never":     `--since: "never" is neither a time`,
	} {
		var output harness.Buffer
		env := &cli.Env{Stdout: &output, Stderr: &output, Now: func() time.Time { return harness.Now }}
		if code := env.Main(append([]string{"redrive"}, strings.Fields(args)...), Command); code != cli.ExitUsage || !strings.Contains(output.String(), want) {
			t.Errorf("%s: exit code %d: %s", args, code, output.String())
		}
	}
}

// The letters of an aborted batch are not counted; they come again.
func TestLettersOfAnAbortedBatchAreNotCounted(t *testing.T) {
	stopped := 0
	h := &redriveHandler{
		filter: &letterFilter{sources: map[string]string{"enrich": graveSource}}, pace: newPace(0), limit: 2,
		pending: map[letterPlace]kafka.Bounds{{graveDead, 0}: {Start: 0, End: 2}},
		stop:    func() { stopped++ },
		now:     time.Now,
	}
	in := []pipeline.Record{letter("a", "x", 1), letter("b", "x", 1), letter("late", "x", 1)}
	for _, committed := range []bool{false, true} {
		var out harness.Emitted
		for i := range in {
			in[i].Partition, in[i].Offset = 0, int64(i)
			if err := h.Handle(t.Context(), &in[i], &out); err != nil {
				t.Fatal(err)
			}
		}
		if len(out) != 3 || out[0].Topic != graveSource || out[1].Topic != graveSource || out[2].Topic != graveDead || !deadletter.IsCopy(&out[2]) || len(out[2].Headers) != len(in[2].Headers)+1 {
			t.Errorf("emitted %v", out)
		}
		h.EndBatch(committed)
		if want := map[bool]int{true: 2}[committed]; h.total.Sent != want || (stopped == 1) != committed || h.finished() != committed {
			t.Errorf("committed %v: %+v, stopped %d times", committed, h.total, stopped)
		}
	}
}

func TestPaceIsInterrupted(t *testing.T) {
	p := newPace(1e-3)
	if err := p.wait(t.Context()); err != nil { // the first letter need not wait
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.wait(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
