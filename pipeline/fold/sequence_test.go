package fold

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

func parse(t testing.TB, text string) *codec.Schema {
	t.Helper()
	s, err := codec.ParseSchema(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// counterState is a state that only counts events.
const counterState = `{"type":"record","name":"Counter","fields":[{"name":"n","type":"long","default":0}]}`

// sequenceSpec counts events whose field sequence has the given type.
func sequenceSpec(t testing.TB, sequence string) Spec {
	event := parse(t, `{"type":"record","name":"Counted","fields":[{"name":"key","type":"string"},{"name":"sequence","type":`+sequence+`}]}`)
	return Spec{
		Name: "counter", Types: []*codec.Schema{event}, Key: src("key"), State: parse(t, counterState),
		On: []On{{Type: 0, Set: []Set{{src("n"), src("state.n + 1")}}}},
	}
}

// sequenced encodes an event of sequenceSpec. branch is that of the sequence number;
// -1 if the number is not in a union.
func sequenced(branch int, number int64) []byte {
	body := codec.AppendString(nil, "k")
	if branch >= 0 {
		body = codec.AppendLong(body, int64(branch))
	}
	return codec.AppendLong(body, number)
}

func TestSkippedSequenceNumbersAreMissing(t *testing.T) {
	for _, test := range []struct {
		name    string
		numbers []int64 // 0 is an event without a number
		number  int64
		missing int64
		status  string
	}{
		{"no gap", []int64{1, 2, 3}, 3, 0, Live},
		{"gap before the first event", []int64{3}, 3, 2, Gap},
		{"gap between events", []int64{1, 4, 5}, 5, 2, Gap},
		{"two gaps", []int64{2, 4}, 4, 2, Gap},
		{"no event has a number", []int64{0, 0}, 0, 0, Live},
		{"numbers start after events without a number", []int64{0, 7, 8}, 8, 0, Live},
		{"a gap after events without a number", []int64{0, 7, 9}, 9, 1, Gap},
	} {
		folder := compile(t, sequenceSpec(t, `["null","long"]`)).NewFolder()
		var a Aggregate
		for _, n := range test.numbers {
			body := sequenced(1, n)
			if n == 0 {
				body = append(codec.AppendString(nil, "k"), 0) // null
			}
			if _, err := folder.Read(0, body, Origin{}); err != nil {
				t.Fatal(err)
			}
			if number, ok := folder.Number(); number != n || ok != (n > 0) {
				t.Errorf("%s: Number is %d, %v; want %d", test.name, number, ok, n)
			}
			if _, err := folder.Apply(&a); err != nil {
				t.Fatal(err)
			}
		}
		if a.Number != test.number || a.Missing != test.missing || a.Status() != test.status {
			t.Errorf("%s: number %d, missing %d, status %s; want %d, %d, %s", test.name, a.Number, a.Missing, a.Status(), test.number, test.missing, test.status)
		}
	}
}

// For any ascending sequence numbers, Missing counts the numbers below the last one
// that no event had.
func TestMissingCountsTheAbsentNumbers(t *testing.T) {
	f := compile(t, sequenceSpec(t, `"long"`))
	rapid.Check(t, func(t *rapid.T) {
		folder := f.NewFolder()
		var a Aggregate
		events, number := rapid.IntRange(1, 20).Draw(t, "events"), int64(0)
		for range events {
			number += rapid.Int64Range(1, 4).Draw(t, "step")
			if _, err := folder.Read(0, sequenced(-1, number), Origin{}); err != nil {
				t.Fatal(err)
			}
			if _, err := folder.Apply(&a); err != nil {
				t.Fatal(err)
			}
		}
		if want := number - int64(events); a.Missing != want || a.Number != number {
			t.Fatalf("after %d events up to %d: number %d, missing %d; want missing %d", events, number, a.Number, a.Missing, want)
		}
	})
}

func TestSequenceNumbersAreReadFromLongsAndUnions(t *testing.T) {
	windowed := func(spec Spec) Spec {
		spec.Types[0] = parse(t, `{"type":"record","name":"Counted","fields":[{"name":"key","type":"string"},{"name":"sequence","type":"long"},{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-millis"}}]}`)
		spec.Window = Window{Size: time.Minute, Every: time.Minute}
		return spec
	}
	for _, test := range []struct {
		name     string
		spec     Spec
		body     []byte
		number   int64
		numbered bool
	}{
		{"long", sequenceSpec(t, `"long"`), sequenced(-1, 7), 7, true},
		{"nullable long", sequenceSpec(t, `["null","long"]`), sequenced(1, 7), 7, true},
		{"null in the second branch", sequenceSpec(t, `["long","null"]`), sequenced(0, 7), 7, true},
		{"another branch of a union", sequenceSpec(t, `["long","string"]`), codec.AppendString(codec.AppendLong(codec.AppendString(nil, "k"), 1), "7"), 0, false},
		{"a field that is not a long", sequenceSpec(t, `"string"`), codec.AppendString(codec.AppendString(nil, "k"), "7"), 0, false},
		{"a windowed fold ignores numbers", windowed(sequenceSpec(t, `"long"`)), codec.AppendLong(sequenced(-1, 7), 1000), 0, false},
	} {
		folder := compile(t, test.spec).NewFolder()
		if _, err := folder.Read(0, test.body, Origin{}); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if n, ok := folder.Number(); n != test.number || ok != test.numbered {
			t.Errorf("%s: Number is %d, %v; want %d, %v", test.name, n, ok, test.number, test.numbered)
		}
	}
}

func TestReadRejectsSequenceNumbersBelowOne(t *testing.T) {
	folder := compile(t, sequenceSpec(t, `"long"`)).NewFolder()
	for _, n := range []int64{0, -1} {
		_, err := folder.Read(0, sequenced(-1, n), Origin{})
		if pipeline.ReasonOf(err) != pipeline.ReasonBadBody {
			t.Errorf("sequence number %d: %v, want a rejection", n, err)
		}
	}
}
