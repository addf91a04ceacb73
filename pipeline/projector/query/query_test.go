package query

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
)

// broken is a projection whose methods all fail with err.
type broken struct{ err error }

func (b broken) Describe() Description { return Description{Name: "p", Version: "0123456789abcdef"} }
func (b broken) Partitions() []Position {
	return []Position{{Partition: 3, Offset: 7, Lag: 1}}
}
func (b broken) AllPartitions(context.Context) ([]Position, map[int32]string, error) {
	return nil, nil, b.err
}
func (b broken) Types() []*codec.Schema                               { return nil }
func (b broken) Get(context.Context, string) (Aggregate, error)       { return Aggregate{}, b.err }
func (b broken) GetAt(context.Context, string, At) (Aggregate, error) { return Aggregate{}, b.err }
func (b broken) Event(context.Context, string, string) (Event, error) { return Event{}, b.err }
func (b broken) Why(context.Context, string) (Why, error)             { return Why{}, b.err }
func (b broken) Outcome(context.Context, EventRef) (Outcome, error)   { return Outcome{}, b.err }
func (b broken) Await(context.Context, EventRef, time.Duration) (Outcome, error) {
	return Outcome{}, b.err
}
func (b broken) Changed() <-chan struct{} { return nil }
func (b broken) Scan(context.Context, string, func(Aggregate) bool) ([]Position, error) {
	return nil, b.err
}
func (b broken) History(context.Context, string, int64, int) ([]Event, error) { return nil, b.err }
func (b broken) Diff(context.Context, string, int64, int64) (x, y Aggregate, fields []string, err error) {
	return x, y, nil, b.err
}
func (b broken) Events(context.Context, string, *EventCursor, int) ([]Event, []Position, error) {
	return nil, nil, b.err
}
func (b broken) Blocked(context.Context, *EventCursor, int) ([]BlockedAggregate, error) {
	return nil, b.err
}
func (b broken) Release(context.Context, string, bool) (ReleaseResult, error) {
	return ReleaseResult{}, b.err
}
func (b broken) Follow(context.Context, Start, func(Changes) error) error { return b.err }

func TestEveryErrorBecomesAProblem(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
	}{
		{ErrNotFound, http.StatusNotFound},
		{fmt.Errorf("version 3: %w", ErrNoVersion), http.StatusNotFound},
		{ErrNoHistory, http.StatusNotFound},
		{fmt.Errorf("partition 3: %w", ErrElsewhere), http.StatusMisdirectedRequest},
		{fmt.Errorf("events come too fast: %w", ErrBusy), http.StatusServiceUnavailable},
		{errors.New("disk on fire"), http.StatusInternalServerError},
	} {
		h := Handler(slog.New(slog.DiscardHandler), DefaultFeeds, broken{c.err})
		for _, path := range []string{"/v1/projections", "/v1/projections/p", "/v1/projections/p/x", "/v1/projections/p/x?at_version=1", "/v1/projections/p/x/history", "/v1/projections/p/x/why", "/v1/projections/p/x/diff", "/v1/projections/p/feed", "/v1/blocked/p", "/v1/events/x"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			var problem struct {
				Title, Detail string
				Status        int
			}
			if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil {
				t.Fatalf("%s: %v: %s", path, err, w.Body)
			}
			if w.Code != c.status || problem.Status != c.status || problem.Title != http.StatusText(c.status) || problem.Detail == "" ||
				w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%v at %s: %d %s: %+v", c.err, path, w.Code, w.Header().Get("Content-Type"), problem)
			}
		}
	}
}

func TestUnreadyAnswers503(t *testing.T) {
	w := httptest.NewRecorder()
	Unready("the worker is starting").ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/projections", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d, %v", w.Code, w.Header())
	}
}

