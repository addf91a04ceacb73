// Package pipeline is the vocabulary of Millrace: the words that every other
// package shares, and nothing else. It imports only the standard library and
// does no I/O.
//
// One word per idea. An event is a fact in the past tense, of a type, about an
// aggregate; its key is the aggregate's id. A record is how a topic holds it:
// key, value, headers, at an offset of a partition. A pipeline reads a topic,
// runs a chain of stages over each event and writes what passes; what a stage
// rejects becomes a dead letter. A projection folds events into the state of
// an aggregate and publishes it as a snapshot. A worker is a process in a
// consumer group; it runs one or more sessions, each a member of the group.
//
// Start reading at [Event], then [Stage] and [Chain], then [Handler], which is
// all that the Kafka loop knows of the rest.
package pipeline

import (
	"context"
	"time"
)

// A Header is one record header. Names may repeat; order is kept.
type Header struct {
	Key   string
	Value []byte
}

// KeyPartition as a [Record]'s Partition leaves the choice to its key (murmur2,
// as Java's default partitioner).
const KeyPartition int32 = -1

// A Record is one record of a topic: as it was read, or as it is to be written.
// A nil Value is a tombstone. On a record to be written, Offset has no meaning,
// and Partition is KeyPartition unless the record belongs to one partition
// whatever its key.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	Key       []byte
	Value     []byte
	Headers   []Header
	Time      time.Time // the record's timestamp: event time, in milliseconds

	// Taken is when the worker took up the record that it read, to within a few
	// records; zero if nobody looked at the clock. It is what now() says.
	Taken time.Time
}

// Header returns the last value under the name, and whether there is one.
func (r *Record) Header(name string) ([]byte, bool) {
	for i := len(r.Headers) - 1; i >= 0; i-- {
		if r.Headers[i].Key == name {
			return r.Headers[i].Value, true
		}
	}
	return nil, false
}

// An Emitter takes the records that a [Handler] yields. The bytes of an emitted
// record must stay unchanged until the Handler's EndBatch, or Reuse.
type Emitter interface {
	Emit(r *Record)
}

// A Handler turns the records of a session's batches into records to be
// written. A session owns its Handler: no two calls overlap.
//
// The bytes of in belong to the caller and are valid until EndBatch, unless the
// Handler is a [Recycler]. An error
// means that the batch as a whole must not take effect; what happens next is
// the error's [Class]. A bad event is not an error here: it is emitted as a
// dead letter.
type Handler interface {
	Handle(ctx context.Context, in *Record, out Emitter) error

	// Flush is called once at the end of each batch, before it is committed:
	// the last chance to emit.
	Flush(ctx context.Context, out Emitter) error

	// EndBatch says how the batch ended. After committed = false, its records
	// will be handled again, by this Handler or another, so nothing that was
	// counted may become visible.
	EndBatch(committed bool)
}

// A Recycler is a [Handler] that may keep of what it handled nothing but what it
// emitted. So memory can be used again as soon as that is acknowledged, and not
// only when the batch has ended.
type Recycler interface {
	Handler

	// Seal ends a part of the batch: from here on, what is emitted is in other
	// memory. If it returns false, the handler needs what it handled until
	// EndBatch, and nothing was sealed.
	Seal() bool

	// Reuse says that all is acknowledged that was emitted in the oldest part,
	// of those that were sealed since EndBatch and not reused yet.
	Reuse()
}
