package cases

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline"
	"millrace/pipeline/cli"
)

// An eventOutcome is the actual outcome of an event.
type eventOutcome struct {
	kind   outcomeKind
	to     string // the pipeline's own output topic
	out    []writtenRecord
	stage  string // the stage that filtered or rejected the event, or stopped the worker
	reason string // of a dead letter or a rejection
	error  string

	snapshot cli.OrderedJSON

	failed   error      // the event could not be run at all; kind is "" then
	failedAt *yaml.Node // the faulty part of the case; nil if unknown
}

// A writtenRecord is an output record of a pipeline.
type writtenRecord struct {
	topic   string
	key     string
	headers []pipeline.Header
	event   cli.OrderedJSON // nil for a tombstone
}

// value returns the event as JSON; nil for a tombstone.
func (w *writtenRecord) value() any {
	if w.event == nil {
		return nil
	}
	return w.event
}

// header returns the value of a header as a string, or nil if it is absent.
func (w *writtenRecord) header(name string) any {
	r := pipeline.Record{Headers: w.headers}
	if value, ok := r.Header(name); ok {
		return string(value)
	}
	return nil
}

func (w writtenRecord) String() string {
	return fmt.Sprintf("to %s, key %s: %s", w.topic, cli.Quote(w.key), cli.CompactJSON(w.value()))
}

// node returns the record as an item of out.
func (w *writtenRecord) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	n.Content = []*yaml.Node{textNode("topic"), textNode(w.topic), textNode("key"), textNode(w.key), textNode("event"), yamlNode(w.value())}
	return n
}

// String describes the outcome in messages.
func (o *eventOutcome) String() string {
	switch o.kind {
	case kindOut:
		texts := make([]string, len(o.out))
		for i, w := range o.out {
			texts[i] = w.String()
		}
		return "written " + strings.Join(texts, "; ")
	case kindFiltered:
		return "filtered by " + o.stage
	case kindDeadLetter:
		return fmt.Sprintf("a dead letter of %s: %s: %s", o.stage, o.reason, o.error)
	case kindStopped:
		return fmt.Sprintf("the worker stopped by %s: %s", o.stage, o.error)
	case kindSnapshot:
		return "the snapshot " + cli.CompactJSON(o.snapshot)
	case kindRejected:
		return fmt.Sprintf("rejected: %s: %s", o.reason, o.error)
	}
	return string(o.kind)
}

// node returns the outcome as the value of an expectation.
func (o *eventOutcome) node() *yaml.Node {
	switch o.kind {
	case kindOut:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i := range o.out {
			n.Content = append(n.Content, o.out[i].node())
		}
		return n
	case kindFiltered, kindStopped:
		return textNode(o.stage)
	case kindDeadLetter:
		return yamlNode(cli.OrderedJSON{{Name: "stage", Value: o.stage}, {Name: "reason", Value: o.reason}})
	case kindSnapshot:
		return yamlNode(o.snapshot)
	case kindRejected:
		return textNode(o.reason)
	}
	return yamlNode(true)
}
