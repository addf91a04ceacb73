package reader

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/states"
)

func TestQuestionsAboutNow(t *testing.T) {
	w := newWorld(t)
	for i := range 25 {
		w.add(projectiontest.UserCreated, fmt.Sprintf("u-%02d", i))
	}
	w.add(projectiontest.UserUpdated, "u-03")
	w.add(projectiontest.UserDeleted, "u-04")
	fw := w.start()
	fw.run()
	api := fw.api()

	projectiontest.Ask(t, api, "/v1/projections").Is(200, `"name":"user"`, `"partition":0,"offset":27,"lag":0`, `"snapshots":"shop.user.snapshots"`)
	got := projectiontest.Ask(t, api, "/v1/projections/user/u-03")
	got.Is(200, `"version":2`, `"state":{"id":"u-03"`, `"projection_version":"`+w.fold.Hash(), `"offset":27,"lag":0`, `"event_offset":25`)
	tag := got.Header.Get("ETag") // of the fold, too: after a rebuild, version 2 is another
	if want := `"` + w.fold.Hash()[:8] + `-2"`; tag != want {
		t.Errorf("ETag %s, want %s", tag, want)
	}
	for match, status := range map[string]int{tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, "*": 304, `"1"`: 200} {
		projectiontest.Ask(t, api, "/v1/projections/user/u-03", "If-None-Match", match).Is(status)
	}
	projectiontest.Ask(t, api, "/v1/projections/user/u-04").Is(200, `"deleted":true`, `"status":"deleted"`)
	projectiontest.Ask(t, api, "/v1/projections/user/nobody").Is(404, `no aggregate \"nobody\"`)
	projectiontest.Ask(t, api, "/v1/projections/nothing").Is(404, "/v1/projections lists them")
	projectiontest.Ask(t, api, "/v1/else").Is(404)
	projectiontest.Ask(t, api, "/v1/projections/user?limit=0").Is(400)
	projectiontest.Ask(t, api, "/v1/projections/user?limit=1001").Is(400)
	projectiontest.Ask(t, api, "/v1/projections/user?cursor=!").Is(400)

	var ids []string
	pages, cursor := 0, ""
	for {
		page := projectiontest.Ask(t, api, "/v1/projections/user?limit=10&cursor="+cursor)
		page.Is(200)
		ids = append(ids, page.Items("id")...)
		pages++
		next, more := page.JSON["next_cursor"].(string)
		if !more {
			break
		}
		cursor = next
	}
	if pages != 3 || len(ids) != 25 || !slices.IsSorted(ids) {
		t.Errorf("%d pages with %q", pages, ids)
	}

	// While the partition may move to another session, and after it has moved to another
	// worker.
	fw.revoke()
	projectiontest.Ask(t, api, "/v1/projections/user/u-03").Is(200, `"version":2`)
	fw.now = func() time.Time { return time.Now().Add(10 * time.Second) }
	projectiontest.Ask(t, api, "/v1/projections/user").Is(200, `"items":[]`)
	projectiontest.Ask(t, api, "/v1/projections/user/u-03").Is(421, "partition 0 of shop.events")
	fw.close()
}

// A question about a partition that is not being folded is answered with everything that
// was folded, even if it is not in the store yet.
func TestQuestionsSeeWhatIsInMemory(t *testing.T) {
	w := newWorld(t)
	w.rare = true
	for range 5 {
		w.add(projectiontest.UserUpdated, "u")
	}
	fw := w.start()
	fw.end = func() int64 { return 1 << 40 }
	api := fw.api()
	now := time.Unix(1e9, 0)
	fw.now = func() time.Time { return now }
	fw.batch(5)
	projectiontest.Ask(t, api, "/v1/projections/user/u").Is(404) // it is being folded
	now = now.Add(50 * time.Millisecond)
	projectiontest.Ask(t, api, "/v1/projections/user/u").Is(200, `"version":5`)
	fw.commit()
	fw.stop()
}

