package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/pipeline"
)

// batch is the records of one transaction. It is the handler's [pipeline.Emitter].
// A session has one batch and reuses it with its memory. Only the session's
// goroutine uses it, except in promises, which the client calls.
type batch struct {
	cl      client
	began   time.Time
	records int // input records handled
	bytes   int // bytes of their keys and values
	read    map[topicPartition]readTo
	written []topicCount // emitted records, by topic
	in      pipeline.Record

	preparer preparer
	fewer    int // after an error of the handler: how many records could be handled without it, at least 1

	// Decaying sums over earlier batches, for the average record size.
	handled, size int // records, and bytes of their keys and values

	pending []*kgo.Record // emitted, but not passed to the client yet
	suspect *suspect      // of the session

	part   *part   // the current part
	sealed []*part // earlier parts of this batch, oldest first
	spare  []*part // parts for reuse

	mu  sync.Mutex // guards err: promises set it
	err error      // the first produce error
}

// part holds the records read and written between two polls if the handler is a
// [pipeline.Recycler], else those of the whole batch. When all its written records
// are acknowledged, its memory can be reused. So with a Recycler, the memory in use
// depends on the records in flight and not on the size of a batch.
type part struct {
	fetched []kgo.Fetches // to recycle
	emitted int           // records passed to the client
	out     slab[kgo.Record]
	headers slab[kgo.RecordHeader]
	promise func(*kgo.Record, error)
	acked   atomic.Int64 // records acknowledged or failed; promises count it
}

// readTo is the position of a batch in a partition.
type readTo struct {
	next int64     // next offset to read
	end  int64     // last stable offset
	time time.Time // timestamp of the last record that is no transaction marker; zero if there is none
}

type topicCount struct {
	topic string
	n     int
}

func newBatch(cl client) *batch {
	b := &batch{cl: cl, read: map[topicPartition]readTo{}}
	b.part = b.newPart()
	return b
}

func (b *batch) newPart() *part {
	if n := len(b.spare); n > 0 {
		p := b.spare[n-1]
		b.spare = b.spare[:n-1]
		return p
	}
	p := &part{}
	p.promise = func(r *kgo.Record, err error) {
		if err != nil {
			b.fail(writeError(r, err))
		}
		p.acked.Add(1) // last: from here on the record may be reused
	}
	return p
}

// writeError describes the error of a written record. If the broker refused a record for
// its content, the client reports the same error for all records of the partition that
// were not written, so the text blames none of them.
func writeError(r *kgo.Record, err error) error {
	if IsRefusal(err) {
		return fmt.Errorf("writing to %s: one of several records was refused: %w", r.Topic, err)
	}
	return fmt.Errorf("writing to %s (key %.40q, %d bytes): %w", r.Topic, r.Key, len(r.Value), err)
}

// begin resets the batch before its first record.
func (b *batch) begin() {
	b.began = time.Now()
	// Halve the weight of earlier batches: record sizes may change.
	b.handled, b.size = (b.handled+b.records)/2, (b.size+b.bytes)/2
	b.records, b.bytes, b.fewer = 0, 0, 0
	clear(b.read)
	b.written = b.written[:0]
	b.pending = b.pending[:0] // left from a batch that was aborted
	b.err = nil               // no promise is outstanding
}

// pollSize returns how many records of the average size so far fit into the given
// bytes: at least one.
func (b *batch) pollSize(bytes int) int {
	n, size := b.handled+b.records, b.size+b.bytes
	if n == 0 {
		return firstPoll
	}
	return max(1, min(bytes/(size/n+1), maxPoll))
}

// release recycles everything that the batch read and wrote. Before it, every
// emitted record must be settled and the handler's EndBatch must have returned:
// from here on, other records reuse the bytes.
func (b *batch) release() {
	for _, p := range b.sealed {
		b.recycle(p)
	}
	clear(b.sealed)
	b.sealed = b.sealed[:0]
	b.recycle(b.part)
	b.part = b.newPart()
}

