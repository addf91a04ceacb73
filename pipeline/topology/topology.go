// Package topology turns topology.yaml and the Avro schemas beside it into a
// checked plan: topics, pipelines with their stages built and bound, and
// projections with their folds compiled.
//
// [Load] finds every fault in one run, and says of each where it is and what to
// do. What it returns without a fault can be run as it is.
package topology

import (
	"io/fs"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/stage"
)

// A Topology is the checked plan. Lists are in the order of the file.
type Topology struct {
	Name        string
	Topics      []*Topic // those that are declared, then those of snapshots that are not
	Tables      []*Table
	Pipelines   []*Pipeline
	Projections []*Projection
	Encryption  *Encryption // nil if nothing is encrypted

	hash     string
	warnings []Warning
}

// Hash identifies what the topology says, in 32 hexadecimal digits: schemas and
// variables included; comments, layout and the order of what has a name are not.
func (t *Topology) Hash() string { return t.hash }

// Topic returns the topic of that name, or nil.
func (t *Topology) Topic(name string) *Topic {
	for _, topic := range t.Topics {
		if topic.Name == name {
			return topic
		}
	}
	return nil
}

// A Topic is a topic that the topology reads or writes.
type Topic struct {
	Name        string
	Partitions  int
	Replication int // 0: the brokers decide
	Config      map[string]string

	// Types are the schemas by which events are read, in the order declared; of
	// a topic that does not say, what its pipelines write. They are nil for one
	// that nobody writes, and for dead letters.
	Types []*codec.Schema

	// Bare says what stands for the envelope of events that have none. It is nil
	// where they have one.
	Bare *expr.Bare

	// Headers are those that its records have, and Source is where the events come
	// from that do not say so, if they are those of CloudEvents.
	Headers Headers
	Source  string

	// Snapshots is the projection whose states are on the topic, or nil.
	Snapshots *Projection
}

// Headers says which headers the records of a topic have beside those that they
// came with.
type Headers string

const (
	// AsTheyCame leaves headers alone.
	AsTheyCame Headers = ""
	// CloudEvents are the attributes of a CloudEvent in binary mode.
	CloudEvents Headers = "cloudevents"
	// NoHeaders are those that came, without those of CloudEvents.
	NoHeaders Headers = "none"
)

// A Table is something that stages look up by key: a topic, or a file. The
// program sets Rows before it asks for a Chain.
type Table struct {
	stage.Table

	// Topic is what rows are read from; nil for a file. Where it holds the
	// snapshots of a projection, a row is the state of an aggregate.
	Topic *Topic

	// File is the path as it was written, Text what the file holds, and Key the
	// field that is the key.
	File string
	Text []byte
	Key  string
}

// A Pipeline reads a topic, runs a chain of stages over its events and writes
// what passes.
type Pipeline struct {
	Name                 string
	From, To, DeadLetter *Topic
	Receipts             *Topic // for what became of events that did not come out; nil if nobody is told
	Guarantee            string // ExactlyOnce or AtLeastOnce

	// By type: its schema as it is read, the layout of the fields that the
	// stages use, the schema after the last stage, whether an event of the type
	// can come so far, and the topics that it may then be written to.
	Types   []*codec.Schema
	Layouts []*codec.Layout
	Output  []*codec.Schema
	Emits   []bool
	Targets [][]*Topic

	Stages []Stage

	// Bare finds, by type, what stands for the envelope of events that have none;
	// nil where they have one, or their records say it all.
	Bare []expr.BareType

	// Old are the shapes of older writers that stages read, by
	// pipeline.Event.OldType.
	Old []Old

	routes []*Topic
}

// Old is an event type as an older writer wrote it.
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
	On      []bool // by type: it is for such events, and they can come here
	OnError pipeline.OnError
}

// Writes returns the topics that the pipeline writes what passes to, each once:
// To first, then those that a stage may choose.
func (p *Pipeline) Writes() []*Topic {
	out := []*Topic{p.To}
	for _, t := range p.routes {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// Chain returns a new chain of the stages, for one session.
func (p *Pipeline) Chain() *pipeline.Chain {
	c := &pipeline.Chain{}
	for _, s := range p.Stages {
		c.Add(s.Name, s.Built.Clone(), s.OnError)
	}
	return c
}

// A Projection folds the events of a topic into the states of aggregates, and
// publishes them.
type Projection struct {
	Name      string
	From      *Topic
	Fold      *fold.Fold
	Snapshots *Topic
	Late      *Topic // for events that no window takes any more; nil if they are counted only
	Publish   Publish

	// Subjects says that the aggregates are the subjects of the encrypted fields in
	// the events that are folded.
	Subjects bool
}

// Publish says when snapshots are published: at most one of its fields is set. The
// zero value is with every batch.
type Publish struct {
	Events   int64         // after so many records of a partition
	Every    time.Duration // after so long
	Recovery time.Duration // so that folding from the snapshots on takes so long
}

// A Source is the text of a topology and what to call it in faults.
type Source struct {
	Name string
	Text []byte
}

// Options say what a topology is read with.
type Options struct {
	// Schemas holds the .avsc files, and SchemasName is what to call their
	// directory in faults; "schemas" if empty.
	Schemas     fs.FS
	SchemasName string

	// LookupEnv is what ${VAR} is looked up with; nil knows no variable.
	LookupEnv func(string) (string, bool)

	// Stages are the kinds of stages there are; nil means stage.Builtin.
	Stages map[string]stage.Kind

	// Clock is what now() reads; nil means time.Now.
	Clock func() time.Time

	// File reads files that the topology names; nil reads none.
	File func(path string) ([]byte, error)
}
