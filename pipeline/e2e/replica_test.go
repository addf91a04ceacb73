package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// send sends events, given as JSON lines.
func (b *rebuildBox) send(lines ...string) {
	b.t.Helper()
	events := filepath.Join(b.dir, "events.jsonl")
	if err := os.WriteFile(events, []byte(strings.Join(lines, "")), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.must("producer", "send", events)
}

func (b *rebuildBox) admin() *kadm.Client {
	b.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.brokers...))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// ends returns the end offsets of all partitions, except those of topics with one of the
// prefixes.
func (b *rebuildBox) ends(adm *kadm.Client, except ...string) map[string]int64 {
	b.t.Helper()
	listed, err := adm.ListEndOffsets(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		if !slices.ContainsFunc(except, func(prefix string) bool { return strings.HasPrefix(o.Topic, prefix) }) {
			out[fmt.Sprint(o.Topic, "/", o.Partition)] = o.Offset
		}
	})
	return out
}

// answersAbout returns the worker's answers about a user: state, history, why and version
// 1, without positions.
func (w *rebuildWorker) answersAbout(id string) (string, error) {
	var all []byte
	for _, path := range []string{"", "/history", "/why", "?at_version=1"} {
		body, _, err := fetch(w.url + "/v1/projections/user/" + id + path)
		if err != nil {
			return "", err
		}
		var answer map[string]any
		if err := json.Unmarshal(body, &answer); err != nil {
			return "", err
		}
		for _, key := range []string{"lag", "lag_seconds", "offset", "partitions"} {
			delete(answer, key)
		}
		text, err := json.Marshal(answer)
		if err != nil {
			return "", err
		}
		all = append(append(all, text...), '\n')
	}
	return string(all), nil
}

// awaitAgreement waits until a replica and a worker of the group answer the same about
// all users.
func (w *rebuildWorker) awaitAgreement(owner *rebuildWorker) {
	w.t.Helper()
	for i := range rebuildUsers {
		w.await("the replica to agree about "+rebuildUser(i), func() error {
			want, err := owner.answersAbout(rebuildUser(i))
			if err != nil {
				return err
			}
			got, err := w.answersAbout(rebuildUser(i))
			if err == nil && got != want {
				err = fmt.Errorf("it answers\n%s, want\n%s", got, want)
			}
			return err
		})
	}
}

