// Package stage contains the built-in stages of a chain, one per file.
//
// Start reading at [Kind] and [Built], then filter.go, the smallest stage.
// [Builtin] returns the built-in kinds. A Kind is the description of a stage and
// its constructor. The description is the source of the documentation and of the
// JSON Schema of topology.yaml, and the parameters of a stage are decoded strictly
// according to it.
//
// All stages of a chain share one layout per event type, so a stage is created in
// steps:
//
//	built, faults := kind.New(input)    // compiles and checks the expressions, per event type
//	built.Reads(typ), built.Writes(typ) // merged over the chain into one layout per type
//	err := built.Bind(layouts)          // layouts by type
//	stage := built.Clone()              // one clone per session
//
// A session owns its clones. Unless a method's comment allows another goroutine,
// only the goroutine that runs the session's chain calls them. Clones share the
// compiled programs and other data that no clone changes.
//
// A stage has further abilities if it implements one of these interfaces: [Gate],
// [Ensurer], [FieldAdder], [Reshaper], [Router], [Upcaster], [Keeper], [Batcher], [TableReader], [MissCounter], [Delayer],
// [Waiter], [Requester] and [pipeline.Splitter].
//
// To add a stage, pass a [Func] to [Go], or add a Kind to the built-in ones.
//
// Every stage also has the parameters "name", "on" (the event types that it
// handles) and "on_error". Package topology handles them; [Type].On is the result
// of "on". Events of other types pass through a stage unchanged.
package stage

import (
	"fmt"
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/identity"
)

// A Built is a stage whose parameters were checked.
type Built interface {
	// Process handles one event. It is called after Bind, on a clone.
	pipeline.Stage

	// Reads returns the fields that the stage reads in events of a type, as paths
	// to leaves of the schema. Writes returns the fields that it sets. For a Grower,
	// the schema is the schema after the stage.
	Reads(typ int) [][]string
	Writes(typ int) [][]string

	// Volatile returns the effects of the stage on events of a type that can differ
	// when the same event is processed again, for example because they depend on
	// now(), on the rows of a table or on the response of a service. fields are the
	// paths of fields whose new value can differ; the last step of a path can be the
	// key of a map. fate reports whether it can differ if the event passes, or with
	// which key or to which topics. Effects of fields that a previous stage set are not
	// included. It is called on the result of New, before or after Bind.
	Volatile(typ int) (fields [][]string, fate bool)

	// Bind sets the layouts of the events, by type. It is called once. The layout
	// of a type is nil if no event of this type can reach the stage.
	Bind(layouts []*codec.Layout) error

	// Clone returns a copy of the stage. The copy shares no memory that Process
	// writes. It is called after Bind.
	Clone() Built
}

// A Gate is a stage that drops all events of some types. The stages after it are
// not checked against these types.
type Gate interface {
	Passes(typ int) bool
}

// A FieldAdder is a stage that adds fields.
type FieldAdder interface {
	// Schemas returns the schemas of events after this stage, by type. A nil
	// schema means that the stage does not change it. [codec.Schema.With] creates
	// them.
	Schemas() []*codec.Schema
}

// A Router is a stage that sets [pipeline.Event].To.
type Router interface {
	// Topics returns the topics that the stage can choose, without duplicates, in
	// the order of the file. All of them are declared in the topology.
	Topics() []string

	// Targets returns the topics that the stage can choose for events of a type. own
	// reports whether it can also keep the previous target of some events.
	Targets(typ int) (topics []string, own bool)
}

// An Ensurer is a stage after which more is known about its events, such as a filter
// that keeps only events with an email.
type Ensurer interface {
	// Ensures returns what is known about the fields of the events of a type that the
	// stage handles and lets pass.
	Ensures(typ int) expr.Facts
}

// A Shape is an older schema of an event type.
type Shape struct {
	Type   int
	Schema *codec.Schema
	Paths  [][]string // the fields that the stage reads in events of this schema
}

