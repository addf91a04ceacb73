package projection

import (
	"encoding/binary"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/store"
)

// The families of entries that the store keeps of a lane. history.go describes the
// families of the history.
const (
	familyMark          store.Family = 1 // facts about the lane itself
	familyState         store.Family = 2 // aggregate's id -> fold.AppendAggregate
	familyHistory       store.Family = 3
	familyEvent         store.Family = 4
	familyType          store.Family = 5
	familyKeyframe      store.Family = 6
	familyShadow        store.Family = 7  // like familyState, for the past that is being indexed
	familyFilter        store.Family = 8  // see filter
	familyHeld          store.Family = 9  // offset -> event that waits for an earlier one
	familyBlocked       store.Family = 10 // aggregate's id -> blocked
	familyShadowHeld    store.Family = 11
	familyShadowBlocked store.Family = 12
	familyDue           store.Family = 13 // ids of dueMarks
	familyLetter        store.Family = 14 // offset of a late event whose dead letter is due -> starts of the windows it missed
	familyWindow        store.Family = 15 // start, aggregate's id
	familyOutOfOrder    store.Family = 16 // aggregate's id -> next offset when it changed: see outOfOrder
)

// Keys of familyMark.
var (
	// markPublished is the offset below which everything is in snapshots of committed
	// transactions, as far as this store knows.
	markPublished = []byte("published")
	markSkipped   = []byte("skipped")  // skipped offsets, in JSON
	markLoaded    = []byte("loaded")   // lane.loaded
	markSent      = []byte("sent")     // deadLetters.sentBelow
	markHeard     = []byte("heard")    // followed.heard, followed.published
	markBackfill  = []byte("backfill") // index.next, index.until; only while the index is behind the states
)

// readMark reads the numbers of a key of familyMark. It returns false if the store does
// not have the key.
func readMark(part *store.Part, key []byte, into ...*int64) (bool, error) {
	value, ok, err := part.Get(nil, familyMark, key)
	if !ok || err != nil {
		return false, err
	}
	r := fields{rest: value}
	for _, n := range into {
		*n = r.long()
	}
	if r.err != nil {
		return false, damaged(key, r.err)
	}
	return true, nil
}

// putMark adds numbers to a batch, under a key of familyMark.
func putMark(b *store.Batch, part *store.Part, key []byte, numbers ...int64) {
	var value []byte
	for _, n := range numbers {
		value = codec.AppendLong(value, n)
	}
	b.Put(part, familyMark, key, value)
}

// damaged is the error of an entry whose checksum is right but which cannot be read.
func damaged(id []byte, err error) error {
	return pipeline.Fatal("the store's entry of %q is damaged: %w. Stop, delete the data directory and start again", id, err)
}

func appendAggregateKey(dst, id []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(id))), id...)
}

func versionKey(dst, id []byte, version int64) []byte {
	return binary.BigEndian.AppendUint64(appendAggregateKey(dst, id), uint64(version))
}

func offsetKey(dst []byte, offset int64) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(offset))
}

func offsetOf(key []byte) int64 { return int64(binary.BigEndian.Uint64(key)) }

func typeKey(dst []byte, typ string, micros, offset int64) []byte {
	dst = append(append(dst, typ...), 0)
	dst = binary.BigEndian.AppendUint64(dst, uint64(micros)^1<<63)
	return binary.BigEndian.AppendUint64(dst, uint64(offset))
}

// windowKey orders windows by their start.
func windowKey(start int64, id string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(start)^1<<63), id...)
}

// fields reads values one after the other and keeps the first error.
type fields struct {
	rest []byte
	err  error
}

func (r *fields) long() (n int64) {
	if r.err == nil {
		n, r.rest, r.err = codec.ReadLong(r.rest)
	}
	return n
}

func (r *fields) text() (s []byte) {
	if r.err == nil {
		s, r.rest, r.err = codec.ReadText(r.rest)
	}
	return s
}
