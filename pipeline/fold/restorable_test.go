package fold

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// restores fails the test unless the snapshot of an aggregate can be read back.
func restores(t *rapid.T, f *Fold, id []byte, a *Aggregate) {
	t.Helper()
	var b Aggregate
	if err := f.ReadSnapshot(f.AppendSnapshot(nil, id, a), id, &b); err != nil {
		t.Fatalf("the snapshot of %q: %v", id, err)
	}
	if err := f.CheckStateID(id); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(b) != fmt.Sprint(*a) {
		t.Fatalf("restored %+v, published %+v", b, *a)
	}
	var c Aggregate
	if err := ReadAggregate(AppendAggregate(nil, a), &c); err != nil || c.Version != a.Version || string(c.State) != string(a.State) {
		t.Fatalf("the store gives %+v for %+v: %v", c, *a, err)
	}
}

// Whatever the key, the ids and the time of an event are: it is rejected, or its
// snapshot can be read.
func TestEverythingThatIsAppliedCanBeRestored(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 8), func(b []byte) string { return string(b) }),
		rapid.SampledFrom([]string{"\xff\xfe\x00", "\x00a", "a\xed\xa0\x80", "k@2026-01-01T10:00:00Z", strings.Repeat("k", maxID), strings.Repeat("k", maxID+1), strings.Repeat("e", maxEventID+1)}))
	rapid.Check(t, func(rt *rapid.T) {
		spec := visitSpec(t, expr.Bare{ID: src("ref"), Key: src("user")})
		if rapid.Bool().Draw(rt, "the record's key") {
			spec.Bare.Key = expr.Source{}
		}
		if rapid.Bool().Draw(rt, "windows") {
			spec.Window = Window{Size: 2 * time.Hour, Every: time.Hour}
		}
		f := compile(t, spec)
		folder := f.NewFolder()
		micros := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-63_000_000_000_000_000, 254_000_000_000_000_000)).Draw(rt, "time")
		key, err := folder.Read(0, visit(text.Draw(rt, "event id"), text.Draw(rt, "field"), 1), Origin{Key: []byte(text.Draw(rt, "key")), Time: micros})
		if err != nil {
			if pipeline.ClassOf(err) != pipeline.ClassReject {
				rt.Fatalf("%v is not a rejection", err)
			}
			return
		}
		ids := [][]byte{key}
		if w := f.Window(); w.Size > 0 {
			ids = nil
			for _, start := range w.Starts(nil, folder.Time()) {
				id := AppendWindowID(nil, key, start)
				if of, at, ok := ParseWindowID(string(id)); !ok || of != string(key) || at != start {
					rt.Fatalf("the window %q is parsed as %q, %d (%v)", id, of, at, ok)
				}
				ids = append(ids, id)
			}
		}
		for _, id := range ids {
			var a Aggregate
			if _, err := folder.Apply(&a); err != nil {
				rt.Fatal(err)
			}
			restores(rt, f, id, &a)
		}
	})
}

// treeSpec keeps the last tree of an event.
func treeSpec(t testing.TB) Spec {
	const tree = `{"type":"record","name":"Tree","fields":[{"name":"kid","type":["null","Tree"],"default":null}]}`
	event := parse(t, `{"type":"record","name":"Grown","fields":[{"name":"id","type":"string"},{"name":"tree","type":["null",`+tree+`]}]}`)
	state := parse(t, `{"type":"record","name":"Kept","fields":[{"name":"tree","type":["null",`+tree+`],"default":null}]}`)
	return Spec{Name: "trees", Types: []*codec.Schema{event}, Key: src("id"), State: state, On: []On{{Type: 0, Set: []Set{{src("tree"), src("tree")}}}}}
}

