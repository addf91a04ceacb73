// Package nulls finds the places of an expression that fail if a value is null or a
// map lacks an entry.
//
// Start reading at [Checker.Check]. The analysis walks a type-checked expression. It
// knows which values can be null from their Avro types, and [Facts] hold what the
// conditions around a place rule out: in x != null && x > 3, the comparison is
// evaluated only if x is not null. A path such as data.items[0].price identifies a
// value, because an event does not change during an evaluation.
//
// The analysis is safe, not complete: an expression without a [Finding] never fails
// because of null.
package nulls

import (
	"slices"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline/codec"
)

// A Finding is a place that can fail.
type Finding struct {
	ID    int64  // of the expression that can be null, or that reads the map
	Path  string // the text of this expression
	Entry bool   // the map can lack the entry; otherwise the value can be null
	Guard string // a condition that rules it out
}

// Names tells a Checker what the names of an expression mean.
type Names struct {
	// Field returns the type and the text of a field.
	Field func(ident string) (n *codec.Node, path string)
	// Null and IsNull are the names of null and of the function x == null. Same are
	// the functions that return their argument, null included.
	Null, IsNull string
	Same         []string
}

// A Checker analyzes one expression. One goroutine uses it.
type Checker struct {
	names Names
	ast   *celast.AST
	vars  map[string]*value // the variables of the enclosing macros

	findings []Finding
	quiet    int // greater than 0: findings are not recorded
}

// New returns a Checker for a type-checked expression.
func New(ast *celast.AST, names Names) *Checker {
	return &Checker{names: names, ast: ast, vars: map[string]*value{}}
}

// A value is what is known about the result of an expression.
type value struct {
	node  *codec.Node // the Avro type, without null; nil if unknown
	null  bool        // can be null
	path  string      // the text; "" if the value has no path
	elem  *value      // the items of a list or the values of a map without an Avro type
	keys  []string    // of a map literal: the keys that it has
	holds Facts       // relative to the value: "" and ".price" for an item with a price
}

// Check analyzes the expression and returns its findings. want is the type of the
// result; nil for a condition.
func (c *Checker) Check(want *codec.Node, known Facts) []Finding {
	c.findings = nil
	if want == nil {
		c.need(c.ast.Expr(), c.eval(c.ast.Expr(), known))
	} else {
		c.result(c.ast.Expr(), want, known)
	}
	return c.findings
}

// Null reports whether an expression can return null.
func (c *Checker) Null(e celast.Expr, known Facts) bool {
	c.quiet++
	defer func() { c.quiet-- }()
	return c.eval(e, known).null
}

// result checks an expression whose value becomes a value of type n.
func (c *Checker) result(e celast.Expr, n *codec.Node, known Facts) {
	to := n.NotNull()
	switch e.Kind() {
	case celast.ListKind:
		if to.Kind == codec.Array {
			for _, item := range e.AsList().Elements() {
				c.result(item, to.Elem, known)
			}
			return
		}
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			key, v := entry.AsMapEntry().Key(), entry.AsMapEntry().Value()
			at := to.Elem
			if to.Kind == codec.Record {
				at = fieldOf(to, literalText(key))
			}
			if at == nil {
				c.eval(v, known)
				continue
			}
			c.result(v, at, known)
		}
		return
	case celast.CallKind:
		args := e.AsCall().Args()
		switch name := e.AsCall().FunctionName(); {
		case name == operators.Conditional:
			c.need(args[0], c.eval(args[0], known))
			c.result(args[1], n, c.Learn(known, args[0], true))
			c.result(args[2], n, c.Learn(known, args[0], false))
			return
		case name == "with" && to.Kind == codec.Map && len(args) == 2:
			c.result(e.AsCall().Target(), n, known)
			c.need(args[0], c.eval(args[0], known))
			c.result(args[1], to.Elem, known)
			return
		case name == operators.Add && to.Kind == codec.Array, name == "dyn":
			for _, arg := range args {
				c.result(arg, n, known)
			}
			return
		}
	}
	c.fits(e, c.eval(e, known), n)
}

// fits reports a value that can be null, or can contain null, where n cannot.
func (c *Checker) fits(e celast.Expr, v *value, n *codec.Node) {
	if v.null && !n.HoldsNull() {
		c.find(e, v, false)
		return
	}
	to := n.NotNull()
	if to.Kind == codec.Array || to.Kind == codec.Map {
		if items := c.items(v); items != nil && items.null && !to.Elem.HoldsNull() {
			c.find(e, items, false)
		}
	}
}

// need reports a value that can be null where that fails.
func (c *Checker) need(e celast.Expr, v *value) {
	if v.null {
		c.find(e, v, false)
	}
}

// find records a finding, once for each path.
func (c *Checker) find(e celast.Expr, v *value, entry bool) {
	if c.quiet > 0 {
		return
	}
	f := Finding{ID: e.ID(), Path: v.path, Entry: entry}
	if !slices.ContainsFunc(c.findings, func(have Finding) bool { return have.ID == f.ID && have.Entry == f.Entry }) {
		f.Guard = c.guard(e, v, entry)
		c.findings = append(c.findings, f)
	}
}

