// Package topology loads topology.yaml and the Avro schemas in its schemas
// directory, and turns them into a checked plan: topics, tables, pipelines with
// their stages built and bound, and projections with their folds compiled.
//
// [Load] is the entry point. It reports every fault of a file in one run, each
// with its place and a hint how to fix it. A plan that loads without a fault can
// be run without further checks.
//
// Start reading at Load in load.go, which shows the order of the steps:
//
//   - document.go, decode.go and scalar.go parse the YAML text and decode it by the
//     parameters that grammar.go declares; every value keeps its place in the file.
//   - schemas.go reads the .avsc files.
//   - topics.go, records.go, tables.go, encryption.go, pipeline.go, builder.go and projection.go
//     check one subject each and build the plan.
//   - warn.go looks for things that work but are probably unintended.
//   - schema.go turns the grammar into a JSON Schema for editors.
//
// A single goroutine runs Load. Nothing changes a [Topology] afterwards, except
// for the rows of its tables, which the program sets. Any number of goroutines may
// read it; stages with state are cloned for each session by [Pipeline.Chain].
package topology

import (
	"io/fs"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/identity"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/stage"
)

// A Topology is the checked plan. Its lists keep the order of the file.
type Topology struct {
	Name        string
	Topics      []*Topic // the declared topics, then undeclared topics of snapshots and keys
	Tables      []*Table
	Pipelines   []*Pipeline
	Projections []*Projection
	Encryption  *Encryption // nil if nothing is encrypted

	hash     string
	settings map[string]string // see [Topology.Settings]
	warnings []Warning
}

// Hash returns an identifier of the topology's content, 32 hexadecimal digits.
// Schemas, files of tables and values of variables are part of it. Comments,
// layout and the order of named items are not.
func (t *Topology) Hash() string { return t.hash }

// Group returns the consumer group of a pipeline.
func (t *Topology) Group(p *Pipeline) string { return t.Name + "-" + p.Name }

// Topic returns the topic with that name, or nil.
func (t *Topology) Topic(name string) *Topic {
	for _, topic := range t.Topics {
		if topic.Name == name {
			return topic
		}
	}
	return nil
}

// Partitioners returns the partitioners of the topics, by name.
func (t *Topology) Partitioners() map[string]pipeline.Partitioner {
	out := map[string]pipeline.Partitioner{}
	for _, topic := range t.Topics {
		out[topic.Name] = topic.Partitioner
	}
	return out
}

// A Topic is a topic that the topology reads or writes.
type Topic struct {
	Name        string
	Partitions  int
	Replication int // 0: the brokers decide
	Config      map[string]string

	// Types are the schemas that events are read with, in the order of the
	// declaration. If the topic declares none, they are the types that its pipelines
	// write, or the snapshot's schema. Types is nil for dead letters, receipts and keys,
	// and for a topic without declared types that no pipeline writes.
	Types []*codec.Schema

	// Bare holds the expressions that replace the envelope of events without one.
	// It is nil if the events have an envelope.
	Bare *expr.Bare

	// KeyFormat is the format of the records' keys, and Partitioner what assigns the
	// records to partitions. Tombstone says what a record without a value means, and
	// Identity what identifies an event.
	KeyFormat   keyformat.Format
	Partitioner pipeline.Partitioner
	Tombstone   Tombstone
	Identity    identity.Identity

	// Subjects says under which subjects the schemas of the records are in the registry.
	Subjects codec.SubjectNames

	// Headers are the headers of the topic's records. Source is the CloudEvents
	// source of events that come without one; it is set if Headers is CloudEvents.
	Headers Headers
	Source  string

	// Snapshots is the projection that publishes its states on the topic, or nil.
	Snapshots *Projection
}

// Subject returns the subject of the schema of values on the topic. Everything that
// registers a schema or looks it up uses it, or [codec.KeySubject] for keys.
func (t *Topic) Subject(s *codec.Schema) string { return t.Subjects.Value(t.Name, s) }

// Headers selects the headers that records of a topic get in addition to the
// headers that they came with.
type Headers string

const (
	// KeepHeaders leaves the headers unchanged.
	KeepHeaders Headers = ""
	// CloudEvents adds the attributes of a CloudEvent in binary mode.
	CloudEvents Headers = "cloudevents"
	// NoHeaders removes the headers of a CloudEvent and keeps all others.
	NoHeaders Headers = "none"
)

// A Table is a set of rows that stages look up by key. The rows come from a topic
// or a file. The program sets Rows before it calls Pipeline.Chain.
type Table struct {
	stage.Table

	// Topic is the topic that holds the rows; nil for a file. If the topic holds the
	// snapshots of a projection, a row is the state of an aggregate.
	Topic *Topic

	// File is the path as it is written in the topology, Text is the content of the
	// file, and Key is the field that holds a row's key.
	File string
	Text []byte
	Key  string
}

