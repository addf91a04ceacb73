package reader

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
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
	askPost(t, api, "/v1/blocked/texts/k/release").Is(200, `"id":"k","events":0,"blocked":{"id":"k","partition":0,"offset":1,`)
	askPost(t, api, "/v1/blocked/texts/k/release?skip=true").Is(200, `"id":"k","events":2}`)
	fw.wantTexts(map[string]string{"k": "a b", "j": "c"})
	projectiontest.Ask(t, api, "/v1/blocked/texts").Is(200, `"items":[{"id":"n"`)
	askPost(t, api, "/v1/blocked/texts/k/release").Is(409, "is not blocked", "projector blocked texts")
	askPost(t, api, "/v1/blocked/texts/j/release").Is(409, "is not blocked")
	askPost(t, api, "/v1/blocked/texts/nobody/release").Is(404, `no aggregate \"nobody\"`, "projector blocked texts")
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

// A release whose partition moves away while the log is read says nothing about it: the
// aggregate may be blocked at the next owner, so "not found" would be wrong.
func TestAReleaseDoesNotAnswerForAPartitionThatMovesAway(t *testing.T) {
	w := newCounts(t, nil)
	w.counted("k", 0, 0, "a")
	w.poison("k")
	fw := w.start()
	fw.run()
	w.reading = fw.revoke
	part, err := fw.reader().ReleasePart(t.Context(), "k", true)
	if err != nil || part.Released != nil || len(part.At) > 0 {
		t.Errorf("the release returned %+v, %v; want no result and no position", part, err)
	}
	fw.close()
}
