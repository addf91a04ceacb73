package chain_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/processor/processortest"
)

// Events of different keys call the service at the same time, events of one key one after
// the other. The output has the order of the input.
func TestLanesCallAServiceConcurrentlyAndKeepTheOrder(t *testing.T) {
	const keys, each, lanes = 16, 5, 8
	var mu sync.Mutex
	active, most := map[string]bool{}, 0 // keys with a call
	together := make(chan struct{})      // closed when three calls are active
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := strings.Trim(r.URL.Path, "/")
		mu.Lock()
		if active[key] {
			t.Errorf("two events of %s call at the same time", key)
		}
		active[key] = true
		if most = max(most, len(active)); most == 3 {
			close(together)
			most++ // close only once
		}
		mu.Unlock()
		select {
		case <-together:
		case <-time.After(time.Minute):
			t.Error("timeout: no three calls at the same time")
		}
		mu.Lock()
		delete(active, key)
		mu.Unlock()
		fmt.Fprintf(w, `{"id": %q, "title": "title of %s"}`, key, key)
	}))
	defer service.Close()
	b := processortest.NewBench(t, fmt.Sprintf(`
name: web
topics:
  clicks: {partitions: 1, types: [Click], envelope: none}
  titled: {partitions: 1}
  dead: {partitions: 1}
pipelines:
  title:
    from: clicks
    stages:
      - http:
          url: "'%s/' + id"
          response: Page
          add: {title: {type: string, value: response.body.title}}
          concurrency: %d
          cache: {entries: 0}
    to: titled
    dead_letter: dead
`, service.URL, lanes))
	b.Start("one")
	b.Write(keys*each, func(i int) *pipeline.Record {
		r := b.Click(fmt.Sprint("page", i%keys), int64(i), time.Now())
		r.Topic = "clicks"
		return r
	})
	b.CaughtUp()
	i := 0
	b.Read("titled", func(r *pipeline.Record) {
		body := r.Value[codec.FrameSize:]
		id, rest, _ := codec.ReadText(body)
		n, rest, _ := codec.ReadLong(rest)
		title, _, err := codec.ReadText(rest)
		if err != nil || int(n) != i || string(title) != "title of "+string(id) {
			t.Errorf("record %d is number %d of %s with title %q (%v)", i, n, id, title, err)
		}
		i++
	})
	if i != keys*each {
		t.Errorf("%d of %d records were emitted", i, keys*each)
	}
}
