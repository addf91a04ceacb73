package fold

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// noteSpec is the smallest fold: it copies a text to the state.
func noteSpec(t testing.TB) Spec {
	return noteSpecOf(t, `{"name":"id","type":"string"},{"name":"text","type":"string"}`, `{"name":"text","type":"string","default":""}`)
}

// noteSpecOf is noteSpec with other fields of the event and the state.
func noteSpecOf(t testing.TB, event, state string) Spec {
	return Spec{
		Name:  "notes",
		Types: []*codec.Schema{parse(t, `{"type":"record","name":"Noted","fields":[`+event+`]}`)},
		State: parse(t, `{"type":"record","name":"Note","fields":[`+state+`]}`),
		Key:   src("id"),
		On:    []On{{Type: 0, Set: []Set{{src("text"), src("text")}}}},
	}
}

// Each change makes noteSpec invalid. Compile says what is wrong.
func TestCompileRejectsInvalidSpecs(t *testing.T) {
	const (
		event = `{"name":"id","type":"string"},{"name":"text","type":"string"}`
		state = `{"name":"text","type":"string","default":""}`
	)
	change := func(f func(*Spec)) Spec {
		spec := noteSpec(t)
		f(&spec)
		return spec
	}
	for _, test := range []struct {
		name string
		spec Spec
		want string
	}{
		{"no key", change(func(s *Spec) { s.Key = src("") }), "Noted has no field"},
		{"unknown key", change(func(s *Spec) { s.Key = src("nr") }), "Noted has no field nr"},
		{"key in a field that is not a record", change(func(s *Spec) { s.Key = src("id.nr") }), "Noted has no field id.nr"},
		{"key is not a string", noteSpecOf(t, `{"name":"id","type":"long"},{"name":"text","type":"string"}`, state), "id is long in Noted, but a key is a string"},
		{"key is encrypted", noteSpecOf(t, `{"name":"id","type":"string","millrace.pii":true},{"name":"text","type":"string"}`, state), "id is encrypted in Noted"},
		{"state field without a default", noteSpecOf(t, event, `{"name":"text","type":"string"}`), "the state Note has no initial value: text has no default"},
		{"unknown state field", change(func(s *Spec) { s.On[0].Set[0].Field = src("txt") }), "Note has no field txt"},
		{"state field is a record", noteSpecOf(t, event, `{"name":"text","default":{},"type":{"type":"record","name":"Text","fields":[{"name":"plain","type":"string","default":""}]}}`), "text is a record; set its fields one by one"},
		{"field set twice", change(func(s *Spec) { s.On[0].Set = append(s.On[0].Set, s.On[0].Set[0]) }), "text is set twice"},
		{"value of another type", change(func(s *Spec) { s.On[0].Set[0].Value = src("1") }), "text is a string in Note, but this is an int"},
		{"value of an unknown field", change(func(s *Spec) { s.On[0].Set[0].Value = src("txt") }), "no txt here"},
		{"window without a time", change(func(s *Spec) { s.Window = Window{Size: time.Hour, Every: time.Hour} }), "Noted has no timestamp, but a window needs the time of the event"},
		{"recursive event", noteSpecOf(t, event+`,{"name":"more","type":"Noted"}`, state), "recursive"},
		{"bare expression", change(func(s *Spec) { s.Bare = &expr.Bare{ID: src("txt")} }), "Noted has no field txt"},
		{"bare event without a key", change(func(s *Spec) { s.Bare, s.Key = &expr.Bare{Key: src("1")}, src("") }), "key is a string in Noted, but this is an int"},
	} {
		f, faults := Compile(test.spec)
		if f != nil || len(faults) == 0 {
			t.Errorf("%s: compiles, want the fault %q", test.name, test.want)
			continue
		}
		if got := faults[0].Error(); !strings.Contains(got, test.want) {
			t.Errorf("%s: fault %q, want %q", test.name, got, test.want)
		}
	}
}

