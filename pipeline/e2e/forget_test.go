package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestForgottenUserNeverComesBack forgets a user whose events keep arriving. The user must
// stay forgotten after a restart, the loss of the store, and a rebuild.
func TestForgottenUserNeverComesBack(t *testing.T) {
	t.Parallel() // mostly waits
	b := newRebuildBox(t, 2)
	var first strings.Builder
	for i := range rebuildUsers {
		first.WriteString(created(i))
	}
	b.send(first.String())
	w := b.start("one")
	stopLoad := b.load()
	id := rebuildUser(0) // one of the users that the load updates
	about := func() string { return w.url + "/v1/projections/user/" + id }
	b.await("some history", func() error {
		body, _, err := fetch(about() + "/history")
		if err == nil && strings.Count(string(body), "UserUpdated") < 2 {
			err = fmt.Errorf("%s", body)
		}
		return err
	})

	for _, refused := range []struct{ args, text string }{
		{id, "add --yes"},
		{"nobody --yes", `projection user has no aggregate "nobody": not found`},
		{"nobody --dry-run", "not found"},
	} {
		if out, err := b.run("projector", append([]string{"forget", "user"}, strings.Fields(refused.args)...)...); err == nil || !strings.Contains(err.Error(), refused.text) {
			t.Errorf("forget user %s: %s, %v; want %q", refused.args, out, err, refused.text)
		}
	}
	if out := b.must("projector", "forget", "user", id, "--dry-run"); !strings.Contains(string(out), "would be forgotten: 1 state") {
		t.Errorf("the dry run prints %s", out)
	}
	if body, _, err := fetch(about()); err != nil {
		t.Errorf("after the dry run: %s, %v", body, err)
	}
	var done struct {
		Workers []string `json:"workers"`
		Left    []struct {
			Where string `json:"where"`
			Until string `json:"until"`
		} `json:"left"`
	}
	if err := json.Unmarshal(b.must("projector", "forget", "user", id, "--yes", "--json"), &done); err != nil {
		t.Fatal(err)
	}
	if len(done.Workers) != 1 {
		t.Errorf("erased by %v", done.Workers)
	}
	left := map[string]string{}
	for _, l := range done.Left {
		left[l.Where] = l.Until
	}
	if !strings.Contains(left["rebuilt.events"], "7 days") || !strings.Contains(left["rebuilt.user.snapshots"], "no bound") || left["rebuilt-control"] != "for ever" {
		t.Errorf("what is left: %v", left)
	}

	gone := func(when string) {
		t.Helper()
		for _, url := range []string{about(), about() + "/history", about() + "?at_version=1"} {
			if body, status, _ := fetch(url); status != 404 {
				t.Errorf("%s: %d %s", when, status, body)
			}
		}
		if _, _, err := fetch(w.url + "/v1/projections/user/" + rebuildUser(2)); err != nil {
			t.Errorf("%s: another user: %v", when, err)
		}
	}
	gone("immediately")
	w.stop()
	w = b.start("one")
	gone("after a restart")
	w.stop()
	if err := os.RemoveAll(filepath.Join(b.dir, "one")); err != nil {
		t.Fatal(err)
	}
	w = b.start("one")
	b.await("the histories", filled(w.url))
	gone("after the loss of the store")
	b.declare(2, `, email: "data.email != null ? data.email : state.email"`)
	b.must("projector", "rebuild", "user")
	b.await("version 2 to be comparable", func() error {
		_, err := b.run("projector", "diff", "user")
		return err
	})
	b.must("projector", "promote", "user")
	b.await("answers of version 2", func() error {
		body, _, err := fetch(w.url + "/v1/projections/user/" + rebuildUser(2))
		if err == nil && !strings.Contains(string(body), "new-2@example.com") {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
	gone("in another version")
	stopLoad()
	w.stop()

	for _, topic := range []string{"rebuilt.user.snapshots", "rebuilt.user.snapshots.v2"} {
		if last, n := b.last(topic, id); last != nil || n == 0 && topic == "rebuilt.user.snapshots" {
			t.Errorf("%s: the last of %d snapshots of %s is not null: %q", topic, n, id, last)
		}
	}
}

// last returns the value of the last committed record of a key, and the number of records
// of the key. The value is nil if there is no record or its value is null.
func (b *rebuildBox) last(topic, key string) (value []byte, n int) {
	b.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	ends := map[int32]bool{} // partitions that are read to the end; there are two
	for len(ends) < 2 {
		fetches := cl.PollFetches(b.t.Context())
		if err := fetches.Err(); err != nil {
			b.t.Fatal(err)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			for _, r := range p.Records {
				if string(r.Key) == key && !r.Attrs.IsControl() {
					value = r.Value
					n++
				}
				if r.Offset+1 >= p.LastStableOffset {
					ends[p.Partition] = true
				}
			}
		})
	}
	return value, n
}
