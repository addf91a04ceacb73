package expr

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// A Program is a compiled expression. It is bound once; after that it does not
// change, and any number of goroutines may evaluate it, each with its own Scope.
type Program struct {
	text  string
	node  *codec.Node // to encode as; nil for a bool
	what  string      // what wants the bool
	refs  []*field
	clock func() time.Time // nil if the expression has no now()

	known *bool  // the answer, if it is the same for every event
	fixed []byte // the encoding, if it is the same for every event; then known is nil or not
	test  fn[bool]
	enc   appender
	slow  cel.Program // nil if test or enc does it

	scopes sync.Pool
}

// A field is a leaf that a program reads, and where it stands once bound.
type field struct {
	*leaf
	slot int
}

func (f *field) get(s *Scope) []byte { return s.views[f.view].Get(f.slot) }

// A Scope is what programs are evaluated in: the views, and memory that they
// use again. Programs that share one until its next Reset agree on the time.
// It is for one goroutine at a time. The zero Scope is ready.
type Scope struct {
	views  []*pipeline.View
	now    instant
	hasNow bool
	taken  time.Time // now is of this, if not zero
	text   timeText
	mem    []byte    // texts made within one evaluation
	vals   []ref.Val // fields decoded within one evaluation by the interpreter
}

// Reset points the scope at the views of the next event. now() is when that was
// taken up, or, if this is the zero time, what the clock says when it is first
// asked.
func (s *Scope) Reset(taken time.Time, views ...*pipeline.View) {
	if !slices.Equal(s.views, views) { // mostly they are where those of the event before were
		s.views = append(s.views[:0], views...)
	}
	if taken != s.taken || taken.IsZero() {
		s.taken, s.hasNow = taken, false
	}
}

func (s *Scope) time(clock func() time.Time) instant {
	if !s.hasNow {
		now := s.taken
		if now.IsZero() {
			now = clock()
		}
		s.now, s.hasNow = instantOf(now), true
		s.now.nano -= s.now.nano % 1000
	}
	return s.now
}

// Paths returns the fields that the program reads in a view, as paths to leaves
// of its record.
func (p *Program) Paths(view int) [][]string {
	var paths [][]string
	for _, f := range p.refs {
		if f.view == view {
			paths = append(paths, f.rel)
		}
	}
	return paths
}

// Bind tells the program where in each view its fields stand. It is called once,
// before the first evaluation; layouts are by view. A program that reads
// nothing needs no Bind.
func (p *Program) Bind(layouts ...*codec.Layout) error {
	for _, f := range p.refs {
		f.slot = -1
		if f.view < len(layouts) && layouts[f.view] != nil {
			f.slot = layouts[f.view].Slot(f.rel...)
		}
		if f.slot < 0 {
			return fmt.Errorf("the layout of view %d has no field %s, which %q reads", f.view, strings.Join(f.rel, "."), p.text)
		}
	}
	return nil
}

// Clocked reports whether the expression has now(): it may come out otherwise
// another time, for the same event.
func (p *Program) Clocked() bool { return p.clock != nil }

// Const returns the answer of a condition that is the same for every event.
func (p *Program) Const() (value, ok bool) {
	if p.known == nil {
		return false, false
	}
	return *p.known, true
}

// Fixed returns the value's encoding if it is the same for every event, else nil.
// It must not be changed.
func (p *Program) Fixed() []byte { return p.fixed }

// Bool evaluates a condition over the views. An error is a
// [pipeline.RejectError] with [pipeline.ReasonExpression].
func (p *Program) Bool(views ...*pipeline.View) (bool, error) {
	s := p.scope(views)
	v, err := p.Test(s)
	p.scopes.Put(s)
	return v, err
}

// Append evaluates over the views and appends the value, encoded as the wanted
// type. On an error, a [pipeline.RejectError] with [pipeline.ReasonExpression],
// it returns dst as it was.
func (p *Program) Append(dst []byte, views ...*pipeline.View) ([]byte, error) {
	s := p.scope(views)
	dst, err := p.AppendIn(s, dst)
	p.scopes.Put(s)
	return dst, err
}

func (p *Program) scope(views []*pipeline.View) *Scope {
	s, ok := p.scopes.Get().(*Scope)
	if !ok {
		s = new(Scope)
	}
	s.Reset(time.Time{}, views...)
	return s
}

