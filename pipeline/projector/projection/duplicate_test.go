package projection

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline/fold"
)

// With any ids, restarts and restores, the state of an aggregate is the fold of the first
// events with their ids: in the aggregate, or in the partition if the fold says so.
func TestADuplicateIsAnEventWithAnIDOfItsAggregate(t *testing.T) {
	ids := []string{"k", "j", "an-aggregate-with-a-long-id", "0a0a0a0a-0b0b-4c0c-8d0d-0e0e0e0e0e0e"}
	rapid.Check(t, func(rt *rapid.T) {
		partition := rapid.Bool().Draw(rt, "partition")
		w := newCounts(t, func(s *fold.Spec) { s.PartitionIDs = partition })
		w.history, w.seldom = true, rapid.Bool().Draw(rt, "seldom")
		seen, want := map[string]bool{}, map[string][]string{}
		add := func(n int) {
			for range n {
				id, text := rapid.SampledFrom(ids).Draw(rt, "aggregate"), fmt.Sprint("t", rapid.IntRange(0, 9).Draw(rt, "id"))
				w.counted(id, 0, 0, text)
				event := id + " " + text
				if partition {
					event = text
				}
				if !seen[event] {
					seen[event] = true
					want[id] = append(want[id], text)
				}
			}
		}
		add(rapid.IntRange(1, 40).Draw(rt, "events"))
		fw := w.shake(rt, add)
		fw.run()
		texts := map[string]string{}
		for id, all := range want {
			texts[id] = strings.Join(all, " ")
		}
		wants(t, fw, texts)
		compare(rt, w, fw, 0)
	})
}
