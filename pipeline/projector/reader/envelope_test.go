package reader

import (
	"net/http"
	"testing"
	"time"

	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/projectiontest"
)

// The expressions of a topic determine the id, the time and the aggregate of an event
// in the history, too.
func TestExpressionsReplaceTheEnvelopeInTheHistory(t *testing.T) {
	text := func(s string) expr.Source { return expr.Source{Text: s} }
	w := newCounts(t, func(s *fold.Spec) {
		s.Bare, s.Key = &expr.Bare{ID: text("'e/' + data.text"), Time: text("timestamp + duration('24h')"), Key: text("'k/' + data.id")}, expr.Source{}
	})
	w.counted("k", 0, 0, "a")
	w.counted("k", 7, time.Minute, "b")
	w.counted("k", 0, 2*time.Minute, "a")
	w.counted("j", 0, 3*time.Minute, "c")
	fw := w.start()
	fw.run()
	h := fw.api()
	projectiontest.Ask(t, h, "/v1/events/e%2Fb").Is(http.StatusOK, `"k/k"`, `2026-01-02T10:01:00Z`)
	projectiontest.Ask(t, h, "/v1/projections/texts/k%2Fk?at_time=2026-01-02T10:00:30Z").Is(http.StatusOK, `"all":["a"]`)
	projectiontest.Ask(t, h, "/v1/projections/texts/k%2Fk/history").Is(http.StatusOK, `"e/a"`, `"e/b"`)
	fw.stop()
}
