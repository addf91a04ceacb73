package fold

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

func schema(t testing.TB, name string) *codec.Schema {
	t.Helper()
	text, err := os.ReadFile("../../schemas/" + name + ".avsc")
	if err != nil {
		t.Fatal(err)
	}
	s, err := codec.ParseSchema(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The event types of the tests, by index in Spec.Types.
const (
	userCreated = iota
	userUpdated
	userDeleted
	orderCreated
)

func types(t testing.TB) []*codec.Schema {
	return []*codec.Schema{schema(t, "UserCreated"), schema(t, "UserUpdated"), schema(t, "UserDeleted"), schema(t, "OrderCreated")}
}

func src(text string) expr.Source { return expr.Source{Text: text} }

func userSpec(t testing.TB) Spec {
	return Spec{
		Name: "user", Types: types(t), Key: src("data.id"), State: schema(t, "User"),
		On: []On{
			{Type: userCreated, Set: []Set{
				{src("id"), src("data.id")}, {src("email"), src("data.email")}, {src("name"), src("data.name")}, {src("status"), src("'active'")},
			}},
			{Type: userUpdated, Set: []Set{
				{src("email"), src("data.email != null ? data.email : state.email")},
				{src("name"), src("data.name != null ? data.name : state.name")},
			}},
			{Type: userDeleted, Set: []Set{{src("status"), src("'deleted'")}}, Delete: true},
		},
	}
}

func compile(t testing.TB, spec Spec) *Fold {
	t.Helper()
	f, faults := Compile(spec)
	for _, fault := range faults {
		t.Error(fault)
	}
	if f == nil {
		t.FailNow()
	}
	return f
}

// event encodes the n-th event, with data in JSON. Its id ends with n; it happens n
// microseconds after 2026-01-01T00:00:00Z.
func event(t testing.TB, schema *codec.Schema, n int, data string) []byte {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(fmt.Sprintf(`{"id":"00000000-0000-4000-8000-%012d","timestamp":"2026-01-01T00:00:00.%06dZ","data":%s}`, n, n, data)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	enc, err := codec.EncodeJSON(schema, v)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

func text(t testing.TB, n *codec.Node, enc []byte) string {
	t.Helper()
	out, err := codec.AppendJSON(nil, n, enc)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestApplyFoldsEventsIntoTheAggregate(t *testing.T) {
	f := compile(t, userSpec(t)).NewFolder()
	var a Aggregate
	steps := []struct {
		typ     int
		data    string
		outcome Outcome
		state   string
		version int64
		deleted bool
	}{
		{userCreated, `{"id":"u-1","email":"a@example.com","name":"Ann"}`, Applied, `{"id":"u-1","email":"a@example.com","name":"Ann","status":"active"}`, 1, false},
		{userUpdated, `{"id":"u-1","name":"Anna"}`, Applied, `{"id":"u-1","email":"a@example.com","name":"Anna","status":"active"}`, 2, false},
		{userDeleted, `{"id":"u-1"}`, Applied, `{"id":"u-1","email":"a@example.com","name":"Anna","status":"deleted"}`, 3, true},
		{userUpdated, `{"id":"u-1","name":"Ghost"}`, Late, `{"id":"u-1","email":"a@example.com","name":"Anna","status":"deleted"}`, 3, true},
	}
	for i, step := range steps {
		id, err := f.Read(step.typ, event(t, types(t)[step.typ], i, step.data), Origin{})
		if err != nil || string(id) != "u-1" {
			t.Fatalf("step %d: id %q, %v", i, id, err)
		}
		outcome, err := f.Apply(&a)
		if err != nil {
			t.Fatal(err)
		}
		if got := text(t, f.State().Root(), a.State); outcome != step.outcome || got != step.state || a.Version != step.version || a.Deleted != step.deleted {
			t.Errorf("step %d: %v, %s, version %d, deleted %v; want %+v", i, outcome, got, a.Version, a.Deleted, step)
		}
	}
	if want := "00000000-0000-4000-8000-000000000002"; string(a.EventID) != want {
		t.Errorf("EventID is %s, want %s (the late event is not applied)", a.EventID, want)
	}
	if want := int64(1767225600_000002); a.EventTime != want {
		t.Errorf("EventTime is %d, want %d", a.EventTime, want)
	}
}

func TestReadSnapshotRestoresTheAggregate(t *testing.T) {
	f := compile(t, userSpec(t))
	folder := f.NewFolder()
	var a Aggregate
	if _, err := folder.Read(userCreated, event(t, types(t)[userCreated], 1, `{"id":"u-1","email":"e","name":"n"}`), Origin{}); err != nil {
		t.Fatal(err)
	}
	if _, err := folder.Apply(&a); err != nil {
		t.Fatal(err)
	}
	a.Source, a.Offset = Source{"shop.events", "t-1", 3}, 1<<40
	body := f.AppendSnapshot(nil, []byte("u-1"), &a)
	want := `{"id":"u-1","version":1,"status":"live","fold":"` + f.Hash() + `","event_id":"00000000-0000-4000-8000-000000000001","event_time":"2026-01-01T00:00:00.000001Z",` +
		`"topic":"shop.events","topic_id":"t-1","partition":3,"offset":1099511627776,"sequence":0,"missing":0,"state":{"id":"u-1","email":"e","name":"n","status":"active"}}`
	if got := text(t, f.Snapshot().Root(), body); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var b Aggregate
	if err := f.ReadSnapshot(body, []byte("u-1"), &b); err != nil {
		t.Fatal(err)
	}
	if got := f.AppendSnapshot(nil, []byte("u-1"), &b); string(got) != string(body) {
		t.Errorf("the snapshot of the restored aggregate is\n%q, want\n%q", got, body)
	}
	for n := range body {
		if f.ReadSnapshot(body[:n], []byte("u-1"), &b) == nil {
			t.Errorf("no error for the first %d of %d bytes of a snapshot", n, len(body))
		}
	}
	spec := userSpec(t)
	spec.On[0].Set[3].Value = src("'new'")
	other := compile(t, spec)
	if err := other.ReadSnapshot(body, []byte("u-1"), &b); !errors.Is(err, ErrOtherFold) {
		t.Errorf("ReadSnapshot of another fold: %v, want ErrOtherFold", err)
	}
}

func TestReadAggregateRestoresTheAggregate(t *testing.T) {
	for _, test := range []struct {
		deleted bool
		number  int64
	}{{false, 3}, {true, 0}} {
		want := Aggregate{Version: 1 << 40, Deleted: test.deleted, Number: test.number, EventID: []byte("e"), EventTime: -1, Source: Source{"t", "id", 3}, Offset: 7, State: []byte("state")}
		enc := AppendAggregate(nil, &want)
		got := Aggregate{Source: want.Source, EventID: []byte("longer than the new one")}
		if err := ReadAggregate(enc, &got); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		for n := range len(enc) - len(want.State) {
			if ReadAggregate(enc[:n], &got) == nil {
				t.Errorf("no error for the first %d of %d bytes", n, len(enc))
			}
		}
	}
}

func TestDifferReturnsTheFieldsThatChanged(t *testing.T) {
	f := compile(t, userSpec(t))
	folder, differ := f.NewFolder(), f.NewDiffer()
	var a Aggregate
	for i, step := range []struct {
		typ  int
		data string
		want string
	}{
		{userCreated, `{"id":"u","email":"e","name":"n"}`, "[id email name status]"},
		{userUpdated, `{"id":"u","name":"n"}`, "[]"},
		{userUpdated, `{"id":"u","name":"m"}`, "[name]"},
		{userDeleted, `{"id":"u"}`, "[status]"},
	} {
		before := a.State
		if _, err := folder.Read(step.typ, event(t, types(t)[step.typ], i, step.data), Origin{}); err != nil {
			t.Fatal(err)
		}
		if _, err := folder.Apply(&a); err != nil {
			t.Fatal(err)
		}
		got, err := differ.Changed(before, a.State)
		if err != nil || fmt.Sprint(got) != step.want {
			t.Errorf("step %d changed %v (%v), want %s", i, got, err, step.want)
		}
	}
}

// Recovery depends on this property: folding some events, restoring a snapshot, and
// folding the other events gives the same bytes as folding all events. It holds for
// Apply (new memory) and for Update (the memory of the old state).
func TestFoldFromASnapshotEqualsFoldFromTheStart(t *testing.T) {
	f := compile(t, userSpec(t))
	schemas := types(t)
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 20).Draw(rt, "events")
		straight, cut := f.NewFolder(), f.NewFolder()
		var a, b Aggregate
		for i := range n {
			typ := rapid.SampledFrom([]int{userCreated, userUpdated, userUpdated, userUpdated, userDeleted}).Draw(rt, "type")
			data := `{"id":"u"}`
			switch typ {
			case userCreated:
				data = fmt.Sprintf(`{"id":"u","email":"e%d","name":"n%d"}`, i, i)
			case userUpdated:
				data = rapid.SampledFrom([]string{`{"id":"u"}`, `{"id":"u","name":"x"}`, `{"id":"u","email":"y"}`, `{"id":"u","name":"","email":""}`}).Draw(rt, "data")
			}
			body := event(t, schemas[typ], i, data)
			before, was := a.State, string(a.State)
			for _, side := range []struct {
				f     *Folder
				a     *Aggregate
				apply func(*Aggregate) (Outcome, error)
			}{{straight, &a, straight.Apply}, {cut, &b, cut.ApplyInPlace}} {
				if _, err := side.f.Read(typ, body, Origin{}); err != nil {
					rt.Fatal(err)
				}
				if _, err := side.apply(side.a); err != nil {
					rt.Fatal(err)
				}
			}
			if string(before) != was {
				rt.Fatal("Apply changed the bytes of the old state")
			}
			if rapid.Bool().Draw(rt, "cut") {
				kept := f.AppendSnapshot(nil, []byte("u"), &b)
				cut, b = f.NewFolder(), Aggregate{}
				if err := f.ReadSnapshot(kept, []byte("u"), &b); err != nil {
					rt.Fatal(err)
				}
			}
		}
		one, two := f.AppendSnapshot(nil, []byte("u"), &a), f.AppendSnapshot(nil, []byte("u"), &b)
		if string(one) != string(two) {
			rt.Fatalf("%s\n%s", text(t, f.Snapshot().Root(), one), text(t, f.Snapshot().Root(), two))
		}
	})
}

func TestCompileReturnsAllFaults(t *testing.T) {
	spec := userSpec(t)
	spec.Key = src("data.id")
	spec.On[0].Set = []Set{
		{src("emial"), src("data.email")},
		{src("name"), src("data.nam")},
		{src("status"), src("1")},
		{src("status"), src("'twice'")},
		{src("email"), src("string(now())")},
	}
	_, faults := Compile(spec)
	var got []string
	for _, f := range faults {
		got = append(got, f.Error())
	}
	wants := []string{"shop.User has no field emial", "shop.UserCreated has no field data.nam", "status is a string", "status is set twice", "now() is not available here"}
	if len(got) != len(wants) {
		t.Fatalf("%d faults, want %d: %q", len(got), len(wants), got)
	}
	for i, want := range wants {
		if !strings.Contains(got[i], want) {
			t.Errorf("fault %d is %q, want %q in it", i, got[i], want)
		}
	}
}

func TestReadRejectsTruncatedEvents(t *testing.T) {
	f := compile(t, userSpec(t)).NewFolder()
	good := event(t, types(t)[userCreated], 1, `{"id":"u-1","email":"e","name":"n"}`)
	for n := range good {
		if _, err := f.Read(userCreated, good[:n], Origin{}); pipeline.ClassOf(err) != pipeline.ClassReject {
			t.Fatalf("the first %d of %d bytes: %v, want a rejection", n, len(good), err)
		}
	}
}

func TestHashCoversTheEffectOfTheFold(t *testing.T) {
	base := compile(t, userSpec(t)).Hash()
	if again := compile(t, userSpec(t)).Hash(); again != base {
		t.Errorf("two hashes of the same fold: %s and %s", base, again)
	}
	for name, change := range map[string]func(*Spec){
		"expression": func(s *Spec) { s.On[0].Set[3].Value.Text = "'other'" },
		"delete":     func(s *Spec) { s.On[2].Delete = false },
		"type":       func(s *Spec) { s.On = s.On[:2] },
		"name":       func(s *Spec) { s.Name = "other" },
	} {
		spec := userSpec(t)
		change(&spec)
		if compile(t, spec).Hash() == base {
			t.Errorf("a change of the %s did not change the hash", name)
		}
	}
	reordered := userSpec(t)
	reordered.On[0], reordered.On[2] = reordered.On[2], reordered.On[0]
	if compile(t, reordered).Hash() != base {
		t.Error("the order of the types in the file changed the hash")
	}
}

func BenchmarkFold(b *testing.B) {
	f := compile(b, userSpec(b)).NewFolder()
	body := event(b, types(b)[userUpdated], 1, `{"id":"u-1","name":"Anna"}`)
	var a Aggregate
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Read(userUpdated, body, Origin{}); err != nil {
			b.Fatal(err)
		}
		if _, err := f.Apply(&a); err != nil {
			b.Fatal(err)
		}
	}
}