// An Upcaster is a stage that reads [pipeline.Event].Old.
type Upcaster interface {
	Shapes() []Shape

	// BindOld sets the layouts of the stage's shapes. first is the index of its
	// first shape in the pipeline's list of shapes ([pipeline.Event].OldType is an
	// index of this list). It is called once, before Bind.
	BindOld(first int, layouts []*codec.Layout) error
}

// A Type is one event type of the stage's pipeline. [pipeline.Event].Type is its
// index.
type Type struct {
	Name   string            // in messages and in "on"
	Schema *codec.Schema     // after the previous stages
	Consts map[string]string // fields with the same value in every event of the type
	Env    *expr.Env         // the event's fields at top level, in view 0
	On     bool              // the stage handles this type, and its events can reach the stage
}

// With returns an environment with the event and additional records, such as the
// row of a table. Their views start at 1.
func (t Type) With(roots ...expr.Root) (*expr.Env, error) {
	return t.Env.With(roots...)
}

// A Table is a table that the topology declares.
type Table struct {
	Name   string
	Schema *codec.Schema // of a row; nil if the declaration of the table has a fault
	// Rows holds the rows. It is nil until the program sets it, which is after New
	// and before Clone. So a constructor keeps the Table, and a clone keeps the Rows.
	Rows Rows
}

// Rows are the current rows of a table. They are safe for concurrent use.
type Rows interface {
	// Get returns the row with a key, as an Avro body of the table's schema. The
	// caller must not change it.
	Get(key []byte) (row []byte, ok bool)
}

// An Input holds the arguments of a stage's constructor.
type Input struct {
	At    expr.Source // the stage in the file, for faults that belong to no parameter
	Name  string      // of the stage, unique in its pipeline
	Args  Args
	Types []Type // of the pipeline, by index
	// ID is the expression for an event's id. Its text is empty if events have no
	// id.
	ID expr.Source
	// Identity is what identifies an event of the pipeline's input, Bare are the
	// expressions that replace its envelope (nil if it has one), and From is its name.
	// Identity is nil if the events have none, or no longer have one because an earlier
	// stage split them.
	Identity identity.Identity

	// NoIdentity says which stage before this one took the identity away; "" if none did.
	NoIdentity string
	Bare       *expr.Bare
	From       string

	Tables map[string]*Table
	Topics []string // the declared topics
	// Schema returns a record from the schemas directory, by short or full name. The
	// name of an older schema is its file name without .avsc: OrderCreated.v1.
	Schema func(name string) (*codec.Schema, error)
	// File reads a file. The path is relative to the topology.
	File func(path string) ([]byte, error)
}

// Args are the parameters of a stage: the given ones in the order of the file, and
// the defaults. Each occurs at most once, is declared in [Kind].Params and has the
// declared form. All Required parameters are present.
type Args []Arg

// Find returns the parameter with that name.
func (a Args) Find(name string) (Arg, bool) {
	for i := range a {
		if a[i].Name == name {
			return a[i], true
		}
	}
	return Arg{}, false
}

// An Arg is the value of a parameter. Key is the position of its name in the file;
// for a default, it is the position of the mapping without the parameter. The
// [Form] of the parameter decides which of the other fields is set.
type Arg struct {
	Name     string
	Key      expr.Source
	Value    expr.Source // the text of a scalar
	Number   int64
	Duration time.Duration
	Flag     bool
	Words    []expr.Source
	Entries  []Entry
	Items    []Item
}

// An Entry is one KEY: VALUE of [Assignments] or [Texts].
type Entry struct{ Key, Value expr.Source }

// An Item is one mapping in a parameter that holds several. Key is its name; in
// Cases, it is the position of its start.
type Item struct {
	Key  expr.Source
	Args Args
}

// A Form is the syntax of a parameter.
type Form uint8

