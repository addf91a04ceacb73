package projectiontest

import (
	"testing"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
)

// Epoch is the time from which the times of counted events are counted.
var Epoch = time.Date(2026, 1, 1, 10, 0, 0, 0, time.UTC)

// Counts compiles a fold of counted events, whose state is the list of their texts in
// the order in which they were folded. change, if not nil, changes its spec.
func Counts(t testing.TB, change func(*fold.Spec)) ([]*codec.Schema, *fold.Fold) {
	t.Helper()
	parse := func(text string) *codec.Schema {
		s, err := codec.ParseSchema(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	counted := parse(`{"type":"record","name":"Counted","fields":[
		{"name":"id","type":"string"},
		{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-micros"}},
		{"name":"sequence","type":["null","long"],"default":null},
		{"name":"data","type":{"type":"record","name":"CountedData","fields":[{"name":"id","type":"string"},{"name":"text","type":"string"}]}}]}`)
	state := parse(`{"type":"record","name":"Texts","fields":[{"name":"all","type":{"type":"array","items":"string"},"default":[]}]}`)
	src := func(text string) expr.Source { return expr.Source{Text: text} }
	spec := fold.Spec{Name: "texts", Types: []*codec.Schema{counted}, Key: src("data.id"), State: state, Wait: 10,
		On: []fold.On{{Set: []fold.Set{{Field: src("all"), Value: src("state.all + [data.text]")}}}}}
	if change != nil {
		change(&spec)
	}
	f, faults := fold.Compile(spec)
	if f == nil {
		t.Fatal(faults)
	}
	return spec.Types, f
}

// Counted returns a framed event of an aggregate, with the id "event " and its text, a
// time after Epoch and a sequence number, unless that is 0.
func Counted(id string, number int, at time.Duration, text string) []byte {
	return counted(id, number, Epoch.Add(at).UnixMicro(), text)
}

// CountedAt is [Counted] for an event without a sequence number at any time, in
// microseconds since 1970.
func CountedAt(id string, micros int64, text string) []byte { return counted(id, 0, micros, text) }

func counted(id string, number int, micros int64, text string) []byte {
	body := codec.AppendString(nil, "event "+text)
	body = codec.AppendLong(body, micros)
	if number == 0 {
		body = codec.AppendLong(body, 0)
	} else {
		body = codec.AppendLong(codec.AppendLong(body, 1), int64(number))
	}
	body = codec.AppendString(codec.AppendString(body, id), text)
	return append(codec.AppendFrame(nil, 0), body...)
}

// Poison returns a framed value that cannot be decoded.
func Poison(typ int) []byte { return append(codec.AppendFrame(nil, typ), 0xff) }

// Rows returns the type of the events of [Row].
func Rows(t testing.TB) []*codec.Schema {
	t.Helper()
	s, err := codec.ParseSchema(`{"type":"record","name":"Counted","fields":[
		{"name":"id","type":"string"},
		{"name":"timestamp","type":{"type":"long","logicalType":"timestamp-micros"}},
		{"name":"data","type":{"type":"record","name":"CountedData","fields":[{"name":"id","type":"string"},{"name":"text","type":"string"}]}}]}`)
	if err != nil {
		t.Fatal(err)
	}
	return []*codec.Schema{s}
}

// Row is [Counted] for events without a field for sequence numbers.
func Row(id, text string) []byte {
	body := codec.AppendLong(codec.AppendString(nil, "event "+text), Epoch.UnixMicro())
	return append(codec.AppendFrame(nil, 0), codec.AppendString(codec.AppendString(body, id), text)...)
}
