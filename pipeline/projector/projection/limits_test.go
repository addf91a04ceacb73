package projection

import (
	"strings"
	"testing"
	"time"

	"millrace/pipeline/deadletter"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/projectiontest"
)

func TestALateEventThatIsTooLargeForTheDeadLetterTopicIsTruncated(t *testing.T) {
	w := newCounts(t, hours(0, 0))
	w.counted("k", 0, 0, "a")
	w.counted("k", 0, 2*time.Hour, "b")
	w.counted("k", 0, 0, strings.Repeat("late", 1000))
	fw := w.start()
	fw.handler.SetLimits(kafka.Limits{projectiontest.LateTopic: {Bytes: 2512}})
	fw.run()
	if len(w.letters) != 1 {
		t.Fatalf("%d dead letters", len(w.letters))
	}
	if n := deadletter.Parse(&w.letters[0]).Truncated; n != len(w.log[2].Value) || w.letters[0].Size() > 2000 {
		t.Errorf("the dead letter has %d bytes; its header has %d", w.letters[0].Size(), n)
	}
	fw.stop()
}
