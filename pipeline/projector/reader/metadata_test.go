package reader

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/fold"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/projector/query"
)

func text(s string) expr.Source { return expr.Source{Text: s} }

// readsRecords is a change of the fold of counted events: the text of an event has the key
// of its record and an expression over its headers.
func readsRecords(key, headers string) func(*fold.Spec) {
	return func(s *fold.Spec) {
		s.On[0].Set[0].Value = text("state.all.size() > 3 ? [data.text] : state.all + [data.text + '/' + " + key + " + '/' + " + headers + "]")
	}
}

// record gives the last event a key and headers.
func (w *world) record(key string, headers ...string) {
	in := &w.log[len(w.log)-1]
	in.Key = []byte(key)
	for i := 0; i+1 < len(headers); i += 2 {
		in.Headers = append(in.Headers, pipeline.Header{Key: headers[i], Value: []byte(headers[i+1])})
	}
}

// Whatever the records have, the state of an aggregate at each of its versions is, later,
// the one that it had at that time.
func TestThePastHasTheKeysAndHeadersOfRecords(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		window := rapid.Bool().Draw(rt, "windows")
		headers := rapid.SampledFrom([]string{"(has(headers.trace) ? headers.trace : 'none')", "headers.map(h, h + headers[h]).join(',')", "''"}).Draw(rt, "headers")
		of := rapid.SampledFrom([]struct {
			format keyformat.Format
			read   string
			keys   []string // "" is the id
		}{
			{keyformat.Format{}, "key", []string{"", "other", "\t"}},
			{keyformat.Format{Kind: keyformat.Int}, "string(key)", []string{"\x00\x00\x00\x07", "\xff\xff\xff\xff"}},
			{keyformat.Format{Kind: keyformat.UUID}, "key", []string{"0123456789abcdef"}},
			{keyformat.Format{Kind: keyformat.Bytes}, "key", []string{"\x00\xff", "a"}},
			{keyformat.Format{Kind: keyformat.Avro, Schema: eventtest.Schema(t, `{"type":"record","name":"K","fields":[{"name":"n","type":"long"},{"name":"tenant","type":"string"}]}`)},
				"key.tenant + string(key.n)", []string{"\x00\x00\x00\x00\x01\x02\x02t", "\x00\x00\x00\x00\x01\x04\x00"}},
		}).Draw(rt, "format")
		w := newCounts(t, func(s *fold.Spec) {
			s.Keys = of.format
			if readsRecords(of.read, headers)(s); window {
				s.Window = fold.Window{Size: time.Hour, Every: time.Hour}
			}
		})
		if of.format.Schema != nil {
			w.keys = []*codec.Schema{of.format.Schema}
		}
		fw := w.start()
		r := fw.reader()
		was := map[string][]string{} // states by version - 1
		for i := range rapid.IntRange(1, 90).Draw(rt, "events") {
			id := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "id")
			w.counted(id, 0, time.Duration(i)*time.Minute, fmt.Sprint("t", i))
			w.record(cmp.Or(rapid.SampledFrom(of.keys).Draw(rt, "key"), id))
			for range rapid.IntRange(0, 2).Draw(rt, "headers") {
				w.record(string(w.log[i].Key), rapid.SampledFrom([]string{"trace", "unread"}).Draw(rt, "name"), rapid.SampledFrom([]string{"", "x", "\xff"}).Draw(rt, "value"))
			}
			fw.run()
			if window {
				id = string(fold.AppendWindowID(nil, []byte(id), projectiontest.Epoch.Add(time.Duration(i)*time.Minute).Truncate(time.Hour).UnixMicro()))
			}
			was[id] = append(was[id], stateOf(t, r, id, 0))
		}
		for id, states := range was {
			for v, want := range states {
				if got := stateOf(t, r, id, int64(v+1)); got != want {
					rt.Errorf("%s at version %d is %s, was %s", id, v+1, got, want)
				}
			}
			why, err := r.Why(t.Context(), id)
			if err != nil || why.Fields["all"].Version != int64(len(states)) {
				rt.Errorf("why of %s: version %d, %v; want %d", id, why.Fields["all"].Version, err, len(states))
			}
		}
		fw.stop()
	})
}

// stateOf returns the state of an aggregate as JSON, at a version unless that is 0.
func stateOf(t testing.TB, r *Reader, id string, version int64) string {
	t.Helper()
	var a query.Aggregate
	var err error
	if version == 0 {
		a, err = r.Get(t.Context(), id)
	} else {
		a, err = r.GetAt(t.Context(), id, query.At{Version: version})
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := codec.AppendJSON(nil, r.fold.State().Root(), a.State)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Id, time and aggregate of an event can come from its headers and its key, in the history
// as well.
func TestHeadersReplaceTheEnvelopeInTheHistory(t *testing.T) {
	w := newCounts(t, func(s *fold.Spec) {
		s.Key = expr.Source{}
		s.Bare = &expr.Bare{ID: text("headers.id"), Time: text("timestamp(headers.at)"), Key: text("headers.tenant + '/' + key"), RecordKey: metadata.KeyOf(keyformat.Format{})}
	})
	for i, id := range []string{"e-1", "e-2", "e-1", "e-3"} {
		w.counted("k", 0, 0, fmt.Sprint("t", i))
		w.record("k", "id", id, "at", fmt.Sprintf("2026-01-01T10:0%d:00Z", i), "tenant", "t")
	}
	fw := w.start()
	fw.run()
	h := fw.api()
	projectiontest.Ask(t, h, "/v1/events/e-2").Is(http.StatusOK, `"t/k"`, `2026-01-01T10:01:00Z`)
	projectiontest.Ask(t, h, "/v1/projections/texts/t%2Fk?at_time=2026-01-01T10:02:00Z").Is(http.StatusOK, `"all":["t0","t1"]`)
	projectiontest.Ask(t, h, "/v1/projections/texts/t%2Fk/history").Is(http.StatusOK, `"e-1"`, `"e-2"`, `"e-3"`)
	projectiontest.Ask(t, h, "/v1/projections/texts/t%2Fk/diff?from=1&to=3").Is(http.StatusOK, `"t3"`)
	fw.stop()
}

// The history of a fold that reads no records does not have them, and can be read by a fold
// that was compiled from the same declaration in another way.
func TestTheHistoryOfAFoldThatReadsNoRecordsStaysReadable(t *testing.T) {
	w := newCounts(t, nil)
	for i := range 5 {
		w.counted("k", 0, 0, fmt.Sprint("t", i))
		w.record("other", "trace", "x")
	}
	fw := w.start()
	fw.run()
	fw.stop()
	w.types, w.fold = projectiontest.Counts(t, nil)
	fw = w.start()
	var got []string
	events, err := fw.reader().History(t.Context(), "k", 0, 10)
	for _, e := range events {
		got = append(got, e.ID)
	}
	if want := []string{"event t4", "event t3", "event t2", "event t1", "event t0"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	fw.stop()
}
