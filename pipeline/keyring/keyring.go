// Package keyring encrypts fields of records with one data key per data subject,
// and keeps those keys on a compacted topic.
//
// Start at [Ring]: one per process, shared by all goroutines. [Fields] finds the
// encrypted fields of one schema.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

// Load reads the keys; nil if none are given.
func (f *Flags) Load() (*seal.KEKs, error) {
	text, name := f.env.Getenv(EnvKEK), EnvKEK
	switch {
	case f.file != "" && text != "":
		return nil, cli.Usagef("--kek-file and %s are both given: give one", EnvKEK)
	case f.file != "":
		data, err := os.ReadFile(f.file)
		if err != nil {
			return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("--kek-file: %w", err)}
		}
		text, name = string(data), f.file
	case text == "":
		return nil, nil
	}
	k, err := seal.ParseKEKs(text)
	if err != nil {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s: %w", name, err)}
	}
	return k, nil
}

// Ring follows the topic of the subjects' keys, and makes new ones.
//
// A key is used only after the topic was read up to the record that it was written
// with: of several that were written at once for a subject the first counts, and
// who has read so far knows which that is. So a write whose fate is not known needs
// no care. If it was applied, the key is found in the topic, by the same reading;
// if not, another is made.
type Ring struct {
	topic      string
	partitions int
	Cache      *seal.Ring
	KEKs       *seal.KEKs
	tail       *kafka.Tail
	Writer     RecordWriter // of new keys; nil for who only reads
	now        func() time.Time
	log        *slog.Logger
	hidden     *prometheus.CounterVec // fields that answers did not show, by reason

	mu    sync.Mutex      // guards what follows
	next  map[int32]int64 // the offset behind the last record read
	moved chan struct{}   // closed with the next record; nil if nobody waits
}

// New returns one that has read nothing. partitions is how many the topic
// has.
func New(cfg kafka.Config, topic string, partitions int, keks *seal.KEKs, now func() time.Time, log *slog.Logger, reg prometheus.Registerer) *Ring {
	k := &Ring{
		topic: topic, partitions: partitions, Cache: seal.NewRing(keks), KEKs: keks, tail: kafka.NewTail(cfg, topic),
		now: now, log: log, next: map[int32]int64{},
		hidden: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_encryption_hidden_fields_total",
			Help: "Encrypted fields that answers showed as null, by reason: erased, no_key, no_kek, tampered.",
		}, []string{"reason"}),
	}
	reg.MustRegister(k.hidden, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_encryption_subjects",
		Help: "Subjects of encrypted fields that have a key, or had one and were forgotten.",
	}, func() float64 { return float64(k.Cache.Len()) }))
	return k
}

// Topic is the topic of the keys of a topology.
func Topic(t *topology.Topology) *topology.Topic {
	if t.Encryption == nil {
		return nil
	}
	return t.Encryption.Keys
}