func TestQuestionsAboutThePast(t *testing.T) {
	w := newWorld(t)
	const versions = 3*states.KeyframeEvery + 7
	w.add(projectiontest.UserCreated, "u")
	for range versions - 1 {
		w.add(projectiontest.UserCreated, "other")
		w.add(projectiontest.UserUpdated, "u")
	}
	fw := w.start()
	fw.run()
	api := fw.api()

	// At each version, and at the time of each event.
	for v := 1; v <= versions; v++ {
		offset := max(0, 2*(v-1))
		name := fmt.Sprintf(`"name":"name %d"`, offset)
		projectiontest.Ask(t, api, fmt.Sprint("/v1/projections/user/u?at_version=", v)).Is(200, fmt.Sprintf(`"version":%d,`, v), name, fmt.Sprintf(`"event_offset":%d,`, offset))
		when := time.UnixMicro(1767225600_000000 + int64(offset)).UTC().Format(time.RFC3339Nano)
		projectiontest.Ask(t, api, "/v1/projections/user/u?at_time="+when).Is(200, fmt.Sprintf(`"version":%d,`, v), name)
		when = time.UnixMilli(int64(offset)).UTC().Format(time.RFC3339Nano)
		projectiontest.Ask(t, api, "/v1/projections/user/u?at_recorded_time="+when).Is(200, fmt.Sprintf(`"version":%d,`, v), name)
	}
	projectiontest.Ask(t, api, "/v1/projections/user/u?at_time=2020-01-01T00:00:00Z").Is(404)
	projectiontest.Ask(t, api, fmt.Sprint("/v1/projections/user/u?at_version=", versions+1)).Is(404, fmt.Sprintf("which is at version %d", versions))
	projectiontest.Ask(t, api, "/v1/projections/user/u?at_version=0").Is(400)
	projectiontest.Ask(t, api, "/v1/projections/user/u?at_time=yesterday").Is(400, "RFC 3339")
	projectiontest.Ask(t, api, "/v1/projections/user/u?at_version=1&at_time=2026-01-01T00:00:00Z").Is(400, "give one")
	projectiontest.Ask(t, api, "/v1/projections/user/nobody?at_version=1").Is(404)

	page := projectiontest.Ask(t, api, "/v1/projections/user/u/history?limit=3")
	page.Is(200, `"type":"UserUpdated"`, `"event":{"id":"00000000-0000-4000-8000-`, fmt.Sprintf(`"next_before":%d`, versions-2))
	if got, want := fmt.Sprint(page.Items("version")), fmt.Sprint([]int{versions, versions - 1, versions - 2}); got != want {
		t.Errorf("history has versions %s, want %s", got, want)
	}
	page = projectiontest.Ask(t, api, "/v1/projections/user/u/history?before=3")
	page.Is(200)
	if got := fmt.Sprint(page.Items("version")); got != "[2 1]" || page.JSON["next_before"] != nil {
		t.Errorf("history before 3 has %s, then %v", got, page.JSON["next_before"])
	}

	why := projectiontest.Ask(t, api, "/v1/projections/user/u/why")
	why.Is(200)
	by := why.JSON["fields"].(map[string]any)
	for field, version := range map[string]float64{"id": 1, "email": 1, "name": versions} {
		if e := by[field].(map[string]any); e["version"] != version {
			t.Errorf("%s was last changed by version %v, want %v", field, e["version"], version)
		}
	}

	projectiontest.Ask(t, api, fmt.Sprintf("/v1/events/00000000-0000-4000-8000-%012d", 2)).Is(200, `"aggregate":"u","version":2`, `"offset":2,`, `"name":"name 2"`)
	projectiontest.Ask(t, api, "/v1/events/none").Is(404)

	var offsets []string
	cursor := ""
	for pages := 0; ; pages++ {
		page := projectiontest.Ask(t, api, "/v1/events?type=UserCreated&limit=50&cursor="+cursor)
		page.Is(200)
		offsets = append(offsets, page.Items("offset")...)
		next, more := page.JSON["next_cursor"].(string)
		if !more || pages > 10 {
			break
		}
		cursor = next
	}
	if len(offsets) != versions || offsets[0] != fmt.Sprint(2*versions-3) || offsets[versions-1] != "0" {
		t.Errorf("%d events of the type, from %s to %s", len(offsets), offsets[0], offsets[len(offsets)-1])
	}
	projectiontest.Ask(t, api, "/v1/events?type=shop.UserUpdated&limit=1").Is(200, fmt.Sprintf(`"offset":%d`, 2*versions-2))
	projectiontest.Ask(t, api, "/v1/events?type=Nothing").Is(400, "UserCreated, UserDeleted, UserUpdated")
	fw.stop()
}

func TestWithoutHistoryQuestionsAboutThePastFail(t *testing.T) {
	w := newWorld(t)
	w.history = false
	w.add(projectiontest.UserCreated, "u")
	fw := w.start()
	fw.run()
	api := fw.api()
	projectiontest.Ask(t, api, "/v1/projections/user/u").Is(200)
	for _, path := range []string{"/v1/projections/user/u?at_version=1", "/v1/projections/user/u/history", "/v1/projections/user/u/why", "/v1/events/x", "/v1/events?type=UserCreated"} {
		projectiontest.Ask(t, api, path).Is(404, "--no-history")
	}
	fw.stop()
}
