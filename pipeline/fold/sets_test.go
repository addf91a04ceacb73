package fold

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

const (
	addressType = `{"type":"record","name":"Address","fields":[{"name":"city","type":"string"},{"name":"seen","type":"long"},{"name":"geo","type":[{"type":"record","name":"Geo","fields":[{"name":"x","type":"long"}]},"null"]}]}`
	// An address is put as a whole, or one of its fields changes.
	moveType = `{"type":"record","name":"Move","fields":[{"name":"op","type":"string"},{"name":"address","type":["null",` + addressType + `]},{"name":"n","type":"long"}]}`
	homeType = `{"type":"record","name":"Home","fields":[{"name":"n","type":"long","default":0},{"name":"address","type":["null",` + addressType + `],"default":null},{"name":"last","type":"string","default":""}]}`
)

func moveSpec(t testing.TB) Spec {
	return Spec{Name: "homes", Types: []*codec.Schema{parse(t, moveType)}, State: parse(t, homeType), Bare: &expr.Bare{}, On: []On{
		{When: src("op == 'put'"), Set: []Set{{src("address"), src("address")}}},
		{When: src("op == 'city'"), Set: []Set{{src("address.city"), src("state.address.city + '/' + string(n)")}, {src("last"), src("op")}, {src("address.seen"), src("state.address.seen + 1")}}},
		{Set: []Set{{src("address.geo.x"), src("state.address.geo.x + n")}, {src("address.seen"), src("n")}, {src("n"), src("n")}}},
	}}
}

// move is an event, or the address of a state: nil is null.
type (
	move struct {
		op      string
		address *address
		n       int64
	}
	address struct {
		city string
		seen int64
		geo  *int64
	}
)

func (a *address) append(dst []byte) []byte {
	if a == nil {
		return codec.AppendLong(dst, 0)
	}
	dst = codec.AppendLong(codec.AppendString(codec.AppendLong(dst, 1), a.city), a.seen)
	if a.geo == nil {
		return codec.AppendLong(dst, 1)
	}
	return codec.AppendLong(codec.AppendLong(dst, 0), *a.geo)
}

func (m move) body() []byte {
	return codec.AppendLong(m.address.append(codec.AppendString(nil, m.op)), m.n)
}

// Fields of a state within nullable records are set as in decoded values. Where a record is
// null, nothing is set, and its other fields stay.
func TestFieldsOfAStateWithinNullableRecordsAreSet(t *testing.T) {
	f := compile(t, moveSpec(t))
	if w := f.Warnings(); len(w) > 0 {
		t.Errorf("warnings %v", w)
	}
	rapid.Check(t, func(t *rapid.T) {
		folder := f.NewFolder()
		var a Aggregate
		var home struct {
			n    int64
			at   *address
			last string
		}
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			m := move{op: rapid.SampledFrom([]string{"put", "city", "geo"}).Draw(t, "op"), n: rapid.Int64Range(-9, 9).Draw(t, "n")}
			if rapid.Bool().Draw(t, "address") {
				m.address = &address{city: rapid.StringN(0, 5, -1).Draw(t, "city"), seen: 3}
				if rapid.Bool().Draw(t, "geo") {
					m.address.geo = &m.n
				}
			}
			if _, err := folder.Read(0, m.body(), Origin{Key: []byte("k")}); err != nil {
				t.Fatal(err)
			}
			if out, err := folder.ApplyInPlace(&a); out != Applied || err != nil {
				t.Fatal(out, err)
			}
			var now *address
			if home.at != nil {
				copied := *home.at
				now = &copied
			}
			switch m.op {
			case "put":
				now = m.address
			case "city":
				if home.last = m.op; now != nil {
					now.city, now.seen = fmt.Sprint(now.city, "/", m.n), now.seen+1
				}
			default:
				if home.n = m.n; now != nil {
					if now.seen = m.n; now.geo != nil {
						x := *now.geo + m.n
						now.geo = &x
					}
				}
			}
			home.at = now
			want := codec.AppendString(home.at.append(codec.AppendLong(nil, home.n)), home.last)
			if string(a.State) != string(want) {
				t.Fatalf("%+v: the state is %x, want %x", m, a.State, want)
			}
		}
	})
}

func TestSetsThatOverlapAreFaults(t *testing.T) {
	for _, test := range []struct{ first, second, want string }{
		{"address", "address.city", "address and address.city overlap"},
		{"address.geo.x", "address.geo", "address.geo.x and address.geo overlap"},
		{"address.city", "address.city", "address.city is set twice"},
		{"n", "address.town", "Home has no field address.town"},
		{"n", "address.city.x", "Home has no field address.city.x"},
	} {
		spec := moveSpec(t)
		spec.On = []On{{Set: []Set{{src(test.first), src("null")}, {src(test.second), src("null")}}}}
		_, faults := Compile(spec)
		if len(faults) == 0 || faults[len(faults)-1].Msg != test.want {
			t.Errorf("%s and %s: %v, want %s", test.first, test.second, faults, test.want)
		}
	}
}

// The aggregate id can be within nullable records, and may be null itself. An event without
// it is rejected.
func TestTheAggregateIDWithinANullableRecord(t *testing.T) {
	const id = `{"name":"id","type":["null","string"]}`
	event := parse(t, `{"type":"record","name":"Change","fields":[{"name":"before","type":"int"},{"name":"after","type":["null",{"type":"record","name":"Row","fields":[{"name":"n","type":"int"},{"name":"who","type":[{"type":"record","name":"Who","fields":[`+id+`]},"null"]}]}]}]}`)
	f := compile(t, Spec{Name: "rows", Types: []*codec.Schema{event}, State: parse(t, homeType), Key: src("after.who.id"), On: []On{{Set: []Set{{src("n"), src("before")}}}}})
	folder := f.NewFolder()
	for body, want := range map[string]string{
		"\x02\x02\x02\x00\x02\x06u-1": "u-1",
		"\x02\x00":                    "bad_body: after.who.id, the aggregate id, is missing: after or after.who is null",
		"\x02\x02\x02\x02":            "bad_body: after.who.id, the aggregate id, is missing: after or after.who is null",
		"\x02\x02\x02\x00\x00":        "bad_body: after.who.id, the aggregate id, is null",
		"\x02\x02\x02\x00\x02\x00":    "bad_body: the aggregate id is empty",
	} {
		got, err := folder.Read(0, []byte(body), Origin{})
		have := string(got)
		if err != nil {
			if have = err.Error(); pipeline.ClassOf(err) != pipeline.ClassReject {
				t.Errorf("%x: %v is not of ClassReject", body, err)
			}
		}
		if have != want {
			t.Errorf("%x: %s, want %s", body, have, want)
		}
	}
}
