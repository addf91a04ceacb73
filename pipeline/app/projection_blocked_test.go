package app

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"millrace/pipeline/kafka"
)

// askPost is ask with POST.
func askPost(t testing.TB, h http.Handler, path string) asked {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, nil))
	a := asked{t: t, status: w.Code, header: w.Header(), body: w.Body.String()}
	if err := json.Unmarshal(w.Body.Bytes(), &a.json); err != nil {
		t.Fatalf("%s: %v: %s", path, err, a.body)
	}
	return a
}

func TestWhatIsBlockedIsListedAndReleasedOverHTTP(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("k")
	w.counted("k", 0, 0, "b")
	w.poison("n") // the first that comes of it
	w.counted("j", 0, 0, "c")
	fw := w.start()
	fw.run()
	api := fw.api()

	first := ask(t, api, "/v1/blocked/texts?limit=1")
	first.is(200, `"projection":"texts"`, `"id":"k","partition":0,"offset":1,`, `"reason":"bad_body"`, `"queued":1,"last":2`)
	rest := ask(t, api, "/v1/blocked/texts?limit=1&cursor="+first.json["next_cursor"].(string))
	rest.is(200, `"id":"n","partition":0,"offset":3,`, `"queued":0}`)
	last := ask(t, api, "/v1/blocked/texts?cursor="+rest.json["next_cursor"].(string))
	last.is(200, `"items":[]`)
	if last.json["next_cursor"] != nil {
		t.Errorf("after the last there is %v", last.json["next_cursor"])
	}
	ask(t, api, "/v1/blocked/texts?cursor=x").is(400, "next_cursor")
	ask(t, api, "/v1/blocked/texts?limit=0").is(400)
	ask(t, api, "/v1/blocked/text").is(404, `did you mean \"texts\"`)
	askPost(t, api, "/v1/blocked/text/k/release").is(404, `did you mean \"texts\"`)

	askPost(t, api, "/v1/blocked/texts/k/release?skip=perhaps").is(400, "want true or false")
	askPost(t, api, "/v1/blocked/texts/k/release?skp=true").is(400, `did you mean`)
	askPost(t, api, "/v1/blocked/texts/k/release").is(200, `"id":"k","events":2,"blocked":{"id":"k","partition":0,"offset":1,`)
	askPost(t, api, "/v1/blocked/texts/k/release?skip=true").is(200, `"id":"k","events":2}`)
	wants(t, fw, map[string]string{"k": "a b", "j": "c"})
	ask(t, api, "/v1/blocked/texts").is(200, `"items":[{"id":"n"`)
	askPost(t, api, "/v1/blocked/texts/k/release").is(409, "is not blocked", "projector blocked texts")
	askPost(t, api, "/v1/blocked/texts/j/release").is(409, "is not blocked")
	askPost(t, api, "/v1/blocked/texts/nobody/release").is(404, `no aggregate \"nobody\"`, "projector blocked texts")
	fw.stop()
}

// A release changes an aggregate by events of long ago, and blocking one changes
// it by none: whoever follows is told all the same, and so is whoever comes back.
func TestAFeedTellsOfWhatIsBlockedAndReleased(t *testing.T) {
	for _, history := range []bool{true, false} {
		t.Run(fmt.Sprint("history ", history), func(t *testing.T) {
			w := newCounts(t, nil)
			w.history = history
			w.counted("k", 0, 0, "a")
			w.counted("j", 0, 0, "b")
			fw := w.start()
			fw.run()
			fw.ps.end = func(string, int32) int64 { return 1000 }
			srv := httptest.NewServer(fw.api())
			defer srv.Close()
			at := srv.URL + "/v1/projections/texts/feed"
			all := follow(t, at, "")
			all.next("frontier")

			tell := func() { // all that is due, in a batch with an event of another
				w.counted("other", 0, 0, fmt.Sprint(len(w.log)))
				fw.run()
			}
			w.poison("k")
			w.poison("new") // of which there is nothing to be told
			fw.run()
			if m := all.next("snapshot"); m.aggregate(t) != "k@1" || !strings.Contains(m.data, `"status":"blocked"`) {
				t.Errorf("blocked: %+v", m)
			}
			w.counted("k", 0, 0, "c")
			tell()
			if m := all.next("snapshot"); m.aggregate(t) != "other@1" || m.id != "0-6" {
				t.Errorf("%+v", m)
			}
			fw.release("k", true)
			tell()
			released, other := all.next("snapshot"), all.next("snapshot")
			if released.aggregate(t) != "k@2" || strings.Contains(released.data, "status") || other.aggregate(t) != "other@2" || other.id != "0-7" {
				t.Errorf("released: %+v\n%+v", released, other)
			}
			all.done()

			// Whoever went away before each of them.
			for last, want := range map[string][]string{
				"0-2": {"k@2", "other@2"},
				"0-5": {"k@2", "other@2"},
				"0-6": {"k@2", "other@2"},
				"0-7": nil,
			} {
				again := follow(t, at, last)
				var got []string
				m := again.next()
				for ; m.event == "snapshot"; m = again.next() {
					got = append(got, m.aggregate(t))
				}
				if !equalSets(got, want) || m.id != "0-7" {
					t.Errorf("after %s: %v, want %v; then go on at %s", last, got, want, m.id)
				}
				again.done()
			}
			one := follow(t, at+"?id=k", "0-6")
			if m := one.next("snapshot"); m.aggregate(t) != "k@2" {
				t.Errorf("of one: %+v", m)
			}
			one.done()

			// What is known of it survives a restart.
			fw.stop()
			fw = w.start()
			fw.run()
			again := httptest.NewServer(fw.api())
			defer again.Close()
			later := follow(t, again.URL+"/v1/projections/texts/feed", "0-6")
			if a, b := later.next("snapshot").aggregate(t), later.next("snapshot").aggregate(t); !equalSets([]string{a, b}, []string{"k@2", "other@2"}) {
				t.Errorf("after a restart: %s and %s", a, b)
			}
			later.done()
			fw.handler.Revoke([]kafka.Partition{{Topic: testTopic}})
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

// Events with numbers may come in another order: one that had waited stands before
// what was told already.
func TestAFeedTellsOfEventsThatHadWaited(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 1, 0, "a")
	w.counted("k", 3, 0, "c") // offset 1
	w.counted("j", 0, 0, "x")
	fw := w.start()
	fw.run()
	fw.ps.end = func(string, int32) int64 { return 1000 }
	srv := httptest.NewServer(fw.api())
	defer srv.Close()
	at := srv.URL + "/v1/projections/texts/feed"
	all := follow(t, at, "")
	if m := all.next("frontier"); m.id != "0-3" {
		t.Errorf("%+v", m)
	}
	w.counted("k", 2, 0, "b") // offset 3, and the state stands at offset 1 then
	w.counted("j", 0, 0, "y")
	fw.run()
	k, j := all.next("snapshot"), all.next("snapshot")
	if k.aggregate(t) != "k@3" || j.aggregate(t) != "j@2" || j.id != "0-5" {
		t.Errorf("%+v\n%+v", k, j)
	}
	all.done()
	for last, want := range map[string]string{"0-2": "[k@3 j@2]", "0-3": "[k@3 j@2]", "0-4": "[j@2]", "0-5": "[]"} {
		again := follow(t, at, last)
		got := []string{}
		for m := again.next(); m.event == "snapshot"; m = again.next() {
			got = append(got, m.aggregate(t))
		}
		if fmt.Sprint(got) != want {
			t.Errorf("after %s: %v, want %s", last, got, want)
		}
		again.done()
	}
	fw.stop()
}
