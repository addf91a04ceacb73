package fold

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"millrace/pipeline/codec"
)

// An Aggregate is the state of one aggregate, with the position of its last applied
// event. The zero value is an aggregate without events.
type Aggregate struct {
	Version   int64 // number of applied events
	Deleted   bool
	Tombstone bool   // deleted by a tombstone: any event creates it again
	Number    int64  // sequence number of the last applied event; 0 if no event had one
	Missing   int64  // number of skipped sequence numbers
	EventID   []byte // of the last applied event
	EventTime int64  // of the last applied event, in microseconds since 1970
	Source           // of the last applied event
	Offset    int64  // of the last applied event
	State     []byte // encoded as Avro, with the schema of the state of the fold
}

// A Source is the partition of an event.
type Source struct {
	Topic     string
	TopicID   string // changes if the topic is deleted and created again
	Partition int32
}

// Status values of a snapshot.
const (
	Live    = "live"
	Deleted = "deleted"
	Gap     = "gap"     // events are missing: sequence numbers were skipped
	Blocked = "blocked" // an event cannot be folded, and the events after it wait
)

// Status returns the status of the aggregate. It never returns [Blocked], which the
// Aggregate does not record; see [Fold.AppendBlocked].
func (a *Aggregate) Status() string {
	switch {
	case a.Deleted:
		return Deleted
	case a.Missing > 0:
		return Gap
	}
	return Live
}

// snapshotSchema returns the schema of a snapshot of an aggregate with that state.
// Snapshots are published on the snapshots topic. The text of the schema is
// registered there, so a change to it, even to a doc, is a new schema version.
func snapshotSchema(state *codec.Schema) (*codec.Schema, error) {
	return codec.ParseSchema(fmt.Sprintf(`{
  "type": "record",
  "name": "%sSnapshot",
  "doc": "State of an aggregate after one of its events, as a Millrace projection publishes it.",
  "fields": [
    {"name": "id", "type": "string", "doc": "The aggregate; also the record's key."},
    {"name": "version", "type": "long", "doc": "Number of events applied."},
    {"name": "status", "type": "string", "doc": "live; deleted: it keeps its last state, and no late event brings it back; gap: events are missing; or blocked: an event cannot be folded, and those after it wait."},
    {"name": "fold", "type": "string", "doc": "Hash of the fold that made this state."},
    {"name": "event_id", "type": "string", "doc": "Last event applied."},
    {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}, "doc": "When it happened."},
    {"name": "topic", "type": "string", "doc": "Where it stands."},
    {"name": "topic_id", "type": "string", "doc": "Kafka's id of the topic: another one if it was deleted and made anew."},
    {"name": "partition", "type": "int"},
    {"name": "offset", "type": "long"},
    {"name": "sequence", "type": "long", "doc": "Sequence number of the last event applied, 0 if none had one."},
    {"name": "missing", "type": "long", "doc": "How many sequence numbers were passed over."},
    {"name": "state", "type": %s}
  ]
}`, state.Name(), state.String()))
}

// stateDepth is the depth of the state in a snapshot, for the limits of a walk.
const stateDepth = 1

// Snapshot returns the schema of the fold's snapshots.
func (f *Fold) Snapshot() *codec.Schema { return f.snapshot }

// AppendSnapshot appends the aggregate as a record of [Fold.Snapshot].
func (f *Fold) AppendSnapshot(dst []byte, id []byte, a *Aggregate) []byte {
	return f.appendSnapshot(dst, id, a, a.Status())
}

// AppendBlocked is [Fold.AppendSnapshot] for a blocked aggregate.
func (f *Fold) AppendBlocked(dst []byte, id []byte, a *Aggregate) []byte {
	if a.Deleted {
		return f.AppendSnapshot(dst, id, a) // a deleted aggregate does not change any more
	}
	return f.appendSnapshot(dst, id, a, Blocked)
}

func (f *Fold) appendSnapshot(dst []byte, id []byte, a *Aggregate, status string) []byte {
	dst = codec.AppendBytes(dst, id)
	dst = codec.AppendLong(dst, a.Version)
	dst = codec.AppendString(dst, status)
	dst = codec.AppendString(dst, f.hash)
	dst = codec.AppendBytes(dst, a.EventID)
	dst = codec.AppendLong(dst, a.EventTime)
	dst = codec.AppendString(dst, a.Topic)
	dst = codec.AppendString(dst, a.TopicID)
	dst = codec.AppendLong(dst, int64(a.Partition))
	dst = codec.AppendLong(dst, a.Offset)
	dst = codec.AppendLong(dst, a.Number)
	dst = codec.AppendLong(dst, a.Missing)
	return append(dst, a.State...)
}

