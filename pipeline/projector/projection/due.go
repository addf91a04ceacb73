package projection

import (
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/internalrecord"
)

// reasonLate is the reason code of the dead letter of an event that came after the end
// of its window.
const reasonLate pipeline.Reason = "late"

// stageFold names the stage in a dead letter that a projection made.
const stageFold = "fold"

// addLetter notes that an event came too late for some windows.
func (l *lane) addLetter(in *pipeline.Record, key []byte, missed []int64) {
	if l.projection.Spec.Late == "" || in.Offset < l.letters.SentBelow() {
		return
	}
	l.letters.Add(in.Offset, missed)
	l.postLetter(in, key, missed)
}

// postLetter adds a dead letter of the event that was read last to the batch.
func (l *lane) postLetter(in *pipeline.Record, key []byte, missed []int64) {
	var windows []string
	for _, start := range missed {
		windows = append(windows, pipeline.UnixMicro(start).String())
	}
	err := pipeline.Reject(reasonLate, "it came after the end of its window from %s", strings.Join(windows, ", "))
	letter := deadletter.New(in, l.projection.Spec.Late, l.projection.Label(), stageFold, err, l.now())
	if l.fold.Bare() {
		deadletter.AddEnvelope(event.Derived{ID: l.folder.EventID(), Key: key, Time: time.UnixMicro(l.folder.Time())}, &letter)
	}
	l.outbox = append(l.outbox, letter)
}

// emitLetters emits the dead letters of the batch, with a size and a time that their topic
// accepts.
func (l *lane) emitLetters(out pipeline.Emitter, read int64, limits kafka.Limits) {
	box := l.outbox
	if len(box) == 0 {
		return
	}
	gate := limits.Gate(l.projection.Spec.Late, l.now)
	for i := range box {
		deadletter.SetTime(&box[i], gate.Time(box[i].Time))
		deadletter.Truncate(&box[i], gate.MaxRecord())
		out.Emit(&box[i])
	}
	out.Emit(l.reserved(internalrecord.SentKey, internalrecord.EncodeSent(max(read, l.letters.SentBelow()))))
}
