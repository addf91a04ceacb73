package reader

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
)

// askPost is projectiontest.Ask with POST.
func askPost(t testing.TB, h http.Handler, path string) projectiontest.Answer {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, nil))
	a := projectiontest.Answer{T: t, Status: w.Code, Header: w.Header(), Body: w.Body.String()}
	if err := json.Unmarshal(w.Body.Bytes(), &a.JSON); err != nil {
		t.Fatalf("%s: %v: %s", path, err, a.Body)
	}
	return a
}

func TestBlockedAggregatesAreListedAndReleasedOverHTTP(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("k")
	w.counted("k", 0, 0, "b")
	w.poison("n") // its first event
	w.counted("j", 0, 0, "c")
	fw := w.start()
	fw.run()
	api := fw.api()

	first := projectiontest.Ask(t, api, "/v1/blocked/texts?limit=1")
	first.Is(200, `"projection":"texts"`, `"id":"k","partition":0,"offset":1,`, `"reason":"bad_body"`, `"queued":1,"last":2`)
	rest := projectiontest.Ask(t, api, "/v1/blocked/texts?limit=1&cursor="+first.JSON["next_cursor"].(string))
	rest.Is(200, `"id":"n","partition":0,"offset":3,`, `"queued":0}`)
	last := projectiontest.Ask(t, api, "/v1/blocked/texts?cursor="+rest.JSON["next_cursor"].(string))
	last.Is(200, `"items":[]`)
	if last.JSON["next_cursor"] != nil {
		t.Errorf("after the last page there is %v", last.JSON["next_cursor"])
	}
	projectiontest.Ask(t, api, "/v1/blocked/texts?cursor=x").Is(400, "next_cursor")
	projectiontest.Ask(t, api, "/v1/blocked/texts?limit=0").Is(400)
	projectiontest.Ask(t, api, "/v1/blocked/text").Is(404, `did you mean \"texts\"`)
	askPost(t, api, "/v1/blocked/text/k/release").Is(404, `did you mean \"texts\"`)

	askPost(t, api, "/v1/blocked/texts/k/release?skip=perhaps").Is(400, "want true or false")
	askPost(t, api, "/v1/blocked/texts/k/release?skp=true").Is(400, `did you mean`)
	askPost(t, api, "/v1/blocked/texts/k/release").Is(200, `"id":"k","events":2,"blocked":{"id":"k","partition":0,"offset":1,`)
	askPost(t, api, "/v1/blocked/texts/k/release?skip=true").Is(200, `"id":"k","events":2}`)
	fw.wantTexts(map[string]string{"k": "a b", "j": "c"})
	projectiontest.Ask(t, api, "/v1/blocked/texts").Is(200, `"items":[{"id":"n"`)
	askPost(t, api, "/v1/blocked/texts/k/release").Is(409, "is not blocked", "projector blocked texts")
	askPost(t, api, "/v1/blocked/texts/j/release").Is(409, "is not blocked")
	askPost(t, api, "/v1/blocked/texts/nobody/release").Is(404, `no aggregate \"nobody\"`, "projector blocked texts")
	fw.stop()
}