// Run follows the topic until the context ends.
func (k *Ring) Run(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := k.tail.Run(ctx, func(r *pipeline.Record) error {
			k.take(r)
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if pipeline.ClassOf(err) == pipeline.ClassFatal {
			return err
		}
		k.log.Warn("the topic of the keys cannot be followed; trying again", "err", err)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

func (k *Ring) take(r *pipeline.Record) {
	if err := k.Cache.Take(seal.Record{Key: r.Key, Value: r.Value}); err != nil {
		// Of one subject, if of any: the others go on.
		k.log.Error("a record of the topic of the keys is left out", "topic", k.topic, "partition", r.Partition, "offset", r.Offset, "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next[r.Partition] = r.Offset + 1
	if k.moved != nil {
		close(k.moved)
		k.moved = nil
	}
}

// Loaded waits until all was read that was in the topic at the start.
func (k *Ring) Loaded(ctx context.Context) error {
	select {
	case <-k.tail.Loaded():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("reading the keys of topic %s: %w", k.topic, errors.Join(context.Cause(ctx), k.tail.Err()))
	}
}

// Ensure makes keys for those of the subjects that have none, all at once. After
// it, each has a key, was forgotten, or has one that cannot be unwrapped.
func (k *Ring) Ensure(ctx context.Context, subjects []string) error {
	made := map[string]*pipeline.Record{}
	for _, subject := range subjects {
		if _, err := k.Cache.Current(subject); made[subject] != nil || !errors.Is(err, seal.ErrNoKey) {
			continue
		}
		record, err := k.KEKs.NewKey(subject, k.now())
		if err != nil {
			return err
		}
		made[subject] = &pipeline.Record{Topic: k.topic, Partition: kafka.PartitionOf([]byte(subject), k.partitions), Key: record.Key, Value: record.Value, Time: k.now()}
	}
	if len(made) == 0 {
		return nil
	}
	results := &Results{Open: len(made), All: make(chan struct{})}
	for _, r := range made {
		k.Writer.Write(ctx, r, results.Add)
	}
	select {
	case <-results.All:
	case <-ctx.Done():
	}
	if err := results.Get(); err != nil {
		return fmt.Errorf("writing keys of %s to %s: %w", cli.Plural(len(made), "subject"), k.topic, errors.Join(err, context.Cause(ctx)))
	}
	for _, r := range made {
		if err := k.reach(ctx, r.Partition, r.Offset); err != nil {
			return err
		}
	}
	return nil
}

// reach waits until the record at an offset was read.
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

// DestroyKeys marks a subject as forgotten, and puts a null in the place of each of
// its keys in a partition, which read reads to its end. It may be called again, if
// it failed or not.
//
// The mark comes first: who makes a key for the subject at the same time reads back
// up to that, and finds the mark, or had it before, and then it is found here.
func DestroyKeys(ctx context.Context, out RecordWriter, topic string, partition int32, subject string, now time.Time, read func(func(*pipeline.Record) error) error) (destroyed int, err error) {
	write := func(records ...seal.Record) error {
		results := &Results{Open: len(records), All: make(chan struct{})}
		for _, r := range records {
			out.Write(ctx, &pipeline.Record{Topic: topic, Partition: partition, Key: r.Key, Value: r.Value, Time: now}, results.Add)
		}
		select {
		case <-results.All:
		case <-ctx.Done():
		}
		return results.Get()
	}
	mark, err := seal.Erased(subject, now)
	if err == nil {
		err = write(mark)
	}
	if err != nil {
		return 0, fmt.Errorf("marking %q as forgotten on %s: %w; it may not be: run the command again", subject, topic, err)
	}
	keys := map[string]bool{} // whether it is there
	err = read(func(r *pipeline.Record) error {
		if of, isKey, err := seal.SubjectOf(r.Key); err == nil && isKey && of == subject {
			keys[string(r.Key)] = r.Value != nil
		}
		return nil
	})
	var nulls []seal.Record
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if keys[key] {
			nulls = append(nulls, seal.Record{Key: []byte(key)})
		}
	}
	if err == nil && len(nulls) > 0 {
		err = write(nulls...)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is marked as forgotten on %s, and nothing of it is shown any more, but its key may still stand there: %w; run the command again", subject, topic, err)
	}
	return len(nulls), nil
}

// shower shows records with encrypted fields.
type shower struct {
	ring   *seal.Ring
	of     map[*codec.Schema]*Fields
	hidden *prometheus.CounterVec // by reason
}

// NewShower returns what shows records of these schemas, nil if nothing of them is
// encrypted.
func (k *Ring) NewShower(how *topology.Encryption, schemas ...*codec.Schema) (func(*codec.Schema, []byte) (query.Shown, error), error) {
	s := &shower{ring: k.Cache, of: map[*codec.Schema]*Fields{}, hidden: k.hidden}
	for _, schema := range schemas {
		f, err := NewFields(how, schema)
		if err != nil {
			return nil, &cli.ExitError{Code: cli.ExitUsage, Err: err}
		}
		if f != nil {
			s.of[schema] = f
		}
	}
	if len(s.of) == 0 {
		return nil, nil
	}
	return s.show, nil
}

func (s *shower) show(schema *codec.Schema, body []byte) (query.Shown, error) {
	f := s.of[schema]
	if f == nil {
		return query.Shown{Type: schema.Root(), Body: body}, nil
	}
	out, err := f.Open(body, s.ring)
	for _, why := range out.Hidden {
		s.hidden.WithLabelValues(why).Inc()
	}
	return out, err
}
