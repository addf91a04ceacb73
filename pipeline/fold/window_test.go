package fold

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// micros returns the microseconds since 1970 of an RFC 3339 time.
func micros(t testing.TB, text string) int64 {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at.UnixMicro()
}

func TestStartsReturnsTheWindowsThatContainATime(t *testing.T) {
	tumbling := Window{Size: time.Hour, Every: time.Hour}
	hopping := Window{Size: time.Hour, Every: 20 * time.Minute}
	for _, test := range []struct {
		name   string
		window Window
		at     string
		want   []string
	}{
		{"one window without overlap", tumbling, "2026-01-01T10:30:00Z", []string{"2026-01-01T10:00:00Z"}},
		{"the start is in the window", tumbling, "2026-01-01T10:00:00Z", []string{"2026-01-01T10:00:00Z"}},
		{"the end is in the next window", tumbling, "2026-01-01T11:00:00Z", []string{"2026-01-01T11:00:00Z"}},
		{"before 1970", tumbling, "1969-12-31T23:59:59.999999Z", []string{"1969-12-31T23:00:00Z"}},
		{"overlapping windows, earliest first", hopping, "2026-01-01T10:30:00Z", []string{"2026-01-01T09:40:00Z", "2026-01-01T10:00:00Z", "2026-01-01T10:20:00Z"}},
		{"a size that is not a multiple of the step", Window{Size: 50 * time.Minute, Every: 20 * time.Minute}, "2026-01-01T10:15:00Z", []string{"2026-01-01T09:40:00Z", "2026-01-01T10:00:00Z"}},
	} {
		var got []string
		for _, start := range test.window.Starts(nil, micros(t, test.at)) {
			got = append(got, time.UnixMicro(start).UTC().Format(time.RFC3339Nano))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: windows of %s start at %q, want %q", test.name, test.at, got, test.want)
		}
	}
}

// For random windows, Starts returns exactly the multiples of Every at most Size
// before the time.
func TestStartsEqualsASearchOfAllWindows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		every := rapid.Int64Range(1, 50).Draw(t, "every")
		size := every + rapid.Int64Range(0, 200).Draw(t, "overlap")
		at := rapid.Int64Range(-1000, 1000).Draw(t, "at")
		w := Window{Size: time.Duration(size) * time.Microsecond, Every: time.Duration(every) * time.Microsecond}
		var want []int64
		for start := at - size + 1; start <= at; start++ {
			if start%every == 0 {
				want = append(want, start)
			}
		}
		if got := w.Starts(nil, at); !slices.Equal(got, want) {
			t.Fatalf("size %d, every %d, time %d: got %v, want %v", size, every, at, got, want)
		}
	})
}

func TestAWindowClosesAfterItsGrace(t *testing.T) {
	w := Window{Size: time.Hour, Every: time.Hour, Grace: 10 * time.Minute}
	start := micros(t, "2026-01-01T10:00:00Z")
	for _, test := range []struct {
		clock string
		want  bool
	}{
		{"2026-01-01T10:30:00Z", false},
		{"2026-01-01T11:00:00Z", false}, // the window has ended, but not its grace
		{"2026-01-01T11:09:59.999999Z", false},
		{"2026-01-01T11:10:00Z", true},
	} {
		if got := w.Closed(start, micros(t, test.clock)); got != test.want {
			t.Errorf("Closed at %s is %v, want %v", test.clock, got, test.want)
		}
	}
}

func TestWindowsAreKeptForKeepOrGrace(t *testing.T) {
	hour := Window{Size: time.Hour, Every: time.Hour, Grace: 10 * time.Minute}
	keep := func(d time.Duration) Window { w := hour; w.Retention = d; return w }
	clock := "2026-01-01T12:00:00Z"
	for _, test := range []struct {
		name   string
		window Window
		want   string // the earliest start of a kept window; "" if all are kept
	}{
		{"no limit", hour, ""},
		{"keep for a day", keep(24 * time.Hour), "2025-12-31T11:00:00.000001Z"},
		{"grace longer than keep", keep(time.Minute), "2026-01-01T10:50:00.000001Z"},
	} {
		start, ok := test.window.EarliestKept(micros(t, clock))
		got := ""
		if ok {
			got = time.UnixMicro(start).UTC().Format(time.RFC3339Nano)
		}
		if got != test.want {
			t.Errorf("%s: kept from %q, want %q", test.name, got, test.want)
		}
	}
}

// A window that still accepts events is always kept. Otherwise an event could find
// that the state of its window is deleted.
func TestAnOpenWindowIsAlwaysKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string, from int64) time.Duration {
			return time.Duration(rapid.Int64Range(from, 100).Draw(t, name)) * time.Microsecond
		}
		w := Window{Size: draw("size", 1), Grace: draw("grace", 0), Retention: draw("keep", 1)}
		start, clock := rapid.Int64Range(-300, 300).Draw(t, "start"), rapid.Int64Range(-300, 300).Draw(t, "clock")
		if from, _ := w.EarliestKept(clock); !w.Closed(start, clock) && start < from {
			t.Fatalf("%+v at clock %d: the window at %d is open, but kept are only windows from %d", w, clock, start, from)
		}
	})
}

func TestWindowIDsOfKeyAndStart(t *testing.T) {
	id := AppendWindowID([]byte("id="), []byte("k-1"), micros(t, "2026-01-01T10:00:00Z"))
	if want := "id=k-1@2026-01-01T10:00:00Z"; string(id) != want {
		t.Errorf("got %s, want %s", id, want)
	}
	for _, test := range []struct {
		id, key string
		start   bool
	}{
		{"k-1@2026-01-01T10:00:00Z", "k-1", true},
		{"a@example.com@2026-01-01T10:00:00.000001Z", "a@example.com", true},
		{"@2026-01-01T10:00:00Z", "", true},
		{"k-1", "", false},
		{"a@example.com", "", false},
		{"2026-01-01T10:00:00Z", "", false}, // without @
		{"k-1@2026-13-01T10:00:00Z", "", false},
		{"k-1@2026-01-01T11:00:00+01:00", "", false}, // another text for the same start
		{"k-1@2026-01-01T10:00:00.10Z", "", false},
	} {
		key, _, ok := ParseWindowID(test.id)
		if key != test.key || ok != test.start {
			t.Errorf("the window %q has the key %q (%v), want %q (%v)", test.id, key, ok, test.key, test.start)
		}
	}
}

func TestWindowIDsCanBeParsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z@:]{0,8}`)).Draw(t, "key")
		start := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-1e17, 1e18)).Draw(t, "start")
		id := string(AppendWindowID(nil, []byte(key), start))
		of, got, ok := ParseWindowID(id)
		if of != key || got != start || !ok {
			t.Fatalf("%q parses to key %q and start %d (%v), want %q and %d", id, of, got, ok, key, start)
		}
	})
}