// The forms. After the colon: the field of Arg that holds the value.
const (
	Expression  Form = iota // a CEL expression: Value
	Assignments             // a mapping from paths to CEL expressions: Entries
	Word                    // a name or a text, one of Values unless that is nil: Value
	Words                   // a list of names or texts: Words
	Number                  // an integer from Min to Max: Number
	Duration                // such as 10m, 1h30m, 7d: Duration
	Flag                    // true or false: Flag
	Texts                   // a mapping from names to texts: Entries
	Group                   // a mapping of Params: one Item
	Named                   // a mapping from names to mappings of Params: Items
	Cases                   // a list of mappings of Params: Items
	Choices                 // a list of mappings with exactly one of Params each: Items
)

// A Param describes one parameter.
type Param struct {
	Name     string
	Form     Form
	Doc      string // full sentences
	Required bool
	Default  string   // in the syntax of the file; "" for no default
	Values   []string // of a Word or Words: the allowed values; nil allows all. Of a Group: words that may replace the mapping
	Min, Max int64    // of a Number
	Topic    bool     // a Word or Words that names a topic; the stage can write to it
	Params   []Param  // of a Group, Named, Cases or Choices
}

// A Kind is a kind of stage.
type Kind struct {
	Name       string
	Doc        string // full sentences; the first one is the summary
	Params     []Param
	Example    string // its parameters as YAML
	AddsFields bool   // it can add fields, so the stages after a faulty one cannot be checked
	Moves      bool   // it can set the key, the topics or the number of the events, so a tombstone cannot pass it

	// New checks the parameters and compiles their expressions for every type that
	// the stage handles. It returns all faults. A fault of several types is returned
	// once per type; the caller merges them into one message. If there are faults,
	// the returned Built is nil or, for a Grower, incomplete: its Schemas are valid
	// as far as they are known.
	New func(in Input) (Built, []expr.Fault)
}

// Builtin returns the built-in kinds by name. The map belongs to the caller, who may
// add kinds.
func Builtin() map[string]Kind {
	kinds := map[string]Kind{}
	for _, k := range []Kind{Filter(), Enrich(), Route(), Rekey(), Assert(), Split(), Mask(), Upcast(), Lookup(), Dedupe(), HTTP(), Select(), Go()} {
		kinds[k.Name] = k
	}
	return kinds
}

// fault returns a fault that does not depend on an event type.
func fault(src expr.Source, hint, format string, args ...any) expr.Fault {
	return expr.Fault{Source: src, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// appendPaths appends the fields that the programs read in the event. nil programs
// are allowed.
func appendPaths(paths [][]string, programs ...*expr.Program) [][]string {
	for _, p := range programs {
		if p != nil {
			paths = append(paths, p.Paths(0)...)
		}
	}
	return slices.Clip(paths)
}

// bind binds programs, by type, to the layouts of the events, and to the layouts of
// further views.
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

// appendIn evaluates p and returns the encoded result. Unless the result is
// constant, it is appended to the event's arena. Earlier results stay valid when the
// arena grows, because growth copies to new memory.
func appendIn(scope *expr.Scope, e *pipeline.Event, p *expr.Program) ([]byte, error) {
	if enc := p.Fixed(); enc != nil {
		return enc[:len(enc):len(enc)], nil
	}
	n := len(e.Arena)
	var err error
	e.Arena, err = p.AppendIn(scope, e.Arena)
	return e.Arena[n:len(e.Arena):len(e.Arena)], err
}

// badBody returns the rejection of an event whose body the walk accepted by mistake.
func badBody(err error) error { return pipeline.Reject(pipeline.ReasonBadBody, "%w", err) }

// verdict returns Pass, or Drop and err if there is an error.
func verdict(err error) (pipeline.Verdict, error) {
	if err != nil {
		return pipeline.Drop, err
	}
	return pipeline.Pass, nil
}

// Reasons returns the reasons for which the stages reject events. Functions in Go can
// have others.
func Reasons() []pipeline.Reason {
	return []pipeline.Reason{
		ReasonAssert, ReasonEmptyKey, ReasonTooManyItems, ReasonGo, ReasonMissingRow,
		ReasonHTTPRequest, ReasonHTTPStatus, ReasonHTTPResponse, ReasonHTTPUnavailable,
	}
}