func TestAFoldReportsItsSpec(t *testing.T) {
	event := parse(t, `{"type":"record","name":"Moved","fields":[
		{"name":"id","type":"string"},
		{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-micros"}},
		{"name":"to","type":"string"}]}`)
	other := parse(t, `{"type":"record","name":"Ignored","fields":[{"name":"id","type":"string"}]}`)
	state := parse(t, `{"type":"record","name":"Place","fields":[
		{"name":"name","type":"string","default":""},
		{"name":"at","default":{},"type":{"type":"record","name":"At","fields":[
			{"name":"street","type":"string","default":""},{"name":"city","type":"string","default":""}]}}]}`)
	window := Window{Size: time.Hour, Every: time.Hour}
	f := compile(t, Spec{
		Name: "places", Types: []*codec.Schema{other, event}, Key: src("id"), State: state,
		On:           []On{{Type: 1, Set: []Set{{src("at.city"), src("to")}, {src("name"), src("to")}}}},
		AnyPartition: true, Window: window, Wait: 7, ApplyGap: true,
	})
	for _, test := range []struct {
		what      string
		got, want any
	}{
		{"Name", f.Name(), "places"},
		{"State", f.State(), state},
		{"AnyPartition", f.AnyPartition(), true},
		{"Bare", f.Bare(), false},
		{"TellsByKey", f.KeyIsAggregateID(), true},
		{"Window", f.Window(), window},
		{"Folds(0), not in On", f.Folds(0), false},
		{"Folds(1)", f.Folds(1), true},
	} {
		if test.got != test.want {
			t.Errorf("%s is %v, want %v", test.what, test.got, test.want)
		}
	}
	if offsets, apply := f.Wait(); offsets != 7 || !apply {
		t.Errorf("Wait is %d, %v; want 7, true", offsets, apply)
	}
	if got, want := f.Leaves(), []string{"name", "at.street", "at.city"}; !slices.Equal(got, want) {
		t.Errorf("Leaves is %q, want %q in the order of the schema", got, want)
	}
	if got, want := f.Sets(1), []string{"at.city", "name"}; !slices.Equal(got, want) {
		t.Errorf("Sets is %q, want %q in the order of the Spec", got, want)
	}
}

func TestDefaultsOfAFold(t *testing.T) {
	f := compile(t, noteSpec(t))
	if offsets, apply := f.Wait(); offsets != DefaultWait || apply {
		t.Errorf("Wait is %d, %v; want %d, false", offsets, apply, DefaultWait)
	}
	if w := f.Window(); w.Size != 0 {
		t.Errorf("Window is %+v, want none", w)
	}
	if f.AnyPartition() {
		t.Error("AnyPartition is true")
	}
}

// The key of an unreadable record is the id of its aggregate, except if the key of
// the aggregate is an expression over the event.
func TestTellsByKey(t *testing.T) {
	for _, test := range []struct {
		name string
		bare *expr.Bare
		want bool
	}{
		{"envelope", nil, true},
		{"bare, key of the record", &expr.Bare{ID: src("text")}, true},
		{"bare, key from the event", &expr.Bare{Key: src("text")}, false},
	} {
		spec := noteSpec(t)
		spec.Bare = test.bare
		f := compile(t, spec)
		if got := f.KeyIsAggregateID(); got != test.want || f.Bare() != (test.bare != nil) {
			t.Errorf("%s: TellsByKey is %v, Bare is %v; want %v, %v", test.name, got, f.Bare(), test.want, test.bare != nil)
		}
	}
}

