package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// recordsOf returns the keys of all committed records of a topic, and the values of those
// that have one.
func (b *rebuildBox) recordsOf(topic string, partitions int) (keys, values []string) {
	b.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	ends := map[int32]bool{}
	for len(ends) < partitions {
		fetches := cl.PollFetches(b.t.Context())
		if err := fetches.Err(); err != nil {
			b.t.Fatal(err)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			for _, r := range p.Records {
				if r.Attrs.IsControl() {
					continue
				}
				if keys = append(keys, string(r.Key)); r.Value != nil {
					values = append(values, string(r.Value))
				}
			}
			if n := len(p.Records); n > 0 && p.Records[n-1].Offset+1 >= p.HighWatermark {
				ends[p.Partition] = true
			}
		})
	}
	return keys, values
}

// snapshotsOnly checks that a topic has snapshots of users, and beside it, another has the
// checkpoints.
func (b *rebuildBox) snapshotsOnly(snapshots string, keys, values []string) {
	b.t.Helper()
	for _, key := range keys {
		if !strings.HasPrefix(key, "u-") {
			b.t.Errorf("the key %q is on %s", key, snapshots)
		}
	}
	for _, value := range values {
		if value[0] != 0 || bytes.HasPrefix([]byte(value), []byte("{")) {
			b.t.Errorf("%q is on %s", value, snapshots)
		}
	}
	keys, _ = b.recordsOf(snapshots+".internal", 2)
	for _, key := range keys {
		if key != "\x00checkpoint" {
			b.t.Errorf("the key %q is on %s.internal", key, snapshots)
		}
	}
}

// internal returns the topic of the internal records of version 1.
func (b *rebuildBox) internal() string {
	b.t.Helper()
	var all []struct {
		Version  int    `json:"version"`
		Internal string `json:"internal"`
	}
	if err := json.Unmarshal(b.must("projector", "status", "--json", "--interval", "0s"), &all); err != nil {
		b.t.Fatal(err)
	}
	for _, one := range all {
		if one.Version == 1 {
			return one.Internal
		}
	}
	b.t.Fatal("there is no version 1")
	return ""
}

// The record of a version may be missing: the control topic was deleted, or an early release
// wrote none. The first version has the layout of what is on the topics.
func TestAFirstVersionContinuesWithTheTopicsThatItHas(t *testing.T) {
	t.Parallel() // mostly waits
	const snapshots, control = "rebuilt.user.snapshots", "rebuilt-control"
	for _, together := range []bool{false, true} {
		b := newRebuildBox(t, 2)
		adm := b.admin()
		want := snapshots + ".internal"
		if together {
			want = ""
			created, err := adm.CreateTopics(t.Context(), 2, 1, nil, snapshots)
			if err == nil {
				err = created.Error()
			}
			if err != nil {
				t.Fatal(err)
			}
			cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...))
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: snapshots, Key: []byte("\x00checkpoint"), Value: []byte(`{"fold":"of an early release"}`)}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		b.send(created(1))
		user := func(w *rebuildWorker) string {
			body, _, err := fetch(w.url + "/v1/projections/user/" + rebuildUser(1))
			if err != nil {
				t.Fatal(err)
			}
			return string(body)
		}
		w := b.start("one")
		before := user(w)
		if got := b.internal(); got != want {
			t.Errorf("together %v: the internal records are on %q, want %q", together, got, want)
		}
		w.stop()
		deleted, err := adm.DeleteTopics(t.Context(), control)
		if err == nil {
			err = deleted.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
		w = b.start("one")
		if got := b.internal(); got != want {
			t.Errorf("together %v: without the control topic, the internal records are on %q, want %q", together, got, want)
		}
		if after := user(w); !strings.Contains(before, rebuildUser(1)) || after != before {
			t.Errorf("together %v: the state was %s, and is %s", together, before, after)
		}
		w.stop()
	}
}

func TestInternalRecordsAreOnATopicOfTheirOwn(t *testing.T) {
	t.Parallel() // mostly waits
	b := newRebuildBox(t, 2)
	var first strings.Builder
	for i := range rebuildUsers {
		first.WriteString(created(i))
	}
	b.send(first.String())
	w := b.start("one")
	b.declare(2, `, email: "data.email != null ? data.email : state.email"`)
	b.must("projector", "rebuild", "user")
	b.await("version 2 to be comparable", func() error {
		_, err := b.run("projector", "diff", "user")
		return err
	})
	b.must("projector", "promote", "user")
	b.send(updated(1, 1))
	b.await("the update", func() error {
		body, _, err := fetch(w.url + "/v1/projections/user/" + rebuildUser(1))
		if err == nil && !strings.Contains(string(body), "new-1@example.com") {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
	const snapshots = "rebuilt.user.snapshots.v2"
	var keys, values []string
	b.await("the snapshot of the update", func() error {
		if keys, values = b.recordsOf(snapshots, 2); len(values) <= rebuildUsers {
			return fmt.Errorf("%d snapshots", len(values))
		}
		return nil
	})
	w.stop()
	b.snapshotsOnly(snapshots, keys, values)
	keys, values = b.recordsOf("rebuilt.user.snapshots", 2)
	b.snapshotsOnly("rebuilt.user.snapshots", keys, values) // of the first version

	if err := os.RemoveAll(filepath.Join(b.dir, "one")); err != nil {
		t.Fatal(err)
	}
	w = b.start("one", "--standby")
	body, _, err := fetch(w.url + "/v1/projections/user/" + rebuildUser(1))
	if err != nil || !strings.Contains(string(body), "new-1@example.com") {
		t.Errorf("after the loss of the store: %s, %v", body, err)
	}
	replica := b.start("copy", "--replica")
	b.send(updated(2, 2))
	b.await("the update at the replica", func() error {
		body, _, err := fetch(replica.url + "/v1/projections/user/" + rebuildUser(2))
		if err == nil && !strings.Contains(string(body), "new-2@example.com") {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
	if status := b.must("projector", "status", "--json", "--interval", "0s"); !strings.Contains(string(status), `"internal": "`+snapshots+`.internal"`) && !strings.Contains(string(status), `"internal":"`+snapshots+`.internal"`) {
		t.Errorf("status: %s", status)
	}
	b.must("projector", "rollback", "user")
	b.must("projector", "retire", "user", "--version", "2")
	topics, err := b.admin().ListTopics(t.Context())
	if err != nil || topics.Has(snapshots) || topics.Has(snapshots+".internal") {
		t.Errorf("topics after retire: %v, %v", topics.Names(), err)
	}
	replica.stop()
	w.stop()
}
