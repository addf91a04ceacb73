package topology_test

import (
	"fmt"
	"strings"
	"testing"

	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
)

// The type of key is that of the pipeline's input, also if two pipelines read the same
// types.
func TestTheTypeOfKeyFollowsTheInputOfThePipeline(t *testing.T) {
	const text = `
name: t
topics:
  texts: {partitions: 1, types: [Click], envelope: none}
  longs: {partitions: 1, types: [Click], envelope: none, key_format: long}
  records: {partitions: 1, types: [Click], envelope: none, key_format: avro, key_schema: Click}
  a: {partitions: 1}
  b: {partitions: 1}
  c: {partitions: 1}
  dead: {partitions: 1}
pipelines:
  texts: {from: texts, to: a, dead_letter: dead, stages: [filter: {keep: "%s"}]}
  longs: {from: longs, to: b, dead_letter: dead, stages: [filter: {keep: "%s"}]}
  records: {from: records, to: c, dead_letter: dead, stages: [filter: {keep: "%s"}]}
`
	const good, number, field = "key == 'a'", "key > 3", "key.id == 'a' && key.n > 3"
	for _, test := range []struct{ texts, longs, records, fault string }{
		{good, number, field, ""},
		{number, number, field, "topology.yaml:12:79: cannot compare a string with an int"},
		{good, good, field, "topology.yaml:13:79: cannot compare an int with a string"},
		{good, number, "key.no == 1", "topology.yaml:14:83: record has no field key.no"},
	} {
		_, err := topology.Load(topology.Source{Name: "topology.yaml", Text: fmt.Appendf(nil, text, test.texts, test.longs, test.records)}, topology.Options{Schemas: harness.ClickSchemas})
		if test.fault == "" && err != nil || test.fault != "" && (err == nil || !strings.Contains(err.Error(), test.fault)) {
			t.Errorf("%+v: %v", test, err)
		}
	}
}