func TestEventCursorRoundTrip(t *testing.T) {
	want := EventCursor{Time: -5, Partition: 7, Offset: 1 << 40}
	got, ok := parseEventCursor(want.text())
	if !ok || *got != want {
		t.Errorf("parsed %+v (%v), want %+v", got, ok, want)
	}
	for _, text := range []string{"!", "AAAA", "MSAy"} {
		if got, ok := parseEventCursor(text); ok {
			t.Errorf("invalid cursor %q parsed as %+v", text, got)
		}
	}
}

// shelf is an in-memory projection of n numbered aggregates.
type shelf struct {
	broken
	n     int
	state *codec.Schema
}

func newShelf(t *testing.T, n int) shelf {
	t.Helper()
	s, err := codec.ParseSchema(`{"type":"record","name":"S","fields":[
		{"name":"flag","type":"boolean"},{"name":"count","type":["null","long"]},{"name":"ratio","type":"double"},
		{"name":"word","type":{"type":"enum","name":"W","symbols":["b","a"]}},{"name":"list","type":{"type":"array","items":"int"}},
		{"name":"price","type":{"type":"bytes","logicalType":"decimal","precision":20,"scale":2}},
		{"name":"cost","type":["null",{"type":"fixed","name":"F","size":12,"logicalType":"decimal","precision":20,"scale":2}]},
		{"name":"tags","type":{"type":"map","values":"string"}}]}`)
	if err != nil {
		t.Fatal(err)
	}
	return shelf{n: n, state: s}
}

func (s shelf) Describe() Description {
	return Description{Name: "s", Version: "0123456789", State: s.state}
}

func (s shelf) aggregate(i int) Aggregate {
	state := codec.AppendBool(nil, i%2 == 1)
	if i%3 == 0 {
		state = codec.AppendLong(state, 0)
	} else {
		state = codec.AppendLong(codec.AppendLong(state, 1), int64(i-3))
	}
	state = codec.AppendDouble(state, float64(2-i))
	state = codec.AppendLong(codec.AppendLong(state, int64(i%2)), 0)
	prices := []string{"12345678901234567.89", "-1.00", "0.00", "-12345678901234567.90", "12345678901234567.88", "0.01", "-12345678901234567.89"}
	price, err := decimal.Parse(prices[i%len(prices)])
	if err != nil {
		panic(err)
	}
	raw, _ := price.AppendBytes(nil, 0)
	state = codec.AppendBytes(state, raw)
	state = codec.AppendLong(state, 1)
	state, _ = price.AppendBytes(state, 12)
	if i%2 == 1 {
		state = codec.AppendString(codec.AppendString(codec.AppendLong(state, 1), "region"), fmt.Sprint("r", i))
	}
	state = append(state, 0)
	return Aggregate{ID: fmt.Sprintf("%07d", i), Version: int64(i), State: state}
}

func (s shelf) Get(_ context.Context, id string) (Aggregate, error) { return s.aggregate(1), nil }

func (s shelf) Scan(_ context.Context, after string, f func(Aggregate) bool) ([]Position, error) {
	for i := range s.n {
		if a := s.aggregate(i); a.ID > after && !f(a) {
			break
		}
	}
	return []Position{}, nil
}

