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

// batch is what a session handles between two commits. It is the handler's
// [pipeline.Emitter]. A session has one and uses it again and again: what it
// allocated for a batch serves the next.
type batch struct {
	cl      client
	began   time.Time
	records int // input records handled
	bytes   int // their keys and values
	read    map[topicPartition]readTo
	written []topicCount // emitted, by topic
	in      pipeline.Record

	handled, size int // of all batches: records, and their bytes

	pending []*kgo.Record // emitted, but not yet the client's

	part   *part   // at hand
	sealed []*part // before it, oldest first
	spare  []*part // to be used again

	// The client's promises touch this.
	mu  sync.Mutex // guards err
	err error      // the first
}

// part is what was read and written of a batch between two polls, if the handler
// is a [pipeline.Recycler], or in the whole batch. When all that was written of
// it is acknowledged, its memory can serve again: what is at work at a time is
// then what the brokers have yet to acknowledge, and not all of a batch.
type part struct {
	fetched []kgo.Fetches // to be given back
	emitted int           // and handed to the client
	out     slab[kgo.Record]
	headers slab[kgo.RecordHeader]
	promise func(*kgo.Record, error)
	acked   atomic.Int64 // counted by promises
}

// readTo is how far a batch has read a partition.
type readTo struct {
	next int64
	end  int64
	time time.Time
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
			b.fail(fmt.Errorf("writing to %s (key %.40q, %d bytes): %w", r.Topic, r.Key, len(r.Value), err))
		}
		p.acked.Add(1) // last: from here on the record may be used again
	}
	return p
}

// begin makes the batch ready for its first record.
func (b *batch) begin() {
	b.began = time.Now()
	// Half of what was before: the size of records may change.
	b.handled, b.size = (b.handled+b.records)/2, (b.size+b.bytes)/2
	b.records, b.bytes = 0, 0
	clear(b.read)
	b.written = b.written[:0]
	b.pending = b.pending[:0] // of a batch that was given up
	b.err = nil               // no promise is out
}

// room returns how many records, of the size of those before, go into so many
// bytes: at least one.
func (b *batch) room(bytes int) int {
	n, size := b.handled+b.records, b.size+b.bytes
	if n == 0 {
		return firstPoll
	}
	return max(1, min(bytes/(size/n+1), maxPoll))
}

// release gives back what the batch read and wrote. The fate of everything that
// was emitted has to be known, and the handler to have had its EndBatch: from
// here on, the bytes of all these records are used for others.
func (b *batch) release() {
	for _, p := range b.sealed {
		b.giveBack(p)
	}
	clear(b.sealed)
	b.sealed = b.sealed[:0]
	b.giveBack(b.part)
	b.part = b.newPart()
}

// seal ends a part of the batch, if the handler keeps nothing of it but what it
// emitted, and gives back those parts that are done with.
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
		b.giveBack(p)
		done++
	}
	b.sealed = slices.Delete(b.sealed, 0, done)
}

// giveBack makes the part ready to be used again.
func (b *batch) giveBack(p *part) {
	for _, fetches := range p.fetched {
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
	clear(p.fetched)
	p.fetched = p.fetched[:0]
	p.out.reset()
	p.headers.reset()
	p.emitted = 0
	p.acked.Store(0)
	b.spare = append(b.spare, p)
}

// settled reports whether the fate of all that was emitted is known.
func (p *part) settled() bool { return p.acked.Load() == int64(p.emitted) }

// settled reports whether the fate of all that was emitted is known.
func (b *batch) settled() bool {
	return b.part.settled() && !slices.ContainsFunc(b.sealed, func(p *part) bool { return !p.settled() })
}

// handle hands the fetched records to the handler, in order.
func (b *batch) handle(ctx context.Context, h pipeline.Handler, fetches kgo.Fetches) error {
	b.part.fetched = append(b.part.fetched, fetches)
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
			in.Taken = time.Now()
		}
		if r.Attrs.IsControl() {
			continue
		}
		setRecord(in, topic, p.Partition, r)
		if err := h.Handle(ctx, in, b); err != nil {
			return fmt.Errorf("%s offset %d: %w", topicPartition{topic, p.Partition}, r.Offset, err)
		}
		b.records++
		b.bytes += len(r.Key) + len(r.Value)
	}
	last := p.Records[len(p.Records)-1]
	at := readTo{next: last.Offset + 1, time: last.Timestamp, end: p.LastStableOffset}
	if at.end < 0 {
		at.end = p.HighWatermark
	}
	b.read[topicPartition{topic, p.Partition}] = at
	return nil
}

// clockEvery is how many records of a partition are taken up, one after the other,
// between two looks at the clock, and at whether to go on: a look costs as much
// as a stage.
const clockEvery = 32

// setRecord makes in the record that was read.
func setRecord(in *pipeline.Record, topic string, partition int32, r *kgo.Record) {
	in.Topic, in.Partition, in.Offset = topic, partition, r.Offset
	in.Key, in.Value, in.Time = r.Key, r.Value, r.Timestamp
	in.Headers = in.Headers[:0]
	for _, h := range r.Headers {
		in.Headers = append(in.Headers, pipeline.Header(h))
	}
}

// Emit takes a record for the client. Its fate is known at acknowledged.
func (b *batch) Emit(r *pipeline.Record) {
	p := b.part
	out := &p.out.take(1)[0]
	out.Topic, out.Partition = r.Topic, r.Partition
	out.Key, out.Value, out.Timestamp = r.Key, r.Value, r.Time
	if len(r.Headers) > 0 {
		out.Headers = p.headers.take(len(r.Headers))
		for i, h := range r.Headers {
			out.Headers[i] = kgo.RecordHeader(h)
		}
	}
	b.count(r.Topic)
	if b.pending = append(b.pending, out); len(b.pending) == produceAtOnce {
		b.produce()
	}
}

// produceAtOnce is how many records are handed to the client one after the other. What
// the handler does for an event, and the client for a record, are both so much code
// that going to and fro between them for each costs more than either.
const produceAtOnce = 512

// produce hands the client what was emitted.
func (b *batch) produce() {
	p := b.part
	p.emitted += len(b.pending)
	for _, r := range b.pending {
		// Not the loop's context: a record that was begun is seen to its end.
		b.cl.produce(context.Background(), r, p.promise)
	}
	b.pending = b.pending[:0]
}

// count counts a record by its topic. A pipeline writes to few.
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

// failed returns the first error of a record emitted so far.
func (b *batch) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// acknowledged waits until the fate of every emitted record is known and
// returns nil only if all are acknowledged.
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
		return errors.New("the fate of some written records is not known")
	}
	return nil
}

// slab hands out slices of zero values, and takes all of them back at once.
type slab[T any] struct {
	blocks [][]T
	block  int // in use
	used   int // of it
}

const (
	slabBlock = 512 // values in a block
	slabKeep  = 64  // blocks kept from one batch to the next
)

// take returns n zero values that stay where they are until reset.
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

// reset makes all values zero again, so that they hold on to nothing.
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
