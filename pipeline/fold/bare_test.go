package fold

import (
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// visitSpec counts visits: events without an envelope.
func visitSpec(t testing.TB, bare expr.Bare) Spec {
	event := parse(t, `{"type":"record","name":"Visit","fields":[
		{"name":"ref","type":"string"},{"name":"user","type":"string"},{"name":"at","type":"long"}]}`)
	return Spec{
		Name: "visits", Types: []*codec.Schema{event}, State: parse(t, counterState), Bare: &bare,
		On: []On{{Type: 0, Set: []Set{{src("n"), src("state.n + 1")}}}},
	}
}

func visit(ref, user string, at int64) []byte {
	return codec.AppendLong(codec.AppendString(codec.AppendString(nil, ref), user), at)
}

// Without an envelope, the expressions of Spec.Bare give the id, the time and the
// key of an event. The defaults are no id, and the timestamp and the key of the
// record.
func TestEventsWithoutAnEnvelope(t *testing.T) {
	origin := Origin{Key: []byte("record-key"), Time: 42}
	body := visit("v-7", "u-1", 3)
	for _, test := range []struct {
		name string
		bare expr.Bare
		path string // Spec.Key
		id   string // of the aggregate
		evt  string // id of the event
		time int64
	}{
		{"defaults", expr.Bare{}, "", "record-key", "", 42},
		{"id", expr.Bare{ID: src("'visit-' + ref")}, "", "record-key", "visit-v-7", 42},
		{"time, in any unit", expr.Bare{Time: src("timestamp(at)")}, "", "record-key", "", 3_000_000},
		{"key", expr.Bare{Key: src("user + '/' + ref")}, "", "u-1/v-7", "", 42},
		{"all three", expr.Bare{ID: src("ref"), Time: src("timestamp(at)"), Key: src("user")}, "", "u-1", "v-7", 3_000_000},
		{"the key of the fold is a field", expr.Bare{Key: src("ref")}, "user", "u-1", "", 42},
	} {
		spec := visitSpec(t, test.bare)
		spec.Key = src(test.path)
		folder := compile(t, spec).NewFolder()
		var a Aggregate
		id, err := folder.Read(0, body, origin)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if _, err := folder.Apply(&a); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if string(id) != test.id || string(a.EventID) != test.evt || a.EventTime != test.time {
			t.Errorf("%s: aggregate %q, event %q at %d; want %q, %q at %d", test.name, id, a.EventID, a.EventTime, test.id, test.evt, test.time)
		}
	}
}

// An expression of Spec.Bare that fails for an event rejects it.
func TestReadRejectsEventsWhoseBareExpressionFails(t *testing.T) {
	for _, test := range []struct {
		name string
		bare expr.Bare
		want string
	}{
		{"id", expr.Bare{ID: src("string(1 / at)")}, "division by zero"},
		{"time", expr.Bare{Time: src("timestamp(1 / at)")}, "division by zero"},
		{"key", expr.Bare{Key: src("string(1 / at)")}, "division by zero"},
		{"empty key", expr.Bare{Key: src("ref")}, "is empty"},
	} {
		folder := compile(t, visitSpec(t, test.bare)).NewFolder()
		_, err := folder.Read(0, visit("", "u", 0), Origin{Key: []byte("k")})
		if pipeline.ReasonOf(err) != pipeline.ReasonExpression || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want a rejection: %s", test.name, err, test.want)
		}
	}
}

// A record without a key has no aggregate, unless an expression gives one.
func TestReadRejectsBareEventsWithoutAKey(t *testing.T) {
	body := visit("v-7", "u-1", 3)
	folder := compile(t, visitSpec(t, expr.Bare{})).NewFolder()
	if _, err := folder.Read(0, body, Origin{}); pipeline.ReasonOf(err) != pipeline.ReasonBadBody {
		t.Errorf("no key: %v, want a rejection", err)
	}
	folder = compile(t, visitSpec(t, expr.Bare{Key: src("user")})).NewFolder()
	if id, err := folder.Read(0, body, Origin{}); err != nil || string(id) != "u-1" {
		t.Errorf("key expression: id %q, %v", id, err)
	}
}

// An event has an empty event id after one that had an id: nothing of the last event
// stays in a Folder.
func TestAFolderForgetsTheLastEvent(t *testing.T) {
	folder := compile(t, visitSpec(t, expr.Bare{ID: src("ref"), Key: src("user")})).NewFolder()
	for _, want := range []string{"a long reference", "", "r"} {
		if _, err := folder.Read(0, visit(want, "u", 0), Origin{}); err != nil {
			t.Fatal(err)
		}
		if got := string(folder.EventID()); got != want {
			t.Errorf("EventID is %q, want %q", got, want)
		}
	}
}
