package reader

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
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
		{"filter=" + url.QueryEscape("10 / (version - 1) > 1"), []string{"filter failed for aggregate"}},
		{"sort=name", []string{"state.FIELD"}},
		{"sort=state.nmae", []string{"state.name"}},
		{"limt=3", []string{"unknown parameter limt", "limit"}},
		{"limit=1&limit=2", []string{"given 2 times"}},
		{"filter=" + strings.Repeat("x", 5000), []string{"the limit is 4096"}},
	} {
		projectiontest.Ask(t, api, "/v1/projections/user?"+c.query).Is(400, c.has...)
	}
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

func TestAFeedReportsCommittedChangesAndContinues(t *testing.T) {
	w := newWorld(t)
	w.add(projectiontest.UserCreated, "a")
	w.add(projectiontest.UserCreated, "b")
	fw := w.start()
	add := fw.addConcurrently()
	fw.run()
	srv := httptest.NewServer(fw.api())
	defer srv.Close()
	at := srv.URL + "/v1/projections/user/feed"

	all := projectiontest.Follow(t, at, "")
	if m := all.Next(); m.Event != "frontier" || m.ID != "0-2" || !strings.Contains(m.Data, `"offset":2,"lag":0`) {
		t.Fatalf("the first message is %+v", m)
	}
	one := projectiontest.Follow(t, at+"?id=b", "")
	named := projectiontest.Follow(t, at+"?filter="+url.QueryEscape("state.name == 'name 3'"), "")
	one.Next("frontier")
	named.Next("frontier")

	add(projectiontest.UserUpdated, "a")
	add(projectiontest.UserUpdated, "b")
	fw.batch(2)
	fw.abort(fw.at) // the changes are not reported, because the transaction failed
	add(projectiontest.UserUpdated, "a")
	fw.batch(1)
	fw.commit()
	// Both states of one batch, each with the offset from which a feed continues after it.
	if m := all.Next("snapshot"); m.Aggregate(t) != "b@2" || m.ID != "0-4" {
		t.Errorf("%+v", m)
	}
	m := all.Next("snapshot")
	if m.Aggregate(t) != "a@3" || m.ID != "0-5" {
		t.Errorf("%+v", m)
	}
	all.Done()
	if m := one.Next("snapshot"); m.Aggregate(t) != "b@2" || m.ID != "0-5" {
		t.Errorf("%+v", m)
	}
	if m := named.Next("snapshot"); m.Aggregate(t) != "b@2" || m.ID != "0-4" {
		t.Errorf("%+v", m)
	}
	one.Done()
	named.Done()

	// Without a feed, c is created and a changes twice.
	add(projectiontest.UserCreated, "c")
	add(projectiontest.UserUpdated, "a")
	add(projectiontest.UserUpdated, "a")
	fw.run()
	again := projectiontest.Follow(t, at, "0-5")
	got := []string{again.Next("snapshot").Aggregate(t)}
	m = again.Next("snapshot")
	if got = append(got, m.Aggregate(t)); fmt.Sprint(got) != "[c@1 a@5]" || m.ID != "0-8" {
		t.Errorf("after a pause: %v, then continue at %s", got, m.ID)
	}
	again.Done()

	// A feed from the beginning can also be interrupted after each message.
	for n := 1; n < 3; n++ {
		start := projectiontest.Follow(t, at+"?from=beginning", "")
		got = nil
		for range n {
			m = start.Next("snapshot")
			got = append(got, m.Aggregate(t))
		}
		start.Done()
		rest := projectiontest.Follow(t, at, m.ID)
		for range 3 - n {
			m = rest.Next("snapshot")
			got = append(got, m.Aggregate(t))
		}
		rest.Done()
		if fmt.Sprint(got) != "[b@2 c@1 a@5]" || m.ID != "0-8" {
			t.Errorf("from the beginning, interrupted after %d: %v, then continue at %s", n, got, m.ID)
		}
	}
	start := projectiontest.Follow(t, at, "0-0")
	for range 3 {
		start.Next("snapshot")
	}
	projectiontest.Ask(t, fw.api(), "/v1/projections/user/feed", "Last-Event-ID", "0-8,7-9").Is(400, "partition 7")
	projectiontest.Ask(t, fw.api(), "/v1/projections/user/feed", "Last-Event-ID", "0-9").Is(400, "ends at 8")
	// The partition moves to another worker.
	fw.stop()
	if m := start.Next("end"); !strings.Contains(m.Data, `"reason":"moved"`) {
		t.Errorf("%+v", m)
	}
	start.Done()

	projectiontest.Ask(t, fw.api(), "/v1/projections/user/feed?from=yesterday").Is(400)
	projectiontest.Ask(t, fw.api(), "/v1/projections/user/feed", "Last-Event-ID", "x").Is(400)
}

