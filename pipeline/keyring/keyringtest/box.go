// Package keyringtest holds key rings and events with encrypted fields for tests.
//
// Start at [NewBox]. A Box and everything from it belong to one test.
package keyringtest

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/seal"
)

// KeyTopic is the key topic of [People].
const KeyTopic = "people.keys"

// Box is a broker with a key topic.
type Box struct {
	t          testing.TB
	cfg        kafka.Config
	partitions int
}

// NewBox starts a broker, which stops with the test.
func NewBox(t testing.TB, partitions int) *Box {
	t.Helper()
	b := &Box{t, kafka.Config{Brokers: harness.Sandbox(t).Brokers(), ClientID: "test"}, partitions}
	if _, err := kafka.EnsureTopics(t.Context(), b.cfg, []kafka.TopicSpec{{Name: KeyTopic, Partitions: partitions, Config: map[string]string{"cleanup.policy": "compact"}}}, true); err != nil {
		t.Fatal(err)
	}
	return b
}

// Writer returns a writer to the broker.
func (b *Box) Writer() keyring.RecordWriter {
	b.t.Helper()
	w, err := kafka.NewWriter(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(w.Close)
	return w
}

// Config returns the configuration of a ring that writes with w.
func (b *Box) Config(keks *seal.KEKs, w keyring.RecordWriter) keyring.Config {
	return keyring.Config{
		Kafka: b.cfg, Topic: KeyTopic, Partitions: b.partitions, KEKs: keks, Writer: w,
		Now: time.Now, Log: slog.New(slog.NewTextHandler(b.t.Output(), nil)), Metrics: prometheus.NewRegistry(),
	}
}

// Ring returns a ring that has read the topic and follows it until the end of the
// test.
func (b *Box) Ring(keks *seal.KEKs, w keyring.RecordWriter) *keyring.Ring {
	b.t.Helper()
	k := keyring.New(b.Config(keks, w))
	ctx, stop := context.WithCancel(context.WithoutCancel(b.t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := k.Run(ctx); err != nil {
			b.t.Error(err)
		}
	})
	b.t.Cleanup(func() {
		stop()
		running.Wait()
	})
	if err := k.Loaded(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return k
}

// Destroy destroys the keys of a subject.
func (b *Box) Destroy(w keyring.RecordWriter, subject string) (int, error) {
	partition := kafka.PartitionOf([]byte(subject), b.partitions)
	return keyring.DestroyKeys(b.t.Context(), w, KeyTopic, partition, subject, harness.Now, func(f func(*pipeline.Record) error) error {
		_, err := kafka.ReadSettled(b.t.Context(), b.cfg, KeyTopic, partition, f)
		return err
	})
}

// DataKeys returns the records of data keys on the topic, by record key: true if
// the key exists, false if it was destroyed.
func (b *Box) DataKeys() map[string]bool {
	b.t.Helper()
	out := map[string]bool{}
	for p := range int32(b.partitions) {
		if _, err := kafka.ReadSettled(b.t.Context(), b.cfg, KeyTopic, p, func(r *pipeline.Record) error {
			if _, isKey, err := seal.ParseRecordKey(r.Key); err != nil {
				b.t.Error(err)
			} else if isKey {
				out[string(r.Key)] = r.Value != nil
			}
			return nil
		}); err != nil {
			b.t.Fatal(err)
		}
	}
	return out
}

// FaultyWriter fails the writes that Fail selects.
type FaultyWriter struct {
	Writer  keyring.RecordWriter
	Fail    func(r *pipeline.Record) bool
	Applied bool // the record is written in spite of the failure
	Failed  int  // failures so far; owned by the goroutine that writes
}

// ErrFault is the failure of a [FaultyWriter].
var ErrFault = errors.New("the connection is gone")

// Write implements [keyring.RecordWriter].
func (w *FaultyWriter) Write(ctx context.Context, r *pipeline.Record, done func(error)) {
	if !w.Fail(r) {
		w.Writer.Write(ctx, r, done)
		return
	}
	w.Failed++
	if !w.Applied {
		done(ErrFault)
		return
	}
	w.Writer.Write(ctx, r, func(err error) { done(errors.Join(ErrFault, err)) })
}

// Flush implements [keyring.RecordWriter].
func (w *FaultyWriter) Flush(ctx context.Context) error { return w.Writer.Flush(ctx) }
