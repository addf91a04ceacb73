package app

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/query"
)

// asked is an answer, with what the tests look at.
type asked struct {
	t      testing.TB
	status int
	header http.Header
	body   string
	json   map[string]any
}

func (fw *foldWorker) api() http.Handler {
	return query.Handler(slog.New(slog.DiscardHandler), fw.reader())
}

func (fw *foldWorker) reader() *projectionReader {
	p := fw.ps.topics[testTopic].projections[0]
	return &projectionReader{projections: fw.ps, p: p, registry: fw.registry(), types: fw.types, topic: testTopic, partitions: 1}
}

// registry knows the tests' schemas.
func (fw *foldWorker) registry() *codec.Registry { return typeRegistry(fw.t, fw.types) }

func ask(t testing.TB, h http.Handler, path string, headers ...string) asked {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	a := asked{t: t, status: w.Code, header: w.Header(), body: w.Body.String()}
	if len(a.body) > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &a.json); err != nil {
			t.Fatalf("%s: %v: %s", path, err, a.body)
		}
	}
	return a
}

// is checks the status and that the body has some texts in it.
func (a asked) is(status int, has ...string) {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	for _, text := range has {
		if !strings.Contains(a.body, text) {
			a.t.Errorf("no %s in %s", text, a.body)
		}
	}
	if status >= 400 && (a.header.Get("Content-Type") != "application/problem+json" || a.json["status"] != float64(status)) {
		a.t.Errorf("not a problem as in RFC 9457: %s: %s", a.header.Get("Content-Type"), a.body)
	}
}

// items returns one field of each item of a list.
func (a asked) items(field string) (out []string) {
	a.t.Helper()
	list, ok := a.json["items"].([]any)
	if !ok {
		a.t.Fatalf("no items: %s", a.body)
	}
	for _, it := range list {
		out = append(out, fmt.Sprint(it.(map[string]any)[field]))
	}
	return out
}

func TestQuestionsAboutNow(t *testing.T) {
	w := newWorld(t)
	for i := range 25 {
		w.add(userCreated, fmt.Sprintf("u-%02d", i))
	}
	w.add(userUpdated, "u-03")
	w.add(userDeleted, "u-04")
	fw := w.start()
	fw.run()
	api := fw.api()

	ask(t, api, "/v1/projections").is(200, `"name":"user"`, `"partition":0,"offset":27,"lag":0`, `"snapshots":"shop.user.snapshots"`)
	got := ask(t, api, "/v1/projections/user/u-03")
	got.is(200, `"version":2`, `"state":{"id":"u-03"`, `"projection_version":"`+w.fold.Hash(), `"offset":27,"lag":0`, `"event_offset":25`)
	tag := got.header.Get("ETag") // of the fold, too: after a rebuild, version 2 is another
	if want := `"` + w.fold.Hash()[:8] + `-2"`; tag != want {
		t.Errorf("ETag %s, want %s", tag, want)
	}
	for match, status := range map[string]int{tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, "*": 304, `"1"`: 200} {
		ask(t, api, "/v1/projections/user/u-03", "If-None-Match", match).is(status)
	}
	ask(t, api, "/v1/projections/user/u-04").is(200, `"deleted":true`, `"status":"deleted"`)
	ask(t, api, "/v1/projections/user/nobody").is(404, `no aggregate \"nobody\"`)
	ask(t, api, "/v1/projections/nothing").is(404, "/v1/projections lists them")
	ask(t, api, "/v1/else").is(404)
	ask(t, api, "/v1/projections/user?limit=0").is(400)
	ask(t, api, "/v1/projections/user?limit=1001").is(400)
	ask(t, api, "/v1/projections/user?cursor=!").is(400)

	var ids []string
	pages, cursor := 0, ""
	for {
		page := ask(t, api, "/v1/projections/user?limit=10&cursor="+cursor)
		page.is(200)
		ids = append(ids, page.items("id")...)
		pages++
		next, more := page.json["next_cursor"].(string)
		if !more {
			break
		}
		cursor = next
	}
	if pages != 3 || len(ids) != 25 || !slices.IsSorted(ids) {
		t.Errorf("%d pages with %q", pages, ids)
	}

	// While the partition goes from one session to another, and after it went to
	// another worker.
	fw.handler.Revoke([]kafka.Partition{{Topic: testTopic}})
	ask(t, api, "/v1/projections/user/u-03").is(200, `"version":2`)
	fw.ps.now = func() time.Time { return time.Now().Add(handOver) }
	ask(t, api, "/v1/projections/user").is(200, `"items":[]`)
	ask(t, api, "/v1/projections/user/u-03").is(421, "partition 0 of shop.events")
	fw.close()
}

// A question about a partition that nobody is at work on is answered with all that
// was folded, also if it is not in the store yet.
func TestQuestionsSeeWhatIsInMemory(t *testing.T) {
	w := newWorld(t)
	w.seldom = true
	for range 5 {
		w.add(userUpdated, "u")
	}
	fw := w.start()
	fw.ps.end = func(string, int32) int64 { return 1 << 40 }
	api := fw.api()
	now := time.Unix(1e9, 0)
	fw.ps.now = func() time.Time { return now }
	fw.batch(5)
	ask(t, api, "/v1/projections/user/u").is(404) // at work
	now = now.Add(idle)
	ask(t, api, "/v1/projections/user/u").is(200, `"version":5`)
	fw.commit()
	fw.handler.EndBatch(true)
	fw.stop()
}

