// Package expr compiles the expressions of a topology: CEL, the Common
// Expression Language, typed by Avro schemas.
//
// An [Env] knows the names an expression may use: the fields of one event type,
// and, for a fold, those of the state under "state". [Env.Compile] checks an
// expression against it and against what is [Want]ed of it; what is wrong comes
// back as [Errors], each with the place in the text. The [Program] says which
// fields it reads ([Program.Paths]), is told where they stand ([Program.Bind]),
// and from then on turns views of Avro bodies into a bool or into Avro bytes:
//
//	env, err := expr.NewEnv(expr.Root{Schema: orderCreated, Consts: map[string]string{"type": "OrderCreated"}})
//	p, err := env.Compile("data.total_amount > 100.0", expr.Condition("a filter"))
//	layout, err := codec.NewLayout(orderCreated, p.Paths(0))
//	err = p.Bind(layout)
//	keep, err := p.Bool(&view)
//
// # Types
//
// Avro types are seen as CEL types:
//
//	boolean                                  bool
//	int, long                                int
//	float, double                            double
//	string, enum, uuid                       string
//	bytes, fixed                             bytes
//	date, timestamp-*, local-timestamp-*     timestamp (local ones as if they were UTC)
//	time-*                                   duration since midnight
//	decimal                                  double: digits beyond the 16th are lost
//	array, map                               list, map with string keys
//	null or T                                T that may be null
//	any other union                          dyn: checked when it runs
//
// A record is not a value: an expression names its fields. Records inside
// arrays, maps and unions are reached through macros and functions
// (data.items.exists(i, i.quantity > 1)).
//
// Where a list, a map or a record is wanted, an expression makes one: with
// state.tags + [data.tag], state.counts.with(data.id, 1), state.items.filter(i,
// i.id != data.id), and, for a record in a list, a map with the names of its
// fields: [{'product_id': data.product_id, 'quantity': 1}]. Fields left out take
// their defaults. A record of one schema becomes one of another by the names of
// its fields, as Avro's schema resolution has it.
//
// # What is more, and what is less, than CEL
//
// now() is the time, in microseconds, the same for all programs that share a
// [Scope] until its next Reset. Where an Env has no clock, there is no now().
// [Functions] lists all functions; none is random.
// Comparing with null is always allowed; what cannot be null is simply not.
// has(data.email) means that a nullable field is not null.
//
// A field whose value the type of the event fixes (its "type") is a constant,
// and what a constant condition leaves out is neither read nor checked: one
// filter over several types may say
//
//	type != 'OrderCreated' || data.total_amount > 100.0
//
// What evaluation costs is limited, as are the length and depth of the text.
//
// # How it runs
//
// What most expressions are made of is compiled to closures over the bytes of
// the view, which allocate nothing; an expression with anything else in it (a
// macro, say) is left to the CEL interpreter. Both give the same answers, and a
// property test holds them to it.
package expr

import (
	"errors"
	"fmt"
	"strings"

	"millrace/pipeline/codec"
)

// A Source is an expression as it was written. Line and Col are the place of
// its first character in the file, from 1; they are 0 if it comes from code.
type Source struct {
	Text      string
	Line, Col int
}

// An Error is one fault in an expression. Offset counts runes from its start.
// Hint, if not empty, says what to do about it.
type Error struct {
	Offset int
	Msg    string
	Hint   string
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Hint
}

// Errors is every fault of one expression, in the order of the text.
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

// A Fault is a fault in something that was written in a file, at a rune offset
// in it: what a stage or a fold has to say of its parameters. Type is the event
// type for which it is a fault, "" if it is one for all.
type Fault struct {
	Source Source
	Type   string
	Offset int
	Msg    string
	Hint   string
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

// Faults places what [Env.Compile] found in its source. An error that is not
// Errors becomes one fault at the start.
func Faults(src Source, eventType string, err error) []Fault {
	if err == nil {
		return nil
	}
	var list Errors
	if !errors.As(err, &list) {
		return []Fault{{Source: src, Type: eventType, Msg: err.Error()}}
	}
	faults := make([]Fault, len(list))
	for i, e := range list {
		faults[i] = Fault{Source: src, Type: eventType, Offset: e.Offset, Msg: e.Msg, Hint: e.Hint}
	}
	return faults
}

// A Want is what an expression has to yield.
type Want struct {
	node  *codec.Node // nil: a bool
	field string
	of    string

	lenient bool // what may be null is left to the evaluation; for tests
}

// Condition wants a bool, for something that messages name: "a filter".
func Condition(what string) Want { return Want{of: what} }

// Value wants a value for a field, which is encoded as the field's type n.
// Messages name the field and the record it is in.
func Value(n *codec.Node, field, record string) Want { return Want{node: n, field: field, of: record} }

// A Root is a record whose fields an expression may name.
type Root struct {
	// Name is what the fields are under ("state"); "" puts them at top level,
	// beside those of other roots without a name.
	Name   string
	Schema *codec.Schema
	// View says which of the views given to an evaluation holds the record.
	View int
	// Consts gives the fields (dotted paths to strings) whose value is known
	// beforehand. They are not read.
	Consts map[string]string
}
