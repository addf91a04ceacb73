package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/e2e/kafkatest"
	"millrace/pipeline/sandbox"
)

const limitsTopology = `
name: RUN
topics:
  RUN.in: {partitions: 2, types: [Note], envelope: none, config: {max.message.bytes: "5000000"}}
  RUN.little: {partitions: 2, config: {max.message.bytes: "20000"}}
  RUN.much: {partitions: 2, config: {max.message.bytes: "5000000"}}
  RUN.dead: {partitions: 1, config: {max.message.bytes: "10000"}}
pipelines:
  little: {from: RUN.in, to: RUN.little, dead_letter: RUN.dead}
  much: {from: RUN.in, to: RUN.much, dead_letter: RUN.dead}
`

const noteSchema = `{"type": "record", "name": "Note", "fields": [{"name": "id", "type": "string"}, {"name": "text", "type": "string"}]}`

// TestKafkaRecordLimitsOfTopics checks that the topics' limits apply, even if a limit
// changes while a worker runs: a record that fits is written once, a larger one becomes a
// dead letter, and no batch fails forever.
func TestKafkaRecordLimitsOfTopics(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, _ []string) {
		registry, err := sandbox.New(sandbox.Config{NoBroker: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := registry.Close(); err != nil {
				t.Error(err)
			}
		})
		run := fmt.Sprintf("limits-%d", time.Now().UnixNano())
		dir := t.TempDir()
		for name, text := range map[string]string{
			"topology.yaml":     strings.ReplaceAll(limitsTopology, "RUN", run),
			"schemas/Note.avsc": noteSchema,
		} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		where := []string{"-t", filepath.Join(dir, "topology.yaml"), "-b", strings.Join(b.Brokers(), ","), "-r", registry.RegistryURL()}

		sent := 0
		send := func(sizes ...int) {
			t.Helper()
			var lines bytes.Buffer
			for _, n := range sizes {
				text := make([]byte, n)
				for i := range text {
					text[i] = byte('0' + rand.Uint32()%64) // hardly compressible
				}
				line, err := json.Marshal(map[string]string{"id": fmt.Sprint("n-", sent), "text": string(text)})
				if err != nil {
					t.Fatal(err)
				}
				lines.Write(append(line, '\n'))
				sent++
			}
			cmd := exec.Command(filepath.Join(bin, "producer"), append([]string{"send", "--topic", run + ".in", "--key", "id", "-"}, where...)...)
			cmd.Stdin = &lines
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("producer send: %v\n%s", err, out)
			}
		}
		small := func(n int, more ...int) []int { // n small sizes in addition to more
			for range n {
				more = append(more, 300)
			}
			return more
		}
		w := startWorker(t, "processor", append(where, "--sessions", "2")...)
		done := func() {
			t.Helper()
			w.await(t, "all events to be counted", func(ctx context.Context) (bool, error) {
				_, text, err := get(ctx, w.url+"/metrics")
				for _, pl := range []string{"little", "much"} {
					if !strings.Contains(string(text), fmt.Sprintf("millrace_events_in_total{pipeline=%q} %d\n", pl, sent)) {
						return false, err
					}
				}
				return true, err
			})
		}
		send(small(2000, 30_000, 30_000, 3_000_000)...)
		done()
		cl, err := kgo.NewClient(kgo.SeedBrokers(b.Brokers()...))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		less := "5000"
		if _, err := kadm.NewClient(cl).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &less}}, run+".little"); err != nil {
			t.Fatal(err)
		}
		send(small(2000, 10_000)...)
		done()
		w.stop(t)

		for topic, want := range map[string]int{"little": 4000, "much": 4004, "dead": 4} {
			keys := map[string]bool{}
			records := readCommitted(t, b.Brokers(), run+"."+topic)
			for _, r := range records {
				keys[string(r.Key)] = true
				if size := len(r.Value); topic == "dead" && size > 10_000 {
					t.Errorf("a dead letter has %d bytes", size)
				}
			}
			if len(records) != want || len(keys) != want {
				t.Errorf("%s has %d records of %d events, want %d", topic, len(records), len(keys), want)
			}
		}
		if text, err := os.ReadFile(w.output); err != nil || !bytes.Contains(text, []byte("MESSAGE_TOO_LARGE")) {
			t.Errorf("no batch was too large, so the test did not cover the changed limit: %v", err)
		}
	})
}
