package rebuild

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"millrace/pipeline/projector"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/server/dial"
	"millrace/pipeline/worker"
)

// workerWith returns the state of the control topic with one worker, which answers with
// the versions.
func workerWith(t *testing.T, versions ...projector.RunningVersion) *control.State {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(versions); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return &control.State{Workers: map[string]control.WorkerRecord{"w": {Address: strings.TrimPrefix(server.URL, "http://")}}}
}

// A version is not promoted if more than one in a hundred of its aggregates are blocked.
func TestPromoteRefusesAVersionWithManyBlockedAggregates(t *testing.T) {
	call, err := dial.Open(slog.New(slog.DiscardHandler), dial.Files{})
	if err != nil {
		t.Fatal(err)
	}
	w := &worker.Worker{Dial: call}
	for _, test := range []struct {
		blocked map[int32]int64
		total   int
		refused string
	}{
		{map[int32]int64{0: 0, 1: 0}, 200, ""},
		{map[int32]int64{0: 1, 1: 1}, 200, ""},
		{map[int32]int64{0: 1, 1: 2}, 200, "3 of 200 aggregates in version 2 of user are blocked"},
		{map[int32]int64{0: 7, 1: 5}, 0, "12 of 12 aggregates"}, // none of them has a state
		{map[int32]int64{}, 0, ""},
	} {
		state := workerWith(t, projector.RunningVersion{Projection: "user", Version: 1, Blocked: map[int32]int64{0: 100}},
			projector.RunningVersion{Projection: "user", Version: 2, Blocked: test.blocked})
		err := checkBlocked(t.Context(), w, state, "user", 2, test.total)
		if (err == nil) != (test.refused == "") || err != nil && !strings.Contains(err.Error(), test.refused) {
			t.Errorf("%v of %d: %v, want %q", test.blocked, test.total, err, test.refused)
		}
	}
	if err := checkBlocked(t.Context(), w, &control.State{}, "user", 2, 10); err == nil || !strings.Contains(err.Error(), "--allow-blocked") {
		t.Errorf("without a worker: %v", err)
	}
}