// Test is [Program.Bool] in a scope.
func (p *Program) Test(s *Scope) (bool, error) {
	if p.known != nil {
		return *p.known, nil
	}
	if p.test != nil {
		s.mem = s.mem[:0]
		v, err := p.test(s)
		if err != nil {
			return false, p.reject(err)
		}
		return v, nil
	}
	v, err := p.interpret(s)
	if err != nil {
		return false, p.reject(err)
	}
	switch v := v.(type) {
	case types.Bool:
		return bool(v), nil
	case types.Null:
		return false, p.reject(errNull)
	}
	return false, p.reject(misfitf("%s is not a bool", article(typeWord(v.Type().TypeName()))))
}

// AppendIn is [Program.Append] in a scope.
func (p *Program) AppendIn(s *Scope, dst []byte) ([]byte, error) {
	if p.fixed != nil {
		return append(dst, p.fixed...), nil
	}
	mark := len(dst)
	var err error
	if p.enc != nil {
		s.mem = s.mem[:0]
		dst, err = p.enc(dst, s)
	} else {
		var v ref.Val
		if v, err = p.interpret(s); err == nil {
			dst, err = encode(dst, p.node, v)
		}
	}
	if err != nil {
		return dst[:mark], p.reject(err)
	}
	return dst, nil
}

func (p *Program) reject(err error) error {
	text := p.text
	if runes := []rune(text); len(runes) > 200 {
		text = string(runes[:200]) + "..."
	}
	if errors.Is(err, errNull) {
		err = errors.New("the result is null, which is not possible here")
	}
	return pipeline.Reject(pipeline.ReasonExpression, "%s: %w", text, plain(err))
}

// interpret runs the expression in the CEL interpreter.
func (p *Program) interpret(s *Scope) (ref.Val, error) {
	s.vals = slices.Grow(s.vals[:0], len(p.refs))[:len(p.refs)]
	clear(s.vals)
	v, _, err := p.slow.Eval(&activation{p, s})
	var cancelled interpreter.EvalCancelledError
	if errors.As(err, &cancelled) && cancelled.Cause == interpreter.CostLimitExceeded {
		err = fmt.Errorf("this takes more than %d steps", maxCost)
	}
	return v, err
}

// activation gives the interpreter its variables.
type activation struct {
	p *Program
	s *Scope
}

func (a *activation) Parent() interpreter.Activation { return nil }

func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case nullName:
		return types.NullValue, true
	case nowName:
		return types.Timestamp{Time: a.s.time(a.p.clock).time()}, true
	}
	for i, f := range a.p.refs {
		if name[1:] != f.path || name[:1] != fieldMark {
			continue
		}
		if a.s.vals[i] == nil {
			v, _, err := decode(f.node, f.get(a.s))
			if err != nil {
				return types.WrapErr(err), true
			}
			a.s.vals[i] = v
		}
		return a.s.vals[i], true
	}
	return nil, false
}

// Compile checks and compiles an expression. An error is [Errors].
func (e *Env) Compile(src string, want Want) (*Program, error) { return e.compile(src, want, true) }

