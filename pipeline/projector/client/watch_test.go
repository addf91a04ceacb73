package client

import (
	"bytes"
	"testing"

	"millrace/pipeline/cli"
)

func TestWatchPrintsAStalledPartitionOnce(t *testing.T) {
	var stderr bytes.Buffer
	w := watcher{api: &api{env: &cli.Env{Stderr: &stderr}}}
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