// seal ends the current part of the batch if the handler keeps no references to it
// except in emitted records. It recycles the oldest parts that are settled.
func (b *batch) seal(h pipeline.Handler) {
	r, ok := h.(pipeline.Recycler)
	if !ok || !r.Seal() {
		return
	}
	b.sealed = append(b.sealed, b.part)
	b.part = b.newPart()
	done := 0
	for _, p := range b.sealed {
		if !p.settled() {
			break
		}
		r.Reuse()
		b.recycle(p)
		done++
	}
	b.sealed = slices.Delete(b.sealed, 0, done)
}

// recycle prepares the part for reuse.
func (b *batch) recycle(p *part) {
	for _, fetches := range p.fetched {
		recycleFetches(fetches)
	}
	clear(p.fetched)
	p.fetched = p.fetched[:0]
	p.out.reset()
	p.headers.reset()
	p.emitted = 0
	p.acked.Store(0)
	b.spare = append(b.spare, p)
}

// recycleFetches returns the memory of fetched records to the client's pools.
func recycleFetches(fetches kgo.Fetches) {
	for _, fetch := range fetches {
		for _, topic := range fetch.Topics {
			for i := range topic.Partitions {
				for _, r := range topic.Partitions[i].Records {
					r.Recycle()
				}
			}
		}
	}
}

// settled reports whether every emitted record is acknowledged or has failed.
func (p *part) settled() bool { return p.acked.Load() == int64(p.emitted) }

// settled reports whether every emitted record is acknowledged or has failed.
func (b *batch) settled() bool {
	return b.part.settled() && !slices.ContainsFunc(b.sealed, func(p *part) bool { return !p.settled() })
}

// handle passes the fetched records to the handler, in order.
func (b *batch) handle(ctx context.Context, h pipeline.Handler, fetches kgo.Fetches) error {
	b.part.fetched = append(b.part.fetched, fetches)
	b.preparer.begin(h, fetches)
	for _, fetch := range fetches {
		for _, topic := range fetch.Topics {
			for i := range topic.Partitions {
				if err := b.handlePartition(ctx, h, topic.Topic, &topic.Partitions[i]); err != nil {
					return err
				}
			}
		}
	}
	b.produce()
	b.seal(h)
	return nil
}

func (b *batch) handlePartition(ctx context.Context, h pipeline.Handler, topic string, p *kgo.FetchPartition) error {
	if len(p.Records) == 0 {
		return nil
	}
	in := &b.in
	for i, r := range p.Records {
		if i%clockEvery == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			in.Started = time.Now()
		}
		if r.Attrs.IsControl() {
			continue
		}
		if err := b.preparer.check(ctx, r.Value); err != nil {
			b.fewer = max(1, b.records, b.preparer.fetches.NumRecords()/2)
			return err
		}
		setRecord(in, topic, p.Partition, r)
		if err := b.pass(ctx, h, in); err != nil {
			b.fewer = max(1, b.records)
			return fmt.Errorf("%s offset %d: %w", topicPartition{topic, p.Partition}, r.Offset, err)
		}
		b.records++
		b.bytes += len(r.Key) + len(r.Value)
	}
	last := p.Records[len(p.Records)-1]
	at := readTo{next: last.Offset + 1, end: p.LastStableOffset, time: b.read[topicPartition{topic, p.Partition}].time}
	if at.end < 0 {
		at.end = p.HighWatermark
	}
	for _, r := range slices.Backward(p.Records) {
		if !r.Attrs.IsControl() {
			at.time = readTime(r.Timestamp)
			break
		}
	}
	b.read[topicPartition{topic, p.Partition}] = at
	return nil
}

// pass passes a record to the handler.
func (b *batch) pass(ctx context.Context, h pipeline.Handler, in *pipeline.Record) error {
	if len(b.suspect.refused) > 0 {
		if why := b.suspect.refused[b.last()]; why != nil {
			return h.(Refuser).Refuse(ctx, in, why, b)
		}
	}
	return h.Handle(ctx, in, b)
}

// last returns the place of the last record that was passed to the handler.
func (b *batch) last() recordAt {
	return recordAt{topicPartition{b.in.Topic, b.in.Partition}, b.in.Offset}
}

