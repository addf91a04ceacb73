package chain_test

import (
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// changeEvent is the form of change data: the row before and after, each null or a record.
const changeEvent = `{"type":"record","name":"Change","fields":[
	{"name":"before","type":["null",{"type":"record","name":"Row","fields":[
		{"name":"id","type":"long"},{"name":"email","type":["null","string"]},{"name":"name","type":"string"},
		{"name":"address","type":["null",{"type":"record","name":"Address","fields":[{"name":"street","type":"string"},{"name":"zips","type":{"type":"array","items":"string"}}]}]}]}]},
	{"name":"after","type":["null","Row"]},
	{"name":"op","type":"string"}]}`

// Fields within nullable records are masked, at any depth. Null stays null, and all other
// bytes stay as they are.
func TestFieldsWithinNullableRecordsAreMasked(t *testing.T) {
	r, pl := offline(t, `
name: t
topics: {in: {partitions: 1, types: [Change], envelope: none}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages:
      - filter: {keep: "op != 'r' && (after == null || after.id > 0)"}
      - mask: {fields: {before.email: redact, after.email: keep_last 2, after.name: redact, after.address.street: keep_first 1, "after.address.zips[]": redact}}
`, map[string]string{"Change.avsc": changeEvent})
	const row = `{"id":7,"email":"a@b.cd","name":"Ann","address":{"street":"Hill 1","zips":["123","45"]}}`
	for _, test := range []struct{ in, want string }{
		{`{"before":null,"after":` + row + `,"op":"c"}`, `{"before":null,"after":{"id":7,"email":"****cd","name":"***","address":{"street":"H*****","zips":["***","***"]}},"op":"c"}`},
		{`{"before":` + row + `,"after":null,"op":"d"}`, `{"before":{"id":7,"email":null,"name":"Ann","address":{"street":"Hill 1","zips":["123","45"]}},"after":null,"op":"d"}`},
		{`{"before":null,"after":{"id":7,"email":null,"name":"Bo","address":null},"op":"u"}`, `{"before":null,"after":{"id":7,"email":null,"name":"***","address":null},"op":"u"}`},
	} {
		var j codec.JSON
		if err := j.Parse([]byte(test.in)); err != nil {
			t.Fatal(err)
		}
		value, err := j.AppendAvro(codec.AppendFrame(nil, 0), pl.Types[0])
		if err != nil {
			t.Fatal(err)
		}
		in := &pipeline.Record{Topic: "in", Key: []byte("k"), Value: value, Time: time.UnixMilli(0)}
		out, err := r.Run(t.Context(), in)
		if err != nil || len(out) != 1 {
			t.Fatalf("%s: %d records, %v", test.in, len(out), err)
		}
		if s := out[0].Sample(in); string(s.Event) != test.want {
			t.Errorf("got  %s %s\nwant %s", s.Event, s.Error, test.want)
		}
	}
}
