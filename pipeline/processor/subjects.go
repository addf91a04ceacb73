package processor

import (
	"encoding/json"
	"io"

	"millrace/pipeline/codec"
	"millrace/pipeline/topology"
)

// subjectSchema is a schema that the programs register. It is also the body of a request
// that registers it, apart from the subject.
type subjectSchema struct {
	Subject string `json:"subject"`
	Schema  string `json:"schema"`
}

// subjectsOf returns the schemas that the programs write with: producers, pipelines and
// the first versions of projections. The order is that of the topics.
func subjectsOf(t *topology.Topology) (all []subjectSchema) {
	seen := map[subjectSchema]bool{}
	add := func(subject string, s *codec.Schema) {
		one := subjectSchema{subject, s.String()}
		if !seen[one] {
			seen[one] = true
			all = append(all, one)
		}
	}
	for _, topic := range t.Topics {
		written := writtenTypes(t, topic)
		if written == nil {
			written = topic.Types
		}
		for _, s := range written {
			add(topic.Subject(s), s)
		}
		if keys := topic.KeyFormat.Schema; keys != nil {
			add(codec.KeySubject(topic.Name), keys)
		}
	}
	return all
}

// writtenTypes returns the schemas that pipelines write to a topic.
func writtenTypes(t *topology.Topology, topic *topology.Topic) (written []*codec.Schema) {
	for _, pl := range t.Pipelines {
		for i, targets := range pl.Targets {
			for _, to := range targets {
				if to == topic {
					written = append(written, pl.Output[i])
				}
			}
		}
	}
	return written
}

// printSubjects prints one schema a line.
func printSubjects(w io.Writer, all []subjectSchema) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, s := range all {
		if err := enc.Encode(s); err != nil {
			return err
		}
	}
	return nil
}
