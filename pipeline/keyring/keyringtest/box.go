// Package keyringtest holds key rings and events with encrypted fields for tests.
package keyringtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/seal"
)

const TestKeyTopic = "people.keys"

// keyBox is a broker with a topic of keys.
type keyBox struct {
	t   *testing.T
	Cfg kafka.Config
}

func NewKeyBox(t *testing.T, partitions int) *keyBox {
	t.Helper()
	box := harness.Sandbox(t)
	b := &keyBox{t, kafka.Config{Brokers: box.Brokers(), ClientID: "test"}}
	if _, err := kafka.EnsureTopics(t.Context(), b.Cfg, []kafka.TopicSpec{{Name: TestKeyTopic, Partitions: partitions, Config: map[string]string{"cleanup.policy": "compact"}}}, true); err != nil {
		t.Fatal(err)
	}
	return b
}

// Keyring returns one that follows the topic, with a writer of its own.
func (b *keyBox) Keyring(partitions int, keks *seal.KEKs) *keyring.Ring {
	b.t.Helper()
	out, err := kafka.NewWriter(b.Cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	k := keyring.New(b.Cfg, TestKeyTopic, partitions, keks, time.Now, slog.New(slog.NewTextHandler(b.t.Output(), nil)), prometheus.NewRegistry())
	k.Writer = out
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
		out.Close()
	})
	if err := k.Loaded(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return k
}

// Records returns what stands on the topic under keys of data keys: whether it is
// there, by record key.
func (b *keyBox) Records(partitions int) map[string]bool {
	b.t.Helper()
	out := map[string]bool{}
	for p := range int32(partitions) {
		if _, err := kafka.ReadSettled(b.t.Context(), b.Cfg, TestKeyTopic, p, func(r *pipeline.Record) error {
			if _, isKey, err := seal.SubjectOf(r.Key); err != nil {
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

// GatedWriter waits before it writes.
type GatedWriter struct {
	keyring.RecordWriter
	Gate func()
}

func (w *GatedWriter) Write(ctx context.Context, r *pipeline.Record, done func(error)) {
	w.Gate()
	w.RecordWriter.Write(ctx, r, done)
}

// FaultyWriter fails one write, after or instead of doing it.
type FaultyWriter struct {
	keyring.RecordWriter
	Fail    func(r *pipeline.Record) bool
	Applied bool
	Failed  int
}

var ErrFault = errors.New("the connection is gone")

func (w *FaultyWriter) Write(ctx context.Context, r *pipeline.Record, done func(error)) {
	if !w.Fail(r) {
		w.RecordWriter.Write(ctx, r, done)
		return
	}
	w.Failed++
	if !w.Applied {
		done(ErrFault)
		return
	}
	w.RecordWriter.Write(ctx, r, func(err error) { done(errors.Join(ErrFault, err)) })
}

// SealedEncoder returns an encoder of people whose data is encrypted.
func SealedEncoder(t testing.TB, k *keyring.Ring) *event.Encoder {
	t.Helper()
	plan := PersonTopology(t, 1)
	e, err := event.NewEncoder("people.events", plan.Topics[0].Types, "id", func() string { return harness.ID }, func() time.Time { return harness.Now })
	if err == nil {
		err = e.Encrypt(plan.Encryption)
	}
	if err != nil {
		t.Fatal(err)
	}
	e.Types[0].ID = 7
	e.Ring = k
	return e
}

func Person(id, email string) string {
	return fmt.Sprintf(`{"data":{"id":%s,"email":%q,"mail":""}}`+"\n", id, email)
}

// Keeper keeps the values of what is written.
type Keeper struct{ Values [][]byte }

func (w *Keeper) Write(_ context.Context, r *pipeline.Record, done func(error)) {
	w.Values = append(w.Values, bytes.Clone(r.Value))
	done(nil)
}
func (w *Keeper) Flush(context.Context) error { return nil }
