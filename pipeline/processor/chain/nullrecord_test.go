package chain_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/topology"
)

// oneType returns the handler of a pipeline with stages, for one type without an envelope.
// Each enrich stage after the first gets a name.
func oneType(t *testing.T, name, schema, stages string) (*chain.Rehearsal, *topology.Pipeline) {
	t.Helper()
	parts := strings.Split(stages, "enrich: {")
	for i := 2; i < len(parts); i++ {
		parts[i] = fmt.Sprintf("name: enrich%d, ", i) + parts[i]
	}
	stages = strings.Join(parts, "enrich: {")
	return offline(t, fmt.Sprintf(`
name: t
topics: {in: {partitions: 1, types: [%s], envelope: none}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines:
  p: {from: in, to: out, dead_letter: dead, stages: [%s]}
`, name, stages), map[string]string{name + ".avsc": schema})
}

// ran returns what becomes of an event: JSON, one line per record, or the reason of a dead
// letter.
func ran(t *testing.T, r *chain.Rehearsal, pl *topology.Pipeline, event string) string {
	t.Helper()
	var j codec.JSON
	if err := j.Parse([]byte(event)); err != nil {
		t.Fatal(err)
	}
	value, err := j.AppendAvro(codec.AppendFrame(nil, 0), pl.Types[0])
	if err != nil {
		t.Fatal(err)
	}
	in := &pipeline.Record{Topic: "in", Key: []byte("k"), Value: value, Time: time.UnixMilli(0)}
	out, err := r.Run(t.Context(), in)
	if err != nil {
		t.Fatalf("%s: %v", event, err)
	}
	var lines []string
	for i := range out {
		s := out[i].Sample(in)
		if s.Error != "" {
			lines = append(lines, "dead: "+s.Error)
		} else {
			lines = append(lines, string(s.Event))
		}
	}
	return strings.Join(lines, "\n")
}

const (
	row     = `{"id":7,"email":"A@b.cd","name":"Ann","address":{"street":"Hill 1","zips":["123","45"]}}`
	lonely  = `{"id":8,"email":null,"name":"Bo","address":null}`
	created = `{"before":null,"after":` + row + `,"op":"c"}`
	deleted = `{"before":` + row + `,"after":null,"op":"d"}`
	update  = `{"before":` + row + `,"after":` + lonely + `,"op":"u"}`
)

// A stage sets fields within nullable records, at any depth and in any branch of a union.
// Where the record is null, nothing changes, and the expression is not evaluated.
func TestFieldsWithinNullableRecordsAreSet(t *testing.T) {
	const several = `{"type":"record","name":"Pay","fields":[{"name":"by","type":["string",
		{"type":"record","name":"Card","fields":[{"name":"number","type":"string"},{"name":"amount","type":"long"}]},"null",
		{"type":"record","name":"Bank","fields":[{"name":"amount","type":"long"},{"name":"iban","type":"string"}]}]},{"name":"n","type":"int"}]}`
	const tree = `{"type":"record","name":"Tree","fields":[{"name":"root","type":[{"type":"record","name":"Node","fields":[
		{"name":"v","type":"int"},{"name":"tags","type":["null",{"type":"map","values":"string"}]},{"name":"kid","type":["null","Node"]}]},"null"]}]}`
	for _, test := range []struct{ name, schema, stages, in, want string }{
		{"Change", changeEvent, `{enrich: {set: {after.email: "after.email == null ? 'none' : after.email.lowerAscii()"}}}`, created, strings.Replace(created, "A@b.cd", "a@b.cd", 1)},
		{"Change", changeEvent, `{enrich: {set: {after.name: "after.name + '!'"}}}`, deleted, deleted},
		{"Change", changeEvent, `{enrich: {set: {after.name: before.name, after.id: after.id + 1, op: "'x'"}}}`, update,
			`{"before":` + row + `,"after":{"id":9,"email":null,"name":"Ann","address":null},"op":"x"}`},
		{"Change", changeEvent, `{enrich: {set: {before.address.street: "'S'", after.address.street: "'T'"}}}`, update, strings.Replace(update, "Hill 1", "S", 1)},
		{"Change", changeEvent, `{enrich: {set: {before.address.zips: "[]", before.address.street: "'' + before.name", before.id: 0}}}`, deleted,
			`{"before":{"id":0,"email":"A@b.cd","name":"Ann","address":{"street":"Ann","zips":[]}},"after":null,"op":"d"}`},
		{"Change", changeEvent, `{enrich: {set: {after.email: "null"}}}, {filter: {keep: "after == null || after.email == null"}}, {enrich: {set: {after.name: "after.name + string(after.id)"}}}`, created,
			`{"before":null,"after":{"id":7,"email":null,"name":"Ann7","address":{"street":"Hill 1","zips":["123","45"]}},"op":"c"}`},
		{"Change", changeEvent, `{enrich: {set: {after: before}}}, {enrich: {set: {after.id: "1"}}}`, deleted, strings.Replace(deleted, `"after":null`, `"after":`+strings.Replace(row, "7", "1", 1), 1)},
		{"Pay", several, `{enrich: {set: {by.amount: "5"}}}`, `{"by":{"Card":{"number":"1","amount":3}},"n":1}`, `{"by":{"Card":{"number":"1","amount":5}},"n":1}`},
		{"Pay", several, `{enrich: {set: {by.amount: "5"}}}`, `{"by":{"Bank":{"amount":3,"iban":"D"}},"n":1}`, `{"by":{"Bank":{"amount":5,"iban":"D"}},"n":1}`},
		{"Pay", several, `{enrich: {set: {by.iban: "'X'", by.number: "'9'"}}}`, `{"by":{"Card":{"number":"1","amount":3}},"n":1}`, `{"by":{"Card":{"number":"9","amount":3}},"n":1}`},
		{"Pay", several, `{enrich: {set: {by.amount: "5", n: "2"}}}`, `{"by":"cash","n":1}`, `{"by":"cash","n":2}`},
		{"Pay", several, `{enrich: {set: {by.amount: "5"}}}`, `{"by":null,"n":1}`, `{"by":null,"n":1}`},
		{"Tree", tree, `{enrich: {set: {root.kid.v: "root.v + 1", root.v: "9", root.tags.a: "'b'", root.tags.c: "'d'"}}}`, `{"root":{"v":1,"tags":{"a":"x"},"kid":{"v":7,"tags":null,"kid":null}}}`,
			`{"root":{"v":9,"tags":{"a":"b","c":"d"},"kid":{"v":2,"tags":null,"kid":null}}}`},
		{"Tree", tree, `{enrich: {set: {root.kid.kid.v: "9", root.kid.tags.a: "'b'"}}}`, `{"root":{"v":1,"tags":null,"kid":{"v":7,"tags":null,"kid":null}}}`,
			`{"root":{"v":1,"tags":null,"kid":{"v":7,"tags":null,"kid":null}}}`},
		{"Tree", tree, `{enrich: {set: {root.kid.kid.v: "9"}}}`, `{"root":null}`, `{"root":null}`},
	} {
		r, pl := oneType(t, test.name, test.schema, test.stages)
		for range 2 { // the second time, memory is reused
			if got := ran(t, r, pl, test.in); got != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.stages, got, test.want)
			}
		}
	}
}

