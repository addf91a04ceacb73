package fold

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// meanSpec keeps the mean of values: its event can make the expression fail.
func meanSpec(t testing.TB) Spec {
	event := parse(t, `{"type":"record","name":"Measured","fields":[{"name":"key","type":"string"},{"name":"sum","type":"long"},{"name":"n","type":"long"}]}`)
	return Spec{
		Name: "mean", Types: []*codec.Schema{event}, Key: src("key"),
		State: parse(t, `{"type":"record","name":"Mean","fields":[{"name":"sum","type":"long","default":0},{"name":"mean","type":"long","default":0}]}`),
		On:    []On{{Type: 0, Set: []Set{{src("sum"), src("state.sum + sum")}, {src("mean"), src("(state.sum + sum) / n")}}}},
	}
}

func measured(sum, n int64) []byte {
	return codec.AppendLong(codec.AppendLong(codec.AppendString(nil, "k"), sum), n)
}

// An event whose expression fails is rejected, and the aggregate keeps all fields, for
// Apply and for Update.
func TestAnEventThatFailsLeavesTheAggregateUnchanged(t *testing.T) {
	folder := compile(t, meanSpec(t)).NewFolder()
	for name, apply := range map[string]func(*Aggregate) (Outcome, error){"Apply": folder.Apply, "Update": folder.ApplyInPlace} {
		var a Aggregate
		for _, body := range [][]byte{measured(6, 3), measured(4, 0), measured(2, 2)} {
			before := fmt.Sprint(a)
			if _, err := folder.Read(0, body, Origin{}); err != nil {
				t.Fatal(err)
			}
			_, err := apply(&a)
			if body[len(body)-1] != 0 {
				if err != nil {
					t.Fatal(err)
				}
				continue
			}
			if pipeline.ReasonOf(err) != pipeline.ReasonExpression || !strings.Contains(err.Error(), "division by zero") {
				t.Errorf("%s: %v, want a rejection: division by zero", name, err)
			}
			if fmt.Sprint(a) != before {
				t.Errorf("%s: the aggregate is %+v, was %s", name, a, before)
			}
		}
		if got, want := text(t, folder.State().Root(), a.State), `{"sum":8,"mean":4}`; got != want || a.Version != 2 {
			t.Errorf("%s: state %s, version %d; want %s, version 2", name, got, a.Version, want)
		}
	}
}

// Every value sees the state before the event. So the order of the assignments does
// not matter, and two fields can be swapped.
func TestValuesSeeTheStateBeforeTheEvent(t *testing.T) {
	for _, order := range [][]Set{
		{{src("a"), src("state.b")}, {src("b"), src("state.a + 1")}},
		{{src("b"), src("state.a + 1")}, {src("a"), src("state.b")}},
	} {
		folder := compile(t, Spec{
			Name: "swap", Types: []*codec.Schema{parse(t, `{"type":"record","name":"Swapped","fields":[{"name":"key","type":"string"}]}`)}, Key: src("key"),
			State: parse(t, `{"type":"record","name":"Pair","fields":[{"name":"a","type":"long","default":1},{"name":"b","type":"long","default":5}]}`),
			On:    []On{{Type: 0, Set: order}},
		}).NewFolder()
		var a Aggregate
		for range 2 {
			if _, err := folder.Read(0, codec.AppendString(nil, "k"), Origin{}); err != nil {
				t.Fatal(err)
			}
			if _, err := folder.Apply(&a); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := text(t, folder.State().Root(), a.State), `{"a":2,"b":6}`; got != want {
			t.Errorf("%v: state %s, want %s", order, got, want)
		}
	}
}

// A state that does not match the schema is an error, not a crash.
func TestApplyRejectsAStateOfAnotherSchema(t *testing.T) {
	folder := compile(t, meanSpec(t)).NewFolder()
	if _, err := folder.Read(0, measured(1, 1), Origin{}); err != nil {
		t.Fatal(err)
	}
	a := Aggregate{Version: 1, State: []byte{0x80}}
	if _, err := folder.Apply(&a); err == nil || !strings.Contains(err.Error(), "read the state of mean") {
		t.Errorf("got %v, want an error that names the fold", err)
	}
	if a.Version != 1 {
		t.Errorf("version is %d, want 1", a.Version)
	}
}

func TestStatusOfAnAggregate(t *testing.T) {
	f := compile(t, userSpec(t))
	for _, test := range []struct {
		name    string
		a       Aggregate
		status  string
		blocked string // of AppendBlocked
	}{
		{"no events", Aggregate{}, Live, Blocked},
		{"live", Aggregate{Version: 3, Number: 3}, Live, Blocked},
		{"gap", Aggregate{Version: 3, Number: 4, Missing: 1}, Gap, Blocked},
		{"deleted", Aggregate{Version: 3, Deleted: true}, Deleted, Deleted},
		{"deleted, with a gap", Aggregate{Version: 3, Deleted: true, Missing: 1}, Deleted, Deleted},
	} {
		if got := test.a.Status(); got != test.status {
			t.Errorf("%s: Status is %q, want %q", test.name, got, test.status)
		}
		test.a.State = f.zero
		for want, body := range map[string][]byte{
			test.status:  f.AppendSnapshot(nil, []byte("u"), &test.a),
			test.blocked: f.AppendBlocked(nil, []byte("u"), &test.a),
		} {
			if got := text(t, f.Snapshot().Root(), body); !strings.Contains(got, `"status":"`+want+`"`) {
				t.Errorf("%s: snapshot is %s, want status %q", test.name, got, want)
			}
		}
	}
}

// Blocked is a property of the published snapshot, not of the aggregate: reading the
// snapshot gives the aggregate without it.
func TestABlockedSnapshotRestoresTheAggregate(t *testing.T) {
	f := compile(t, userSpec(t))
	want := Aggregate{Version: 3, Number: 4, Missing: 1, EventID: []byte("e"), Source: Source{"t", "id", 1}, Offset: 9, State: f.zero}
	var got Aggregate
	if err := f.ReadSnapshot(f.AppendBlocked(nil, []byte("u"), &want), []byte("u"), &got); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// For any aggregate, the encodings of the store and of the snapshot restore it.
func TestEncodingsRestoreAnyAggregate(t *testing.T) {
	f := compile(t, userSpec(t))
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.Int64Range(0, 1<<60)
		a := Aggregate{
			Version: 1 + count.Draw(t, "version"), Deleted: rapid.Bool().Draw(t, "deleted"),
			EventID: []byte(rapid.String().Draw(t, "event id")), EventTime: rapid.Int64().Draw(t, "time"),
			Source: Source{rapid.String().Draw(t, "topic"), rapid.String().Draw(t, "topic id"), rapid.Int32Min(0).Draw(t, "partition")},
			Offset: count.Draw(t, "offset"), State: f.zero,
		}
		if rapid.Bool().Draw(t, "numbered") {
			a.Number, a.Missing = 1+count.Draw(t, "number"), count.Draw(t, "missing")
		}
		want := fmt.Sprintf("%+v", a)
		enc := AppendAggregate(nil, &a)
		stored, viewed := Aggregate{Source: a.Source}, Aggregate{Source: a.Source}
		if err := ReadAggregate(enc, &stored); err != nil {
			t.Fatal(err)
		}
		if err := ViewAggregate(enc, &viewed); err != nil {
			t.Fatal(err)
		}
		var published Aggregate
		if err := f.ReadSnapshot(f.AppendSnapshot(nil, []byte("u"), &a), []byte("u"), &published); err != nil {
			t.Fatal(err)
		}
		for name, got := range map[string]Aggregate{"ReadAggregate": stored, "ViewAggregate": viewed, "ReadSnapshot": published} {
			if fmt.Sprintf("%+v", got) != want {
				t.Fatalf("%s gives %+v, want %s", name, got, want)
			}
		}
	})
}

