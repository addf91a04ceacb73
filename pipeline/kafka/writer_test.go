package kafka

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
)

// However early the context ends, WriteOnce reports the result of each record: a record
// that its error does not name has been written.
func TestWriteOnceReportsEachRecordThatMayBeMissing(t *testing.T) {
	c := newCluster(t, 1)
	cfg := c.config()
	written := map[string]bool{} // according to WriteOnce
	for i := range 40 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*300*time.Microsecond)
		if i == 39 {
			cancel()
			ctx, cancel = context.WithCancel(t.Context())
		}
		records := make([]*pipeline.Record, 3)
		for n := range records {
			records[n] = &pipeline.Record{Topic: "in", Key: fmt.Append(nil, i, "-", n), Value: []byte("v")}
		}
		err := WriteOnce(ctx, cfg, records...)
		cancel()
		for _, r := range records {
			written[string(r.Key)] = err == nil || !strings.Contains(err.Error(), fmt.Sprintf("writing %q to in: ", r.Key))
		}
		if i == 39 && err != nil {
			t.Error(err)
		}
	}
	there := map[string]bool{}
	if _, err := ReadSettled(t.Context(), cfg, "in", 0, func(r *pipeline.Record) error {
		there[string(r.Key)] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for key, ok := range written {
		if ok && !there[key] {
			t.Errorf("WriteOnce reported %s as written, but it is missing", key)
		}
	}
	if !written["39-2"] {
		t.Error("the last call wrote nothing")
	}
}
