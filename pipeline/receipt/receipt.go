// Package receipt writes and reads receipts: short records about the events that a
// pipeline did not write to its output.
//
// Start at [Receipt] for the format, [Writer] for the processor and [Reader] for the
// projector. One session of a processor owns a [Writer]. All goroutines of a projector
// share a [Reader], whose Run method is called by one of them; its only lock guards
// the receipts in memory. [Upstream] is immutable.
package receipt

import (
	"fmt"

	"millrace/pipeline"
)

// Receipt is the outcome of an event that a pipeline did not write to its output. It
// is the value of a record, in JSON; the key is the event's id. An event that passed
// has no receipt: it is on the topic that the pipeline writes.
//
// Receipts are JSON like all messages between the programs: they need no schema in the
// registry, and any tool can show them.
type Receipt struct {
	Outcome  Outcome         `json:"outcome"`
	Pipeline string          `json:"pipeline"`
	Stage    string          `json:"stage"`
	Reason   pipeline.Reason `json:"reason,omitempty"` // of a dead letter
	// Duplicate means that the stage drops events that it has seen before. The first
	// event passed the stage; it may be a copy of this one.
	Duplicate bool `json:"duplicate,omitempty"`

	// The event's record in the input of the pipeline.
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// Outcome is a word of the format.
type Outcome string

// The outcomes.
const (
	OutcomeFiltered   Outcome = "filtered"
	OutcomeDeadLetter Outcome = "dead_letter"
)

// text returns the receipt as a sentence for answers.
func (r *Receipt) text() string {
	switch {
	case r.Outcome == OutcomeDeadLetter:
		return fmt.Sprintf("pipeline %s made it a dead letter: stage %s, %s", r.Pipeline, r.Stage, r.Reason)
	case r.Duplicate:
		return fmt.Sprintf("pipeline %s dropped it as a duplicate: stage %s", r.Pipeline, r.Stage)
	}
	return fmt.Sprintf("pipeline %s filtered it: stage %s", r.Pipeline, r.Stage)
}