// An array within a nullable record is split. Without the record there is no item, as
// without the array.
func TestArraysWithinNullableRecordsAreSplit(t *testing.T) {
	r, pl := oneType(t, "Change", changeEvent, `{split: {field: after.address.zips, set: {after.address.street: "after.address.street + ' ' + item", op: "string(index)"}}}`)
	part := func(zip, op string) string {
		return `{"before":null,"after":{"id":7,"email":"A@b.cd","name":"Ann","address":{"street":"Hill 1 ` + zip + `","zips":["` + zip + `"]}},"op":"` + op + `"}`
	}
	for in, want := range map[string]string{created: part("123", "0") + "\n" + part("45", "1"), deleted: "", update: ""} {
		if got := ran(t, r, pl, in); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", in, got, want)
		}
	}
}

// A stage adds fields within nullable records. The derived schema defines each type once,
// and bodies are valid for it; where an event has the record elsewhere, the field has its
// default. An event that the stage skips has the default, too.
func TestFieldsWithinNullableRecordsAreAdded(t *testing.T) {
	const list = `{"type":"record","name":"List","fields":[{"name":"head","type":[{"type":"record","name":"Item","fields":[{"name":"v","type":"int"},{"name":"next","type":["null","Item"]}]},"null"]},{"name":"all","type":{"type":"array","items":"Item"}},{"name":"n","type":"int"}]}`
	for _, test := range []struct{ name, schema, stages, in, want string }{
		{"Change", changeEvent, `{enrich: {add: {after.domain: {type: string?, value: "after.email == null ? null : after.email.split('@')[1]"}}}}`, update,
			`{"before":{"id":7,"email":"A@b.cd","name":"Ann","address":{"street":"Hill 1","zips":["123","45"]},"domain":null},"after":{"id":8,"email":null,"name":"Bo","address":null,"domain":null},"op":"u"}`},
		{"Change", changeEvent, `{enrich: {add: {after.domain: {type: string?, value: "after.email == null ? null : after.email.split('@')[1]"}}}}`, created,
			`{"before":null,"after":{"id":7,"email":"A@b.cd","name":"Ann","address":{"street":"Hill 1","zips":["123","45"]},"domain":"b.cd"},"op":"c"}`},
		{"Change", changeEvent, `{enrich: {add: {after.n: {type: long, value: "after.id * 2"}}, set: {after.id: "0"}}}`, deleted,
			`{"before":{"id":7,"email":"A@b.cd","name":"Ann","address":{"street":"Hill 1","zips":["123","45"]},"n":0},"after":null,"op":"d"}`},
		{"Change", changeEvent, `{enrich: {set: {op: "op + '1'"}}}, {enrich: {add: {after.address.city: {type: string, value: "after.name"}, n: {type: int, value: "1"}}}}, ` +
			`{enrich: {set: {n: "n + 1", after.address.city: "after.address.city + '!'"}, add: {before.m: {type: int, value: "n"}}}}, {filter: {keep: "after.address.city == 'Ann!'"}}`, created,
			`{"before":null,"after":{"id":7,"email":"A@b.cd","name":"Ann","address":{"street":"Hill 1","zips":["123","45"],"city":"Ann!"},"m":0},"op":"c1","n":2}`},
		{"Change", changeEvent, `{enrich: {on_error: skip, add: {after.n: {type: int, value: "1 / int(after.id - 7)"}}}}`, created,
			`{"before":null,"after":{"id":7,"email":"A@b.cd","name":"Ann","address":{"street":"Hill 1","zips":["123","45"]},"n":0},"op":"c"}`},
		{"Change", changeEvent, `{enrich: {add: {after.n: {type: int, value: "1 / int(after.id - 7)"}}}}`, created, "dead: stage enrich: expression: 1 / int(after.id - 7): division by zero"},
		{"List", list, `{enrich: {add: {head.next.w: {type: int, value: "head.v"}}}}`, `{"head":{"v":1,"next":{"v":2,"next":null}},"all":[{"v":3,"next":{"v":4,"next":null}},{"v":5,"next":null}],"n":6}`,
			`{"head":{"v":1,"next":{"v":2,"next":null,"w":1},"w":0},"all":[{"v":3,"next":{"v":4,"next":null,"w":0},"w":0},{"v":5,"next":null,"w":0}],"n":6}`},
		{"List", list, `{enrich: {add: {head.w: {type: int, value: "n"}}}}, {split: {field: all, set: {head.w: "item.w + item.v"}}}`, `{"head":{"v":1,"next":null},"all":[{"v":3,"next":null}],"n":6}`,
			`{"head":{"v":1,"next":null,"w":3},"all":[{"v":3,"next":null,"w":0}],"n":6}`},
	} {
		r, pl := oneType(t, test.name, test.schema, test.stages)
		for range 2 { // the second time, memory is reused
			if got := ran(t, r, pl, test.in); got != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.stages, got, test.want)
			}
		}
		if again, err := codec.ParseSchema(pl.Output[0].String()); err != nil || strings.Count(again.String(), `"Row"`) > 2 {
			t.Errorf("%v: %s", err, pl.Output[0])
		}
	}
}

