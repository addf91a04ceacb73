package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// producerOptions are those of everything that writes: every record is
// acknowledged by all replicas in sync and written once, and its partition is
// murmur2 of its key, as Java's default. buffered is how many bytes may wait. batch
// returns how many a batch of a topic may have; the client asks once for each
// partition, before it first writes there.
func producerOptions(buffered int, batch func(topic string) int) []kgo.Opt {
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(partitioner()),
		kgo.ProducerLinger(5 * time.Millisecond),
		kgo.MaxBufferedRecords(1 << 16),
		kgo.MaxBufferedBytes(buffered),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 { return int32(batch(topic)) }),
	}
}

func partitioner() kgo.Partitioner {
	return kgo.BasicConsistentPartitioner(func(topic string) func(*kgo.Record, int) int {
		keyed := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
		return func(r *kgo.Record, n int) int {
			switch {
			case r.Partition >= 0:
				return int(r.Partition)
			case r.Key == nil:
				// Without a key there is no order to keep; by value, the same
				// record always lands in the same place.
				return keyed.Partition(&kgo.Record{Key: append([]byte{}, r.Value...)}, n)
			}
			return keyed.Partition(r, n)
		}
	})
}

// PartitionOf returns the partition, of n, in which records of the key stand.
func PartitionOf(key []byte, n int) int32 {
	if key == nil {
		key = []byte{}
	}
	return int32(kgo.StickyKeyPartitioner(nil).ForTopic("").Partition(&kgo.Record{Key: key}, n))
}

// A Writer writes records outside of transactions: idempotent, in order per
// key. It is safe for concurrent use, though order is only that of the calls.
type Writer struct {
	cl     *kgo.Client
	log    *slog.Logger // may be nil
	limits Limits
}

// writerBuffer is how many bytes of a Writer may be under way.
const writerBuffer = 64 << 20

// NewWriter returns a Writer; it connects with the first record.
func NewWriter(cfg Config) (*Writer, error) {
	opts, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	w := &Writer{log: cfg.Logger}
	if w.cl, err = kgo.NewClient(append(opts, producerOptions(writerBuffer, func(topic string) int { return w.limits.batch(topic) })...)...); err != nil {
		return nil, err
	}
	return w, nil
}

// Limits asks what topics take, by which their records then go. It is called before
// the first Write, if at all.
func (w *Writer) Limits(ctx context.Context, topics ...string) Limits {
	var err error
	w.limits, err = askLimits(ctx, w.cl, topics, writerBuffer)
	if err != nil && w.log != nil {
		w.log.Warn(limitsUnread, "bytes", Limits(nil).Record(""), "err", err)
	}
	return w.limits
}

// Write hands a record to the client and returns; it waits only while too much
// is under way. done is called once, with nil when all replicas in sync have
// the record, whose Partition and Offset then say where. The record must stay
// unchanged until then.
func (w *Writer) Write(ctx context.Context, r *pipeline.Record, done func(error)) {
	out := new(kgo.Record)
	fill(out, r)
	w.cl.Produce(ctx, out, func(out *kgo.Record, err error) {
		r.Partition, r.Offset = out.Partition, out.Offset
		done(err)
	})
}

func fill(out *kgo.Record, r *pipeline.Record) {
	out.Topic, out.Partition = r.Topic, r.Partition
	out.Key, out.Value, out.Timestamp = r.Key, r.Value, r.Time
	if len(r.Headers) > 0 {
		out.Headers = make([]kgo.RecordHeader, len(r.Headers))
		for i, h := range r.Headers {
			out.Headers[i] = kgo.RecordHeader(h)
		}
	}
}

// WriteOnce writes records, in order, by a client of its own, and returns when the
// fate of each is known. The error names those that are not, or may not be, written.
func WriteOnce(ctx context.Context, cfg Config, records ...*pipeline.Record) error {
	w, err := NewWriter(cfg)
	if err != nil {
		return err
	}
	results := make(chan error, len(records))
	for _, r := range records {
		w.Write(ctx, r, func(err error) {
			if err != nil {
				err = fmt.Errorf("writing %q to %s: %w", r.Key, r.Topic, err)
			}
			results <- err
		})
	}
	errs := []error{w.Flush(ctx)}
	w.Close() // fails what is still under way, if ctx has ended
	for range records {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

// Flush waits until done was called for everything written so far.
func (w *Writer) Flush(ctx context.Context) error { return w.cl.Flush(ctx) }

// Close ends the connections. What was not flushed fails.
func (w *Writer) Close() { w.cl.Close() }