// ErrOtherFold means that a snapshot was computed by another fold.
var ErrOtherFold = errors.New("made by another fold")

// ReadSnapshot reads the snapshot of the aggregate id, a record of [Fold.Snapshot], into
// a. It copies the data from body, and accepts what [Fold.AppendSnapshot] can have
// written. The error for a snapshot of another fold, whose state may have another schema,
// is ErrOtherFold; after an error, a is partly overwritten.
func (f *Fold) ReadSnapshot(body, id []byte, a *Aggregate) error {
	r := reader{rest: body}
	of := r.text()
	a.Version = r.long()
	a.Deleted = string(r.text()) == Deleted
	if by := r.text(); r.err == nil && string(by) != f.hash && isHash(by) {
		return ErrOtherFold
	}
	if err := codec.Validate(f.snapshot.Root(), body); err != nil {
		return err
	}
	a.EventID = append(a.EventID[:0], r.text()...)
	a.EventTime = r.long()
	if topic := r.text(); a.Topic != string(topic) {
		a.Topic = string(topic)
	}
	if id := r.text(); a.TopicID != string(id) {
		a.TopicID = string(id)
	}
	a.Partition = int32(r.long())
	a.Offset = r.long()
	a.Number = r.long()
	a.Missing = r.long()
	a.State = append([]byte(nil), r.rest...)
	switch {
	case r.err != nil:
		return r.err
	case !bytes.Equal(of, id):
		return fmt.Errorf("it is a snapshot of %.80q", of)
	case a.Version < 1 || a.Offset < 0 || a.Number < 0 || a.Missing < 0:
		return fmt.Errorf("version %d, offset %d, sequence %d and missing %d are not those of a snapshot", a.Version, a.Offset, a.Number, a.Missing)
	}
	return nil
}

// isHash reports whether text can be the hash of a fold.
func isHash(text []byte) bool {
	var sum [16]byte
	n, err := hex.Decode(sum[:], text[:min(len(text), 2*len(sum))])
	return err == nil && n == len(sum) && len(text) == 2*len(sum)
}

// AppendAggregate appends the encoding of an aggregate in a store, which holds the
// id, the fold and the Source elsewhere. All numbers are Avro longs:
//
//	version<<2 | numbered<<1 | deleted; the complement, which is negative, if a tombstone deleted it
//	number, missing (if numbered)
//	offset, time and id of the last applied event
//	state (the rest)
func AppendAggregate(dst []byte, a *Aggregate) []byte {
	head := a.Version << 2
	if a.Deleted {
		head |= 1
	}
	if a.Number > 0 {
		head |= 2
	}
	if a.Tombstone {
		head = ^head
	}
	dst = codec.AppendLong(dst, head)
	if a.Number > 0 {
		dst = codec.AppendLong(dst, a.Number)
		dst = codec.AppendLong(dst, a.Missing)
	}
	dst = codec.AppendLong(dst, a.Offset)
	dst = codec.AppendLong(dst, a.EventTime)
	dst = codec.AppendBytes(dst, a.EventID)
	return append(dst, a.State...)
}

// ReadAggregate reads the encoding of [AppendAggregate] into a. It leaves a.Source
// unchanged and copies the data from enc.
func ReadAggregate(enc []byte, a *Aggregate) error {
	id := a.EventID
	err := ViewAggregate(enc, a)
	a.EventID = append(id[:0], a.EventID...)
	a.State = append([]byte(nil), a.State...)
	return err
}

// ViewAggregate is [ReadAggregate] without copies: EventID and State refer to enc
// and are valid until enc changes.
func ViewAggregate(enc []byte, a *Aggregate) error {
	r := reader{rest: enc}
	head := r.long()
	if a.Tombstone = head < 0; a.Tombstone {
		head = ^head
	}
	a.Version, a.Deleted = head>>2, head&1 != 0
	a.Number, a.Missing = 0, 0
	if head&2 != 0 {
		a.Number, a.Missing = r.long(), r.long()
	}
	a.Offset = r.long()
	a.EventTime = r.long()
	a.EventID, a.State = r.text(), r.rest
	return r.err
}

// A reader reads consecutive values and keeps the first error.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) text() (s []byte) {
	if r.err == nil {
		s, r.rest, r.err = codec.ReadText(r.rest)
	}
	return s
}

func (r *reader) long() (n int64) {
	if r.err == nil {
		n, r.rest, r.err = codec.ReadLong(r.rest)
	}
	return n
}
