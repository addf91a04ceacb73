// Package internalrecord encodes the records of a projection that are not snapshots: how
// far the snapshots of a partition reach, which aggregates are blocked, which events a
// release skipped, and which dead letters are sent. An owner writes them, and restores and
// followers read them.
//
// Start at [KindOf], which tells the records apart by their keys. Each record is in the
// partition that it describes. The package has no state; a value of its types belongs to
// the caller.
package internalrecord

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"millrace/pipeline/fold"
	"millrace/pipeline/projector/query"
)

// Keys of records. They begin with a zero byte ([fold.ReservedKeys]), which ids of
// aggregates do not.
const (
	// CheckpointKey is the key of a [Checkpoint].
	CheckpointKey = fold.ReservedKeys + "checkpoint"
	// SkippedKey is the key of the offsets that a release skipped: see [EncodeSkipped].
	SkippedKey = fold.ReservedKeys + "skipped"
	// SentKey is the key of the offset below which all late events are dead letters: see
	// [EncodeSent]. The group's offset is the same, but the brokers forget it when the group
	// is away for long.
	SentKey = fold.ReservedKeys + "sent"

	blockedPrefix = fold.ReservedKeys + "blocked\x00"
)

// BlockedKey returns the key of the [Blocked] record of an aggregate.
func BlockedKey(id string) string { return blockedPrefix + id }

// Kind is the kind of a record.
type Kind int

// The kinds of records.
const (
	Other        Kind = iota // a key that is not reserved: a snapshot
	OfCheckpoint             // a [Checkpoint]
	OfSkipped                // skipped offsets
	OfSent                   // the offset below which dead letters are sent
	OfBlocked                // a [Blocked] aggregate
	OfLater                  // a reserved key of a later version of the program
)

// KindOf returns the kind of the record with a key, and the aggregate's id if it is a
// [Blocked] record.
func KindOf(key []byte) (kind Kind, id string) {
	if len(key) == 0 || key[0] != fold.ReservedKeys[0] {
		return Other, ""
	}
	switch string(key) {
	case CheckpointKey:
		return OfCheckpoint, ""
	case SkippedKey:
		return OfSkipped, ""
	case SentKey:
		return OfSent, ""
	}
	if id, ok := strings.CutPrefix(string(key), blockedPrefix); ok {
		return OfBlocked, id
	}
	return OfLater, ""
}

// Checkpoint states how far the snapshots of a partition reach. Its record is JSON.
type Checkpoint struct {
	Fold    string `json:"fold"`            // hash
	TopicID string `json:"topic_id"`        // of the events
	Dedupe  string `json:"dedupe"`          // how duplicates were found
	Next    int64  `json:"next"`            // every event below is in the snapshots, or waits for another event
	Redo    int64  `json:"redo"`            // the first event that waits, else Next; folding continues from here
	Clock   *int64 `json:"clock,omitempty"` // latest event time, if the projection has windows and read an event

	// What its owner had decided: [Offsets.Sum] of the skipped events, and [SumBlocked].
	// Older releases write none.
	Skipped string `json:"skipped,omitempty"`
	Blocked string `json:"blocked,omitempty"`

	Unread []query.Unread `json:"unread,omitempty"` // deleted before they were read

	// For snapshots on another topic than the checkpoint, Kafka's id of that topic, and the
	// name that snapshots of the same transaction have in a header.
	SnapshotsID string `json:"snapshots_id,omitempty"`
	Transaction string `json:"transaction,omitempty"`
}

// Encode returns the value of the checkpoint's record.
func (c *Checkpoint) Encode() ([]byte, error) { return json.Marshal(c) }

// DecodeCheckpoint reads the value of a record with [CheckpointKey].
func DecodeCheckpoint(value []byte) (c Checkpoint, err error) {
	if err = json.Unmarshal(value, &c); err == nil && (c.Fold == "" || c.Redo < 0 || c.Next < c.Redo) {
		err = errors.New("it is not a checkpoint")
	}
	return c, err
}

// EncodeSkipped returns the value of a record with [SkippedKey]: the keys of the map in order, in
// JSON.
func EncodeSkipped(offsets map[int64]bool) ([]byte, error) {
	return json.Marshal(slices.Sorted(maps.Keys(offsets)))
}

// DecodeSkipped reads the value of a record with [SkippedKey]. A record without a value has
// no offsets.
func DecodeSkipped(value []byte) (offsets []int64, err error) {
	if value == nil {
		return nil, nil
	}
	if err := json.Unmarshal(value, &offsets); err != nil {
		return nil, fmt.Errorf("the list of skipped offsets: %w", err)
	}
	return offsets, nil
}

// EncodeSent returns the value of a record with [SentKey]: decimal digits.
func EncodeSent(below int64) []byte { return strconv.AppendInt(nil, below, 10) }

// DecodeSent reads the value of a record with [SentKey].
func DecodeSent(value []byte) (below int64, err error) {
	below, err = strconv.ParseInt(string(value), 10, 64)
	if err == nil && below < 0 {
		err = fmt.Errorf("the offset %d is negative", below)
	}
	if err != nil {
		return 0, err
	}
	return below, nil
}