// Within a nullable record, all bytes but those of the set, masked and added fields stay,
// for every type before and after them.
func TestUntouchedFieldsWithinNullableRecordsKeepTheirBytes(t *testing.T) {
	for name, typ := range shapes {
		t.Run(name, func(t *testing.T) {
			r, pl := oneType(t, "Shape", `{"type":"record","name":"Shape","fields":[{"name":"row","type":[{"type":"record","name":"Row","fields":[{"name":"first","type":`+typ+`},{"name":"n","type":"long"},
				{"name":"email","type":["null","string"]},{"name":"meta","type":["null",{"type":"map","values":"string"}]},
				{"name":"inner","type":["null",{"type":"record","name":"Inner","fields":[{"name":"s","type":"string"},{"name":"n","type":"int"}]}]},{"name":"last","type":"string"}]},"null"]},{"name":"end","type":"string"}]}`,
				`{enrich: {set: {row.inner.n: "row.inner.n + 1", row.n: "row.n + 1", row.meta.note: "'seen'"}}}, {mask: {fields: {row.email: keep_first 1}}}, {enrich: {add: {row.more: {type: int, value: "3"}}}}`)
			shape := pl.Types[0].Root().Fields[0].Type.Branches[0].Fields[0].Type
			rapid.Check(t, func(t *rapid.T) {
				first := random(t, shape, nil, 1)
				last := codec.AppendString(nil, rapid.StringN(0, 10, -1).Draw(t, "last"))
				end := codec.AppendString(nil, rapid.StringN(0, 10, -1).Draw(t, "end"))
				null, without := rapid.Bool().Draw(t, "null"), rapid.Bool().Draw(t, "without")
				body := func(n int64, email, meta, inner, more string) []byte {
					if null {
						return append([]byte{2}, end...)
					}
					out := codec.AppendLong(append([]byte{0}, first...), n)
					if without {
						email, meta, inner = "\x00", "\x00", "\x00"
					}
					out = append(append(append(out, email+meta+inner...), last...), more...)
					return append(out, end...)
				}
				in := body(7, "\x02\x06a@b", "\x02\x00", "\x02\x02s\x0c", "")
				want := body(8, "\x02\x06a**", "\x02\x02\x08note\x08seen\x00", "\x02\x02s\x0e", "\x06")
				out, err := r.Run(t.Context(), &pipeline.Record{Topic: "in", Key: []byte("k"), Value: append(codec.AppendFrame(nil, 0), in...), Time: time.UnixMilli(0)})
				if err != nil || len(out) != 1 || out[0].Schema == nil || !bytes.Equal(out[0].Body, want) {
					t.Fatalf("%x becomes %x (%d records, %v)\nwant %x", in, out[0].Record.Value, len(out), err, want)
				}
			})
		})
	}
}
