package reader

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/states"
)

// pages reads all pages of a list and returns the ids and the number of pages.
func pages(t *testing.T, h http.Handler, path string) (ids []string, n int) {
	t.Helper()
	for cursor := ""; ; {
		page := projectiontest.Ask(t, h, path+cursor)
		page.Is(200)
		ids = append(ids, page.Items("id")...)
		n++
		next, more := page.JSON["next_cursor"].(string)
		if !more {
			return ids, n
		}
		at, _, _ := strings.Cut(path, "?")
		path, cursor = at+"?limit=3", "&cursor="+url.QueryEscape(next)
	}
}

func TestAListIsFilteredAndSorted(t *testing.T) {
	w := newWorld(t)
	for i := range 10 {
		w.add(projectiontest.UserCreated, fmt.Sprintf("u-%d", i))
	}
	for i := range 5 {
		w.add(projectiontest.UserUpdated, fmt.Sprintf("u-%d", 8-2*i))
	}
	w.add(projectiontest.UserDeleted, "u-3")
	fw := w.start()
	fw.run()
	api := fw.api()
	for _, c := range []struct{ filter, sort, want string }{
		{"", "", "u-0 u-1 u-2 u-3 u-4 u-5 u-6 u-7 u-8 u-9"},
		{"", "-id", "u-9 u-8 u-7 u-6 u-5 u-4 u-3 u-2 u-1 u-0"},
		{"version == 2", "", "u-0 u-2 u-3 u-4 u-6 u-8"},
		{"version == 2 && !deleted", "event_time", "u-8 u-6 u-4 u-2 u-0"},
		{"state.status == 'active' && id > 'u-4'", "-version", "u-6 u-8 u-5 u-7 u-9"},
		{"state.email.startsWith('u-7@')", "", "u-7"},
		{"event_time >= timestamp('2026-01-01T00:00:00.000014Z')", "", "u-0 u-3"},
		{"", "state.name", "u-0 u-1 u-8 u-6 u-4 u-2 u-0"},
		{"false", "version", ""},
	} {
		if c.sort == "state.name" {
			c.want = "u-1 u-8 u-6 u-4 u-2 u-0 u-3 u-5 u-7 u-9" // name 1, 10, 11, ... 3, 5
		}
		ids, n := pages(t, api, "/v1/projections/user?limit=3&filter="+url.QueryEscape(c.filter)+"&sort="+c.sort)
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("filter %q, sort %q: %s, want %s", c.filter, c.sort, got, c.want)
		}
		if want := max(1, (len(ids)+2)/3); n != want {
			t.Errorf("filter %q, sort %q: %d items on %d pages, want %d", c.filter, c.sort, len(ids), n, want)
		}
	}
	for _, c := range []struct {
		query string
		has   []string
	}{
		{"filter=" + url.QueryEscape("state.statsu == 'x'"), []string{"no field statsu", "status", `"offset":6`, `"parameter":"filter"`}},
		{"filter=" + url.QueryEscape("version > 'a'"), []string{"at character 9", "cannot compare an int with a string"}},
		{"filter=version", []string{"filter"}},
		{"filter=" + url.QueryEscape("state.name["), []string{"filter"}},
		{"sort=name", []string{"state.FIELD"}},
		{"sort=state.nmae", []string{"state.name"}},
		{"limt=3", []string{"unknown parameter limt", "limit"}},
		{"limit=1&limit=2", []string{"given 2 times"}},
		{"filter=" + strings.Repeat("x", 5000), []string{"the limit is 4096"}},
	} {
		projectiontest.Ask(t, api, "/v1/projections/user?"+c.query).Is(400, c.has...)
	}
	projectiontest.Ask(t, api, "/v1/projections/user?filter="+url.QueryEscape("10 / (version - 1) > 1")).Is(200,
		`"items":[{"id":"u-0"`, `"filter_failed":{"count":4,"id":"u-1","detail":"expression: 10 / (version - 1) \u003e 1: division by zero"}`)
	next := projectiontest.Ask(t, api, "/v1/projections/user?limit=3&filter=true").JSON["next_cursor"].(string)
	projectiontest.Ask(t, api, "/v1/projections/user?filter=false&cursor="+next).Is(400, "another filter or sort")
	fw.stop()
}

func TestADiffHasTheChangedFields(t *testing.T) {
	w := newWorld(t)
	w.add(projectiontest.UserCreated, "u")
	w.add(projectiontest.UserUpdated, "u")
	w.add(projectiontest.UserUpdated, "u")
	w.add(projectiontest.UserDeleted, "u")
	fw := w.start()
	fw.run()
	api := fw.api()
	d := projectiontest.Ask(t, api, "/v1/projections/user/u/diff")
	d.Is(200, `"from":{"version":3,`, `"to":{"version":4,"deleted":true`, `"fields":{"status":{"from":"active","to":"deleted"}}`)
	projectiontest.Ask(t, api, "/v1/projections/user/u/diff?from=1&to=3").Is(200, `"fields":{"name":{"from":"name 0","to":"name 2"}}`)
	first := projectiontest.Ask(t, api, "/v1/projections/user/u/diff?from=0&to=1")
	first.Is(200, `"from":{"version":0}`, `"email":{"to":"u@example.com"}`)
	if got := slices.Sorted(maps.Keys(first.JSON["fields"].(map[string]any))); fmt.Sprint(got) != "[email id name status]" {
		t.Errorf("the first event sets %v", got)
	}
	projectiontest.Ask(t, api, "/v1/projections/user/u/diff?from=3&to=2").Is(400, "older version comes first")
	projectiontest.Ask(t, api, "/v1/projections/user/u/diff?to=9").Is(404, "which is at version 4")
	projectiontest.Ask(t, api, "/v1/projections/user/nobody/diff").Is(404)
	fw.stop()
}

