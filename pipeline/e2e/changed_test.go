package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline/codec"
	"millrace/pipeline/e2e/kafkatest"
	"millrace/pipeline/sandbox"
)

// changedTopology has a topic whose events may be of the future, and outputs that refuse
// those. The output is compacted, so it refuses events without a key, too.
const changedTopology = `name: NAME
topics:
  NAME.in: {partitions: 1, types: [Click], envelope: none, id: id, config: {message.timestamp.after.max.ms: "9223372036854775807"}}
  NAME.out: {partitions: 1, config: {cleanup.policy: compact}}
  NAME.dead: {partitions: 1}
pipelines:
  p: {from: NAME.in, to: NAME.out, dead_letter: NAME.dead, stages: [{filter: {keep: n >= 0}}]}
projections:
  count: {from: NAME.in, key: id, state: Count, on: {Click: {set: {n: n}}}, snapshots: NAME.counts}
`

// clickWriter writes records of a topic of clicks.
type clickWriter struct {
	t      *testing.T
	cl     *kgo.Client
	topic  string
	schema int
}

// write writes a click. An empty key is no key.
func (w *clickWriter) write(key, id string, n int64, at time.Time) {
	w.t.Helper()
	r := &kgo.Record{Topic: w.topic, Value: codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, w.schema), id), n), Timestamp: at}
	if key != "" {
		r.Key = []byte(key)
	}
	if err := w.cl.ProduceSync(w.t.Context(), r).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
}

// TestKafkaWorkersGoOnAfterRefusalsAndChangesOfTopics runs a processor and a projector on
// Apache Kafka. A record that the broker refuses becomes a dead letter, and the others go
// on. A topic that is created again is read from its start. Added partitions end the workers.
func TestKafkaWorkersGoOnAfterRefusalsAndChangesOfTopics(t *testing.T) {
	onKafka(t, func(t *testing.T, b *kafkatest.Broker, _ []string) {
		registry, err := sandbox.New(sandbox.Config{NoBroker: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = registry.Close() })
		name, dir := fmt.Sprintf("changed-%d", time.Now().UnixNano()), t.TempDir()
		topology := filepath.Join(dir, "topology.yaml")
		for file, text := range map[string]string{topology: strings.ReplaceAll(changedTopology, "NAME", name), filepath.Join(dir, "Click.avsc"): handOverClick, filepath.Join(dir, "Count.avsc"): handOverCount} {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		where := []string{"-t", topology, "--schemas", dir, "-b", strings.Join(b.Brokers(), ","), "-r", registry.RegistryURL()}
		processor := startWorker(t, "processor", where...)
		projector := startWorker(t, "projector", append(where, "--data-dir", filepath.Join(dir, "data"))...)

		cl, err := kgo.NewClient(kgo.SeedBrokers(b.Brokers()...))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		w := newClickWriter(t, cl, registry.RegistryURL(), name+".in")
		now, future := time.Now(), time.Now().Add(2*time.Hour)
		w.write("a", "a", 1, now)
		w.write("f", "f", 2, future)
		w.write("", "k", 3, now)
		w.write("b", "b", 4, now)
		awaitLag(t, processor, b.Brokers(), name+"-p", name+".in")
		wantKeys(t, b.Brokers(), name+".out", "a", "b")
		reasons := map[string]int{}
		for _, r := range readCommitted(t, b.Brokers(), name+".dead") {
			for _, h := range r.Headers {
				if h.Key == "dlq.reason" {
					reasons[string(h.Value)]++
				}
			}
		}
		if want := map[string]int{"bad_time": 1, "no_key": 1}; !maps.Equal(reasons, want) {
			t.Errorf("dead letters %v, want %v", reasons, want)
		}
		awaitClick(t, projector, "b", 4)

		// The topic is deleted and created again.
		adm := kadm.NewClient(cl)
		if _, err := adm.DeleteTopics(t.Context(), name+".in"); err != nil {
			t.Fatal(err)
		}
		processor.await(t, "the topic to be gone", func(ctx context.Context) (bool, error) {
			topics, err := adm.ListTopics(ctx, name+".in")
			return err == nil && !topics.Has(name+".in"), err
		})
		if _, err := adm.CreateTopic(t.Context(), 1, 1, nil, name+".in"); err != nil {
			t.Fatal(err)
		}
		again, err := kgo.NewClient(kgo.SeedBrokers(b.Brokers()...))
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		w = newClickWriter(t, again, registry.RegistryURL(), name+".in")
		w.write("c", "c", 5, now)
		w.write("d", "d", 6, now)
		awaitClick(t, projector, "d", 6)
		processor.await(t, "the new events", func(context.Context) (bool, error) {
			return len(readCommitted(t, b.Brokers(), name+".out")) == 4, nil
		})

		// Partitions are added.
		if _, err := adm.UpdatePartitions(t.Context(), 3, name+".in"); err != nil {
			t.Fatal(err)
		}
		for _, w := range []*worker{processor, projector} {
			select {
			case <-w.exited:
			case <-time.After(time.Minute):
				t.Fatalf("the %s continues although partitions were added", w.name)
			}
			text, _ := os.ReadFile(w.output)
			if !strings.Contains(string(text), "had 1 partitions") || !strings.Contains(string(text), "has 3 now") {
				t.Errorf("the %s does not say why it stopped:\n%s", w.name, text)
			}
		}
	})
}

func newClickWriter(t *testing.T, cl *kgo.Client, url, topic string) *clickWriter {
	t.Helper()
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := codec.ParseSchema(handOverClick)
	if err != nil {
		t.Fatal(err)
	}
	id, err := registry.Register(t.Context(), codec.TopicRecordName.Value(topic, schema), schema)
	if err != nil {
		t.Fatal(err)
	}
	return &clickWriter{t, cl, topic, id}
}

// wantKeys checks the keys of the committed records of a topic.
func wantKeys(t *testing.T, brokers []string, topic string, want ...string) {
	t.Helper()
	var got []string
	for _, r := range readCommitted(t, brokers, topic) {
		got = append(got, string(r.Key))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s has the keys %v, want %v", topic, got, want)
	}
}

// awaitClick waits until a state has n.
func awaitClick(t *testing.T, w *worker, id string, n int64) {
	t.Helper()
	w.await(t, "the state of "+id, func(ctx context.Context) (bool, error) {
		_, text, err := get(ctx, w.url+"/v1/projections/count/"+id)
		return strings.Contains(string(text), fmt.Sprintf(`"n":%d`, n)), err
	})
}