// One event may change several overlapping windows.
func TestAFeedContinuesAfterAnEventOnlyWhenAllItsChangesAreReported(t *testing.T) {
	l := &followed{next: 5, base: 5}
	queued := projection.Committed{At: query.Position{Offset: 9}}
	for i, next := range []int64{5, 7, 7, 7, 8} {
		queued.Aggregates = append(queued.Aggregates, projection.ChangedAggregate{Aggregate: query.Aggregate{ID: fmt.Sprint(i)}, Next: next})
	}
	var got []string
	c := l.fresh(queued)
	for i, a := range c.Aggregates {
		got = append(got, fmt.Sprint(a.ID, ":", c.Next[i]))
	}
	if fmt.Sprint(got) != "[1:6 2:6 3:7 4:8]" || l.next != 9 {
		t.Errorf("%v, then %d", got, l.next)
	}
	if c := l.fresh(queued); len(c.Aggregates) > 0 {
		t.Errorf("reported again: %v", c.Aggregates)
	}
}

// If there are too many aggregates to sort by the log, they are reported in the order of
// their ids, and a feed can continue only after the last one.
func TestWithoutAHistoryManyAggregatesAreReportedInTheOrderOfTheirIDs(t *testing.T) {
	w := newWorld(t)
	fw := w.start()
	add := fw.addConcurrently()
	for _, id := range []string{"c", "b", "a"} {
		add(projectiontest.UserCreated, id)
	}
	fw.run()
	for _, c := range []struct {
		most int
		want string
	}{{3, "[c:1 b:2 a:3]"}, {2, "[a: b: c:3]"}} {
		changes := fw.set.Subscribe("")
		l, err := fw.reader().join(0, changes)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		p := &replay{to: l, ctx: t.Context(), view: l.partition.View(), f: func(c query.Changes) error {
			for i, a := range c.Aggregates {
				next := ""
				if c.Next != nil {
					next = fmt.Sprint(c.Next[i])
				} else if i == len(c.Aggregates)-1 {
					next = fmt.Sprint(l.joined)
				}
				got = append(got, a.ID+":"+next)
			}
			return nil
		}}
		err = p.byState(c.most)
		p.flush(false)
		if err = errors.Join(err, p.failed, p.view.Close()); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("at most %d sorted: %v (%v), want %s", c.most, got, err, c.want)
		}
		changes.Close()
	}
	fw.stop()
}

func TestAFollowerThatIsTooSlowIsDropped(t *testing.T) {
	w := newWorld(t)
	fw := w.start()
	add := fw.addConcurrently()
	r := fw.reader()
	stuck, ended := make(chan struct{}), make(chan error, 1)
	joined, entered := make(chan struct{}), make(chan struct{})
	go func() {
		started, first := false, true
		ended <- r.Follow(t.Context(), query.Start{}, func(c query.Changes) error {
			if !started {
				started = true
				close(joined)
			}
			if len(c.Aggregates) > 0 && first {
				first = false
				close(entered)
				<-stuck
			}
			return nil
		})
	}()
	one := func(n int) {
		for range n {
			add(projectiontest.UserCreated, fmt.Sprint("u-", len(w.log)))
		}
		fw.batch(n)
		fw.commit()
	}
	<-joined
	one(1)
	<-entered
	for range 3 {
		one(1 << 13) // half of the queue of a subscription
	}
	close(stuck)
	if err := <-ended; !errors.Is(err, query.ErrSlow) {
		t.Errorf("the feed ended with %v", err)
	}
	fw.stop()
}

