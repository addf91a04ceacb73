package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
)

// TestGarbageOnTheTopicsOfAProjectorStopsNothing writes records of another program to the
// control topic and to the topic of snapshots, while a projector runs. It starts again
// without its data, answers, names what it skips, and repairs the aggregate whose
// snapshot was replaced.
func TestGarbageOnTheTopicsOfAProjectorStopsNothing(t *testing.T) {
	b := newRebuildBox(t, 2)
	b.send(created(1) + created(2))
	w := b.start("one")
	state := func(i int) func() error {
		return func() error {
			body, _, err := fetch(w.url + "/v1/projections/user/" + rebuildUser(i))
			if err == nil && !strings.Contains(string(body), fmt.Sprint("user ", i)) {
				err = fmt.Errorf("%s", body)
			}
			return err
		}
	}
	b.await("the first user", state(1))
	b.await("the second user", state(2))
	write := func(topic, key, value string, partition int32) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := kafka.WriteOnce(ctx, kafka.Config{Brokers: b.brokers}, &pipeline.Record{Topic: topic, Partition: partition, Key: []byte(key), Value: []byte(value), Time: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"worker/x", "projection/user/version/abc", "projection/user/diff", "\xff"} {
		write("rebuilt-control", key, "{", 0)
	}
	for partition := range int32(2) {
		write("rebuilt.user.snapshots", "\xff\xfe\x00", "{", partition)
		write("rebuilt.user.snapshots", "\x00sent", "{", partition)
	}
	write("rebuilt.user.snapshots", rebuildUser(1), "{", kafka.PartitionOf([]byte(rebuildUser(1)), 2))
	b.await("the metric", func() error {
		body, _, err := fetch(w.url + "/metrics")
		if err == nil && !strings.Contains(string(body), "millrace_control_unreadable_records 3") {
			err = errors.New("no such metric")
		}
		return err
	})
	w.stop()
	if err := os.RemoveAll(filepath.Join(b.dir, "one")); err != nil {
		t.Fatal(err)
	}
	w = b.start("one")
	b.await("the second user again", state(2))
	b.await("the blocked user", func() error {
		body, _, err := fetch(w.url + "/v1/blocked/user")
		if err == nil && !strings.Contains(string(body), `"id":"`+rebuildUser(1)+`"`) {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
	if out := b.must("projector", "status"); !strings.Contains(string(out), "BLOCKED") {
		t.Errorf("status prints %s", out)
	}
	b.await("the histories", filled(w.url))
	resp, err := http.Post(w.url+"/v1/blocked/user/"+rebuildUser(1)+"/release", "", nil) //nolint:noctx // bounded by the test's own timeout
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"events":1}`) {
		t.Errorf("release: %s %s, %v", resp.Status, body, err)
	}
	b.await("the released user", state(1))
	w.stop()
}
