package stage_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// Schemas with unions of several types.
const (
	cardAndBank = `{"type":"record","name":"Card","fields":[{"name":"owner","type":"string"},{"name":"number","type":"string"},{"name":"x","type":"int"},{"name":"tags","type":["null",{"type":"map","values":"string"}]}]},
		{"type":"record","name":"Bank","fields":[{"name":"owner","type":"string"},{"name":"x","type":"string"},{"name":"codes","type":{"type":"array","items":"string"}}]}`
	payment = `{"type":"record","name":"Payment","fields":[{"name":"n","type":"int"},{"name":"word","type":["null","string","long"]},{"name":"by","type":[` + cardAndBank + `]},
		{"name":"maybe","type":["null","Card","string","Bank"]},{"name":"list","type":{"type":"array","items":["Card","Bank"]}},
		{"name":"meta","type":[{"type":"map","values":"string"},"null"]},{"name":"after","type":["null",{"type":"record","name":"Row","fields":[{"name":"by","type":["Card","null","Bank"]}]}]}]}`
	paid2 = `{"type":"record","name":"Paid","namespace":"x","fields":[{"name":"n","type":["null","int"],"default":null},{"name":"label","type":["null","string"],"default":null},{"name":"maybe","type":["null",` + cardAndBank + `],"default":null}]}`
)

func newPayments(stages string) (*topology.Topology, error) {
	return topology.Load(topology.Source{Name: "topology.yaml", Text: fmt.Appendf(nil, `
name: t
topics: {in: {partitions: 4, types: [Payment], envelope: none}, out: {partitions: 4, envelope: none}, dead: {partitions: 1}}
pipelines: {p: {from: in, to: out, dead_letter: dead, stages: [%s]}}
`, stages)}, topology.Options{Stages: stage.Builtin(), Schemas: fstest.MapFS{"Payment.avsc": {Data: []byte(payment)}, "Paid.avsc": {Data: []byte(paid2)}}})
}

func paymentOf(by, maybe, list, meta, after string) string {
	return `{"n":1,"word":7,"by":` + by + `,"maybe":` + maybe + `,"list":[` + list + `],"meta":` + meta + `,"after":` + after + `}`
}

func card(owner, number, tags string) string {
	return `{"Card":{"owner":"` + owner + `","number":"` + number + `","x":1,"tags":` + tags + `}}`
}

func bank(owner string, codes string) string {
	return `{"Bank":{"owner":"` + owner + `","x":"y","codes":[` + codes + `]}}`
}

// A path leads into each type of a union that has the rest of it. Events with another type
// stay as they are.
func TestStagesReachIntoUnionsOfSeveralTypes(t *testing.T) {
	all := paymentOf(card("a", "1", `{"k":"v"}`), card("b", "2", "null"), card("c", "3", "null")+","+bank("d", `"q","r"`), `{"ip":"1.2"}`, `{"by":`+bank("e", `"s"`)+`}`)
	rest := paymentOf(bank("f", ""), `"text"`, "", "null", "null")
	change := func(in string, pairs ...string) string {
		for i := 0; i < len(pairs); i += 2 {
			if strings.Count(in, pairs[i]) != 1 {
				t.Fatalf("%s has %s %d times", in, pairs[i], strings.Count(in, pairs[i]))
			}
			in = strings.Replace(in, pairs[i], pairs[i+1], 1)
		}
		return in
	}
	for _, test := range []struct{ stages, in, want string }{
		{`mask: {fields: {by.number: redact}}`, all, change(all, `"1"`, `"***"`)},
		{`mask: {fields: {by.number: redact}}`, rest, rest},
		{`mask: {fields: {by.owner: redact, maybe.number: redact}}`, all, change(all, `"a"`, `"***"`, `"2"`, `"***"`)},
		{`mask: {fields: {by.owner: redact, maybe.number: redact}}`, rest, change(rest, `"f"`, `"***"`)},
		{`mask: {fields: {"list[].owner": keep_first 1, "list[].number": redact, "list[].codes[]": redact}}`, all, change(all, `"c"`, `"*"`, `"d"`, `"*"`, `"3"`, `"***"`, `"q","r"`, `"***","***"`)},
		{`mask: {fields: {by.tags.k: redact, meta.ip: redact}}`, all, change(all, `"v"`, `"***"`, `"1.2"`, `"***"`)},
		{`mask: {fields: {by.tags.k: redact, meta.ip: redact}}`, rest, rest},
		{`mask: {fields: {"by.tags[]": redact, "meta[]": redact}}`, all, change(all, `"v"`, `"***"`, `"1.2"`, `"***"`)},
		{`mask: {fields: {after.by.owner: redact, "after.by.codes[]": redact}}`, all, change(all, `"e"`, `"***"`, `"s"`, `"***"`)},
		{`mask: {fields: {after.by.owner: redact}}`, rest, rest},
		{`mask: {fields: {word: redact, maybe: redact}}`, rest, change(rest, `"word":7`, `"word":null`, `"text"`, "null")},
		{`enrich: {set: {by.number: "'9'", maybe.owner: "string(n)", meta.new: "'x'"}}`, all, change(all, `"1"`, `"9"`, `"b"`, `"1"`, `"1.2"`, `"1.2","new":"x"`)},
		{`enrich: {set: {by.number: "'9'", maybe.owner: "string(n)", meta.new: "'x'"}}`, rest, rest},
	} {
		plan, err := newPayments("{" + test.stages + "}")
		if err != nil {
			t.Errorf("%s: %v", test.stages, err)
			continue
		}
		r := &run{t: t, pipeline: plan.Pipelines[0], chain: plan.Pipelines[0].Chain()}
		for range 2 {
			if got, err := r.process(test.in); got != test.want || err != nil {
				t.Errorf("%s\ngot  %s, %v\nwant %s", test.stages, got, err, test.want)
			}
		}
	}
}