// compile without fast leaves everything to the interpreter.
func (e *Env) compile(src string, want Want, fast bool) (*Program, error) {
	parsed, issues := e.cel.Parse(src)
	if issues.Err() != nil {
		return nil, syntax(src, issues)
	}
	r := newResolver(e, src, parsed.NativeRep())
	r.text = want.node != nil && kindOf(inner(want.node)) == types.StringKind
	r.walk(parsed.NativeRep().Expr())
	if want.node != nil {
		r.shape(parsed.NativeRep().Expr(), want.node)
	}
	e.records.misses = nil
	checked, issues := e.cel.Check(parsed)
	if issues.Err() != nil {
		r.errs = append(r.errs, r.explain(issues)...)
	}
	if len(r.errs) > 0 {
		return nil, sorted(r.errs)
	}
	ast := checked.NativeRep()
	c := &compiler{env: e, ast: ast, resolver: r, want: want, fields: map[string]*field{}}
	c.symbols(ast.Expr())
	c.fit(ast.Expr(), place{want.node, want.field, want.of}, nil)
	c.tagged(ast.Expr())
	if len(r.errs) > 0 {
		return nil, sorted(r.errs)
	}

	p := &Program{text: src, node: want.node, what: want.of}
	celast.PostOrderVisit(ast.Expr(), celast.NewExprVisitor(func(x celast.Expr) {
		if x.Kind() != celast.IdentKind {
			return
		}
		name := x.AsIdent()
		if name == nowName {
			p.clock = e.Clock
		}
		if l := c.leafOf(x); l != nil && c.fields[l.path] == nil {
			c.fields[l.path] = &field{leaf: l, slot: -1}
			p.refs = append(p.refs, c.fields[l.path])
		}
	}))
	if fast {
		if want.node == nil {
			if o, ok := c.compile(ast.Expr()); ok && o.kind == types.BoolKind {
				p.test = o.b
				if o.konst {
					v, err := o.b(&Scope{})
					if err != nil {
						return nil, c.always(ast.Expr(), err)
					}
					p.known = &v
				}
			}
		} else if enc, fixed, ok := c.appender(ast.Expr(), want.node); ok {
			p.enc = enc
			if fixed {
				out, err := enc([]byte{}, &Scope{})
				if err != nil {
					return nil, c.always(ast.Expr(), err)
				}
				p.fixed = out
			}
		}
		if len(r.errs) > 0 {
			return nil, sorted(r.errs)
		}
		if p.known != nil || p.fixed != nil {
			p.refs, p.clock = nil, nil
		}
	}
	if p.test == nil && p.enc == nil {
		if err := p.plan(e, ast); err != nil {
			return nil, Errors{{Msg: err.Error()}}
		}
		if fast && len(p.refs) == 0 && p.clock == nil {
			if err := p.precompute(); err != nil {
				return nil, c.always(ast.Expr(), err)
			}
		}
	}
	return p, nil
}

// plan prepares the interpreter.
func (p *Program) plan(e *Env, ast *celast.AST) error {
	var err error
	p.slow, err = e.cel.PlanProgram(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost))
	if err != nil {
		// A constant in it cannot be computed. Maybe it is never reached.
		p.slow, err = e.cel.PlanProgram(ast, cel.CostLimit(maxCost))
	}
	return err
}

// precompute evaluates an expression that reads nothing.
func (p *Program) precompute() error {
	s := &Scope{}
	if p.node == nil {
		v, err := p.Test(s)
		p.known = &v
		return errors.Unwrap(err)
	}
	out, err := p.AppendIn(s, []byte{})
	p.fixed = out
	return errors.Unwrap(err)
}

func sorted(errs Errors) Errors {
	slices.SortStableFunc(errs, func(a, b *Error) int { return a.Offset - b.Offset })
	return slices.CompactFunc(errs, func(a, b *Error) bool { return *a == *b })
}

// compiler turns a checked expression into closures.
type compiler struct {
	*resolver
	env    *Env
	ast    *celast.AST
	want   Want
	fields map[string]*field
}

// always is the error for a constant expression that fails.
func (c *compiler) always(e celast.Expr, err error) error {
	for u := errors.Unwrap(err); u != nil; u = errors.Unwrap(err) {
		err = u
	}
	var m *misfit
	if errors.As(err, &m) && c.want.field != "" {
		return Errors{{Offset: c.leftmost(e), Msg: fmt.Sprintf("%s in %s: %s", c.want.field, c.want.of, m.msg)}}
	}
	return Errors{{Offset: c.leftmost(e), Msg: "this fails for every event: " + plain(err).Error()}}
}

// leftmost returns the offset at which an expression begins.
func (c *compiler) leftmost(e celast.Expr) int {
	at := len(c.src)
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if o, ok := c.info.GetOffsetRange(x.ID()); ok {
			at = min(at, int(o.Start))
		}
		if x.Kind() == celast.CallKind && !x.AsCall().IsMemberFunction() && operatorSigns[x.AsCall().FunctionName()] == "" {
			at = min(at, c.callOffset(x, x.AsCall().FunctionName()))
		}
	}))
	return at
}

// facts are the nullable fields that are known not to be null.
type facts map[string]bool

