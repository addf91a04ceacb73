package receipt

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/gauges"
	"millrace/pipeline/rows"
	"millrace/pipeline/topology"
)

// Reader reads receipts and keeps the recent ones in memory: they are needed for events
// that were just written. After a restart it reads them again, from a span ago.
//
// It has two generations of receipts. When the recent one is as old as the span or takes
// half of the memory, it becomes the older one, and the previous older one is forgotten.
type Reader struct {
	topics []*topology.Topic
	span   time.Duration // for which receipts are known, at least
	most   int           // bytes of memory, approximately
	cfg    kafka.Config
	// Ensure creates missing topics before they are read. Set it before Run, or leave
	// the default, which does nothing.
	Ensure   func(ctx context.Context) error
	now      func() time.Time
	log      *slog.Logger
	rejected *prometheus.CounterVec

	mu            sync.Mutex // guards the fields below
	recent, older *rows.Map  // numbers of contents, by receiptKey
	begun         time.Time  // recent has the receipts since then
	since         time.Time  // no receipt since then was forgotten
	newest        time.Time  // time of the newest receipt
	taken         int        // receipts so far
	tails         map[string]*kafka.Tail
	failed        map[string]error // by topic: why its tail does not run; no entry while it runs
	contents      []content        // by number
	numbers       map[content]uint32
}

// content is the content of a receipt without its position. There are few different
// ones, so the maps hold numbers instead.
type content struct {
	outcome   Outcome
	stage     string
	reason    pipeline.Reason
	duplicate bool
}

// receiptsMemory is the approximate maximum of memory for receipts, in bytes.
const receiptsMemory = 64 << 20

// NewReader returns a reader of topics. Call Run to read them.
func NewReader(cfg kafka.Config, topics []*topology.Topic, span time.Duration, now func() time.Time, log *slog.Logger, reg prometheus.Registerer) *Reader {
	r := &Reader{
		topics: topics, span: span, most: receiptsMemory, cfg: cfg, Ensure: func(context.Context) error { return nil }, now: now, log: log,
		recent: rows.New(), older: rows.New(), begun: now().Add(-span), since: now().Add(-span), tails: map[string]*kafka.Tail{}, failed: map[string]error{}, numbers: map[content]uint32{},
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_receipts_rejected_total", Help: "Records of a receipts topic that are not receipts."}, []string{"topic"}),
	}
	reg.MustRegister(r.rejected,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_receipts_known", Help: "Receipts in memory: outcomes of events that pipelines did not write to their output."}, func() float64 {
			r.mu.Lock()
			defer r.mu.Unlock()
			return float64(r.recent.Len() + r.older.Len())
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_receipts_lag_records", Help: "Lag of the receipts topics: offsets that are not read yet."}, func() float64 {
			lag, _ := r.lag()
			return float64(lag)
		}))
	for _, topic := range topics {
		reg.MustRegister(gauges.Following("receipts", topic.Name, func() error { return r.following(topic.Name) }))
	}
	return r
}

// Following returns nil while all topics are followed.
func (r *Reader) Following() error {
	var faults []error
	for _, topic := range r.topics {
		if err := r.following(topic.Name); err != nil {
			faults = append(faults, fmt.Errorf("the receipts topic %s is not followed: %w", topic.Name, err))
		}
	}
	return errors.Join(faults...)
}

// following returns nil while a topic is followed.
func (r *Reader) following(topic string) error {
	r.mu.Lock()
	tail, err := r.tails[topic], r.failed[topic]
	r.mu.Unlock()
	if err != nil || tail == nil {
		return err
	}
	return tail.Err()
}

// setFailed sets why the tail of a topic does not run, nil if it runs.
func (r *Reader) setFailed(topic string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed[topic] = err; err == nil {
		delete(r.failed, topic)
	}
}

// lag returns the number of offsets that are not read yet; ok is false while it is
// unknown.
func (r *Reader) lag() (lag int64, ok bool) {
	r.mu.Lock()
	tails := maps.Clone(r.tails)
	r.mu.Unlock()
	for _, tail := range tails {
		n, known := tail.Lag()
		if !known || tail.Err() != nil {
			return 0, false
		}
		lag += n
	}
	return lag, len(tails) == len(r.topics)
}

