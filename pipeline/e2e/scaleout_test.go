package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAnyOfTwoWorkersAnswersAnyQuestionWhileTheOtherIsRestarted stops one of two
// workers and starts it again, and then kills it and starts it again, while
// somebody reads from the one that stays, and events come in.
func TestAnyOfTwoWorkersAnswersAnyQuestionWhileTheOtherIsRestarted(t *testing.T) {
	t.Parallel() // it waits more than it works
	b := newRebuildBox(t, 4)
	var first strings.Builder
	for i := range rebuildUsers {
		first.WriteString(created(i))
	}
	events := filepath.Join(b.dir, "events.jsonl")
	if err := os.WriteFile(events, []byte(first.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	b.must("producer", "send", events)
	stays, goes := b.start("stays"), b.start("goes")

	b.await("both to have partitions", func() error {
		for _, w := range []*rebuildWorker{stays, goes} {
			var has []struct {
				Offsets map[string]int64 `json:"offsets"`
			}
			body, _, err := fetch(w.url + "/internal/v1/versions")
			if err == nil {
				err = json.Unmarshal(body, &has)
			}
			if err != nil {
				return err
			}
			if len(has) != 1 || len(has[0].Offsets) != 2 {
				return fmt.Errorf("%s has %v", w.name, has)
			}
		}
		return nil
	})
	for _, w := range []*rebuildWorker{stays, goes} {
		for i := range rebuildUsers {
			if _, _, err := fetch(w.url + "/v1/projections/user/" + rebuildUser(i)); err != nil {
				t.Fatal(err)
			}
		}
		if _, status, _ := fetch(w.url + "/v1/projections/user/nobody"); status != 404 {
			t.Errorf("nobody: %d", status)
		}
		listed := 0
		last := ""
		for cursor := ""; ; {
			body, _, err := fetch(w.url + "/v1/projections/user?limit=70&cursor=" + cursor)
			if err != nil {
				t.Fatal(err)
			}
			var page struct {
				Items []struct {
					ID string `json:"id"`
				} `json:"items"`
				Next       string     `json:"next_cursor"`
				Partitions []struct{} `json:"partitions"`
			}
			if err := json.Unmarshal(body, &page); err != nil {
				t.Fatal(err)
			}
			if len(page.Partitions) != 4 {
				t.Errorf("a list of %d partitions", len(page.Partitions))
			}
			for _, it := range page.Items {
				if it.ID <= last {
					t.Errorf("%s comes after %s", it.ID, last)
				}
				last = it.ID
				listed++
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if listed != rebuildUsers {
			t.Errorf("%s lists %d users, there are %d", w.name, listed, rebuildUsers)
		}
	}

	stopLoad := b.load()
	r := &reader{urls: []string{stays.url}}
	stopReading := r.read(2)
	began := time.Now()
	goes.stop()
	stopped := time.Since(began)
	goes = b.start("goes")
	t.Logf("stopped in %v, ready again after %v altogether", stopped, time.Since(began))
	stopReading()
	if len(r.faults) > 0 {
		t.Errorf("of %d reads some failed:\n%s", r.reads, strings.Join(r.faults, "\n"))
	}
	t.Logf("%d reads while it was restarted, the longest took %v", r.reads, r.longest)

	r = &reader{urls: []string{stays.url}}
	stopReading = r.read(3)
	if err := goes.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-goes.done; err == nil {
		t.Error("it ended as if it had not been killed")
	}
	began = time.Now()
	goes = b.start("goes")
	t.Logf("killed, and ready %v after it was started again", time.Since(began))
	stopReading()
	if len(r.faults) > 0 {
		t.Errorf("of %d reads some failed:\n%s", r.reads, strings.Join(r.faults, "\n"))
	}
	t.Logf("%d reads while it was killed, the longest took %v", r.reads, r.longest)
	stopLoad()
	goes.stop()
	stays.stop()
}
