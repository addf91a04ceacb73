// Package keyring encrypts fields of records with a data key for each data subject,
// and keeps these keys on a compacted topic, the key topic. Package seal defines
// keys, ciphertexts and the records of the key topic.
//
// Start at [Ring] (keyring.go): a process has one, and all goroutines share it. Its
// Run method is called by one goroutine, which follows the key topic. [Fields]
// (fields.go) finds and encrypts the tagged fields of one schema; it is immutable.
// [DestroyKeys] (destroy.go) makes the data of a subject unreadable.
//
// Each of the two locks, of [Ring] and of [Results], guards a few fields and is
// never held together with another one.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/gauges"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

// Config configures a [Ring].
type Config struct {
	Kafka      kafka.Config
	Topic      string       // the key topic
	Partitions int          // of the key topic
	KEKs       *seal.KEKs   // nil: no key can be unwrapped
	Writer     RecordWriter // of new keys; nil in a process that only decrypts
	Now        func() time.Time
	Log        *slog.Logger
	Metrics    prometheus.Registerer
}

// Ring follows the key topic and creates keys. It is safe for concurrent use.
//
// A new key is used only after Run has read its record back from the topic. Of
// several keys that are created for a subject at the same time, the first in the
// topic is valid, and a reader that has come that far knows which one that is. So
// the unknown result of a write needs no special care: if the write was applied,
// the reading finds the key, else another one is created.
type Ring struct {
	topic       string
	partitions  int
	cache       *seal.Ring // the keys read so far
	keks        *seal.KEKs
	tail        *kafka.Tail
	writer      RecordWriter // nil in a process that only decrypts
	now         func() time.Time
	log         *slog.Logger
	hidden      *prometheus.CounterVec // fields that answers did not show, by reason
	plain       prometheus.Counter     // tagged fields that answers showed, and that were never encrypted
	unreadable  prometheus.Counter     // records of the topic
	overwritten prometheus.Counter     // marks of forgotten subjects

	mu    sync.Mutex       // guards the fields below
	next  map[int32]int64  // by partition, the offset after the last record read
	moved chan struct{}    // closed after the next record; nil if no goroutine waits
	bare  map[string]int32 // partitions of subjects whose mark was replaced by a null, as far as we do not write it again
}

// New returns a Ring that has read nothing yet. Call Run to read the topic.
func New(cfg Config) *Ring {
	k := &Ring{
		topic: cfg.Topic, partitions: cfg.Partitions, cache: seal.NewRing(cfg.KEKs), keks: cfg.KEKs, tail: kafka.NewTail(cfg.Kafka, cfg.Topic),
		writer: cfg.Writer, now: cfg.Now, log: cfg.Log, next: map[int32]int64{}, bare: map[string]int32{},
		hidden: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_encryption_hidden_fields_total",
			Help: "Encrypted fields that answers showed as null, by reason: erased, no_key, no_kek, tampered.",
		}, []string{"reason"}),
		overwritten: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_encryption_overwritten_marks_total",
			Help: "Nulls on the key topic in the place of the mark of a forgotten subject. The subject stays forgotten.",
		}),
		plain: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_encryption_plain_fields_total",
			Help: "Tagged fields that answers showed, and that were never encrypted.",
		}),
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_encryption_unreadable_records_total",
			Help: "Records of the key topic that could not be read, and were skipped.",
		}),
	}
	cfg.Metrics.MustRegister(k.hidden, k.plain, k.unreadable, k.overwritten, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_encryption_subjects",
		Help: "Data subjects that have a key, or had one and were forgotten.",
	}, func() float64 { return float64(k.cache.Len()) }), gauges.Following("keys", cfg.Topic, k.Following))
	return k
}

// Topic returns the key topic of a topology, nil if it has no encryption.
func Topic(t *topology.Topology) *topology.Topic {
	if t.Encryption == nil {
		return nil
	}
	return t.Encryption.Keys
}

// Run follows the topic until the context ends, and retries with backoff. Its error
// is fatal.
func (k *Ring) Run(ctx context.Context) error {
	take := func(r *pipeline.Record) error {
		k.take(r)
		k.mark(ctx)
		return nil
	}
	return k.tail.Follow(ctx, take, func(err error, _ time.Duration) {
		k.log.Warn("reading the key topic failed; retrying", "topic", k.topic, "err", err)
	})
}

// Following returns nil while the topic is followed. Otherwise the process knows neither new
// keys nor which subjects were forgotten since.
func (k *Ring) Following() error {
	if err := k.tail.Err(); err != nil {
		return fmt.Errorf("the key topic %s is not followed: %w", k.topic, err)
	}
	return nil
}

