package projection

import (
	"fmt"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
)

// sendBack adds event n as a dead letter of a pipeline that was sent back.
func (w *world) sendBack(n int) {
	letter := deadletter.New(&w.log[n], "dead", "p", "s", pipeline.Reject("assert", "bad"), time.UnixMilli(1))
	back := deadletter.Original(&letter)
	back.Partition, back.Offset = w.log[n].Partition, int64(len(w.log))
	w.log = append(w.log, back)
}

// A letter of an earlier topic of the same name is an event of this one: the states of the
// earlier topic were discarded. It is so after a release, a restart and a restore, too.
func TestALetterOfAnEarlierTopicIsFolded(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	for i, id := range []string{"t-0", "t-1", "", "t-0"} {
		w.counted("j", 0, 0, fmt.Sprint("lost", i))
		lost := &w.log[i+1] // the log of this topic has only the letter
		letter := deadletter.New(lost, "dead", "p", "s", pipeline.Reject("assert", "bad"), time.UnixMilli(1))
		deadletter.SetSourceID(&letter, id)
		back := deadletter.Original(&letter)
		back.Partition, back.Offset = lost.Partition, lost.Offset
		*lost = back
	}
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k": "a", "j": "lost0 lost3"})
	fw.stop()
	fw = w.restored()
	wants(t, fw, map[string]string{"k": "a", "j": "lost0 lost3"})
	fw.stop()
}

// The projection has folded, or queued, the event before.
func TestARecordThatWasSentBackToAPipelineIsNotFoldedAgain(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.sendBack(0)
	w.counted("k", 0, 0, "b")
	w.poison("k")
	w.counted("k", 0, 0, "c")
	w.sendBack(3)
	w.sendBack(4)
	w.counted("k", 0, 0, "d")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k": "blocked a b"})
	if out := fw.release("k", true); out.Events != 3 {
		t.Errorf("the release folded %d events, want the blocking one and two others", out.Events)
	}
	wants(t, fw, map[string]string{"k": "a b c d"})
	fw.stop()
}
