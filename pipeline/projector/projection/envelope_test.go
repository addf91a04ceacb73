package projection

import (
	"testing"
	"time"

	"millrace/pipeline/deadletter"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/projectiontest"
)

// bareCounts returns a change of the fold of counted events: the events have no envelope,
// and bare replaces it.
func bareCounts(bare expr.Bare, change func(*fold.Spec)) func(*fold.Spec) {
	return func(s *fold.Spec) {
		s.Bare, s.Key = &bare, expr.Source{}
		if change != nil {
			change(s)
		}
	}
}

func text(s string) expr.Source { return expr.Source{Text: s} }

// The expressions of a topic determine the id, the time and the aggregate of an event.
func TestExpressionsReplaceTheEnvelopeInFolds(t *testing.T) {
	w := newCounts(t, bareCounts(expr.Bare{ID: text("'e/' + data.text"), Time: text("timestamp + duration('24h')"), Key: text("'k/' + data.id")}, nil))
	w.counted("k", 0, 0, "a")
	w.counted("k", 7, time.Minute, "b") // numbers belong to envelopes
	w.counted("k", 0, 2*time.Minute, "a")
	w.counted("j", 0, 3*time.Minute, "c")
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"k/k": "a b", "k/j": "c"})
	fw.stop()
}

// Without an expression, the record's key and timestamp are used. Such events have no id,
// so none of them is a duplicate.
func TestRecordsReplaceTheEnvelopeInFolds(t *testing.T) {
	w := newCounts(t, bareCounts(expr.Bare{}, hours(0, 0)))
	for i, at := range []time.Duration{0, 30 * time.Minute, 61 * time.Minute, time.Minute} {
		w.counted("x", 0, 0, "a")
		w.log[i].Key, w.log[i].Time = []byte("r"), projectiontest.Epoch.Add(at)
	}
	fw := w.start()
	fw.run()
	wants(t, fw, map[string]string{"r@2026-01-01T10:00:00Z": "a a", "r@2026-01-01T11:00:00Z": "a"})
	if len(w.letters) != 1 {
		t.Fatalf("%d dead letters of one late event", len(w.letters))
	}
	if l := deadletter.Parse(&w.letters[0]); l.EventKey != "r" || l.EventTime.Format(time.RFC3339Nano) != "2026-01-01T10:01:00Z" {
		t.Errorf("its event is %+v", l)
	}
	fw.stop()
}

// An event that cannot be read blocks the aggregate of its record's key, unless the key
// is not the aggregate's id.
func TestAKeyThatIsNotTheAggregatesIDBlocksNothing(t *testing.T) {
	for bare, want := range map[expr.Bare]string{
		{}:                     "blocked",
		{Key: text("data.id")}: "rejected",
	} {
		w := newCounts(t, bareCounts(bare, nil))
		w.counted("k", 0, 0, "a")
		w.log[0].Key, w.log[0].Value = []byte("k"), w.log[0].Value[:8]
		fw := w.start()
		fw.run()
		got := "rejected"
		for _, u := range fw.ps.units {
			if u.lanes[0].own.blocked["k"] != nil {
				got = "blocked"
			}
		}
		if got != want {
			t.Errorf("with %v the event is %s, want %s", bare, got, want)
		}
		fw.stop()
	}
}