// take applies a record of the key topic. A record that cannot be parsed concerns
// one subject at most, so it does not stop the others.
func (k *Ring) take(r *pipeline.Record) {
	if err := k.cache.Apply(seal.Record{Key: r.Key, Value: r.Value}); err != nil {
		k.unreadable.Inc()
		k.log.Error("skipping a bad record of the key topic", "topic", k.topic, "partition", r.Partition, "offset", r.Offset, "err", err)
	}
	subject, isMark := seal.MarkOf(r.Key)
	if isMark && r.Value == nil {
		k.overwritten.Inc()
		k.log.Error("the mark of a forgotten subject was replaced by a null; the subject stays forgotten", "topic", k.topic, "partition", r.Partition, "offset", r.Offset)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next[r.Partition] = r.Offset + 1
	if k.moved != nil {
		close(k.moved)
		k.moved = nil
	}
	switch {
	case isMark && r.Value == nil:
		k.bare[subject] = r.Partition
	case isMark:
		delete(k.bare, subject)
	}
}

// mark writes the marks again that were replaced by a null, once the topic is read and if
// the process can write to it. The null is a mark, too, but brokers may delete it some day.
func (k *Ring) mark(ctx context.Context) {
	select {
	case <-k.tail.Loaded():
	default:
		return
	}
	if k.writer == nil {
		return
	}
	k.mu.Lock()
	bare := k.bare
	if len(bare) > 0 {
		k.bare = map[string]int32{}
	}
	k.mu.Unlock()
	for subject, partition := range bare {
		mark, err := seal.NewErasure(subject, k.now())
		if err != nil {
			continue // of encoding a constant type
		}
		k.writer.Write(context.WithoutCancel(ctx), &pipeline.Record{Topic: k.topic, Partition: partition, Key: mark.Key, Value: mark.Value, Time: k.now()}, func(err error) {
			if err == nil {
				return
			}
			k.log.Warn("cannot write the mark of a forgotten subject again; trying again after the next record", "topic", k.topic, "partition", partition, "err", err)
			k.mu.Lock()
			defer k.mu.Unlock()
			k.bare[subject] = partition
		})
	}
}

// Loaded waits until Run has read all records that were in the topic when it
// started.
func (k *Ring) Loaded(ctx context.Context) error {
	select {
	case <-k.tail.Loaded():
		k.mark(ctx)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("reading the keys of topic %s: %w", k.topic, errors.Join(context.Cause(ctx), k.tail.Err()))
	}
}

// Current returns the key to encrypt a subject's fields with. An error is
// [seal.ErrNoKey], [seal.ErrErased] or [seal.ErrNoKEK].
func (k *Ring) Current(subject string) (*seal.DataKey, error) { return k.cache.Current(subject) }

// Forgotten reports whether the subject is marked as forgotten, as far as Run has
// read.
func (k *Ring) Forgotten(subject string) bool { return k.cache.Erased(subject) }

// Ensure creates keys for the subjects that have none, with one round trip for all
// of them. Afterwards each subject has a key, was forgotten, or has a key that
// cannot be unwrapped.
func (k *Ring) Ensure(ctx context.Context, subjects []string) error {
	created := map[string]*pipeline.Record{}
	for _, subject := range subjects {
		if _, err := k.cache.Current(subject); created[subject] != nil || !errors.Is(err, seal.ErrNoKey) {
			continue
		}
		record, err := k.keks.NewKey(subject, k.now())
		if err != nil {
			return err
		}
		created[subject] = &pipeline.Record{Topic: k.topic, Partition: kafka.PartitionOf([]byte(subject), k.partitions), Key: record.Key, Value: record.Value, Time: k.now()}
	}
	if len(created) == 0 {
		return nil
	}
	results := NewResults(len(created))
	for _, r := range created {
		k.writer.Write(ctx, r, results.Add)
	}
	if err := results.Wait(ctx); err != nil {
		return fmt.Errorf("writing keys of %s to %s: %w", cli.Plural(len(created), "subject"), k.topic, errors.Join(err, context.Cause(ctx)))
	}
	for _, r := range created {
		if err := k.reach(ctx, r.Partition, r.Offset); err != nil {
			return err
		}
	}
	return nil
}

// reach waits until Run has read the record at an offset.
func (k *Ring) reach(ctx context.Context, partition int32, offset int64) error {
	for {
		k.mu.Lock()
		if k.next[partition] > offset {
			k.mu.Unlock()
			return nil
		}
		if k.moved == nil {
			k.moved = make(chan struct{})
		}
		moved := k.moved
		k.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("reading back the keys written to %s: %w", k.topic, errors.Join(context.Cause(ctx), k.tail.Err()))
		}
	}
}
