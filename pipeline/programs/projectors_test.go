package programs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"millrace/pipeline/harness"
)

// Two workers share the partitions of a topic. Each of them waits for events of both, and
// answers for both.
func TestEachOfTwoProjectorsAnswersForBoth(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o700), os.Mkdir(filepath.Join(dir, "b"), 0o700)); err != nil {
		t.Fatal(err)
	}
	file := clickTopology(t, dir, `
name: t
topics:
  clicks: {partitions: 2, types: [Click], envelope: none, id: "id + ''"}
projections:
  count: {from: clicks, key: id, state: Count, on: {Click: {set: {n: n}}}, snapshots: counts}
`)
	box := harness.Sandbox(t)
	var urls []string
	for _, name := range []string{"a", "b"} {
		address, stop, err := startProjector(t.Context(), file, filepath.Join(dir, name), box, "--instance", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
		urls = append(urls, "http://"+address)
	}
	harness.Awaited(t, "each projector has one partition", func() bool {
		for _, url := range urls {
			var has []struct{ Offsets map[int32]int64 }
			if err := harness.GetJSON(t.Context(), url+"/internal/v1/versions", &has); err != nil || len(has) != 1 || len(has[0].Offsets) != 1 {
				return false
			}
		}
		return true
	})

	clicks := newClickSender(t, box, "clicks")
	const n = 12
	for i := range int64(n) {
		id := fmt.Sprint("e-", i)
		var page struct {
			Items []struct{ ID string }
			After string `json:"after_event"`
		}
		answer := make(chan error, 1)
		go func() {
			answer <- harness.GetJSON(t.Context(), urls[i%2]+"/v1/projections/count?wait=30s&after_event="+id, &page)
		}()
		clicks.send(i)
		if err := <-answer; err != nil || page.After != "applied" || !slices.ContainsFunc(page.Items, func(it struct{ ID string }) bool { return it.ID == id }) {
			t.Errorf("%s: %v, %+v", id, err, page)
		}
	}
	for _, url := range urls {
		var all struct {
			Projections []struct {
				Partitions []struct{ Offset int64 }
				Absent     map[int32]string
			}
		}
		if err := harness.GetJSON(t.Context(), url+"/v1/projections", &all); err != nil || len(all.Projections) != 1 || len(all.Projections[0].Partitions) != 2 || len(all.Projections[0].Absent) > 0 {
			t.Fatalf("%v %v", err, all)
		}
		var folded int64
		for _, p := range all.Projections[0].Partitions {
			folded += p.Offset
		}
		if folded < n {
			t.Errorf("%s reports %d folded offsets, want at least %d: %v", url, folded, n, all)
		}
	}
}