// ReadAggregate copies: the buffer can be used again. ViewAggregate does not.
func TestReadAggregateCopiesItsInput(t *testing.T) {
	a := Aggregate{Version: 1, EventID: []byte("event"), State: []byte("state")}
	enc := AppendAggregate(nil, &a)
	var read, viewed Aggregate
	if err := ReadAggregate(enc, &read); err != nil {
		t.Fatal(err)
	}
	if err := ViewAggregate(enc, &viewed); err != nil {
		t.Fatal(err)
	}
	clear(enc)
	if string(read.EventID) != "event" || string(read.State) != "state" {
		t.Errorf("ReadAggregate refers to the buffer: %q, %q", read.EventID, read.State)
	}
	if string(viewed.State) == "state" {
		t.Error("ViewAggregate copied the state")
	}
}

func TestDifferComparesNestedFields(t *testing.T) {
	spec := noteSpecOf(t, `{"name":"id","type":"string"},{"name":"text","type":"string"}`,
		`{"name":"text","type":"string","default":""},{"name":"at","default":{},"type":{"type":"record","name":"At","fields":[
			{"name":"street","type":"string","default":""},{"name":"city","type":"string","default":""}]}}`)
	differ := compile(t, spec).NewDiffer()
	state := func(text, street, city string) []byte {
		return codec.AppendString(codec.AppendString(codec.AppendString(nil, text), street), city)
	}
	for _, test := range []struct {
		name          string
		before, after []byte
		want          string
	}{
		{"equal", state("a", "b", "c"), state("a", "b", "c"), "[]"},
		{"nested field", state("a", "b", "c"), state("a", "b", "d"), "[at.city]"},
		{"all", state("a", "b", "c"), state("x", "y", "z"), "[text at.street at.city]"},
		{"no state before", nil, state("a", "", ""), "[text]"},
		{"no state after", state("a", "", ""), nil, "[text]"},
		{"bytes that move between fields", state("ab", "", ""), state("a", "b", ""), "[text at.street]"},
	} {
		got, err := differ.Changed(test.before, test.after)
		if err != nil || fmt.Sprint(got) != test.want {
			t.Errorf("%s: %v, %v; want %s", test.name, got, err, test.want)
		}
	}
	if _, err := differ.Changed(state("a", "b", "c"), []byte{0x80}); err == nil {
		t.Error("no error for an invalid state")
	}
}
