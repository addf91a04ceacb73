package states

import (
	"encoding/binary"

	"millrace/pipeline/codec"
	"millrace/pipeline/store"
)

// ReadLongs reads the numbers under a key. It returns false if the store does not have the
// key.
func ReadLongs(part *store.Part, family store.Family, key []byte, into ...*int64) (bool, error) {
	value, ok, err := part.Get(nil, family, key)
	if !ok || err != nil {
		return false, err
	}
	r := Fields{Rest: value}
	for _, n := range into {
		*n = r.Long()
	}
	if r.Err != nil {
		return false, Damaged(key, r.Err)
	}
	return true, nil
}

// PutLongs adds numbers to a batch, under a key.
func PutLongs(b *store.Batch, part *store.Part, family store.Family, key []byte, numbers ...int64) {
	var value []byte
	for _, n := range numbers {
		value = codec.AppendLong(value, n)
	}
	b.Put(part, family, key, value)
}

// OffsetKey orders entries by their offset.
func OffsetKey(offset int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(offset)) }

// WindowKey orders windows by their start.
func WindowKey(start int64, id string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(start)^1<<63), id...)
}
