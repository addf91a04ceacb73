package programs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/sandbox"
)

// clickTopology writes a topology and its schemas, Click and Count, to a directory, and
// returns its path.
func clickTopology(t *testing.T, dir, text string) string {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "schemas"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "topology.yaml")
	harness.Write(t, file, []byte(text))
	harness.Write(t, filepath.Join(dir, "schemas", "Click.avsc"), harness.ClickSchemas["Click.avsc"].Data)
	harness.Write(t, filepath.Join(dir, "schemas", "Count.avsc"), []byte(`{"type": "record", "name": "Count", "fields": [{"name": "n", "type": "long", "default": 0}]}`))
	return file
}

// clickSender sends events of the type Click to a topic.
type clickSender struct {
	t      *testing.T
	topic  string
	schema int // id in the registry
	writer *kafka.Writer
}

func newClickSender(t *testing.T, box *sandbox.Sandbox, topic string) *clickSender {
	t.Helper()
	return newClickSenderTo(t, kafka.Config{Brokers: box.Brokers()}, box.RegistryURL(), topic)
}

func newClickSenderTo(t *testing.T, cfg kafka.Config, registryURL, topic string) *clickSender {
	t.Helper()
	registry, err1 := codec.NewRegistry(codec.RegistryConfig{URLs: []string{registryURL}})
	schema, err2 := codec.ParseSchema(string(harness.ClickSchemas["Click.avsc"].Data))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	id, err := registry.Register(t.Context(), codec.TopicRecordName.Value(topic, schema), schema)
	if err != nil {
		t.Fatal(err)
	}
	w, err := kafka.NewWriter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return &clickSender{t: t, topic: topic, schema: id, writer: w}
}

// send sends the event with the id "e-" and n.
func (s *clickSender) send(n int64) {
	s.t.Helper()
	s.put(fmt.Sprint("e-", n), n)
}

// put sends an event.
func (s *clickSender) put(id string, n int64) {
	s.t.Helper()
	value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, s.schema), id), n)
	s.writer.Write(s.t.Context(), &pipeline.Record{Topic: s.topic, Partition: pipeline.KeyPartition, Key: []byte(id), Value: value, Time: time.Now()}, func(err error) {
		if err != nil {
			s.t.Error(err)
		}
	})
	if err := s.writer.Flush(s.t.Context()); err != nil {
		s.t.Error(err)
	}
}