func TestAWaitForAnEventReturnsItsOutcome(t *testing.T) {
	w := newWorld(t)
	w.add(projectiontest.UserCreated, "u")
	w.add(projectiontest.UserUpdated, "u")
	w.add(projectiontest.UserDeleted, "u")
	w.add(projectiontest.UserUpdated, "u") // late
	w.add(projectiontest.OrderCreated, "u")
	fw := w.start()
	fw.batch(1)
	fw.commit()
	api := fw.api()

	projectiontest.Ask(t, api, "/v1/projections/user/u?after_event="+projectiontest.FoldedID(0)).Is(200, `"after_event":"applied"`)
	pending := projectiontest.Ask(t, api, "/v1/projections/user/u?after_event="+projectiontest.FoldedID(1)+"&wait=1ms")
	pending.Is(504, `"outcome":"pending"`)
	if pending.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	projectiontest.Ask(t, api, "/v1/projections/user?after_event="+projectiontest.FoldedID(1)).Is(504)
	projectiontest.Ask(t, api, "/v1/projections/user/u?min_version=2").Is(504, "at version 1")

	// The answer comes as soon as the batch has ended.
	answers := make(chan projectiontest.Answer, 2)
	for _, q := range []string{"after_event=" + projectiontest.FoldedID(1), "min_version=3"} {
		go func() { answers <- projectiontest.Ask(t, api, "/v1/projections/user/u?wait=30s&"+q) }()
	}
	fw.run()
	for range 2 {
		(<-answers).Is(200)
	}
	projectiontest.Ask(t, api, "/v1/projections/user?after_event="+projectiontest.FoldedID(2)).Is(200, `"after_event":"applied"`)
	projectiontest.Ask(t, api, "/v1/projections/user/u?wait=30s&after_event="+projectiontest.FoldedID(3)).Is(409, `"outcome":"late"`, "deleted before")
	projectiontest.Ask(t, api, "/v1/events/"+projectiontest.FoldedID(3)).Is(404, "projection user: late")
	// An event that the projection does not fold is known by its position.
	projectiontest.Ask(t, api, "/v1/projections/user/u?wait=30s&after_position=0:4&after_event="+projectiontest.FoldedID(4)).Is(409, `"outcome":"passed"`)
	projectiontest.Ask(t, api, "/v1/projections/user/u?after_position=0:5&after_event=x").Is(504)
	for _, bad := range []string{"wait=1s", "wait=1h&min_version=1", "wait=-1s&min_version=1", "min_version=0", "after_position=3", "after_position=0:1", "after_event=x&at_version=1"} {
		projectiontest.Ask(t, api, "/v1/projections/user/u?"+bad).Is(400)
	}
	fw.stop()
}

func TestAWaitForAnEventOfABlockedAggregateReturnsThat(t *testing.T) {
	w := newWorld(t)
	w.add(projectiontest.UserCreated, "u")
	bad := append(codec.AppendFrame(nil, projectiontest.UserUpdated), 0xff)
	w.log = append(w.log, pipeline.Record{Topic: projectiontest.EventsTopic, Offset: 1, Key: []byte("u"), Value: bad, Time: time.UnixMilli(1)})
	w.add(projectiontest.UserUpdated, "u")
	fw := w.start()
	fw.run()
	projectiontest.Ask(t, fw.api(), "/v1/projections/user/u?wait=30s&after_event="+projectiontest.FoldedID(2)).Is(409, `"outcome":"blocked"`, "projector blocked")
	fw.stop()
}

// Questions to a worker with a backlog are answered from the store, and do not write to
// it each time.
func TestManyQuestionsCauseFewWrites(t *testing.T) {
	w := newWorld(t)
	w.rare = true
	fw := w.start()
	fw.end = func() int64 { return 1 << 40 }
	now := time.Unix(1e9, 0)
	fw.now = func() time.Time { return now }
	api := fw.api()
	writes := 0
	for i := range 100 {
		w.add(projectiontest.UserCreated, "u")
		now = now.Add(time.Millisecond)
		if err := fw.handler.Handle(t.Context(), &fw.log[i], &fw.out); err != nil {
			t.Fatal(err)
		}
		before := fw.position()
		projectiontest.Ask(t, api, "/v1/projections/user/u")
		if fw.position() != before {
			writes++
		}
	}
	if writes < 1 || writes > 3 {
		t.Errorf("%d writes for 100 questions in 100 ms", writes)
	}
	fw.stop()
}

func TestWhyReportsHowFarItSearched(t *testing.T) {
	w := newWorld(t)
	w.add(projectiontest.UserCreated, "u")
	const versions = 3*states.KeyframeEvery + 7
	for range versions - 1 {
		w.add(projectiontest.UserUpdated, "u")
	}
	fw := w.start()
	fw.run()
	r := fw.reader()
	for _, c := range []struct {
		folds, looks int64
		before       int64
		unknown      string
	}{
		{1 << 20, 1 << 20, 0, "[]"},
		{1 << 20, 10, versions - 9, "[id email status]"},
		{7, 1 << 20, 2, "[id email status]"}, // the block of the last event, but not that of the first
		{5, 1 << 20, versions + 1, "[id email name status]"},
	} {
		why, err := r.why(t.Context(), "u", c.folds, c.looks)
		if err != nil {
			t.Fatal(err)
		}
		if why.Before != c.before || fmt.Sprint(why.Unknown) != c.unknown {
			t.Errorf("with %d events folded and %d read: %v before %d, want %s before %d", c.folds, c.looks, why.Unknown, why.Before, c.unknown, c.before)
		}
	}
	fw.stop()
}