// TestReplicaAnswersAsTheOwnersAndWritesNothing starts a replica beside two workers and
// compares their answers. Then the replica runs alone, restarts, and uses the data
// directory of another worker.
func TestReplicaAnswersAsTheOwnersAndWritesNothing(t *testing.T) {
	t.Parallel() // mostly waits
	b := newRebuildBox(t, 4)
	var first []string
	for i := range rebuildUsers {
		first = append(first, created(i), updated(i, i))
	}
	b.send(first...)
	const short = "--session-timeout=6s" // partitions of a stopped worker wait that long
	one := b.start("one", short)
	two := b.start("two", short)
	stopLoad := b.load()
	r := b.start("replica", "--replica")
	stopLoad()
	r.awaitAgreement(one)

	list := func(w *rebuildWorker) string {
		var page struct {
			Items []struct {
				ID      string `json:"id"`
				Version int64  `json:"version"`
			} `json:"items"`
			Partitions []struct {
				Lag int64 `json:"lag"`
			} `json:"partitions"`
		}
		body, _, err := fetch(w.url + "/v1/projections/user?limit=1000")
		if err == nil {
			err = json.Unmarshal(body, &page)
		}
		if err != nil || len(page.Partitions) != 4 || len(page.Items) != rebuildUsers {
			t.Fatalf("%s lists %d users of %d partitions: %v", w.name, len(page.Items), len(page.Partitions), err)
		}
		return fmt.Sprint(page.Items)
	}
	if got, want := list(r), list(two); got != want {
		t.Errorf("the replica lists\n%s, want\n%s", got, want)
	}
	if _, status, _ := fetch(r.url + "/v1/projections/user/nobody"); status != 404 {
		t.Errorf("unknown user: status %d, want 404", status)
	}

	// The two workers are the only members of the group.
	adm := b.admin()
	groups, err := adm.DescribeGroups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	members := []string{}
	for _, m := range groups["rebuilt-projector"].Members {
		members = append(members, *m.InstanceID)
	}
	slices.Sort(members)
	if len(groups) != 1 || !slices.Equal(members, []string{"rebuilt-projector-one-0", "rebuilt-projector-two-0"}) {
		t.Errorf("groups: %v with members %v", groups.Names(), members)
	}

	// Without workers, the replica still answers and follows, and it writes nothing.
	one.stop()
	two.stop()
	offsets := func() string {
		all, err := adm.FetchOffsets(t.Context(), "rebuilt-projector")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(all.KOffsets())
	}
	committed := offsets()
	ends := b.ends(adm, "rebuilt.events", "rebuilt-control")
	b.send(updated(7, 4711), fmt.Sprintf(`{"type":"UserCreated","data":{"id":"u-new","email":"n@example.com","name":"new"}}`+"\n"))
	for id, version := range map[string]int{rebuildUser(7): 3, "u-new": 1} {
		if _, _, err := fetch(fmt.Sprintf("%s/v1/projections/user/%s?min_version=%d&wait=20s", r.url, id, version)); err != nil {
			t.Error(err)
		}
	}
	r.stop()
	if got := offsets(); got != committed {
		t.Errorf("the group's offsets changed from %s to %s", committed, got)
	}
	if got := b.ends(adm, "rebuilt.events", "rebuilt-control"); !maps.Equal(got, ends) {
		t.Errorf("the ends of the topics changed from %v to %v", ends, got)
	}

	// After a restart, the replica continues from its store.
	r = b.start("replica", "--replica")
	if body, _, err := fetch(r.url + "/v1/projections/user/u-new"); err != nil {
		t.Errorf("%v %s", err, body)
	}
	resp, err := http.Post(r.url+"/v1/blocked/user/"+rebuildUser(1)+"/release", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMisdirectedRequest || resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("a release without a worker of the group: %s", resp.Status)
	}
	if out, err := b.run("projector", "run", "--replica", "--instance", "second", "--data-dir", filepath.Join(b.dir, "replica"), "--listen", "127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), "give each worker a data directory of its own") {
		t.Errorf("a second replica on the same data directory: %v %s", err, out)
	}
	one = b.start("one", short)
	b.await("the worker to reject the release of an aggregate that is not blocked", func() error {
		resp, err := http.Post(r.url+"/v1/blocked/user/"+rebuildUser(1)+"/release", "", nil)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusConflict {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	r.awaitAgreement(one)
	var erased struct{ Workers, Silent []string }
	if err := json.Unmarshal(b.must("projector", "forget", "user", rebuildUser(3), "--yes", "--json"), &erased); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(erased.Workers, []string{"one", "replica"}) || len(erased.Silent) != 0 {
		t.Errorf("erased: %+v", erased)
	}
	if _, status, _ := fetch(r.url + "/v1/projections/user/" + rebuildUser(3)); status != 404 {
		t.Errorf("the forgotten user: status %d, want 404", status)
	}
	r.stop()
	one.stop()
	// A replica on the data directory of a worker continues from the worker's store.
	if err := os.Rename(filepath.Join(b.dir, "one"), filepath.Join(b.dir, "other")); err != nil {
		t.Fatal(err)
	}
	r = b.start("other", "--replica")
	if _, _, err := fetch(r.url + "/v1/projections/user/u-new"); err != nil {
		t.Error(err)
	}
	r.stop()
}

// TestReplicaFollowsTheLiveVersionWithoutFailedReads reads from a replica while another
// version is built, promoted and rolled back.
func TestReplicaFollowsTheLiveVersionWithoutFailedReads(t *testing.T) {
	t.Parallel() // mostly waits
	b := newRebuildBox(t, 4)
	var first []string
	for i := range rebuildUsers {
		first = append(first, created(i))
	}
	b.send(first...)
	w := b.start("one")
	replica := b.start("replica", "--replica")
	r := &reader{urls: []string{replica.url}}
	stopReading := r.read(4)
	stopLoad := b.load()
	type status struct {
		Version     int
		State, Fold string
		Done        int64
	}
	look := func() (out []status) {
		if err := json.Unmarshal(b.must("projector", "status", "--json", "--interval", "0s"), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	b.declare(4, `, email: "data.email != null ? data.email : state.email"`)
	b.must("projector", "rebuild", "user")
	b.await("version 2 to have caught up", func() error {
		for _, s := range look() {
			if s.Version == 2 && s.State == "ready" && s.Done > 0 {
				return nil
			}
		}
		return fmt.Errorf("%+v", look())
	})
	b.must("projector", "diff", "user")
	b.must("projector", "promote", "user")
	all := look()
	for _, to := range []string{all[1].Fold, all[0].Fold} {
		had := r.seen(to)
		b.await("answers of the other version", func() error {
			if n := r.seen(to); n < had+200 {
				return fmt.Errorf("%d more so far", n-had)
			}
			return nil
		})
		if to == all[1].Fold {
			b.must("projector", "rollback", "user")
		}
	}
	stopLoad()
	stopReading()
	if len(r.faults) > 0 {
		t.Errorf("some of %d reads failed:\n%s", r.reads, strings.Join(r.faults, "\n"))
	}
	b.must("projector", "retire", "user", "--version", "2")
	b.await("the replica to release the retired version", func() error {
		body, _, err := fetch(replica.url + "/metrics")
		if err == nil && strings.Contains(string(body), `millrace_followed_lag_records{group="rebuilt-projector-user-v2"`) {
			err = fmt.Errorf("it still follows version 2")
		}
		return err
	})
	replica.awaitAgreement(w)
	replica.stop()
	w.stop()
}

// TestStandbyTakesOverFromAKilledWorker runs two workers that are standbys of each other,
// and kills one while events arrive. The other one must take over without losing events
// and without a restore.
func TestStandbyTakesOverFromAKilledWorker(t *testing.T) {
	t.Parallel() // mostly waits
	b := newRebuildBox(t, 4)
	var first []string
	for i := range rebuildUsers {
		first = append(first, created(i), updated(i, i))
	}
	b.send(first...)
	args := []string{"--standby", "--session-timeout", "6s"}
	one := b.start("one", args...)
	two := b.start("two", args...)
	stopLoad := b.load()
	followed := func(w *rebuildWorker) int {
		body, _, err := fetch(w.url + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(body), `millrace_followed_lag_records{group="rebuilt-projector",partition="`) - strings.Count(string(body), `topic="rebuilt.user.snapshots"} `)/3
	}
	owned := func(w *rebuildWorker) (n int) {
		var has []struct {
			Offsets map[string]int64 `json:"offsets"`
		}
		body, _, err := fetch(w.url + "/internal/v1/versions")
		if err == nil {
			err = json.Unmarshal(body, &has)
		}
		if err != nil || len(has) != 1 {
			t.Fatalf("%s: %s %v", w.name, body, err)
		}
		return len(has[0].Offsets)
	}
	b.await("each to have two partitions, and to follow the others", func() error {
		for _, w := range []*rebuildWorker{one, two} {
			if owned(w) != 2 || followed(w) < 2 {
				return fmt.Errorf("%s has %d and follows %d", w.name, owned(w), followed(w))
			}
		}
		return nil
	})
	if err := two.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-two.done; err == nil {
		t.Error("the killed worker exited with code 0")
	}
	began := time.Now()
	b.await("the other to have all partitions", func() error {
		if n := owned(one); n != 4 {
			return fmt.Errorf("it has %d", n)
		}
		_, _, err := fetch(one.url + "/readyz")
		return err
	})
	t.Logf("took over all partitions %v after the kill, including 6 s of session timeout", time.Since(began))
	stopLoad()
	for i := range rebuildUsers {
		b.await("the last event of "+rebuildUser(i), func() error {
			_, _, err := fetch(one.url + "/v1/projections/user/" + rebuildUser(i))
			return err
		})
	}
	two = b.start("two", args...)
	b.await("each to have two partitions again, and to follow the others", func() error {
		for _, w := range []*rebuildWorker{one, two} {
			if owned(w) != 2 || followed(w) < 2 {
				return fmt.Errorf("%s has %d and follows %d", w.name, owned(w), followed(w))
			}
		}
		return nil
	})
	answers := map[string]string{}
	for i := range rebuildUsers {
		id := rebuildUser(i)
		var err error
		if answers[id], err = one.answersAbout(id); err != nil {
			t.Fatal(err)
		}
		if got, err := two.answersAbout(id); err != nil || got != answers[id] {
			t.Errorf("%s: %v\n%s, want\n%s", id, err, got, answers[id])
		}
	}
	two.stop()
	one.stop()

	// A worker without a store restores the same answers from the snapshots.
	fresh := b.start("fresh", "--session-timeout", "6s")
	b.await("the histories", filled(fresh.url))
	for id, want := range answers {
		if got, err := fresh.answersAbout(id); err != nil || got != want {
			t.Errorf("%s, restored from snapshots: %v\n%s, want\n%s", id, err, got, want)
		}
	}
	fresh.stop()
}
