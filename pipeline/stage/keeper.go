package stage

import "millrace/pipeline"

// A Keeper is a stage with state about past events, kept per source partition. The
// state changes are written in the same transaction as the outputs and the offsets,
// so the state is exactly-once, too.
//
// The state of a partition is the sum of changes, one or more per batch. The program
// writes them to a state topic and reads them back when the partition is assigned.
// The calls of a clone:
//
//	Assign(p, ...)                        // before the first event of p
//	Process, Undo, ...; Changes; EndBatch // for each batch
//	Revoke(p)                             // another session gets p
//
// Assign and Revoke may be called on another goroutine during a batch; they do not
// overlap each other. The goroutine that processes the events makes all other calls.
// If a partition is revoked during a batch, even if it is assigned again, the batch
// ends with EndBatch(false).
type Keeper interface {
	pipeline.Stage
	Batcher

	// Assign replaces the state of a partition with the sum of the stored changes.
	// load calls add for each change, in the order in which they were written. An error
	// of add means that the record is no change; it has no effect, and load may continue
	// or return it. Changes of events at offset next or later are ignored,
	// because these events will be processed again.
	Assign(partition int32, next int64, load func(add func(change []byte) error) error) error

	// Revoke deletes the state of a partition.
	Revoke(partition int32)

	// Undo removes the effect of the most recent event from the state. It is called
	// when a later stage rejected this event: if the dead letter is replayed, the
	// event must count as new.
	Undo(partition int32, offset int64)

	// Changes calls emit for the state changes of the current batch, if any, by
	// partition and in pieces of at most MaxChange bytes. The bytes stay unchanged
	// until EndBatch.
	Changes(emit func(partition int32, change []byte))

	// Range returns the offsets of the oldest and the newest event in the state of
	// a partition. Changes that only contain older events can be deleted. If the
	// state is empty, oldest is greater than newest.
	//
	// Needs and Size are called by the goroutine that processes events, between
	// batches.
	Range(partition int32) (oldest, newest int64)

	// Size returns the number of entries in the state and their size in bytes.
	Size() (entries, bytes int)
}

// MaxChange is the maximum size in bytes of a change that a [Keeper] emits.
const MaxChange = 256 << 10