// Run reads receipts until the context ends. It retries after every error: a projector
// works without receipts, it only knows less.
func (r *Reader) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, topic := range r.topics {
		g.Go(func() error { return r.follow(ctx, topic.Name) })
	}
	return g.Wait()
}

// follow reads one topic.
func (r *Reader) follow(ctx context.Context, topic string) error {
	const most = 5 * time.Second
	var tail *kafka.Tail
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, most) {
		if tail == nil {
			tail = kafka.NewTailSince(r.cfg, topic, r.now().Add(-r.span))
			r.mu.Lock()
			r.tails[topic] = tail
			r.mu.Unlock()
		}
		err := r.Ensure(ctx)
		if err == nil {
			r.setFailed(topic, nil) // the tail keeps its last error until it works
			err = tail.Run(ctx, r.Take)
		}
		if ctx.Err() != nil {
			return nil
		}
		r.setFailed(topic, err)
		r.log.Warn("reading receipts failed; retrying", "topic", topic, "err", err, "wait", wait)
		if pipeline.ClassOf(err) == pipeline.ClassFatal {
			tail = nil // the topic was recreated: its offsets mean something else
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Take adds the receipt in a record. A record that is not a receipt is counted and
// skipped. The error is always nil.
func (r *Reader) Take(in *pipeline.Record) error {
	var got Receipt
	err := json.Unmarshal(in.Value, &got)
	if err == nil && (len(in.Key) == 0 || got.Pipeline == "" || got.Outcome != OutcomeFiltered && got.Outcome != OutcomeDeadLetter) {
		err = errors.New("the event, the pipeline or the outcome is missing")
	}
	if err != nil {
		r.rejected.WithLabelValues(in.Topic).Inc()
		r.log.Warn("skipping a record that is not a receipt", "topic", in.Topic, "partition", in.Partition, "offset", in.Offset, "err", err)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rotate(in.Time)
	key := receiptKey(string(in.Key), got.Pipeline)
	c := content{got.Outcome, got.Stage, got.Reason, got.Duplicate}
	if have, ok := r.get(key); ok && c.duplicate && !have.duplicate {
		c = have // the outcome of the first event is more precise
	}
	n, ok := r.numbers[c]
	if !ok {
		n = uint32(len(r.contents))
		r.contents, r.numbers[c] = append(r.contents, c), n
	}
	r.recent.Set(key, binary.AppendUvarint(nil, uint64(n)))
	return nil
}

// rotate starts a new generation if the recent one is full. at is the time of the next
// receipt. mu is held.
func (r *Reader) rotate(at time.Time) {
	if at.After(r.newest) {
		r.newest = at
	}
	// Measuring the memory takes longer than adding a receipt, so it is done for one
	// receipt in many.
	const every = 256
	r.taken++
	if r.newest.Sub(r.begun) < r.span && (r.taken%every != 0 || r.recent.Bytes() < r.most/2) {
		return
	}
	r.older, r.recent = r.recent, rows.New()
	r.since, r.begun = r.begun, r.newest
}

// receiptKey is the key of a pipeline's receipt in the maps.
func receiptKey(eventID, pipeline string) []byte { return []byte(eventID + "\x00" + pipeline) }

// get returns the content under a key. mu is held.
func (r *Reader) get(key []byte) (content, bool) {
	row, ok := r.recent.Get(key)
	if !ok {
		if row, ok = r.older.Get(key); !ok {
			return content{}, false
		}
	}
	n, _ := binary.Uvarint(row)
	return r.contents[n], true
}

// of returns the receipt of a pipeline about an event.
func (r *Reader) of(eventID, pipeline string) (Receipt, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.get(receiptKey(eventID, pipeline))
	return Receipt{Outcome: c.outcome, Pipeline: pipeline, Stage: c.stage, Reason: c.reason, Duplicate: c.duplicate}, ok
}

// knownSince returns the time since which no receipt was forgotten.
func (r *Reader) knownSince() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}
