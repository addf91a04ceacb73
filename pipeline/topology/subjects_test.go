package topology_test

import (
	"fmt"
	"strings"
	"testing"

	"millrace/pipeline/harness"
	"millrace/pipeline/topology"
)

func TestSubjectsAreDeclaredPerTopic(t *testing.T) {
	const text = `
name: t
topics:
  a: {partitions: 1, types: [Click], envelope: none}
  b: {partitions: 1, types: [Click], envelope: none, subjects: topic}
  c: {partitions: 1, types: [Click, Page], envelope: none, subjects: record}
  d: {partitions: 1, types: [Click], envelope: none, subjects: topic_record}
`
	got, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(text)}, topology.Options{Schemas: harness.ClickSchemas})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"a-Click", "b-value", "Click", "d-Click"} {
		topic := got.Topics[i]
		if subject := topic.Subject(topic.Types[0]); subject != want {
			t.Errorf("the subject of %s is %s, want %s", topic.Name, subject, want)
		}
	}
}

// With subjects: topic, a pipeline writes one type: the subject cannot hold two. A topic
// that is only read may hold a union.
func TestATopicWithOneSubjectIsWrittenWithOneType(t *testing.T) {
	const text = `
name: t
topics:
  in: {partitions: 1, types: [Click, Page], envelope: none, subjects: topic}
  out: {partitions: 1, subjects: topic}
  dead: {partitions: 1}
pipelines:
  p: {from: in, to: out, dead_letter: dead, stages: [%s]}
`
	for stages, fault := range map[string]string{
		"":                                    "pipeline p writes Page to out, but with subjects: topic the subject out-value holds one type, here Click",
		`filter: {on: [Page], keep: "false"}`: "",
	} {
		_, err := topology.Load(topology.Source{Name: "topology.yaml", Text: fmt.Appendf(nil, text, stages)}, topology.Options{Schemas: harness.ClickSchemas})
		if fault == "" && err != nil || fault != "" && (err == nil || !strings.Contains(err.Error(), fault)) {
			t.Errorf("[%s]: %v", stages, err)
		}
	}
}
