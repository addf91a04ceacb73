// Package stage holds the built-in stages of a chain, one file each.
//
// [Builtin] lists them by name. Each is a [Kind]: its description, from which
// documentation and the JSON Schema of topology.yaml are made and by which
// parameters are decoded strictly, and its constructor. A stage is made in
// three steps, because all stages of a chain look at an event through one
// layout:
//
//	built, faults := kind.New(input)             // expressions are compiled and checked, per event type
//	built.Reads(typ), built.Writes(typ)          // joined over the chain: one layout per type
//	err := built.Bind(layouts)                   // by type
//	stage := built.Clone()                       // one for each session
//
// What else a stage may be, it says by an interface: [Gate], [Grower],
// [Router], [Upcaster], and [pipeline.Splitter].
//
// A stage of one's own is a [Func] that is given to [Go], or a Kind beside the
// built-in ones.
//
// Every stage also takes "name", "on" (the event types it is for) and
// "on_error"; these belong to the topology, which says by [Type].On what came
// of the second. Events of other types pass through a stage untouched.
package stage

import (
	"fmt"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// A Built is a stage whose parameters have been checked.
type Built interface {
	// Process handles one event. It may be called after Bind.
	pipeline.Stage

	// Reads returns the fields that the stage looks at in events of a type, as
	// paths to leaves of its schema, and Writes those that it sets. The schema
	// is the one after this stage, for a Grower.
	Reads(typ int) [][]string
	Writes(typ int) [][]string

	// Bind says where those fields stand in events of each type. It is called
	// once; a layout may be nil for a type of which no event can come here.
	Bind(layouts []*codec.Layout) error

	// Clone returns a stage that does the same and shares no memory that
	// Process writes to. It is called after Bind.
	Clone() Built
}

// A Gate is a stage that lets no event of some types pass. What comes after it
// is not checked against these types.
type Gate interface {
	Passes(typ int) bool
}

// A Grower is a stage that adds fields.
type Grower interface {
	// Schemas returns, by type, the schema of events after this stage; nil
	// where it is the same as before. It is made by [codec.Schema.With].
	Schemas() []*codec.Schema
}

// A Router is a stage that sets [pipeline.Event].To.
type Router interface {
	// Topics returns the topics that it may choose, each once, in the order of
	// the file. All are declared.
	Topics() []string

	// Targets returns those that it may choose for events of a type, and whether
	// it may leave some of them on their way to where they went before.
	Targets(typ int) (topics []string, own bool)
}

// A Shape is an event type as an older writer wrote it.
type Shape struct {
	Type   int
	Schema *codec.Schema
	Paths  [][]string // what is read of it
}

// An Upcaster is a stage that reads [pipeline.Event].Old.
type Upcaster interface {
	Shapes() []Shape

	// BindOld gives the layouts of its shapes, and the number of the first of
	// them among those of the pipeline: what [pipeline.Event].OldType counts.
	// It is called once, before Bind.
	BindOld(first int, layouts []*codec.Layout) error
}

// A Type is one event type of the pipeline that the stage is part of. Its index
// is [pipeline.Event].Type.
type Type struct {
	Name   string            // in messages, and as people write it in "on"
	Schema *codec.Schema     // as the stages before have left it
	Consts map[string]string // fields that are the same in every event of the type
	Env    *expr.Env         // the event's fields at top level, in view 0
	On     bool              // the stage is for events of this type, and they can come here
}

// With returns an environment that has more records beside the event, such as
// the row of a table. Their views are 1 and up.
func (t Type) With(roots ...expr.Root) (*expr.Env, error) {
	env, err := expr.NewEnv(append([]expr.Root{{Schema: t.Schema, Consts: t.Consts}}, roots...)...)
	if err == nil {
		env.Clock = t.Env.Clock
	}
	return env, err
}

// A Table is a table that the topology declares.
type Table struct {
	Name   string
	Schema *codec.Schema // of a row; nil, to a constructor, if the table is faulty itself
	// Rows is where the rows are. The program sets it before a stage is cloned,
	// and it is nil until then: constructors keep the Table, clones its Rows.
	Rows Rows
}

// Rows are the rows of a table as they are now. They are safe for concurrent
// use.
type Rows interface {
	// Get returns the row under a key as an Avro body of the table's schema. It
	// must not be changed.
	Get(key []byte) (row []byte, ok bool)
}

// An Input is what a stage is made of.
type Input struct {
	At    expr.Source // where the stage stands, for faults that belong to no parameter
	Name  string      // of the stage, unique in its pipeline
	Args  Args
	Types []Type // of the pipeline, by index
	// ID is the expression that stands for an event's id; without text, events have
	// none.
	ID expr.Source

	Tables map[string]*Table
	Topics []string // that are declared
	// Schema returns the record of that name, short or full, from the schemas
	// beside the topology; of an older form of one, the name is that of its file
	// without .avsc: OrderCreated.v1.
	Schema func(name string) (*codec.Schema, error)
	// File reads a file; its path is relative to the topology.
	File func(path string) ([]byte, error)
}

// Args are the parameters of a stage: those that were given, in the order of
// the file, and those that have a default. Each is there at most once, is known
// from [Kind].Params and has its form; those that are Required are there.
type Args []Arg

// Find returns the parameter of that name.
func (a Args) Find(name string) (Arg, bool) {
	for i := range a {
		if a[i].Name == name {
			return a[i], true
		}
	}
	return Arg{}, false
}

// An Arg is a parameter as it was given. Key is its name, where it stands; of a
// default, the place of what it is missing in. Which of the rest is set is said
// by its [Form].
type Arg struct {
	Name     string
	Key      expr.Source
	Value    expr.Source // the text of a value that is not a list or a mapping
	Number   int64
	Duration time.Duration
	Flag     bool
	Words    []expr.Source
	Entries  []Entry
	Items    []Item
}

// An Entry is one KEY: VALUE of [Assignments] or [Texts].
type Entry struct{ Key, Value expr.Source }

// An Item is one mapping in a parameter that holds several. Key is its name; of
// Cases, where it begins.
type Item struct {
	Key  expr.Source
	Args Args
}

// A Form is how a parameter is written.
type Form uint8

// The forms, and where an Arg has what was given.
const (
	Expression  Form = iota // a CEL expression: Value
	Assignments             // a mapping from paths to CEL expressions: Entries
	Word                    // a name or a text, of Values if there are any: Value
	Words                   // a list of them: Words
	Number                  // a whole number from Min to Max: Number
	Duration                // such as 10m, 1h30m, 7d: Duration
	Flag                    // true or false: Flag
	Texts                   // a mapping from names to texts: Entries
	Group                   // a mapping of Params: one Item
	Named                   // a mapping from names to mappings of Params: Items
	Cases                   // a list of mappings of Params: Items
	Choices                 // a list of mappings that have one of Params each: Items
)

// A Param describes one parameter.
type Param struct {
	Name     string
	Form     Form
	Doc      string // sentences
	Required bool
	Default  string   // as it would be written; "" if there is none
	Values   []string // of a Word or Words: those that are allowed; nil allows all. Of a Group: words that may stand for it
	Min, Max int64    // of a Number
	Topic    bool     // a Word or Words that names a topic which the stage may write to
	Params   []Param  // of a Group, Named, Cases or Choices
}

// A Kind is a kind of stage.
type Kind struct {
	Name    string
	Doc     string // sentences; the first says what it does
	Params  []Param
	Example string // its parameters, as YAML
	Grows   bool   // it may add fields: what comes after a faulty one cannot be checked

	// New checks the parameters and compiles their expressions for every type
	// the stage is for. Faults are all there are; the same fault of several
	// types is one for each, and becomes one message. With faults, Built is nil,
	// or as much of a Grower as can be told.
	New func(in Input) (Built, []expr.Fault)
}

// Builtin returns the stages that come with Millrace, by name.
func Builtin() map[string]Kind {
	kinds := map[string]Kind{}
	for _, k := range []Kind{Filter(), Enrich(), Route(), Rekey(), Assert(), Split(), Mask(), Upcast(), Lookup(), Dedupe(), HTTP(), Go()} {
		kinds[k.Name] = k
	}
	return kinds
}

// fault is a fault that is one for every type.
func fault(src expr.Source, hint, format string, args ...any) expr.Fault {
	return expr.Fault{Source: src, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// appendPaths appends what programs read in the event.
func appendPaths(paths [][]string, programs ...*expr.Program) [][]string {
	for _, p := range programs {
		if p != nil {
			paths = append(paths, p.Paths(0)...)
		}
	}
	return slices.Clip(paths)
}

// bind tells the programs, by type, where the fields of events stand; layouts of
// more views follow.
func bind(programs []*expr.Program, layouts []*codec.Layout, more ...*codec.Layout) error {
	for typ, p := range programs {
		if p == nil {
			continue
		}
		if err := p.Bind(append([]*codec.Layout{layouts[typ]}, more...)...); err != nil {
			return err
		}
	}
	return nil
}

// appendIn evaluates p, into the event's arena if it has to be made for the event.
// What was made there before stays where it is, even when the arena has to grow.
func appendIn(scope *expr.Scope, e *pipeline.Event, p *expr.Program) ([]byte, error) {
	if enc := p.Fixed(); enc != nil {
		return enc[:len(enc):len(enc)], nil
	}
	n := len(e.Arena)
	var err error
	e.Arena, err = p.AppendIn(scope, e.Arena)
	return e.Arena[n:len(e.Arena):len(e.Arena)], err
}

// badBody rejects an event for bytes that a walk should not have accepted.
func badBody(err error) error { return pipeline.Reject(pipeline.ReasonBadBody, "%w", err) }

// verdict passes an event unless there is an error.
func verdict(err error) (pipeline.Verdict, error) {
	if err != nil {
		return pipeline.Drop, err
	}
	return pipeline.Pass, nil
}