// A value may be as deep in an event as the limit allows. One level more, in a snapshot,
// is too deep: the event is rejected, so that all snapshots can be read.
func TestAStateThatIsTooDeepForASnapshotIsRejected(t *testing.T) {
	f := compile(t, treeSpec(t))
	folder := f.NewFolder()
	rejected := 0
	for depth := 1; depth < 80; depth++ {
		body := codec.AppendString(nil, "a")
		for range depth {
			body = codec.AppendLong(body, 1)
		}
		id, err := folder.Read(0, codec.AppendLong(body, 0), Origin{})
		if err != nil {
			break // too deep for an event
		}
		var a, b Aggregate
		if _, err := folder.Apply(&a); err != nil {
			if rejected++; pipeline.ClassOf(err) != pipeline.ClassReject {
				t.Fatal(err)
			}
			continue
		}
		if err := f.ReadSnapshot(f.AppendSnapshot(nil, id, &a), id, &b); err != nil {
			t.Fatalf("depth %d: %v", depth, err)
		}
	}
	if rejected == 0 {
		t.Error("no tree was too deep for a snapshot")
	}
}

// A snapshot is read as the one of the aggregate that its key names. One of another fold
// is recognized although its state has another schema.
func TestReadSnapshotRefusesWhatNoSnapshotHas(t *testing.T) {
	spec := visitSpec(t, expr.Bare{})
	f := compile(t, spec)
	good := Aggregate{Version: 1, EventID: []byte("e"), Source: Source{"t", "id", 0}, State: f.zero}
	for what, change := range map[string]func(*Aggregate){
		"version": func(a *Aggregate) { a.Version = 0 }, "offset": func(a *Aggregate) { a.Offset = -1 },
		"sequence": func(a *Aggregate) { a.Number = -1 }, "missing": func(a *Aggregate) { a.Missing = -2 },
		"event id": func(a *Aggregate) { a.EventID = []byte("\xff") },
	} {
		bad := good
		change(&bad)
		if err := f.ReadSnapshot(f.AppendSnapshot(nil, []byte("k"), &bad), []byte("k"), &Aggregate{}); err == nil || errors.Is(err, ErrOtherFold) {
			t.Errorf("a bad %s: %v", what, err)
		}
	}
	if err := f.ReadSnapshot(f.AppendSnapshot(nil, []byte("k"), &good), []byte("other"), &Aggregate{}); err == nil {
		t.Error("it is of another aggregate")
	}
	spec.State = parse(t, `{"type":"record","name":"Counter","fields":[{"name":"n","type":"long","default":0},{"name":"text","type":"string","default":""}]}`)
	if err := compile(t, spec).ReadSnapshot(f.AppendSnapshot(nil, []byte("k"), &good), []byte("k"), &Aggregate{}); !errors.Is(err, ErrOtherFold) {
		t.Errorf("a snapshot of a state with fewer fields: %v", err)
	}
	body := f.AppendSnapshot(nil, []byte("k"), &good)
	rapid.Check(t, func(t *rapid.T) {
		changed := append([]byte(nil), body...)
		changed[rapid.IntRange(0, len(body)-1).Draw(t, "at")] = rapid.Byte().Draw(t, "to")
		var a Aggregate
		if err := f.ReadSnapshot(changed, []byte("k"), &a); err == nil {
			restores(t, f, []byte("k"), &a)
		}
	})
}

// A nullable id is the text in it, and null is no id.
func TestTheIDOfAnEventMayBeNullable(t *testing.T) {
	event := parse(t, `{"type":"record","name":"Seen","fields":[{"name":"id","type":["null","string"]},{"name":"key","type":"string"}]}`)
	f := compile(t, Spec{Name: "seen", Types: []*codec.Schema{event}, Key: src("key"), State: parse(t, counterState), On: []On{{Type: 0, Set: []Set{{src("n"), src("id == null ? 0 : 1")}}}}})
	for _, test := range []struct {
		id   []byte
		want string
	}{
		{codec.AppendString(codec.AppendLong(nil, 1), "e-1"), "e-1"},
		{codec.AppendLong(nil, 0), ""},
	} {
		folder := f.NewFolder()
		if _, err := folder.Read(0, codec.AppendString(test.id, "k"), Origin{}); err != nil || string(folder.EventID()) != test.want {
			t.Errorf("the id is %q, %v; want %q", folder.EventID(), err, test.want)
		}
	}
}
