package client

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"millrace/pipeline/cli"
	"millrace/pipeline/worker"
)

func TestWatchPrintsAStalledPartitionOnce(t *testing.T) {
	var stderr bytes.Buffer
	w := watcher{api: &api{dial: &worker.DialFlags{}, env: &cli.Env{Stderr: &stderr}}}
	const stalled = `{"partitions":[{"partition":3,"offset":7,"detail":"worker b is gone"}]}`
	for _, m := range []struct{ event, data, want string }{
		{"frontier", `{"partitions":[{"partition":0,"offset":1},{"partition":3,"offset":7}]}`, ""},
		{"stalled", stalled, "nothing comes from partition 3: worker b is gone\n"},
		{"stalled", stalled, ""}, // a repetition
		{"frontier", `{"partitions":[{"partition":0,"offset":1}]}`, ""},
		{"stalled", stalled, ""},
		{"frontier", `{"partitions":[{"partition":0,"offset":1},{"partition":3,"offset":8}]}`, ""},
		{"stalled", stalled, "nothing comes from partition 3: worker b is gone\n"}, // again
	} {
		stderr.Reset()
		if err := w.show(m.event, []byte(m.data)); err != nil || stderr.String() != m.want {
			t.Errorf("%s %s: %v, %q, want %q", m.event, m.data, err, stderr.String(), m.want)
		}
	}
}

// A feed that ends is followed again, but not if the projector refuses the request, as
// after a new version of the projection without a field of the filter.
func TestWatchEndsWhenTheFilterIsRefused(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 1 {
			fmt.Fprint(w, "event: frontier\nid: 0-1\ndata: {\"partitions\":[]}\n\n")
			return
		}
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"detail":"filter: no field gone"}`)
	}))
	defer srv.Close()
	var stderr bytes.Buffer
	w := watcher{api: &api{dial: &worker.DialFlags{}, env: &cli.Env{Stderr: &stderr}, address: srv.URL}}
	err := w.run(t.Context(), "user")
	var exit *cli.ExitError
	if !errors.As(err, &exit) || exit.Code != cli.ExitUsage || asked != 2 {
		t.Errorf("%v after %d requests", err, asked)
	}
}
