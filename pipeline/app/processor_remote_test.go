package app

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
)

// file writes a topology, with the schemas of the bench beside it.
func (b *bench) file(text string) string {
	b.Helper()
	dir := b.TempDir()
	files := map[string]string{"topology.yaml": text}
	for name, f := range clicks {
		files[filepath.Join("schemas", name)] = string(f.Data)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return filepath.Join(dir, "topology.yaml")
}

// processor runs a command on the cluster of the bench and returns its exit code
// and what it printed.
func (b *bench) processor(file string, args ...string) (code int, out string) {
	b.Helper()
	var stdout, stderr bytes.Buffer
	env := &Env{Stdout: &stdout, Stderr: &stderr, Now: time.Now, Build: ReadBuild()}
	args = append(args, "-t", file, "-b", strings.Join(b.broker.ListenAddrs(), ","), "-r", b.where)
	code = env.Main(args, Processor)
	if stderr.Len() > 0 {
		b.Logf("stderr: %s", stderr.String())
	}
	return code, stdout.String() + stderr.String()
}

// traces is all that a command may have left on the cluster: topics with their
// ends, groups, and what the registry has.
func (b *bench) traces() string {
	b.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.broker.ListenAddrs()...))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ends, err := adm.ListEndOffsets(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	groups, err := adm.ListGroups(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	txns, err := adm.ListTransactions(b.Context(), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	var text strings.Builder
	for _, topic := range sortedKeys(ends) {
		for p := range int32(len(ends[topic])) {
			fmt.Fprintf(&text, "%s/%d %d\n", topic, p, ends[topic][p].Offset)
		}
	}
	fmt.Fprintf(&text, "groups %v\ntransactional ids %v\n", groups.Groups(), txns.TransactionalIDs())
	return text.String()
}

func wantLines(t *testing.T, got string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(got, l) {
			t.Errorf("it does not say %q:\n%s", l, got)
		}
	}
}

const plainTopology = `
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
      - enrich: {set: {n: "n * 10"}}
`

func (b *bench) topics(specs ...kafka.TopicSpec) {
	b.Helper()
	if _, err := kafka.EnsureTopics(b.Context(), b.config(), specs, true); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) clicks(n int) {
	b.Helper()
	b.write(n, func(i int) *pipeline.Record {
		return b.click(fmt.Sprint("user-", i%7), int64(i), time.UnixMilli(1_800_000_000_000+int64(i)))
	})
}

func TestADryRunShowsWhatWouldHappenAndLeavesNoTrace(t *testing.T) {
	b := newBench(t, plainTopology)
	b.topics(kafka.TopicSpec{Name: "in", Partitions: 4})
	b.clicks(60)
	before := b.traces()
	code, out := b.processor(b.file(plainTopology), "dry-run", "--num", "1000")
	t.Log(out)
	if code != ExitOK {
		t.Errorf("exit code %d", code)
	}
	wantLines(t, out,
		"ok     topic in: 4 partitions",
		"new    topic out: it does not exist; a worker would create it with 4 partitions",
		"new    schema out-Click: not registered yet",
		"new    group t-p: nobody has worked yet",
		"ok     transactional id t-p-",
		"60 events of in: 39 would be written, 20 filtered, 1 dead letter",
		"1 assert",
		`"id":"user-1"`,
		"assert: ",
	)
	if after := b.traces(); after != before {
		t.Errorf("it left traces:\n%s\nbefore:\n%s", after, before)
	}
	_, out = b.processor(b.file(plainTopology), "dry-run", "--num", "10", "--offset", "-10", "--json")
	wantLines(t, out, `{"pipeline":"p","in":10,`, `"stage":"filter","in":10,`, `{"check":"topic in","state":"ok"`)
}

func TestADryRunFindsAllFaults(t *testing.T) {
	b := newBench(t, plainTopology)
	b.topics(kafka.TopicSpec{Name: "in", Partitions: 3}, kafka.TopicSpec{Name: "dead", Partitions: 2})
	before := b.traces()
	code, out := b.processor(b.file(plainTopology), "dry-run")
	if code != ExitFailure {
		t.Errorf("exit code %d", code)
	}
	wantLines(t, out,
		"fault  topic in: it has 3 partitions, but is declared with 4",
		"fault  topic dead: it has 2 partitions, but is declared with 1",
		"2 faults: it would not work")
	if after := b.traces(); after != before {
		t.Errorf("it left traces:\n%s\nbefore:\n%s", after, before)
	}

	if code, out = b.processor(b.file(strings.Replace(plainTopology, "n % 3", "m % 3", 1)), "dry-run"); code != ExitUsage {
		t.Errorf("exit code %d of a topology that is not right: %s", code, out)
	}
	where := b.where
	b.where = "http://127.0.0.1:1"
	code, out = b.processor(b.file(plainTopology), "dry-run")
	b.where = where
	if code != ExitFailure {
		t.Errorf("exit code %d without a registry", code)
	}
	wantLines(t, out, "fault  registry: ", "1 fault: it would not work")
}

// What a stage remembers, it remembers in a dry run as well: an event that was
// there before the first that is read.
func TestADryRunRemembersWhatWorkersRemembered(t *testing.T) {
	text := fmt.Sprintf(dedupeTopology, "exactly_once")
	b := newBench(t, text)
	stop := b.start("0")
	at := time.UnixMilli(1_800_000_000_000)
	b.write(4, func(i int) *pipeline.Record { return b.click("a", int64(i), at) })
	b.caughtUp()
	stop()
	before := b.traces()
	_, out := b.processor(b.file(text), "dry-run", "--offset", "-2", "--num", "2")
	wantLines(t, out, "2 events of in: 0 would be written, 2 filtered, no dead letters")
	_, out = b.processor(b.file(text), "dry-run")
	wantLines(t, out, "4 events of in: 1 would be written, 3 filtered, no dead letters")
	if after := b.traces(); after != before {
		t.Errorf("it left traces:\n%s\nbefore:\n%s", after, before)
	}
}

// remove deletes a topic.
func (b *bench) remove(topic string) {
	b.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.broker.ListenAddrs()...))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).DeleteTopic(b.Context(), topic); err != nil {
		b.Fatal(err)
	}
}