// Each option changes which events are applied, or how. So it changes the hash, and
// all hashes differ.
func TestHashCoversEveryOption(t *testing.T) {
	seen := map[string]string{}
	for name, change := range map[string]func(*Spec){
		"none":          func(*Spec) {},
		"key":           func(s *Spec) { s.Key = src("text") },
		"max state":     func(s *Spec) { s.MaxState = 100 },
		"any partition": func(s *Spec) { s.AnyPartition = true },
		"window":        func(s *Spec) { s.Window = Window{Size: time.Hour, Every: time.Hour} },
		"grace":         func(s *Spec) { s.Window = Window{Size: time.Hour, Every: time.Hour, Grace: time.Minute} },
		"wait":          func(s *Spec) { s.Wait = 10 },
		"apply gap":     func(s *Spec) { s.ApplyGap = true },
		"bare":          func(s *Spec) { s.Bare = &expr.Bare{} },
		"bare id":       func(s *Spec) { s.Bare = &expr.Bare{ID: src("text")} },
		"bare time":     func(s *Spec) { s.Bare = &expr.Bare{Time: src("timestamp(0)")} },
		"bare key":      func(s *Spec) { s.Bare = &expr.Bare{Key: src("text")} },
	} {
		spec := noteSpecOf(t, `{"name":"id","type":"string"},{"name":"text","type":"string"},{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-millis"}}`, `{"name":"text","type":"string","default":""}`)
		change(&spec)
		h := compile(t, spec).Hash()
		if other, twice := seen[h]; twice {
			t.Errorf("%q and %q have the same hash", name, other)
		}
		seen[h] = name
	}
}

// Read returns the aggregate id of any valid string.
func TestReadRejectsInvalidIDs(t *testing.T) {
	folder := compile(t, noteSpec(t)).NewFolder()
	for _, test := range []struct{ name, id, want string }{
		{"valid", "n-1", ""},
		{"of the maximum size", strings.Repeat("x", maxID), ""},
		{"zero byte inside", "n\x00", ""},
		{"empty", "", "is empty"},
		{"too long", strings.Repeat("x", maxID+1), fmt.Sprintf("has %d bytes, the limit is %d", maxID+1, maxID)},
		{"zero byte at the start", "\x00n", "starts with a zero byte"},
	} {
		id, err := folder.Read(0, codec.AppendString(codec.AppendString(nil, test.id), "text"), Origin{})
		switch {
		case test.want == "" && (err != nil || string(id) != test.id):
			t.Errorf("%s: id %q, %v", test.name, id, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

// The envelope fields are optional, and a field of another type does not count.
func TestEnvelopeFieldsOfAnEvent(t *testing.T) {
	id := codec.AppendString(codec.AppendString(nil, "n"), "x")
	for _, test := range []struct {
		name   string
		fields string // after key and text
		body   []byte // after key and text
		id     string
		time   int64
	}{
		{"none", ``, nil, "", 0},
		{"id", `,{"name":"id","type":"string"}`, codec.AppendString(nil, "e-1"), "e-1", 0},
		{"id is not a string", `,{"name":"id","type":"long"}`, codec.AppendLong(nil, 1), "", 0},
		{"timestamp in microseconds", `,{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-micros"}}`, codec.AppendLong(nil, 1500), "", 1500},
		{"timestamp in milliseconds", `,{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-millis"}}`, codec.AppendLong(nil, 1500), "", 1_500_000},
		{"timestamp without a logical type", `,{"name":"timestamp","type":"long"}`, codec.AppendLong(nil, 1500), "", 0},
	} {
		spec := noteSpecOf(t, `{"name":"key","type":"string"},{"name":"text","type":"string"}`+test.fields, `{"name":"text","type":"string","default":""}`)
		spec.Key = src("key")
		folder := compile(t, spec).NewFolder()
		if _, err := folder.Read(0, slices.Concat(id, test.body), Origin{Time: 99}); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := string(folder.EventID()); got != test.id || folder.Time() != test.time {
			t.Errorf("%s: event %q at %d, want %q at %d", test.name, got, folder.Time(), test.id, test.time)
		}
		if folder.Type() != spec.Types[0] {
			t.Errorf("%s: Type is %s", test.name, folder.Type().Name())
		}
	}
}