// symbols reports the comparisons of an enum with what is none of its symbols.
func (c *compiler) symbols(e celast.Expr) {
	check := func(enum, text celast.Expr) {
		l := c.leafOf(enum)
		if l == nil || inner(l.node).Kind != codec.Enum || text.Kind() != celast.LiteralKind {
			return
		}
		symbols := inner(l.node).Symbols
		if v, ok := text.AsLiteral().(types.String); ok && !slices.Contains(symbols, string(v)) {
			c.fail(c.leftmost(text), nearest(string(v), symbols), "%s is never %q: it is one of %s", l.path, string(v), listed(symbols, 12))
		}
	}
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if x.Kind() != celast.CallKind || len(x.AsCall().Args()) != 2 {
			return
		}
		args := x.AsCall().Args()
		switch x.AsCall().FunctionName() {
		case operators.Equals, operators.NotEquals:
			check(args[0], args[1])
			check(args[1], args[0])
		case operators.In:
			if args[1].Kind() == celast.ListKind {
				for _, item := range args[1].AsList().Elements() {
					check(args[0], item)
				}
			}
		}
	}))
}

// A place is what a value is for: a field of a record, or an item of one; or,
// without a type, a condition.
type place struct {
	node  *codec.Node
	field string
	of    string
}

// fit reports what of e's possible results does not fit the place. known says
// which fields are not null where e is evaluated.
func (c *compiler) fit(e celast.Expr, to place, known facts) {
	if cond, yes, no, ok := ternary(e); ok {
		c.fit(yes, to, c.learn(known, cond, true))
		c.fit(no, to, c.learn(known, cond, false))
		return
	}
	if to.node != nil {
		if literal, ok := recordLiteral(e, to.node); ok {
			c.fitRecord(literal, to.node, known)
			return
		}
		if parts(e, to.node, func(part celast.Expr, n *codec.Node) {
			if n == inner(to.node) { // the whole list or map, or another that is joined to it
				c.fit(part, place{n, to.field, to.of}, known)
				return
			}
			name := to.field
			if !strings.HasPrefix(name, "an item of ") && !strings.HasPrefix(name, "an entry of ") {
				name = map[codec.Kind]string{codec.Array: "an item of ", codec.Map: "an entry of "}[inner(to.node).Kind] + name
			}
			c.fit(part, place{n, name, to.of}, known)
		}) {
			return
		}
	}
	t := c.ast.GetType(e.ID())
	null := !c.want.lenient && c.mayBeNull(e, known)
	nullOnly := isIdent(e, nullName) || t.Kind() == types.NullTypeKind
	if to.node == nil {
		switch {
		case nullOnly:
			c.fail(c.leftmost(e), "", "this is null, but %s needs a bool", to.of)
		case t.Kind() != types.BoolKind && t.Kind() != types.DynKind:
			c.fail(c.leftmost(e), "", "this is %s, but %s needs a bool", article(celWord(t)), to.of)
		case null:
			path := "..."
			if l := c.leafOf(e); l != nil {
				path = l.path
			}
			c.fail(c.leftmost(e), fmt.Sprintf("compare it: %s == true", path), "this can be null, but %s needs a bool", to.of)
		}
		return
	}
	n := to.node
	switch {
	case nullOnly && !holdsNull(n):
		c.fail(c.leftmost(e), "", "%s is %s in %s, but this is null", to.field, avroWord(n), to.of)
	case !nullOnly && !c.holds(n, t):
		hint := ""
		switch {
		case kindOf(inner(n)) == types.IntKind && t.Kind() == types.DoubleKind:
			hint = "int(x) makes a whole number of it, cutting it off"
		case kindOf(inner(n)) == types.StringKind && inner(n).Kind != codec.Enum && slices.Contains([]types.Kind{types.IntKind, types.DoubleKind, types.BoolKind, types.TimestampKind, types.DurationKind}, t.Kind()):
			hint = "string(x) makes a string of it"
		case kindOf(inner(n)) == types.TimestampKind && t.Kind() == types.StringKind:
			hint = "timestamp(x) reads RFC 3339"
		case inner(n).Kind == codec.Array && t.Kind() != types.ListKind && c.holds(inner(n).Elem, t):
			hint = "[x] makes a list of it"
		}
		c.fail(c.leftmost(e), hint, "%s is %s in %s, but this is %s", to.field, avroWord(n), to.of, article(celWord(t)))
	case null && !holdsNull(n):
		path := ""
		if e.Kind() == celast.IdentKind {
			path = strings.TrimPrefix(e.AsIdent(), fieldMark)
		}
		hint := ""
		if path != "" {
			hint = fmt.Sprintf("say what to take then: %s != null ? %s : ...", path, path)
		} else {
			path = "this"
		}
		c.fail(c.leftmost(e), hint, "%s can be null, but %s in %s cannot", path, to.field, to.of)
	}
}

