// Package pipeline defines the types that all other packages share. It imports
// only the standard library and does no I/O.
//
// The terms:
//
//   - An event is a fact in the past tense about an aggregate. It has a type. Its
//     key is the aggregate's id.
//   - A record is an event as a topic holds it: key, value and headers at an
//     offset of a partition.
//   - A pipeline reads a topic, runs a chain of stages over each event and writes
//     the events that pass. An event that a stage rejects becomes a dead letter.
//   - A projection folds events into the state of an aggregate and publishes the
//     state as a snapshot.
//   - A worker is a process in a consumer group. It runs one or more sessions; each
//     session is a member of the group.
//
// Start reading at [Event], then [Stage] and [Chain], then [Handler], which is the
// only interface between the Kafka loop and event processing.
//
// A session owns its Chain, its Handler and their stages, and calls them from one
// goroutine at a time.
package pipeline

import (
	"bytes"
	"context"
	"time"
)

// A Header is one record header. Keys may repeat. The order of headers is kept.
type Header struct {
	Key   string
	Value []byte
}

// KeyPartition as the Partition of a [Record] means that the key decides the
// partition, by the [Partitioner] of the topic.
const KeyPartition int32 = -1

// A Record is one record of a topic, either read or to be written. A nil Value is
// a tombstone. In a record to be written, Offset has no meaning, and Partition is
// KeyPartition unless the record belongs to a fixed partition.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	Key       []byte
	Value     []byte
	Headers   []Header
	Time      time.Time // the record's timestamp: event time, millisecond precision

	// Started is the time at which the worker started to handle the record. now()
	// returns it. The clock is read once for a few records. Zero: the clock was
	// not read.
	Started time.Time
}

// Clone returns a deep copy.
func (r *Record) Clone() Record {
	c := *r
	c.Key, c.Value, c.Headers = bytes.Clone(r.Key), bytes.Clone(r.Value), nil
	for _, h := range r.Headers {
		c.Headers = append(c.Headers, Header{Key: h.Key, Value: bytes.Clone(h.Value)})
	}
	return c
}

// Header returns the last value of the header with that name, and whether the
// record has one.
func (r *Record) Header(name string) ([]byte, bool) {
	for i := len(r.Headers) - 1; i >= 0; i-- {
		if r.Headers[i].Key == name {
			return r.Headers[i].Value, true
		}
	}
	return nil, false
}

// An Emitter receives the records that a [Handler] produces. The bytes of an
// emitted record must stay unchanged until EndBatch or Reuse of the Handler.
type Emitter interface {
	Emit(r *Record)
}

// A Handler turns the records that a session reads into records to be written. A
// session owns its Handler, so calls never overlap.
//
// The bytes of in belong to the caller. They are valid until EndBatch, unless the
// Handler is a [Recycler]. An error means that the whole batch must not take
// effect; the [Class] of the error decides what happens next. A bad event is not
// an error here: the Handler emits it as a dead letter.
type Handler interface {
	Handle(ctx context.Context, in *Record, out Emitter) error

	// Flush is called once at the end of each batch, before the commit. It is the
	// last call that may emit records of the batch.
	Flush(ctx context.Context, out Emitter) error

	// EndBatch ends the batch. If committed is false, this Handler or another one
	// will handle its records again, so the counts of the batch must be discarded.
	EndBatch(committed bool)
}

// A Preparer is a [Handler] that can prepare for several records at once, which is
// faster than one after the other: it looks up schemas.
type Preparer interface {
	Handler

	// Prepare is called before Handle with records of the batch. It gets the first
	// record of each value prefix (see [PrefixSize]) that is new to the session. An error
	// is handled like one of Handle.
	Prepare(ctx context.Context, records []*Record) error
}

// PrefixSize is the number of bytes at the start of values that a session compares to
// find records for a [Preparer]: a frame has this size.
const PrefixSize = 5

// A Recycler is a [Handler] that can do without its input records before the batch
// ends: it references them only from the records that it emitted. Their memory can
// be reused when the emitted records are acknowledged.
type Recycler interface {
	Handler

	// Seal ends a part of the batch. Later records are emitted from other memory.
	// If it returns false, the Handler needs its input until EndBatch, and no part
	// was sealed.
	Seal() bool

	// Reuse reports that all emitted records of the oldest sealed part are
	// acknowledged. Only parts that were sealed since the last EndBatch and not yet
	// reused count.
	Reuse()
}