// The OpenAPI document is generated from the routes. This test compares it, and its copy,
// with the answers to requests of every kind.
func TestAnswersMatchTheOpenAPIDocument(t *testing.T) {
	file := harness.RepoFile("docs", "openapi.json")
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile(file, query.OpenAPI(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(kept) != string(query.OpenAPI()) {
		t.Errorf("%s differs from the document that the program serves: run this test with UPDATE_SCRIPTS=1", file)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(kept)))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	if err := compiler.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}

	w := newWorld(t)
	w.add(projectiontest.UserCreated, "u")
	w.add(projectiontest.UserUpdated, "u")
	w.add(projectiontest.UserDeleted, "u")
	w.add(projectiontest.UserUpdated, "u")
	w.add(projectiontest.UserCreated, "v")
	w.poison("v")
	fw := w.start()
	fw.run()
	api := fw.api()
	next := projectiontest.Ask(t, api, "/v1/projections/user?limit=1&filter=true&sort=-version").JSON["next_cursor"].(string)
	event := projectiontest.Ask(t, api, "/v1/events?type=UserUpdated&limit=1").JSON["next_cursor"].(string)
	asked := map[string]bool{} // path, parameter and status
	for _, c := range []struct {
		path    string
		args    string
		status  int
		headers []string
	}{
		{"/v1/openapi.json", "", 200, nil},
		{"/v1/projections", "", 200, nil},
		{"/v1/projections/{name}", "filter=true&sort=version&limit=1", 200, nil},
		{"/v1/projections/{name}", "cursor=" + next, 200, nil},
		{"/v1/projections/{name}", "after_event=" + projectiontest.FoldedID(0) + "&wait=1s&after_position=0:0", 200, nil},
		{"/v1/projections/{name}", "after_event=none", 504, nil},
		{"/v1/projections/{name}", "after_event=" + projectiontest.FoldedID(3), 409, nil},
		{"/v1/projections/{name}", "filter=1", 400, nil},
		{"/v1/projections/{name}/feed", "from=now&filter=true&id=u", 200, []string{"Last-Event-ID", "0-0"}},
		{"/v1/projections/{name}/{id}", "", 200, nil},
		{"/v1/projections/{name}/{id}", "", 304, []string{"If-None-Match", "*"}},
		{"/v1/projections/{name}/{id}", "at_version=1", 200, nil},
		{"/v1/projections/{name}/{id}", "at_time=2030-01-01T00:00:00Z", 200, nil},
		{"/v1/projections/{name}/{id}", "at_recorded_time=2030-01-01T00:00:00Z", 200, nil},
		{"/v1/projections/{name}/{id}", "min_version=2&after_event=" + projectiontest.FoldedID(0) + "&wait=1s&after_position=0:0", 200, nil},
		{"/v1/projections/{name}/{id}", "min_version=9", 504, nil},
		{"/v1/projections/{name}/{id}", "after_event=" + projectiontest.FoldedID(3), 409, nil},
		{"/v1/projections/{name}/{id}/history", "limit=1&before=3", 200, nil},
		{"/v1/projections/{name}/{id}/why", "", 200, nil},
		{"/v1/projections/{name}/{id}/diff", "from=1&to=2", 200, nil},
		{"/v1/projections/{name}/{id}/diff", "from=0&to=1", 200, nil},
		{"/v1/events", "type=UserUpdated&limit=1&cursor=" + event, 200, nil},
		{"/v1/events", "type=UserCreated", 200, nil},
		{"/v1/events/{id}", "", 200, nil},
		{"/v1/blocked/{name}", "limit=1", 200, nil},
		{"/v1/blocked/{name}", "cursor=" + event, 200, nil},
		{"/v1/blocked/{name}/v/release", "", 200, nil},
		{"/v1/blocked/{name}/v/release", "skip=true", 200, nil},
		{"/v1/blocked/{name}/v/release", "skip=perhaps", 400, nil},
		{"/v1/blocked/{name}/v/release", "", 409, nil},
		{"/v1/blocked/{name}/nobody/release", "", 404, nil},
	} {
		id := "u"
		if strings.HasPrefix(c.path, "/v1/events/") {
			id = projectiontest.FoldedID(0)
		}
		method, verb := http.MethodGet, "get"
		if strings.HasSuffix(c.path, "/feed") {
			method = http.MethodHead // its body is a stream
		}
		if of, ok := strings.CutPrefix(c.path, "/v1/blocked/{name}/"); ok {
			method, verb = http.MethodPost, "post"
			id, _, _ = strings.Cut(of, "/")
			c.path = "/v1/blocked/{name}/{id}/release"
		}
		r := httptest.NewRequest(method, strings.NewReplacer("{name}", "user", "{id}", id).Replace(c.path)+"?"+c.args, nil)
		for i := 0; i < len(c.headers); i += 2 {
			r.Header.Set(c.headers[i], c.headers[i+1])
			asked[c.path+" "+c.headers[i]] = true
		}
		out := httptest.NewRecorder()
		api.ServeHTTP(out, r)
		if out.Code != c.status {
			t.Errorf("%s: status %d, want %d: %s", r.URL, out.Code, c.status, out.Body)
			continue
		}
		for name := range r.URL.Query() {
			asked[c.path+" "+name] = true
		}
		asked[fmt.Sprint(c.path, " ", c.status)] = true

		// The schema is that of the status, else the default.
		status := fmt.Sprint(c.status)
		op := member(doc, "paths", c.path, verb)
		if member(op, "responses", status) == nil {
			status = "default"
		}
		content, ok := member(op, "responses", status, "content").(map[string]any)
		if !ok || method == http.MethodHead {
			continue
		}
		kind := out.Header().Get("Content-Type")
		if content[kind] == nil {
			t.Errorf("%s: the document has no answer of type %s", r.URL, kind)
			continue
		}
		escape := strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D")
		schema, err := compiler.Compile("openapi.json#/paths/" + escape.Replace(c.path) + "/" + verb + "/responses/" + status + "/content/" + escape.Replace(kind) + "/schema")
		if err != nil {
			t.Fatal(err)
		}
		body, err := jsonschema.UnmarshalJSON(out.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(body); err != nil {
			t.Errorf("%s: %v", r.URL, err)
		}
	}
	// Everything in the document was requested.
	for path, item := range member(doc, "paths").(map[string]any) {
		op := member(item, "get")
		if op == nil {
			op = member(item, "post")
		}
		params, _ := member(op, "parameters").([]any)
		for _, p := range params {
			if name := member(p, "name").(string); member(p, "in") != "path" && !asked[path+" "+name] {
				t.Errorf("%s: no request with %s", path, name)
			}
		}
		for status := range member(op, "responses").(map[string]any) {
			// A release is answered with 504 only if another worker does not answer.
			if status != "default" && status != "422" && (status != "504" || member(item, "post") == nil) && !asked[path+" "+status] {
				t.Errorf("%s: no answer with status %s", path, status)
			}
		}
	}
	fw.stop()
}

// member returns a value in nested JSON objects.
func member(v any, path ...string) any {
	for _, name := range path {
		o, _ := v.(map[string]any)
		v = o[name]
	}
	return v
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

// The records of an aborted batch are read again, in other batches.
func TestAFeedReportsTheChangesOfAnAbortedBatchOnce(t *testing.T) {
	w := newWorld(t)
	fw := w.start()
	add := fw.addConcurrently()
	srv := httptest.NewServer(fw.api())
	defer srv.Close()
	all := projectiontest.Follow(t, srv.URL+"/v1/projections/user/feed", "")
	all.Next("frontier")
	for i := range 6 {
		add(projectiontest.UserCreated, fmt.Sprint("u-", i))
	}
	fw.batch(6)
	fw.abort(0)
	for range 3 {
		fw.batch(2)
		fw.commit()
	}
	add(projectiontest.UserCreated, "last")
	fw.run()
	var got []string
	for len(got) == 0 || got[len(got)-1] != "last@1" {
		got = append(got, all.Next("snapshot").Aggregate(t))
	}
	if fmt.Sprint(got) != "[u-0@1 u-1@1 u-2@1 u-3@1 u-4@1 u-5@1 last@1]" {
		t.Errorf("it reports %v", got)
	}
	all.Done()
	fw.stop()
}
