// Package trace shows what a pipeline does to events: the event before and after each
// stage ([Line]), and the differences between two events ([Changes]).
//
// Start at [Line]. A Line belongs to the goroutine that made it. All functions are safe
// for concurrent use.
package trace

import (
	"encoding/json"
	"fmt"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/topology"
)

// A Line shows an event at one moment of one stage. It is one line of `processor tap
// --json` and of GET /v1/tap.
type Line struct {
	Pipeline  string          `json:"pipeline"`
	Stage     string          `json:"stage"`
	At        string          `json:"at"` // see MomentName
	Topic     string          `json:"topic"`
	Partition int32           `json:"partition"`
	Offset    int64           `json:"offset"`
	Time      pipeline.Time   `json:"time"`
	Key       string          `json:"key"` // of the input record, in its text form
	Type      string          `json:"type,omitempty"`
	Event     json.RawMessage `json:"event,omitempty"`   // only when a stage begins and when it passes the event
	NewKey    *string         `json:"new_key,omitempty"` // nil: the key did not change
	To        []string        `json:"to,omitempty"`      // topics that a stage chose
	Reason    string          `json:"reason,omitempty"`
	Error     string          `json:"error,omitempty"`
	Dropped   int64           `json:"dropped,omitempty"` // lines before this one that were not sent
}

var momentNames = [...]string{"entering", "passed", "filtered", "skipped", "failed"}

// MomentName returns the name of a moment in a [Line].
func MomentName(m pipeline.Moment) string { return momentNames[m] }

// NewLine returns the line for an event at the stage with the index at. err is the error
// of the stage. Fields that a later stage adds have their default values.
func NewLine(pl *topology.Pipeline, m pipeline.Moment, at int, e *pipeline.Event, err error) Line {
	l := newLine(pl, pl.Stages[at].Name, m, e.Record, err)
	if e.KeyText != nil {
		l.Key = string(e.KeyText)
	}
	schema := SchemaAt(pl, m, at, e)
	l.Type, l.To = schema.ShortName(), slices.Clone(e.To)
	if e.NewKey != nil {
		key := string(e.NewKey)
		l.NewKey = &key
	}
	if m == pipeline.Passed || m == pipeline.Entering {
		l.Event = EventJSON(schema, e.Append(nil))
	}
	return l
}

// SchemaAt returns the schema of an event at one moment of the stage with the index at.
func SchemaAt(pl *topology.Pipeline, m pipeline.Moment, at int, e *pipeline.Event) *codec.Schema {
	if m == pipeline.Passed && !e.Delete { // a deletion keeps its form
		at++
	}
	return pl.Sections[e.Type].Arriving(at).Schema
}

// StageTombstone stands for the stage of a tombstone, which no stage sees.
const StageTombstone = "tombstone"

// NewTombstone returns the line for a tombstone that was passed or ignored.
func NewTombstone(pl *topology.Pipeline, in *pipeline.Record, passed bool) Line {
	m := pipeline.Filtered
	if passed {
		m = pipeline.Passed
	}
	return newLine(pl, StageTombstone, m, in, nil)
}

// NewFailure returns the line for a record that failed before the first stage or after
// the last one. stage is "decode" or "encode".
func NewFailure(pl *topology.Pipeline, stage string, in *pipeline.Record, err error) Line {
	return newLine(pl, stage, pipeline.Failed, in, err)
}

func newLine(pl *topology.Pipeline, stage string, m pipeline.Moment, in *pipeline.Record, err error) Line {
	l := Line{
		Pipeline: pl.Name, Stage: stage, At: MomentName(m),
		Topic: in.Topic, Partition: in.Partition, Offset: in.Offset, Time: pipeline.Time(in.Time), Key: pl.From.KeyFormat.Show(in.Key),
	}
	if err != nil {
		l.Reason, l.Error = string(pipeline.ReasonOf(err)), err.Error()
	}
	return l
}

// EventJSON returns the body of an event as JSON, or null if the body is not valid.
func EventJSON(s *codec.Schema, body []byte) json.RawMessage {
	text, err := codec.AppendJSON(nil, s.Root(), body)
	if err != nil {
		return json.RawMessage("null")
	}
	return text
}

// A Place is the position of a record on Kafka.
type Place struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// String returns TOPIC/PARTITION@OFFSET.
func (p *Place) String() string { return fmt.Sprintf("%s/%d@%d", p.Topic, p.Partition, p.Offset) }
