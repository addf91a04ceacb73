package reader

import (
	"fmt"
	"testing"

	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/projectiontest"
)

// The past of a row that was deleted by a tombstone and created again is as it was: the
// tombstone is a version of its own, and the state after it begins again.
func TestTheHistoryOfARowHasItsTombstones(t *testing.T) {
	w := newCounts(t, func(s *fold.Spec) {
		s.Types, s.Tombstones = projectiontest.Rows(t), fold.DeleteByTombstones
		s.On[0].When = expr.Source{Text: "!data.text.startsWith('x')"}
	})
	w.types = projectiontest.Rows(t)
	for i, text := range []string{"a", "b", "", "", "x", "c", ""} {
		if text == "" {
			w.append("k", nil)
			continue
		}
		w.append("k", projectiontest.Row("k", fmt.Sprint(text, i)))
	}
	w.append("k", projectiontest.Row("k", "d7"))
	fw := w.start()
	fw.run()
	api := fw.api()
	base := "/v1/projections/" + w.fold.Name() + "/k"
	projectiontest.Ask(t, api, base).Is(200, `"version":6`, `"all":["d7"]`)
	for version, want := range map[int][]string{
		2: {`"all":["a0","b1"]`}, 3: {`"all":["a0","b1"]`, `"deleted":true`}, 4: {`"all":["c5"]`}, 5: {`"all":["c5"]`, `"deleted":true`},
	} {
		projectiontest.Ask(t, api, fmt.Sprint(base, "?at_version=", version)).Is(200, want...)
	}
	projectiontest.Ask(t, api, base+"/history").Is(200, `"type":"tombstone"`, `"offset":2`, `"type":"Counted"`)
	projectiontest.Ask(t, api, base+"/why").Is(200, `"event d7"`)
	projectiontest.Ask(t, api, base+"/diff?from=3&to=4").Is(200, `"all"`)
	projectiontest.Ask(t, api, "/v1/events?type=Counted").Is(200, `"offset":5`)
	fw.stop()
}