// clockEvery is how many records of a partition are handled between two checks of
// the clock and of the context: one check costs as much as a stage.
const clockEvery = 32

// setRecord sets in to the fetched record, and shares its bytes.
func setRecord(in *pipeline.Record, topic string, partition int32, r *kgo.Record) {
	in.Topic, in.Partition, in.Offset = topic, partition, r.Offset
	in.Key, in.Value, in.Time = r.Key, r.Value, readTime(r.Timestamp)
	in.Headers = in.Headers[:0]
	for _, h := range r.Headers {
		in.Headers = append(in.Headers, pipeline.Header(h))
	}
}

// Emit queues a record for the client. acknowledged reports whether it was written.
func (b *batch) Emit(r *pipeline.Record) {
	p := b.part
	out := &p.out.take(1)[0]
	out.Topic, out.Partition = r.Topic, r.Partition
	out.Key, out.Value, out.Timestamp = r.Key, r.Value, recordTime(r.Time)
	if len(r.Headers) > 0 {
		out.Headers = p.headers.take(len(r.Headers))
		for i, h := range r.Headers {
			out.Headers[i] = kgo.RecordHeader(h)
		}
	}
	b.count(r.Topic)
	if b.pending = append(b.pending, out); len(b.pending) == produceChunk {
		b.produce()
	}
}

// produceChunk is how many records are passed to the client in one loop. The
// handler and the client both run much code per record, and alternating between
// them for each record, with cold caches and branch predictors, costs more than either.
const produceChunk = 512

// produce passes the pending records to the client.
func (b *batch) produce() {
	p := b.part
	p.emitted += len(b.pending)
	for _, r := range b.pending {
		// Not the loop's context: a record once passed to the client is finished
		// even if the loop stops.
		b.cl.produce(context.Background(), r, p.promise)
	}
	b.pending = b.pending[:0]
}

// count counts a record by its topic. A linear search, because a pipeline writes to
// few topics.
func (b *batch) count(topic string) {
	for i := range b.written {
		if b.written[i].topic == topic {
			b.written[i].n++
			return
		}
	}
	b.written = append(b.written, topicCount{topic, 1})
}

func (b *batch) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
}

// failed returns the first produce error so far.
func (b *batch) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// errUnsettled means that some emitted records are neither acknowledged nor failed.
var errUnsettled = errors.New("some written records are neither acknowledged nor failed")

// acknowledged waits until every emitted record is settled. It returns nil only if
// all are acknowledged.
func (b *batch) acknowledged(ctx context.Context) error {
	b.produce()
	if !b.settled() {
		if err := b.cl.flush(ctx); err != nil {
			return fmt.Errorf("waiting for the written records to be acknowledged: %w", err)
		}
	}
	if err := b.failed(); err != nil {
		return err
	}
	if !b.settled() {
		return errUnsettled
	}
	return nil
}

// slab allocates slices of zero values, which are all freed together.
type slab[T any] struct {
	blocks [][]T
	block  int // index of the current block
	used   int // values used of it
}

const (
	slabBlock = 512 // values in a block
	slabKeep  = 64  // most blocks kept for the next batch
)

// take returns n zero values. They stay at their address until reset.
func (s *slab[T]) take(n int) []T {
	if n > slabBlock {
		return make([]T, n)
	}
	if s.used+n > slabBlock {
		s.block, s.used = s.block+1, 0
	}
	if s.block == len(s.blocks) {
		s.blocks = append(s.blocks, make([]T, slabBlock))
	}
	from := s.used
	s.used += n
	return s.blocks[s.block][from:s.used:s.used]
}

// reset zeroes all values, to drop their references, and makes them available again.
func (s *slab[T]) reset() {
	if len(s.blocks) == 0 {
		return
	}
	for _, block := range s.blocks[:s.block] {
		clear(block)
	}
	clear(s.blocks[s.block][:s.used])
	if len(s.blocks) > slabKeep {
		clear(s.blocks[slabKeep:])
		s.blocks = s.blocks[:slabKeep]
	}
	s.block, s.used = 0, 0
}
