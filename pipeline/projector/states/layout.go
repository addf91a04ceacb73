package states

import (
	"encoding/binary"
	"io"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/store"
)

// The families of entries in a partition's part of the store. Package projection has
// families of its own, with other numbers.
const (
	FamilyState    store.Family = 2 // aggregate's id -> fold.AppendAggregate
	familyHistory  store.Family = 3
	familyEvent    store.Family = 4
	familyType     store.Family = 5
	familyKeyframe store.Family = 6
	FamilyShadow   store.Family = 7 // like FamilyState, for the past that is being indexed
	familyFilter   store.Family = 8 // see filter
	familyConflict store.Family = 17

	familyFilterHead store.Family = 18 // nothing -> filterHead
)

// Damaged is the error of an entry whose checksum is right but which cannot be read.
func Damaged(id []byte, err error) error {
	return pipeline.Fatal("the store's entry of %q is damaged: %w. Stop, delete the data directory and start again", id, err)
}

// MaxKey bounds the length of a record's key that is taken as an aggregate's id.
const MaxKey = 1024

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

// Fields reads values one after the other and keeps the first error.
type Fields struct {
	Rest []byte
	Err  error
}

// Long reads a number.
func (r *Fields) Long() (n int64) {
	if r.Err == nil {
		n, r.Rest, r.Err = codec.ReadLong(r.Rest)
	}
	return n
}

// bytes reads bytes without their length. They are a part of Rest, and never nil.
func (r *Fields) bytes(n int64) (s []byte) {
	if r.Err == nil && n > int64(len(r.Rest)) {
		r.Err = io.ErrUnexpectedEOF
	}
	if r.Err == nil {
		s, r.Rest = r.Rest[:n:n], r.Rest[n:]
	}
	return s
}

// Text reads bytes with their length. They are a part of Rest.
func (r *Fields) Text() (s []byte) {
	if r.Err == nil {
		s, r.Rest, r.Err = codec.ReadText(r.Rest)
	}
	return s
}
