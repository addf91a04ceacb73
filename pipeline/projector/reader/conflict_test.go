package reader

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline/projector/projectiontest"
)

// askConflicts asks the questions of writers that gave their events the same numbers.
func askConflicts(t *testing.T, fw *foldWorker, when string) {
	t.Helper()
	t.Log(when)
	api := fw.api()
	projectiontest.Ask(t, api, "/v1/projections/texts/k?after_event=event%20first").Is(200, `"after_event":"applied"`, `"sequence":3`)
	projectiontest.Ask(t, api, "/v1/projections/texts/k?after_event=event%20second").Is(409,
		`"outcome":"conflict"`, `"sequence":2`, `"winner":"event first"`, `"current":{`, `"state":{"all":["zero","first","last"]}`)
	// It came when the aggregate had a later number already, from the same history.
	projectiontest.Ask(t, api, "/v1/projections/texts/k?after_event=event%20late").Is(409, `"outcome":"conflict"`, `"winner":"event zero"`, `"sequence":1`)
	// The same id of another aggregate is another event.
	projectiontest.Ask(t, api, "/v1/projections/texts/j?after_event=event%20second").Is(200, `"after_event":"applied"`, `"sequence":1`)
	projectiontest.Ask(t, api, "/v1/projections/texts/j?after_event=event%20first").Is(504, `"outcome":"pending"`)
	projectiontest.Ask(t, api, "/v1/events/event%20second?aggregate=j").Is(200, `"aggregate":"j"`, `"sequence":1`)
	projectiontest.Ask(t, api, "/v1/events/event%20second?aggregate=k").Is(404)
}

func TestALosingWriterGetsTheWinnerAfterRestartsAndRestores(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 1, 0, "zero")
	w.counted("k", 2, 0, "first")
	w.counted("k", 2, 0, "second")
	w.counted("j", 1, 0, "second")
	w.counted("k", 3, 0, "last")
	w.counted("k", 1, 0, "late")
	fw := w.start()
	fw.run()
	askConflicts(t, fw, "at first")
	projectiontest.Ask(t, fw.api(), "/v1/projections/texts/k/history").Is(200, `"sequence":3`, `"sequence":2`, `"sequence":1`)
	projectiontest.Ask(t, fw.api(), "/v1/projections/texts").Is(200, `"sequence":3`)
	projectiontest.Ask(t, fw.api(), "/v1/projections/texts/k?at_version=2").Is(200, `"sequence":2`)
	fw.stop()
	fw = w.start()
	fw.run()
	askConflicts(t, fw, "after a restart")
	fw.stop()
	w.disk = vfs.NewCrashableMem()
	fw = w.start()
	fw.run()
	askConflicts(t, fw, "without the store")
	fw.stop()
}

func TestWithoutHistoryAConflictIsKnownUntilTheRestart(t *testing.T) {
	w := newCounts(t, nil)
	w.history = false
	w.counted("k", 1, 0, "first")
	w.counted("k", 1, 0, "second")
	fw := w.start()
	fw.run()
	projectiontest.Ask(t, fw.api(), "/v1/projections/texts/k?after_event=event%20second").Is(409, `"outcome":"conflict"`, `"winner":"event first"`)
	fw.stop()
	fw = w.start()
	fw.run()
	projectiontest.Ask(t, fw.api(), "/v1/projections/texts/k?after_event=event%20second").Is(404)
	fw.stop()
}
