package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestReadsSucceedWhileOtherWorkerRestarts restarts one of two workers, first with
// SIGTERM and then with SIGKILL, while events arrive and clients read from the other one.
func TestReadsSucceedWhileOtherWorkerRestarts(t *testing.T) {
	t.Parallel() // mostly waits
	b := newRebuildBox(t, 4)
	var first strings.Builder
	for i := range rebuildUsers {
		first.WriteString(created(i))
	}
	b.send(first.String())
	stable, restarted := b.start("stable"), b.start("restarted")
	b.awaitPartitions(2, stable, restarted)
	for _, w := range []*rebuildWorker{stable, restarted} {
		for i := range rebuildUsers {
			if _, _, err := fetch(w.url + "/v1/projections/user/" + rebuildUser(i)); err != nil {
				t.Fatal(err)
			}
		}
		if _, status, _ := fetch(w.url + "/v1/projections/user/nobody"); status != 404 {
			t.Errorf("unknown user: status %d, want 404", status)
		}
		if n := w.listUsers(); n != rebuildUsers {
			t.Errorf("%s lists %d users, want %d", w.name, n, rebuildUsers)
		}
	}

	stopLoad := b.load()
	r := &reader{urls: []string{stable.url}}
	stopReading := r.read(2)
	began := time.Now()
	restarted.stop()
	stopped := time.Since(began)
	restarted = b.start("restarted")
	t.Logf("stopped after %v, ready again after %v", stopped, time.Since(began))
	stopReading()
	if len(r.faults) > 0 {
		t.Errorf("some of %d reads failed:\n%s", r.reads, strings.Join(r.faults, "\n"))
	}
	t.Logf("%d reads during the restart, the longest took %v", r.reads, r.longest)

	r = &reader{urls: []string{stable.url}}
	stopReading = r.read(3)
	if err := restarted.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-restarted.done; err == nil {
		t.Error("the killed worker exited with code 0")
	}
	began = time.Now()
	restarted = b.start("restarted")
	t.Logf("killed; ready %v after the new start", time.Since(began))
	stopReading()
	if len(r.faults) > 0 {
		t.Errorf("some of %d reads failed:\n%s", r.reads, strings.Join(r.faults, "\n"))
	}
	t.Logf("%d reads during kill and restart, the longest took %v", r.reads, r.longest)
	stopLoad()
	restarted.stop()
	stable.stop()
}

// listUsers lists all users page by page, checks the order and the number of partitions,
// and returns the number of users.
func (w *rebuildWorker) listUsers() (n int) {
	w.t.Helper()
	last := ""
	for cursor := ""; ; {
		body, _, err := fetch(w.url + "/v1/projections/user?limit=70&cursor=" + cursor)
		if err != nil {
			w.t.Fatal(err)
		}
		var page struct {
			Items []struct {
				ID string `json:"id"`
			} `json:"items"`
			Next       string     `json:"next_cursor"`
			Partitions []struct{} `json:"partitions"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			w.t.Fatal(err)
		}
		if len(page.Partitions) != 4 {
			w.t.Errorf("the list covers %d partitions, want 4", len(page.Partitions))
		}
		for _, it := range page.Items {
			if it.ID <= last {
				w.t.Errorf("%s comes after %s", it.ID, last)
			}
			last = it.ID
			n++
		}
		if cursor = page.Next; cursor == "" {
			return n
		}
	}
}