// eval returns what is known about the result of an expression, and reports the places
// in it that can fail.
func (c *Checker) eval(e celast.Expr, known Facts) *value {
	path := c.path(e)
	switch e.Kind() {
	case celast.IdentKind:
		return c.ident(e.AsIdent(), path, known)
	case celast.SelectKind:
		sel := e.AsSelect()
		of := c.eval(sel.Operand(), known)
		c.need(sel.Operand(), of)
		if sel.IsTestOnly() {
			return &value{path: path}
		}
		return c.member(e, of, sel.FieldName(), path, known)
	case celast.CallKind:
		return c.call(e, path, known)
	case celast.ListKind:
		out := &value{path: path}
		for _, item := range e.AsList().Elements() {
			out.elem = either(out.elem, c.held(item, c.eval(item, known), known))
		}
		return out
	case celast.MapKind:
		out := &value{path: path}
		for _, entry := range e.AsMap().Entries() {
			key := entry.AsMapEntry().Key()
			c.need(key, c.eval(key, known))
			out.keys = append(out.keys, literalText(key))
			out.elem = either(out.elem, c.eval(entry.AsMapEntry().Value(), known))
		}
		return out
	case celast.ComprehensionKind:
		return c.macro(e.AsComprehension(), known)
	}
	return &value{path: path} // a literal
}

// ident is a field, a variable or null.
func (c *Checker) ident(name, path string, known Facts) *value {
	if name == c.names.Null {
		return &value{null: true, path: "null"}
	}
	if v := c.vars[name]; v != nil {
		out := *v
		out.path, out.null = path, v.null && !known[path]
		return &out
	}
	if n, _ := c.names.Field(name); n != nil {
		return typed(n, path, known)
	}
	return &value{path: path}
}

// typed returns a value of type n at a path.
func typed(n *codec.Node, path string, known Facts) *value {
	return &value{node: n.NotNull(), null: n.HoldsNull() && !known[path], path: path}
}

// member is of.name, or of[name] for a string.
func (c *Checker) member(e celast.Expr, of *value, name, path string, known Facts) *value {
	v, entry := memberType(of, name, path, known)
	if v == nil { // a value of any type
		return &value{null: c.dynamic(e) && !known[path], path: path}
	}
	if entry && !known[here+path] && !slices.Contains(of.keys, name) {
		c.find(e, v, true)
	}
	return v
}

// memberType returns the member of a value; nil if it is unknown. entry reports whether
// it is an entry of a map, which may not exist.
func memberType(of *value, name, path string, known Facts) (v *value, entry bool) {
	switch {
	case of.node == nil && of.elem != nil:
		return settled(of.elem, path, known), true
	case of.node == nil:
		return nil, false
	case of.node.Kind == codec.Map:
		return typed(of.node.Elem, path, known), true
	case of.node.Kind == codec.Record:
		if n := fieldOf(of.node, name); n != nil {
			return typed(n, path, known), false
		}
	case of.node.Kind == codec.Union:
		for _, branch := range of.node.Branches {
			got, isEntry := memberType(&value{node: branch}, name, path, known)
			if got != nil {
				v, entry = either(v, got), entry || isEntry
			}
		}
		if v != nil {
			v.path = path
		}
	}
	return v, entry
}

// dynamic reports whether the type of an expression is known only at run time.
func (c *Checker) dynamic(e celast.Expr) bool {
	t := c.ast.GetType(e.ID())
	return t == nil || t.Kind() == types.DynKind || t.IsAssignableType(types.NullType)
}

// items returns the items of a list or the values of a map; nil if they are unknown.
func (c *Checker) items(of *value) *value {
	switch {
	case of.elem != nil:
		return of.elem
	case of.node != nil && of.node.Elem != nil:
		return typed(of.node.Elem, "", nil)
	}
	return nil
}

// settled returns an item at a path.
func settled(item *value, path string, known Facts) *value {
	out := *item
	out.path, out.null = path, item.null && !known[path]
	return &out
}

// held returns an item of a list literal with the facts that are known about it.
func (c *Checker) held(e celast.Expr, v *value, known Facts) *value {
	if e.Kind() != celast.IdentKind || c.vars[e.AsIdent()] == nil {
		return v
	}
	out := *v
	out.holds = known.about(v.path)
	return &out
}

// either returns what is known about a value that is a or b.
func either(a, b *value) *value {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	out := &value{node: a.node, null: a.null || b.null, elem: either(a.elem, b.elem)}
	if a.node != b.node && (a.node == nil || b.node == nil || a.node.String() != b.node.String()) {
		out.node = nil
		if x, y := items(a), items(b); x != nil && y != nil {
			out.elem = either(x, y)
		}
	}
	if a.path == b.path {
		out.path = a.path
	}
	for _, key := range a.keys {
		if slices.Contains(b.keys, key) {
			out.keys = append(out.keys, key)
		}
	}
	for fact := range a.holds {
		if b.holds[fact] {
			out.holds = out.holds.with(fact)
		}
	}
	return out
}

func items(v *value) *value { return (*Checker)(nil).items(v) }

func fieldOf(n *codec.Node, name string) *codec.Node {
	if f := n.Field(name); f != nil {
		return f.Type
	}
	return nil
}

func literalText(e celast.Expr) string {
	if e.Kind() == celast.LiteralKind {
		if text, ok := e.AsLiteral().(types.String); ok {
			return string(text)
		}
	}
	return ""
}