// What a path into a union of several types cannot do is a fault, with what to do instead.
func TestPathsIntoUnionsOfSeveralTypesThatAreFaults(t *testing.T) {
	whole := func(path string) string {
		return "name " + path + " as a whole: a path leads through a union only if it is of null and one record"
	}
	for _, test := range []struct{ stages, msg, hint string }{
		{`enrich: {set: {word.x: n}}`, "word is a null or string or long, which has no fields to set", "name word as a whole"},
		{`enrich: {set: {by.x: n}}`, "several branches of a union have by.x, as an int and as a string", "use a name that only one of them has, or one with the same type in all"},
		{`enrich: {set: {by: "null"}}`, "by is a Card or Bank in Payment, but this is null", ""},
		{`enrich: {add: {by.n: {type: int, value: n}}}`, "adding by.n to Payment: by is Card or Bank, which has several records", ""},
		{`mask: {fields: {by: redact}}`, "by of Payment is Card or Bank, which has no neutral value", "hide its parts, or make it nullable"},
		{`mask: {fields: {word: hash}}`, "word of Payment is null or string or long, but hash is for strings, UUIDs and plain bytes", "use redact"},
		{`mask: {fields: {by.iban: redact}}`, "by of Payment is Card or Bank, and none of these has iban", "use redact for the whole value if it can be null, or name a field of one of its records"},
		{`mask: {fields: {by.x: hash}}`, "by.x of Payment is int, but hash is for strings, UUIDs and plain bytes", "use redact"},
		{`mask: {fields: {"list[].iban": redact}}`, "list[] of Payment is Card or Bank, and none of these has iban", "use redact for the whole value if it can be null, or name a field of one of its records"},
		{`mask: {fields: {by.owner: redact, by.tags: redact, by.tags.k: redact}}`, "by.tags.k and by.tags overlap", "remove one of them"},
		{`select: {drop: [by.number], type: S}`, "by of Payment is Card or Bank, and has no fields", whole("by")},
		{`select: {keep: [n, maybe.owner], type: S}`, "maybe of Payment is null or Card or string or Bank, and has no fields", whole("maybe")},
		{`select: {drop: ["list[].owner"], type: S}`, "list[] of Payment is Card or Bank, and has no fields", whole("list[]")},
		{`select: {rename: {after.by.owner: o}, type: S}`, "after.by of Payment is Card or null or Bank, and has no fields", whole("after.by")},
		{`select: {to: x.Paid, rename: {by.number: label}}`, "by of Payment is Card or Bank, and has no fields", whole("by")},
		{`select: {to: x.Paid, rename: {n: maybe.x}}`, "maybe of x.Paid is null or x.Card or x.Bank, and has no fields", whole("maybe")},
		{`select: {from: by}`, "by of Payment is Card or Bank, and from needs a record", "name a record, or a record that may be null"},
		{`select: {to: x.Paid}`, "maybe of x.Paid cannot be filled from Payment: not every value fits: string matches no branch of null or x.Card or x.Bank", "set: {maybe: EXPRESSION}"},
		{`split: {field: word}`, "word of Payment is not an array", "a split needs the path of an array"},
	} {
		_, err := newPayments("{" + test.stages + "}")
		faults, ok := err.(topology.Faults)
		if !ok || len(faults) != 1 || faults[0].Msg != test.msg || faults[0].Hint != test.hint {
			t.Errorf("%s:\ngot  %v\nwant %s; %s", test.stages, err, test.msg, test.hint)
		}
	}
}