// A Pipeline reads a topic, runs a chain of stages over its events and writes the
// events that pass.
type Pipeline struct {
	Name                 string
	From, To, DeadLetter *Topic
	Receipts             *Topic // receives a receipt for each filtered or rejected event; nil for none
	Guarantee            string // ExactlyOnce or AtLeastOnce

	// Tombstone is what the pipeline does with tombstones. It is TombstoneDeadLetter if
	// the input says that tombstones pass, but the pipeline cannot pass them.
	Tombstone Tombstone

	// The following slices are indexed by event type. Types holds the schema that
	// the type is read with, Layouts the fields that stages use, and Output the
	// schema after the last stage. Emits reports whether events of the type can pass
	// all stages, and Targets lists the topics that they may then be written to.
	Types   []*codec.Schema
	Layouts []*codec.Layout
	Output  []*codec.Schema
	Emits   []bool
	Targets [][]*Topic

	// Sections holds, by event type, the forms of its events: one, and one more for each
	// stage that gives them another schema.
	Sections []stage.Sections

	Stages []Stage

	// Bare holds, by event type, the compiled expressions that replace the envelope.
	// It is nil if the events have an envelope, or if no expression replaces it: the
	// record's key and timestamp are used then.
	Bare []expr.BareType

	// Old holds the shapes of older writers that stages read, indexed by
	// pipeline.Event.OldType.
	Old []Old

	routes []*Topic
}

// OutputLayouts returns the layouts of the events that left the chain, by type.
func (p *Pipeline) OutputLayouts() []*codec.Layout {
	out := make([]*codec.Layout, len(p.Sections))
	for typ := range out {
		out[typ] = p.Sections[typ].At(len(p.Stages)).Layout
	}
	return out
}

// Old is an event type in the shape that an older writer used.
type Old struct {
	Type   int
	Schema *codec.Schema
	Layout *codec.Layout
}

// A Stage is one stage of a pipeline.
type Stage struct {
	Name    string // unique in the pipeline
	Kind    stage.Kind
	Built   stage.Built
	On      []bool // by event type: the stage handles the type, and such events can reach it
	OnError pipeline.OnError
}

func (s *Stage) deletes(typ int) bool {
	r, ok := s.Built.(stage.Reshaper)
	return ok && r.Deletes(typ)
}

// Writes returns the topics that the pipeline writes passing events to, without
// duplicates: To first, then the topics that a stage may choose.
func (p *Pipeline) Writes() []*Topic {
	out := []*Topic{p.To}
	for _, t := range p.routes {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// SideTopics returns the topics that the pipeline writes in addition to its output:
// dead letters, and receipts if it has them.
func (p *Pipeline) SideTopics() []*Topic {
	topics := []*Topic{p.DeadLetter}
	if p.Receipts != nil {
		topics = append(topics, p.Receipts)
	}
	return topics
}

// Chain returns a new chain of the stages. It belongs to one session and shares no
// mutable state with other chains.
func (p *Pipeline) Chain() *pipeline.Chain {
	c := &pipeline.Chain{}
	for _, s := range p.Stages {
		c.Add(s.Name, s.Built.Clone(), s.OnError)
	}
	return c
}

// A Projection folds the events of a topic into states of aggregates and publishes
// these states.
type Projection struct {
	Name      string
	From      *Topic
	Fold      *fold.Fold
	Snapshots *Topic
	Late      *Topic // for events that no window accepts any more; nil if they are only counted
	Publish   Publish

	// Subjects reports that each aggregate is the data subject of the encrypted
	// fields in the events that are folded into it.
	Subjects bool
}

// Publish is the rule when snapshots are published. At most one field is set. The
// zero value publishes with every batch.
type Publish struct {
	Events   int64         // after this many records of a partition
	Every    time.Duration // after this time
	Recovery time.Duration // often enough to rebuild a lost partition from its snapshots within this time
}

// A Source is the text of a topology and the file name that faults show for it.
type Source struct {
	Name string
	Text []byte
}

// Semantics is the number of the meaning of folds in this release; see package fold.
const Semantics = fold.Semantics

// Options are the surroundings that a topology is loaded in.
type Options struct {
	// Schemas holds the .avsc files. SchemasName is the directory name that faults
	// show; "schemas" if empty.
	Schemas     fs.FS
	SchemasName string

	// LookupEnv resolves ${VAR}; with nil, no variable is set.
	LookupEnv func(string) (string, bool)

	// Stages are the available kinds of stages; nil means stage.Builtin.
	Stages map[string]stage.Kind

	// Semantics is the meaning of folds; 0 means that of this release.
	Semantics int

	// Clock is the clock of now(); nil means time.Now.
	Clock func() time.Time

	// File reads the files that the topology names; with nil, reading any file fails.
	File func(path string) ([]byte, error)
}
