// Package expr compiles the expressions of a topology: CEL, the Common
// Expression Language, typed by Avro schemas.
//
// Start reading at [Env.Compile]. An [Env] holds the names that an expression
// may use: the fields of one event type and, for a fold, the fields of the state
// under "state". Env.Compile checks an expression against these names and
// against the result type that the caller requires ([Want]). It returns faults
// as [Errors], each with its position in the text. [Program.Paths] lists the
// fields that the compiled program reads, and [Program.Bind] resolves them to
// slots of a layout. A bound program turns views of Avro bodies into a bool or
// into Avro bytes:
//
//	env, err := expr.NewEnv(expr.Root{Schema: orderCreated, Consts: map[string]string{"type": "OrderCreated"}})
//	p, err := env.Compile("data.total_amount > 100.0", expr.Condition("a filter"))
//	layout, err := codec.NewLayout(orderCreated, p.Paths(0))
//	err = p.Bind(layout)
//	keep, err := p.Bool(&view)
//
// # Types
//
// Avro types appear as CEL types:
//
//	boolean                                  bool
//	int, long                                int
//	float, double                            double
//	string, enum, uuid                       string
//	bytes, fixed                             bytes
//	date, timestamp-*, local-timestamp-*     timestamp (local ones as if they were UTC)
//	time-*                                   duration since midnight
//	decimal                                  decimal: exact; mixes with int, not with double
//	array, map                               list, map with string keys
//	null or T                                T that may be null
//	any other union                          dyn: checked at run time
//
// A record at top level is not a value: an expression names its fields. Macros
// and functions read the records inside arrays, maps and unions
// (data.items.exists(i, i.quantity > 1)).
//
// An expression can return a list, a map or a record: state.tags + [data.tag],
// state.counts.with(data.id, 1), state.items.filter(i, i.id != data.id). A map
// with field names as keys is a record inside a list: [{'product_id':
// data.product_id, 'quantity': 1}]. Missing fields take their defaults. A record
// of one schema converts to another schema by field name, as in Avro's schema
// resolution.
//
// # Names
//
// A name is, in this order: the variable of a macro; "event"; a [Root] of the place;
// a field of the event; key or headers. event.NAME is always the field NAME of the
// event, even if the name is a keyword of CEL (names.go).
//
// # Null
//
// Package nulls finds the places that fail if a value is null or a map lacks an entry.
// They are warnings ([Program.Warnings]), because such an event is only rejected.
// Conditions around a place, and what earlier stages ensure ([Env.Known]), rule them
// out.
//
// # Differences from CEL
//
// Time zones come from the program, not from the machine ([ZoneData]).
// now() is the time, with a resolution of microseconds. It is the same for all
// programs that share a [Scope] until the next Reset. An Env without a clock has
// no now(). [Functions] lists all functions; none is random.
// Every value can be compared with null; a field that is not nullable is never
// equal to null. has(data.email) means that a nullable field is not null.
//
// A field whose value is fixed by the event type (its "type") is a constant. A
// branch that a constant condition excludes is neither read nor checked, so one
// filter can cover several types:
//
//	type != 'OrderCreated' || data.total_amount > 100.0
//
// The length and depth of the text and the cost of an evaluation are limited.
//
// # Evaluation
//
// Most expressions compile to closures over the bytes of the view, which
// allocate nothing. An expression with any other construct (such as a macro)
// runs in the CEL interpreter. A property test checks that both give the same
// results.
//
// # Concurrency
//
// One goroutine at a time uses an Env. A bound Program is immutable and safe for
// concurrent use. Each goroutine owns its Scope.
package expr

import (
	"errors"
	"fmt"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/metadata"
)

// A Source is the text of an expression. Line and Col are the position of its
// first character in the file, from 1; they are 0 if it comes from code.
type Source struct {
	Text      string
	Line, Col int
}

// An Error is one fault in an expression. Offset counts runes from the start of
// the text. Hint, if not empty, suggests a fix.
type Error struct {
	Offset int
	Msg    string
	Hint   string
	Rule   Rule // of a warning
}

// A Rule is the kind of a warning.
type Rule string

// The rules of warnings.
const (
	RuleNull Rule = "maybe-null"  // a value can be null, or a map can lack an entry, and then the expression fails
	RuleName Rule = "hidden-name" // a name is not the field of the event that it seems to be
)

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Hint
}

// Errors holds every fault of one expression, in the order of the text.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = fmt.Sprintf("%d: %s", e[i].Offset, e[i].Error())
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find the first fault.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i := range e {
		out[i] = e[i]
	}
	return out
}

// A Fault is a fault in the parameters of a stage or a fold, at a rune Offset in
// their Source. Type is the event type that the fault applies to, "" for all.
type Fault struct {
	Source Source
	Type   string
	Offset int
	Msg    string
	Hint   string
	Rule   Rule // of a warning
}

func (f Fault) Error() string {
	s := f.Msg
	if f.Hint != "" {
		s += "; " + f.Hint
	}
	if f.Source.Line == 0 {
		return s
	}
	return fmt.Sprintf("%d:%d: %s", f.Source.Line, f.Source.Col+f.Offset, s)
}

// PlaceErrors converts an error of [Env.Compile] to faults at positions in src. An
// error that is not [Errors] becomes one fault at the start.
func PlaceErrors(src Source, eventType string, err error) []Fault {
	if err == nil {
		return nil
	}
	var list Errors
	if !errors.As(err, &list) {
		return []Fault{{Source: src, Type: eventType, Msg: err.Error()}}
	}
	faults := make([]Fault, len(list))
	for i, e := range list {
		faults[i] = Fault{Source: src, Type: eventType, Offset: e.Offset, Msg: e.Msg, Hint: e.Hint, Rule: e.Rule}
	}
	return faults
}

// A Want is the result that an expression must return.
type Want struct {
	node  *codec.Node // nil: a bool
	field string
	of    string // the record of field, or the name of the condition

	lenient bool // do not report possible nulls at compile time; for tests
}

// Condition requires a bool. The argument names its purpose in messages: "a
// filter".
func Condition(what string) Want { return Want{of: what} }

// Value requires a value that can be encoded as n, the type of a field.
// Messages name the field and its record.
func Value(n *codec.Node, field, record string) Want { return Want{node: n, field: field, of: record} }

// A Root is a record whose fields an expression may name.
type Root struct {
	// Name is the prefix of the fields ("state"); "" puts them at top level,
	// together with the fields of other roots without a name. The first root without
	// a name is the event: event.NAME is always its field NAME. Names of other roots,
	// and their fields at top level, hide the fields of the event.
	Name   string
	Schema *codec.Schema
	// View is the index of the view that holds the record in an evaluation.
	View int
	// Consts maps dotted paths of string fields to their value, if it is the same
	// in every event. event.PATH reads such a field; PATH alone does not. A program
	// that relies on the value checks it, and rejects an event that has another one
	// ([Program.Test]).
	Consts map[string]string
	// Key is the type of the keys of the records that hold the events. It makes the
	// names key and headers available. They read the record of view 0
	// ([pipeline.View.Record]), and the fields of the event hide them.
	Key *metadata.Key
	// Later holds names that a later release gives another meaning here. Their use
	// without "event." is a warning.
	Later []string
	// NoEvent means that there is no name event, and that programs rely on Consts without
	// a check: the root is not an event, or the fold is older than both.
	NoEvent bool
}
