package internalrecord

import (
	"fmt"
	"hash/fnv"
	"iter"
	"maps"
	"slices"
)

// Offsets are the offsets of events that releases skipped. The zero value has none.
type Offsets struct {
	at  map[int64]bool
	sum string // "" if it is out of date
}

// Has reports whether an offset is skipped.
func (o *Offsets) Has(offset int64) bool { return o.at[offset] }

// Len returns the number of offsets.
func (o *Offsets) Len() int { return len(o.at) }

// All returns the offsets, in no order.
func (o *Offsets) All() iter.Seq[int64] { return maps.Keys(o.at) }

// Add adds an offset.
func (o *Offsets) Add(offset int64) {
	if o.at == nil {
		o.at = map[int64]bool{}
	}
	o.at[offset], o.sum = true, ""
}

// Sum identifies the offsets.
func (o *Offsets) Sum() string {
	if o.sum == "" {
		h := fnv.New64a()
		for _, offset := range slices.Sorted(o.All()) {
			fmt.Fprintln(h, offset)
		}
		o.sum = fmt.Sprintf("%d-%016x", len(o.at), h.Sum64())
	}
	return o.sum
}

// Encode returns the value of a record with [SkippedKey].
func (o *Offsets) Encode() ([]byte, error) { return EncodeSkipped(o.at) }

// Decode adds the offsets of a record with [SkippedKey].
func (o *Offsets) Decode(value []byte) error {
	offsets, err := DecodeSkipped(value)
	for _, offset := range offsets {
		o.Add(offset)
	}
	return err
}
