package chain_test

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/topology"
)

// offline returns a rehearsal of the first pipeline of a topology.
func offline(t *testing.T, text string, schemas map[string]string) (*chain.Rehearsal, *topology.Pipeline) {
	t.Helper()
	docs := fstest.MapFS{}
	for name, doc := range schemas {
		docs[name] = &fstest.MapFile{Data: []byte(doc)}
	}
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(text)}, topology.Options{Schemas: docs})
	if err != nil {
		t.Fatal(err)
	}
	pl := plan.Pipelines[0]
	r, err := chain.NewOfflineRehearsal(plan, pl, eventtest.SchemaList(pl.Types), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return r, pl
}

// An event that a stage nests more deeply than readers accept is a dead letter. The
// deepest one that readers accept passes, and can be read.
func TestOutputThatNoReaderAcceptsIsADeadLetter(t *testing.T) {
	r, pl := offline(t, `
name: t
topics: {in: {partitions: 1, types: [Grown], envelope: none}, out: {partitions: 1}, dead: {partitions: 1}}
pipelines:
  p:
    from: in
    to: out
    dead_letter: dead
    stages: [{enrich: {set: {trees: "[tree]"}}}]
`, map[string]string{"Grown.avsc": `{"type":"record","name":"Grown","fields":[
		{"name":"tree","type":["null",{"type":"record","name":"Tree","fields":[{"name":"kid","type":["null","Tree"]}]}]},
		{"name":"trees","type":{"type":"array","items":["null","Tree"]}}]}`})
	for _, test := range []struct {
		nodes int // each is two levels deeper
		dead  string
	}{{30, ""}, {31, "encode"}, {32, "decode"}} {
		body := strings.Repeat("\x02", test.nodes) + "\x00" + "\x00"
		in := &pipeline.Record{Topic: "in", Key: []byte("k"), Value: append(codec.AppendFrame(nil, 0), body...), Time: time.UnixMilli(0)}
		out, err := r.Run(t.Context(), in)
		if err != nil || len(out) != 1 {
			t.Fatalf("%d nodes: %d records, %v", test.nodes, len(out), err)
		}
		s := out[0].Sample(in)
		if s.Stage != test.dead {
			t.Errorf("%d nodes: stage %q of the dead letter (%s), want %q", test.nodes, s.Stage, s.Error, test.dead)
		}
		if test.dead == "" {
			if err := codec.Validate(pl.Output[0].Root(), out[0].Body); err != nil {
				t.Errorf("%d nodes: %v", test.nodes, err)
			}
		}
	}
}