func get(h http.Handler, method, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestListSortsByFieldsOfEveryKind(t *testing.T) {
	h := Handler(slog.New(slog.DiscardHandler), DefaultFeeds, newShelf(t, 7))
	for sort, want := range map[string]string{
		"state.flag":   "0246135",
		"-state.flag":  "1350246",
		"state.count":  "0361245", // nulls (0, 3, 6), then -2, -1, 1, 2
		"-state.count": "5421036",
		"state.ratio":  "6543210",
		"state.word":   "1350246",
		"-version":     "6543210",
		"state.price":  "3612540",
		"-state.price": "0452163",
		"state.cost":   "3612540",
	} {
		var page struct{ Items []struct{ Version int } }
		w := get(h, http.MethodGet, "/v1/projections/s?sort="+sort)
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != 200 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		got := ""
		for _, it := range page.Items {
			got += fmt.Sprint(it.Version)
		}
		if got != want {
			t.Errorf("sort=%s: got %s, want %s", sort, got, want)
		}
	}
	var page struct{ Items []struct{ Version int } }
	w := get(h, http.MethodGet, "/v1/projections/s?filter="+url.QueryEscape("state.price > decimal('12345678901234567.88') || state.cost < -12345678901234567"))
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || fmt.Sprint(page.Items) != "[{0} {3} {6}]" {
		t.Errorf("a filter by decimals: %d %s", w.Code, w.Body)
	}
	if w := get(h, http.MethodGet, "/v1/projections/s?sort=state.list"); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "has no order") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A list can be sorted by a field within a record that can be null. The null sorts first.
func TestListSortsByFieldsWithinNullableRecords(t *testing.T) {
	state, err := codec.ParseSchema(`{"type":"record","name":"S","fields":[{"name":"at","type":["null",{"type":"record","name":"At","fields":[{"name":"x","type":"string"},{"name":"n","type":["null","long"]}]}],"default":null}]}`)
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string][]string{
		"state.at.n": {"\x00", "\x00", "\x01\x80\x00\x00\x00\x00\x00\x00\x07"},
		"state.at.x": {"\x00", "\x01a", "\x01a"},
	} {
		s, err := newSorting(state, field)
		if err != nil {
			t.Fatal(err)
		}
		for i, body := range []string{"\x00", "\x02\x02a\x00", "\x02\x02a\x02\x0e"} {
			if key, err := s.key(&Aggregate{State: []byte(body)}); err != nil || string(key) != want[i] {
				t.Errorf("%s of %x: %x, %v, want %x", field, body, key, err, want[i])
			}
		}
	}
	for field, want := range map[string]string{
		"state.at.xx": `S has no field at.xx; did you mean "x"?`,
		"state.at":    "the field is null or At, which has no order",
	} {
		if _, err := newSorting(state, field); err == nil || err.Error() != want {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// For a filter, null and a missing map entry mean no match. Another failure is no match
// either, and the answer counts it. One aggregate never fails the list.
func TestAFilterThatFailsDoesNotMatch(t *testing.T) {
	h := Handler(slog.New(slog.DiscardHandler), DefaultFeeds, newShelf(t, 7))
	for _, c := range []struct {
		filter, sort, want string
		failed             int
	}{
		{"state.count > 0", "", "45", 0}, // null for 0, 3 and 6
		{"!(state.count > 0)", "", "12", 0},
		{"state.count > 0", "-version", "54", 0},
		{"state.count + 1 >= 0", "", "245", 0},
		{"[state.count].exists(c, c > 0)", "", "45", 0}, // in the interpreter
		{"state.tags.region == 'r3'", "", "3", 0},       // no entry for 0, 2, 4 and 6
		{"state.tags['region'].startsWith('r')", "", "135", 0},
		{"state.tags.map(k, state.tags.region).size() > 0", "", "135", 0},
		{"state.count > 0 || version == 3", "", "345", 0},
		{"10 / (version - 2) > 4", "", "34", 1},
		{"state.list[0] == 1", "", "", 7},
	} {
		var page struct {
			Items   []struct{ Version int }
			Failed  int    `json:"filter_failed"`
			Failure string `json:"filter_failure"`
		}
		w := get(h, http.MethodGet, "/v1/projections/s?filter="+url.QueryEscape(c.filter)+"&sort="+c.sort)
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != 200 {
			t.Errorf("%s: %d %s", c.filter, w.Code, w.Body)
			continue
		}
		got := ""
		for _, it := range page.Items {
			got += fmt.Sprint(it.Version)
		}
		if got != c.want || page.Failed != c.failed || (page.Failure == "") != (c.failed == 0) {
			t.Errorf("%s: got %q, %d failed (%s); want %q, %d failed", c.filter, got, page.Failed, page.Failure, c.want, c.failed)
		}
	}
}

func TestListScansAtMostMaxScannedAggregates(t *testing.T) {
	h := Handler(slog.New(slog.DiscardHandler), DefaultFeeds, newShelf(t, maxScanned+2))
	if w := get(h, http.MethodGet, "/v1/projections/s?sort=-version&limit=1"); w.Code != http.StatusUnprocessableEntity {
		t.Errorf("sorted: %d %s", w.Code, w.Body)
	}
	// A list in order of id continues where its scan stopped.
	var page struct {
		Items []struct{ Version int }
		Next  string `json:"next_cursor"`
	}
	path := fmt.Sprint("/v1/projections/s?filter=version%3E%3D", maxScanned)
	for n, want := range []int{0, 2} {
		page.Items, page.Next = nil, ""
		w := get(h, http.MethodGet, path)
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || len(page.Items) != want || (page.Next != "") != (n == 0) {
			t.Fatalf("page %d: %d %s", n, w.Code, w.Body)
		}
		path = "/v1/projections/s?cursor=" + page.Next
	}
}

func TestHeadGzipAndMethodNotAllowed(t *testing.T) {
	srv := httptest.NewServer(Handler(slog.New(slog.DiscardHandler), DefaultFeeds, newShelf(t, 200)))
	defer srv.Close()
	for _, c := range []struct {
		method, path, accept string
		status               int
		encoding             string
		body                 bool
	}{
		{http.MethodGet, "/v1/projections/s", "gzip", 200, "gzip", true},
		{http.MethodGet, "/v1/projections/s", "br, gzip;q=0.5", 200, "gzip", true},
		{http.MethodGet, "/v1/projections/s", "gzip;q=0", 200, "", true},
		{http.MethodGet, "/v1/projections/s/x", "gzip", 200, "", true}, // smaller than gzipFrom
		{http.MethodHead, "/v1/projections/s/x", "", 200, "", false},
		{http.MethodPost, "/v1/projections/s/x", "", 405, "", true},
		{http.MethodDelete, "/v1/projections", "", 405, "", true},
		{http.MethodGet, "/v1/blocked/s/x/release", "", 405, "", true},
		{http.MethodPost, "/v1/other", "", 404, "", true},
	} {
		r, err := http.NewRequestWithContext(t.Context(), c.method, srv.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept-Encoding", c.accept) // set explicitly, so the client does not decompress
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var in io.Reader = resp.Body
		if resp.Header.Get("Content-Encoding") == "gzip" {
			if in, err = gzip.NewReader(resp.Body); err != nil {
				t.Fatal(err)
			}
		}
		body, err := io.ReadAll(in)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != c.status || resp.Header.Get("Content-Encoding") != c.encoding || c.body != json.Valid(body) || (c.status == 405) != (resp.Header.Get("Allow") != "") {
			t.Errorf("%s %s, %q: %d %v %.80s", c.method, c.path, c.accept, resp.StatusCode, resp.Header, body)
		}
	}
}

func FuzzParseFeedID(f *testing.F) {
	f.Add("0-1200,3-57")
	f.Add("0-")
	f.Fuzz(func(t *testing.T, text string) {
		at, ok := parseFeedID(text)
		if !ok {
			return
		}
		again, ok := parseFeedID(feedID(at))
		if !ok || !maps.Equal(at, again) {
			t.Errorf("%q parses as %v, and as %v after a round trip", text, at, again)
		}
	})
}

func TestSortKeysOfDecimalsHaveTheOrderOfTheNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) decimal.Decimal {
			v := new(big.Int).SetBytes(rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xff}), 0, 20).Draw(t, name))
			if rapid.Bool().Draw(t, name+" negative") {
				v.Neg(v)
			}
			return decimal.FromBig(v, 0)
		}
		a, b := draw("a"), draw("b")
		rawA, _ := a.AppendBytes(nil, 0)
		rawB, _ := b.AppendBytes(nil, 24)
		if got := bytes.Compare(orderedDecimal(nil, rawA), orderedDecimal(nil, rawB)); got != a.Cmp(b) {
			t.Fatalf("%v and %v: %d", a, b, got)
		}
	})
}