// A release changes an aggregate by old events, and blocking changes it without one. A
// feed reports both, also if it is opened later.
func TestAFeedReportsBlockedAndReleasedAggregates(t *testing.T) {
	for _, history := range []bool{true, false} {
		t.Run(fmt.Sprint("history ", history), func(t *testing.T) {
			w := newCounts(t, nil)
			w.history = history
			w.counted("k", 0, 0, "a")
			w.counted("j", 0, 0, "b")
			fw := w.start()
			fw.run()
			fw.end = func() int64 { return 1000 }
			srv := httptest.NewServer(fw.api())
			defer srv.Close()
			at := srv.URL + "/v1/projections/texts/feed"
			all := projectiontest.Follow(t, at, "")
			all.Next("frontier")

			publish := func() { // what is due, in a batch with an event of another aggregate
				w.counted("other", 0, 0, fmt.Sprint(len(w.log)))
				fw.run()
			}
			w.poison("k")
			w.poison("new") // an aggregate without a state is not reported
			fw.run()
			if m := all.Next("snapshot"); m.Aggregate(t) != "k@1" || !strings.Contains(m.Data, `"status":"blocked"`) {
				t.Errorf("blocked: %+v", m)
			}
			w.counted("k", 0, 0, "c")
			publish()
			if m := all.Next("snapshot"); m.Aggregate(t) != "other@1" || m.ID != "0-6" {
				t.Errorf("%+v", m)
			}
			if _, err := fw.set.Release(t.Context(), fw.projection(), "k", true); err != nil {
				t.Fatal(err)
			}
			publish()
			released, other := all.Next("snapshot"), all.Next("snapshot")
			if released.Aggregate(t) != "k@2" || strings.Contains(released.Data, "status") || other.Aggregate(t) != "other@2" || other.ID != "0-7" {
				t.Errorf("released: %+v\n%+v", released, other)
			}
			all.Done()

			// Feeds that were interrupted before each of these changes.
			for last, want := range map[string][]string{
				"0-2": {"k@2", "other@2"},
				"0-5": {"k@2", "other@2"},
				"0-6": {"k@2", "other@2"},
				"0-7": nil,
			} {
				again := projectiontest.Follow(t, at, last)
				var got []string
				m := again.Next()
				for ; m.Event == "snapshot"; m = again.Next() {
					got = append(got, m.Aggregate(t))
				}
				if !equalSets(got, want) || m.ID != "0-7" {
					t.Errorf("after %s: %v, want %v; then continue at %s", last, got, want, m.ID)
				}
				again.Done()
			}
			one := projectiontest.Follow(t, at+"?id=k", "0-6")
			if m := one.Next("snapshot"); m.Aggregate(t) != "k@2" {
				t.Errorf("of one: %+v", m)
			}
			one.Done()

			// The same after a restart.
			fw.stop()
			fw = w.start()
			fw.run()
			again := httptest.NewServer(fw.api())
			defer again.Close()
			later := projectiontest.Follow(t, again.URL+"/v1/projections/texts/feed", "0-6")
			if a, b := later.Next("snapshot").Aggregate(t), later.Next("snapshot").Aggregate(t); !equalSets([]string{a, b}, []string{"k@2", "other@2"}) {
				t.Errorf("after a restart: %s and %s", a, b)
			}
			later.Done()
			fw.revoke()
			fw.close()
		})
	}
}

// equalSets compares without order.
func equalSets(a, b []string) bool {
	count := map[string]int{}
	for _, s := range a {
		count[s]++
	}
	for _, s := range b {
		count[s]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// Events with numbers may come out of order: an event that had waited is before events
// that were reported already.
func TestAFeedReportsChangesByEventsThatHadWaited(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 1, 0, "a")
	w.counted("k", 3, 0, "c") // offset 1
	w.counted("j", 0, 0, "x")
	fw := w.start()
	fw.run()
	fw.end = func() int64 { return 1000 }
	srv := httptest.NewServer(fw.api())
	defer srv.Close()
	at := srv.URL + "/v1/projections/texts/feed"
	all := projectiontest.Follow(t, at, "")
	if m := all.Next("frontier"); m.ID != "0-3" {
		t.Errorf("%+v", m)
	}
	w.counted("k", 2, 0, "b") // offset 3; the offset of the state is 1 then
	w.counted("j", 0, 0, "y")
	fw.run()
	k, j := all.Next("snapshot"), all.Next("snapshot")
	if k.Aggregate(t) != "k@3" || j.Aggregate(t) != "j@2" || j.ID != "0-5" {
		t.Errorf("%+v\n%+v", k, j)
	}
	all.Done()
	for last, want := range map[string]string{"0-2": "[k@3 j@2]", "0-3": "[k@3 j@2]", "0-4": "[j@2]", "0-5": "[]"} {
		again := projectiontest.Follow(t, at, last)
		got := []string{}
		for m := again.Next(); m.Event == "snapshot"; m = again.Next() {
			got = append(got, m.Aggregate(t))
		}
		if fmt.Sprint(got) != want {
			t.Errorf("after %s: %v, want %s", last, got, want)
		}
		again.Done()
	}
	fw.stop()
}

// A release that finds its partition revoked finds the aggregate not blocked.
func TestAReleaseAfterARevokeIsRefused(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("k")
	fw := w.start()
	fw.run()
	fw.revoke()
	if _, err := fw.reader().Release(t.Context(), "k", true); !errors.Is(err, query.ErrNotBlocked) {
		t.Errorf("the release returned %v, want %v", err, query.ErrNotBlocked)
	}
	fw.close()
}
