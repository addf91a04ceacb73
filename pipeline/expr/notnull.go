package expr

import (
	"errors"
	"fmt"
	"strings"

	celast "cel.dev/cel-go/common/ast"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/escape"
	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/nulls"
)

// Facts holds what is known about the values of an event where an expression is
// evaluated.
type Facts = nulls.Facts

type facts = nulls.Facts

// checker returns the analysis of nulls for the expression.
func (c *compiler) checker() *nulls.Checker {
	return nulls.New(c.ast, nulls.Names{Null: nullName, IsNull: isNull, Same: []string{library.Ordered, library.Widen}, Field: func(ident string) (*codec.Node, string) {
		if l := c.env.leaves[strings.TrimPrefix(ident, fieldMark)]; l != nil && strings.HasPrefix(ident, fieldMark) {
			return l.node, l.path
		}
		return nil, ""
	}})
}

// canBeNull reports whether e can return null where only known holds. Only values that
// are null by their own type count: the others are warnings.
func (c *compiler) canBeNull(e celast.Expr, known facts) bool {
	if c.want.lenient || !c.mayBeNull(e) {
		return false
	}
	local := false // the value depends on the variable of a macro, which known does not cover
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		local = local || x.Kind() == celast.IdentKind && !strings.HasPrefix(x.AsIdent(), fieldMark) && !strings.HasPrefix(x.AsIdent(), "@")
	}))
	if local {
		return len(c.findings) > 0
	}
	return c.nulls.Null(e, known)
}

// warnOfNull adds a warning for each place that fails if a value is null or a map lacks
// an entry. The hint shows the expression with a guard. parsed is the expression as it
// is written.
func (c *compiler) warnOfNull(parsed *celast.AST) {
	src := nulls.Source{Text: c.src, AST: parsed}
	guards := map[nulls.Atom][]string{}
	for _, f := range c.findings {
		if f.Guard != "" {
			atom := src.Atom(f.ID)
			guards[atom] = append(guards[atom], f.Guard)
		}
	}
	for _, f := range c.findings {
		hint := ""
		if f.Guard != "" {
			atom := src.Atom(f.ID)
			whole := atom.ID == parsed.Expr().ID()
			zero := nulls.Zero(c.ast.GetType(atom.ID))
			condition := zero == "false" || whole && c.want.node == nil
			if whole && c.want.node != nil && c.want.node.HoldsNull() {
				condition, zero = false, "null"
			}
			hint = "write " + src.Rewrite(atom, guards[atom], condition, zero)
		}
		at, subject := c.offset(f.ID), f.Path
		if e := find(c.ast.Expr(), f.ID); e != nil {
			at = c.leftmost(e)
		}
		if subject == "" {
			subject = "this value"
		}
		if f.Entry {
			c.warn(RuleNull, at, hint, "the map may have no entry %s, and then this fails", subject)
		} else {
			c.warn(RuleNull, at, hint, "%s can be null, and then this fails", subject)
		}
	}
}

// find returns the part of an expression with an id, or nil.
func find(e celast.Expr, id int64) (found celast.Expr) {
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if x.ID() == id {
			found = x
		}
	}))
	return found
}

// Warnings returns what works but probably is a mistake, in the order of the text: a
// value that can be null where that fails, and a name that has another meaning here.
func (p *Program) Warnings() Errors { return p.warns }

// Ensures returns what is known about the fields of the event where the condition has
// the value outcome. A nil Program ensures nothing.
func (p *Program) Ensures(outcome bool) Facts {
	if p == nil {
		return nil
	}
	if outcome {
		return p.ensures[1]
	}
	return p.ensures[0]
}

// NeverNull reports whether the result is never null.
func (p *Program) NeverNull() bool { return p.neverNull }

// conclude computes what the program ensures.
func (c *compiler) conclude(p *Program) {
	p.warns, p.zones = sorted(c.warns), c.zones
	if c.want.node != nil {
		p.neverNull = !c.nulls.Null(c.ast.Expr(), c.env.Known)
		return
	}
	event := func(name string) bool {
		root, field := c.root(name)
		return root != nil && root == c.env.event() && (field != "" || name == eventName)
	}
	p.ensures = [2]facts{c.nulls.Learn(nil, c.ast.Expr(), false).Only(event), c.nulls.Learn(nil, c.ast.Expr(), true).Only(event)}
}

// A nullFailure is the error of an evaluation that failed because a value is null or a
// map has no such entry.
type nullFailure struct{ error }

func (f *nullFailure) Unwrap() error { return f.error }

// IsNull reports whether an evaluation failed because a value is null or a map has no
// such entry.
func IsNull(err error) bool {
	var f *nullFailure
	return errors.As(err, &f)
}

// isNullFailure is IsNull for an error of a closure or of the interpreter. The
// interpreter reports a null argument as a missing overload.
func isNullFailure(err error) bool {
	var absent *missing
	text := err.Error()
	return errors.Is(err, errNull) || errors.Is(err, errNullUsed) || errors.As(err, &absent) ||
		strings.Contains(text, "no such key") || strings.HasPrefix(text, "no such overload")
}

// parsedAgain returns the syntax tree of the expression as it is written.
func (e *Env) parsedAgain(src string) *celast.AST {
	masked, _ := escape.Mask(src)
	parsed, _ := e.cel.Parse(masked) // it was parsed before without an issue
	return parsed.NativeRep()
}

// CompileAt is [Env.Compile] for an expression in a file. It returns faults at their
// places, and adds the warnings to those of the environment.
func (e *Env) CompileAt(src Source, eventType string, want Want) (*Program, []Fault) {
	p, err := e.Compile(src.Text, want)
	if err != nil {
		return nil, PlaceErrors(src, eventType, err)
	}
	if len(p.warns) > 0 && e.warnings != nil {
		*e.warnings = append(*e.warnings, PlaceErrors(src, eventType, p.warns)...)
	}
	return p, nil
}

// Warnings returns the warnings of all calls of CompileAt of this environment, and of
// the ones that With made of it.
func (e *Env) Warnings() []Fault {
	if e.warnings == nil {
		return nil
	}
	return *e.warnings
}

// Knowing returns an environment for a place where some facts about the event are
// known. It collects its own warnings.
func (e *Env) Knowing(known Facts) *Env {
	out := *e
	out.Known, out.warnings = known, new([]Fault)
	return &out
}

// Also returns an environment for an expression that is evaluated after others of e, when
// more is known. Both collect the same warnings.
func (e *Env) Also(more Facts) *Env {
	out := *e
	out.Known = e.Known.And(more)
	return &out
}

// With returns an environment with the event of e and additional records, such as the
// row of a table. Their views start at 1.
func (e *Env) With(roots ...Root) (*Env, error) {
	event := e.top()
	if event == nil {
		return nil, fmt.Errorf("there is no event")
	}
	out, err := NewEnv(append([]Root{*event}, roots...)...)
	if err == nil {
		out.Clock, out.warnings = e.Clock, e.warnings
		out.Known = e.Known.Only(func(name string) bool { return !out.hides(name) })
	}
	return out, err
}