func ternary(e celast.Expr) (cond, yes, no celast.Expr, ok bool) {
	if e.Kind() != celast.CallKind || e.AsCall().FunctionName() != operators.Conditional {
		return nil, nil, nil, false
	}
	args := e.AsCall().Args()
	return args[0], args[1], args[2], true
}

func isIdent(e celast.Expr, name string) bool {
	return e.Kind() == celast.IdentKind && e.AsIdent() == name
}

// inner returns what a nullable type is when it is not null.
func inner(n *codec.Node) *codec.Node {
	if other, _, _, ok := n.Nullable(); ok {
		return other
	}
	return n
}

func holdsNull(n *codec.Node) bool {
	return n.Kind == codec.Null || n.Kind == codec.Union && slices.ContainsFunc(n.Branches, holdsNull)
}

// holds reports whether values of CEL type t can be encoded as n.
func (c *compiler) holds(n *codec.Node, t *types.Type) bool {
	if n.Kind == codec.Union {
		return slices.ContainsFunc(n.Branches, func(b *codec.Node) bool { return b.Kind != codec.Null && c.holds(b, t) })
	}
	switch t.Kind() {
	case types.DynKind, types.AnyKind, types.TypeParamKind:
		return true
	case types.BoolKind:
		return n.Kind == codec.Boolean
	case types.IntKind, types.UintKind:
		return intEncoder(n) != nil
	case types.DoubleKind:
		return floatEncoder(n) != nil
	case types.StringKind:
		return textEncoder(n) != nil
	case types.BytesKind:
		return bytesEncoder(n) != nil
	case types.TimestampKind:
		return timeEncoder(n) != nil
	case types.DurationKind:
		return durationEncoder(n) != nil
	case types.ListKind:
		return n.Kind == codec.Array && c.holds(n.Elem, t.Parameters()[0])
	case types.MapKind:
		return n.Kind == codec.Map && c.holds(n.Elem, t.Parameters()[1])
	case types.StructKind:
		record := c.env.records.byName[t.TypeName()]
		return record != nil && n.Kind == codec.Record && c.becomes(record, n, 0)
	}
	return false
}

// mayBeNull reports whether e can yield null, as far as its types tell.
func (c *compiler) mayBeNull(e celast.Expr, known facts) bool {
	if cond, yes, no, ok := ternary(e); ok {
		return c.mayBeNull(yes, c.learn(known, cond, true)) || c.mayBeNull(no, c.learn(known, cond, false))
	}
	switch e.Kind() {
	case celast.IdentKind:
		if isIdent(e, nullName) {
			return true
		}
		if l := c.leafOf(e); l != nil {
			_, _, _, nullable := l.node.Nullable()
			return nullable && !known[e.AsIdent()]
		}
		return c.ast.GetType(e.ID()).Kind() != types.DynKind && c.ast.GetType(e.ID()).IsAssignableType(types.NullType)
	case celast.SelectKind:
		return !e.AsSelect().IsTestOnly() && c.isWrapper(e)
	case celast.CallKind:
		return e.AsCall().FunctionName() == operators.Index && c.isWrapper(e)
	}
	return false
}

func (c *compiler) isWrapper(e celast.Expr) bool {
	t := c.ast.GetType(e.ID())
	return t.Kind() != types.DynKind && t.IsAssignableType(types.NullType)
}

// learn returns what is known not to be null when cond has been found to be
// outcome.
func (c *compiler) learn(known facts, cond celast.Expr, outcome bool) facts {
	if cond.Kind() != celast.CallKind {
		return known
	}
	args := cond.AsCall().Args()
	switch name := cond.AsCall().FunctionName(); {
	case name == operators.LogicalNot:
		return c.learn(known, args[0], !outcome)
	case name == operators.LogicalAnd && outcome, name == operators.LogicalOr && !outcome:
		for _, arg := range args {
			known = c.learn(known, arg, outcome)
		}
	case name == isNull && !outcome && args[0].Kind() == celast.IdentKind:
		more := facts{args[0].AsIdent(): true}
		for k := range known {
			more[k] = true
		}
		return more
	}
	return known
}
