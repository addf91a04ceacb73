package reader

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/projector/projectiontest"
)

// timed adds a counted event of an aggregate at a time, in microseconds since 1970. Its
// record has the same number as its time in milliseconds.
func (w *world) timed(id string, micros int64) {
	body := codec.AppendLong(codec.AppendString(nil, fmt.Sprint("event ", len(w.log))), micros)
	body = codec.AppendLong(body, 0)
	body = codec.AppendString(codec.AppendString(body, id), "x")
	w.append(id, append(codec.AppendFrame(nil, 0), body...))
	w.log[len(w.log)-1].Time = time.UnixMilli(micros)
}

// Epoch nanoseconds in a field of microseconds are a common slip.
func TestEveryEventTimeIsAnswered(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		times := rapid.SliceOfN(rapid.OneOf(rapid.Int64(), rapid.Int64Range(-1e17, 1e18),
			rapid.SampledFrom([]int64{math.MinInt64, math.MaxInt64, 1714557600000000000, 253402300800e6, -62167219200e6 - 1, 0})), 1, 5).Draw(rt, "times")
		w := newCounts(t, nil)
		for i, micros := range times {
			w.timed(fmt.Sprint("k-", i), micros)
		}
		fw := w.start()
		fw.run()
		api := fw.api()
		defer func() {
			fw.revoke()
			if err := fw.store.Close(); err != nil {
				t.Fatal(err)
			}
		}()
		var want []string
		for _, micros := range times {
			text, err := json.Marshal(pipeline.UnixMicro(micros))
			if err != nil {
				rt.Fatal(err)
			}
			want = append(want, string(text))
		}
		shown := func(path, field string) {
			page := projectiontest.Ask(t, api, path)
			page.Is(200)
			var got struct {
				Items []map[string]json.RawMessage `json:"items"`
			}
			if err := json.Unmarshal([]byte(page.Body), &got); err != nil {
				rt.Fatal(err)
			}
			var have []string
			for _, it := range got.Items {
				have = append(have, string(it[field]))
			}
			slices.Sort(have)
			sorted := slices.Sorted(slices.Values(want))
			if !slices.Equal(have, sorted) {
				rt.Errorf("%s has the times %v, want %v", path, have, sorted)
			}
		}
		shown("/v1/projections/texts", "event_time")
		shown("/v1/projections/texts?sort=event_time", "event_time")
		shown("/v1/events?type=Counted", "time")
		for i := range times {
			for _, path := range []string{"k-%d", "k-%d/history", "k-%d/why", "k-%d/diff?from=0&to=1", "k-%d?at_version=1", "k-%d?at_time=" + url.QueryEscape(pipeline.UnixMicro(times[i]).String())} {
				projectiontest.Ask(t, api, "/v1/projections/texts/"+fmt.Sprintf(path, i)).Is(200, want[i])
			}
		}
		projectiontest.Ask(t, api, "/v1/projections/texts?filter="+url.QueryEscape("event_time > timestamp('2000-01-01T00:00:00Z')")).Is(200)
	})
}

func TestAFeedGoesOnAfterAnEventTimeWithoutAText(t *testing.T) {
	w := newCounts(t, nil)
	w.end = func() int64 { return 0 } // called by the feed's goroutine
	fw := w.start()
	srv := httptest.NewServer(fw.api())
	defer srv.Close()
	add := func(id string, micros int64) {
		w.timed(id, micros)
		fw.run()
	}
	f := projectiontest.Follow(t, srv.URL+"/v1/projections/texts/feed", "")
	f.Next("frontier")
	add("nanos", 1714557600000000000)
	if m := f.Next("snapshot"); m.Aggregate(t) != "nanos@1" || !strings.Contains(m.Data, `"event_time":1714557600000000000`) {
		t.Errorf("%+v", m)
	}
	add("good", 1714557600000000)
	if m := f.Next("snapshot"); m.Aggregate(t) != "good@1" {
		t.Errorf("%+v", m)
	}
	f.Done()
}
