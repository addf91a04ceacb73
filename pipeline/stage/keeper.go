package stage

import "millrace/pipeline"

// A Keeper is a stage that remembers something of past events, by the partition
// of the source that they stand in. What it remembers moves in the transaction of
// the outputs and the offsets: it is as exact as they are.
//
// What it knows of a partition is the sum of changes, one or more for each batch,
// which the program writes to a state topic and reads back when the partition is
// assigned. The calls, for a clone:
//
//	Assign(p, ...)                        // before the first event of p
//	Process, Undo, ...; Changes; EndBatch // for each batch
//	Revoke(p)                             // p is somebody else's now
//
// Assign and Revoke may come while a batch is at work; they do not overlap each
// other. The others are the calls of one goroutine. If a partition was revoked in
// the middle of a batch, or revoked and assigned again, the batch ends with
// EndBatch(false).
type Keeper interface {
	pipeline.Stage
	Batcher

	// Assign forgets what is remembered of a partition, and remembers what the
	// changes say: load calls add with each, in the order they were made, and
	// returns its errors. What came of events at next or behind is left out: they
	// are still to come.
	Assign(partition int32, next int64, load func(add func(change []byte) error) error) error

	// Revoke forgets a partition.
	Revoke(partition int32)

	// Undo makes it as if the stage had not seen the event that it saw last, which
	// a later stage has rejected: sent back one day, it is to be a new one.
	Undo(partition int32, offset int64)

	// Changes calls emit with what the batch at hand has changed, if it has
	// changed anything: by partition, in pieces of at most MaxChange bytes. They
	// stay as they are until EndBatch.
	Changes(emit func(partition int32, change []byte))

	// Needs returns the offsets of the oldest and the newest event of a partition
	// that something is remembered of: changes that came only of older ones have
	// served. If nothing is remembered, the oldest is behind the newest.
	Needs(partition int32) (oldest, newest int64)

	// Size returns how many things are remembered, and in how many bytes.
	// It and Needs are for the goroutine that processes events, between batches.
	Size() (entries, bytes int)
}

// MaxChange is the size of the largest change that a [Keeper] emits.
const MaxChange = 256 << 10