func TestQuestionsAboutThePast(t *testing.T) {
	w := newWorld(t)
	const versions = 3*keyframeEvery + 7
	w.add(userCreated, "u")
	for range versions - 1 {
		w.add(userCreated, "other")
		w.add(userUpdated, "u")
	}
	fw := w.start()
	fw.run()
	api := fw.api()

	// As of each version, and as of the time of each event.
	for v := 1; v <= versions; v++ {
		offset := max(0, 2*(v-1))
		name := fmt.Sprintf(`"name":"name %d"`, offset)
		ask(t, api, fmt.Sprint("/v1/projections/user/u?at_version=", v)).is(200, fmt.Sprintf(`"version":%d,`, v), name, fmt.Sprintf(`"event_offset":%d,`, offset))
		when := time.UnixMicro(1767225600_000000 + int64(offset)).UTC().Format(time.RFC3339Nano)
		ask(t, api, "/v1/projections/user/u?at_time="+when).is(200, fmt.Sprintf(`"version":%d,`, v), name)
		when = time.UnixMilli(int64(offset)).UTC().Format(time.RFC3339Nano)
		ask(t, api, "/v1/projections/user/u?at_recorded_time="+when).is(200, fmt.Sprintf(`"version":%d,`, v), name)
	}
	ask(t, api, "/v1/projections/user/u?at_time=2020-01-01T00:00:00Z").is(404)
	ask(t, api, fmt.Sprint("/v1/projections/user/u?at_version=", versions+1)).is(404, fmt.Sprintf("which is at version %d", versions))
	ask(t, api, "/v1/projections/user/u?at_version=0").is(400)
	ask(t, api, "/v1/projections/user/u?at_time=yesterday").is(400, "RFC 3339")
	ask(t, api, "/v1/projections/user/u?at_version=1&at_time=2026-01-01T00:00:00Z").is(400, "give one")
	ask(t, api, "/v1/projections/user/nobody?at_version=1").is(404)

	page := ask(t, api, "/v1/projections/user/u/history?limit=3")
	page.is(200, `"type":"UserUpdated"`, `"event":{"id":"00000000-0000-4000-8000-`, fmt.Sprintf(`"next_before":%d`, versions-2))
	if got, want := fmt.Sprint(page.items("version")), fmt.Sprint([]int{versions, versions - 1, versions - 2}); got != want {
		t.Errorf("history has versions %s, want %s", got, want)
	}
	page = ask(t, api, "/v1/projections/user/u/history?before=3")
	page.is(200)
	if got := fmt.Sprint(page.items("version")); got != "[2 1]" || page.json["next_before"] != nil {
		t.Errorf("history before 3 has %s, then %v", got, page.json["next_before"])
	}

	why := ask(t, api, "/v1/projections/user/u/why")
	why.is(200)
	by := why.json["fields"].(map[string]any)
	for field, version := range map[string]float64{"id": 1, "email": 1, "name": versions} {
		if e := by[field].(map[string]any); e["version"] != version {
			t.Errorf("%s was last changed by version %v, want %v", field, e["version"], version)
		}
	}

	ask(t, api, fmt.Sprintf("/v1/events/00000000-0000-4000-8000-%012d", 2)).is(200, `"aggregate":"u","version":2`, `"offset":2,`, `"name":"name 2"`)
	ask(t, api, "/v1/events/none").is(404)

	var offsets []string
	cursor := ""
	for pages := 0; ; pages++ {
		page := ask(t, api, "/v1/events?type=UserCreated&limit=50&cursor="+cursor)
		page.is(200)
		offsets = append(offsets, page.items("offset")...)
		next, more := page.json["next_cursor"].(string)
		if !more || pages > 10 {
			break
		}
		cursor = next
	}
	if len(offsets) != versions || offsets[0] != fmt.Sprint(2*versions-3) || offsets[versions-1] != "0" {
		t.Errorf("%d events of the type, from %s to %s", len(offsets), offsets[0], offsets[len(offsets)-1])
	}
	ask(t, api, "/v1/events?type=shop.UserUpdated&limit=1").is(200, fmt.Sprintf(`"offset":%d`, 2*versions-2))
	ask(t, api, "/v1/events?type=Nothing").is(400, "UserCreated, UserDeleted, UserUpdated")
	fw.stop()
}

func TestWithoutHistoryThereIsNoPast(t *testing.T) {
	w := newWorld(t)
	w.history = false
	w.add(userCreated, "u")
	fw := w.start()
	fw.run()
	api := fw.api()
	ask(t, api, "/v1/projections/user/u").is(200)
	for _, path := range []string{"/v1/projections/user/u?at_version=1", "/v1/projections/user/u/history", "/v1/projections/user/u/why", "/v1/events/x", "/v1/events?type=UserCreated"} {
		ask(t, api, path).is(404, "--no-history")
	}
	for f := familyHistory; f <= familyShadow; f++ {
		if n := len(fw.entries(f)); n > 0 {
			t.Errorf("family %d has %d entries", f, n)
		}
	}
	fw.stop()
}
