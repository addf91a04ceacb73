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

// producerOptions returns the options of every producing client: each record is
// written once, acknowledged by all in-sync replicas, and its partition follows from its
// key, by the partitioner of its topic. buffered is the size of the client's
// buffer in bytes. batchLimit returns the largest batch of a topic in bytes; the client
// calls it once per partition, before its first write there.
func producerOptions(partitioners map[string]pipeline.Partitioner, buffered int, batchLimit func(topic string) int) []kgo.Opt {
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(partitioner(partitioners)),
		kgo.ProducerLinger(5 * time.Millisecond),
		kgo.MaxBufferedRecords(1 << 16),
		kgo.MaxBufferedBytes(buffered),
		kgo.ProducerBatchMaxBytesFn(func(topic string) int32 { return int32(batchLimit(topic)) }),
	}
}

// A Writer writes records outside of transactions, idempotently and in order per
// key: the order of the calls to Write. It is safe for concurrent use, except Limits.
//
// A broker refuses a whole batch because of one record that its topic does not accept,
// and the client then fails every record of the partition that is not written. The Writer
// writes these again one by one, each in a request of its own, so only the record that is
// refused alone fails, with an error for which [IsRefusal] is true. Records that are
// passed to Write meanwhile wait; only one that is passed in the moment of the refusal may
// be written before an earlier one of its key.
type Writer struct {
	cl     *kgo.Client
	link   *link
	log    *slog.Logger // may be nil
	limits Limits       // set by Limits before the first Write
	single *singles
}

// writerBuffer is how many bytes of a Writer may be in flight.
const writerBuffer = 64 << 20

// NewWriter returns a Writer, which connects when the first record is written.
func NewWriter(cfg Config) (*Writer, error) {
	w := &Writer{link: newLink(), log: cfg.Logger}
	newClient := func() (*kgo.Client, error) {
		opts, err := cfg.Options()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.WithHooks(w.link))
		return kgo.NewClient(append(opts, producerOptions(cfg.Partitioners, writerBuffer, func(topic string) int { return w.limits.batch(topic) })...)...)
	}
	var err error
	if w.cl, err = newClient(); err != nil {
		return nil, err
	}
	w.single = newSingles(newClient)
	return w, nil
}

// Limits reads and returns the limits of topics. The Writer keeps to their sizes. The
// call is optional; it must come before the first Write.
func (w *Writer) Limits(ctx context.Context, topics ...string) Limits {
	var err error
	w.limits, err = fetchLimits(ctx, w.cl, topics, writerBuffer)
	if err != nil && w.log != nil {
		w.log.Warn(limitsUnread, "bytes", Limits(nil).MaxRecord(""), "err", err)
	}
	return w.limits
}

// Write passes a record to the client and returns. It blocks only while the client's
// buffer is full, or while refused records are written one by one. done is called once,
// from another goroutine: with nil when all in-sync replicas have the record, whose
// Partition and Offset are then set. The caller must not change the record before that.
func (w *Writer) Write(ctx context.Context, r *pipeline.Record, done func(error)) {
	out := new(kgo.Record)
	fill(out, r)
	finish := func(out *kgo.Record, err error) {
		r.Partition, r.Offset = out.Partition, out.Offset
		done(w.link.explain(err))
	}
	if err := w.single.idle(ctx); err != nil {
		finish(out, err)
		return
	}
	w.cl.Produce(ctx, out, func(out *kgo.Record, err error) {
		if IsRefusal(err) {
			w.single.add(single{ctx, out, finish})
			return
		}
		finish(out, err)
	})
}

func fill(out *kgo.Record, r *pipeline.Record) {
	out.Topic, out.Partition = r.Topic, r.Partition
	out.Key, out.Value, out.Timestamp = r.Key, r.Value, recordTime(r.Time)
	if len(r.Headers) > 0 {
		out.Headers = make([]kgo.RecordHeader, len(r.Headers))
		for i, h := range r.Headers {
			out.Headers[i] = kgo.RecordHeader(h)
		}
	}
}

// WriteOnce writes records in order with its own client. It returns when each record
// is acknowledged or has failed. The error names the records that are not written or
// may not be.
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
	errs := []error{w.cl.Flush(ctx)} // not w.Flush: the records explain an outage
	w.Close()                        // fails the records still in flight if ctx has ended
	for range records {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

// Forget makes the Writer accept a topic that was deleted and created again. Records that
// are in flight to the old one fail.
func (w *Writer) Forget(topic string) { w.cl.PurgeTopicsFromProducing(topic) }

// Flush waits until done was called for every record written so far.
func (w *Writer) Flush(ctx context.Context) error {
	if err := w.cl.Flush(ctx); err != nil {
		return w.link.explain(err)
	}
	return w.link.explain(w.single.idle(ctx))
}

// Close closes the connections. Records that are still in flight fail.
func (w *Writer) Close() {
	w.cl.Close()
	w.single.close()
}
