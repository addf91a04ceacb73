package expr

import (
	"cmp"
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
	"millrace/pipeline/expr/escape"
	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/expr/nulls"
	"millrace/pipeline/expr/wording"
)

// A Program is a compiled expression. Bind it once; after that it is immutable and
// safe for concurrent use. Each goroutine needs its own Scope.
type Program struct {
	text      string
	node      *codec.Node // the type of the result; nil for a bool
	refs      []*field
	guards    []guard
	warns     Errors
	ensures   [2]facts // of a condition: what holds if it is false, and if it is true
	neverNull bool
	zones     bool
	clock     func() time.Time // nil if the expression has no now()

	decimals bool // it computes or compares decimals
	metadata metadata.Use

	known *bool  // the result of a condition that is the same for every event
	fixed []byte // the encoding of a value that is the same for every event
	test  fn[bool]
	enc   appender
	slow  cel.Program // the interpreter; nil if test or enc is set

	scopes sync.Pool
}

// A field is a leaf that a program reads, with its slot in the bound layout.
type field struct {
	*leaf
	slot int
}

func (f *field) get(s *Scope) []byte {
	if f.view == recordView {
		return s.part(f.leaf)
	}
	return f.inView(s)
}

// inView is get for a field of a view.
func (f *field) inView(s *Scope) []byte { return s.views[f.view].Get(f.slot) }

// A Scope holds the inputs of an evaluation (the views and the time) and scratch
// memory. All programs that share a Scope see the same time until its next Reset.
// One goroutine at a time may use it. The zero Scope is ready to use.
type Scope struct {
	views    []*pipeline.View
	now      instant
	hasNow   bool
	received time.Time // the time for now; the zero time means the clock
	text     timeText
	mem      []byte    // texts built in the current evaluation
	vals     []ref.Val // fields that the interpreter decoded in the current evaluation

	// Only for programs that read the record.
	key, headers []byte
	partErr      error // of the current evaluation
}

// Reset sets the views of the next event. now() returns received; if that is the
// zero time, now() reads the clock once, at its first call.
func (s *Scope) Reset(received time.Time, views ...*pipeline.View) {
	if !slices.Equal(s.views, views) { // usually every event has the same views
		s.views = append(s.views[:0], views...)
	}
	if received != s.received || received.IsZero() {
		s.received, s.hasNow = received, false
	}
}

func (s *Scope) time(clock func() time.Time) instant {
	if !s.hasNow {
		now := s.received
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
	for i := range p.guards {
		if p.guards[i].view == view {
			paths = append(paths, p.guards[i].rel)
		}
	}
	return paths
}

// Bind resolves the fields to slots of the layouts, one layout for each view. Call
// it once, before the first evaluation. A program that reads no field needs no
// Bind.
func (p *Program) Bind(layouts ...*codec.Layout) error {
	fields := slices.Clone(p.refs)
	for i := range p.guards {
		fields = append(fields, &p.guards[i].field)
	}
	for _, f := range fields {
		if f.view == recordView {
			continue
		}
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

// UsesNow reports whether the expression has now(), so that its result for the
// same event depends on the time.
func (p *Program) UsesNow() bool { return p.clock != nil }

// UsesDecimals reports whether the expression computes, compares or converts
// decimals. A copy of a field does not count.
func (p *Program) UsesDecimals() bool { return p.decimals }

// Const returns the result of a condition that is the same for every event. ok is
// false for other conditions.
func (p *Program) Const() (value, ok bool) {
	if p.known == nil {
		return false, false
	}
	return *p.known, true
}

// Fixed returns the encoding of a value that is the same for every event, else
// nil. The caller must not change it. A program that checks the event first has no
// fixed value.
func (p *Program) Fixed() []byte {
	if len(p.guards) > 0 {
		return nil
	}
	return p.fixed
}

// Bool evaluates a condition over the views. An error is a
// [pipeline.RejectError] with [pipeline.ReasonExpression].
func (p *Program) Bool(views ...*pipeline.View) (bool, error) {
	s := p.scope(views)
	v, err := p.Test(s)
	p.scopes.Put(s)
	return v, err
}

// Append evaluates a value over the views and appends it, encoded as the type that
// [Value] required. On an error, which is a [pipeline.RejectError] with
// [pipeline.ReasonExpression], it returns dst unchanged.
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

// Test is [Program.Bool] with a scope of the caller.
func (p *Program) Test(s *Scope) (bool, error) {
	for i := range p.guards {
		if err := p.guards[i].check(s); err != nil {
			return false, err
		}
	}
	if p.known != nil {
		return *p.known, nil
	}
	if s.partErr != nil {
		s.partErr = nil
	}
	if p.test != nil {
		s.mem = s.mem[:0]
		v, err := p.test(s)
		if err != nil {
			return false, p.reject(cmp.Or(s.partErr, err))
		}
		return v, nil
	}
	v, err := p.interpret(s)
	if err != nil {
		return false, p.reject(cmp.Or(s.partErr, err))
	}
	switch v := v.(type) {
	case types.Bool:
		return bool(v), nil
	case types.Null:
		return false, p.reject(errNull)
	}
	return false, p.reject(misfitf("%s is not a bool", article(typeWord(v.Type().TypeName()))))
}

// AppendIn is [Program.Append] with a scope of the caller.
func (p *Program) AppendIn(s *Scope, dst []byte) ([]byte, error) {
	for i := range p.guards {
		if err := p.guards[i].check(s); err != nil {
			return dst, err
		}
	}
	if p.fixed != nil {
		return append(dst, p.fixed...), nil
	}
	mark := len(dst)
	var err error
	if s.partErr != nil {
		s.partErr = nil
	}
	if p.enc != nil {
		s.mem = s.mem[:0]
		dst, err = p.enc(dst, s)
	} else {
		var v ref.Val
		if v, err = p.interpret(s); err == nil {
			dst, err = encode(dst, p.node, v)
		}
	}
	if err = cmp.Or(s.partErr, err); err != nil {
		return dst[:mark], p.reject(err)
	}
	return dst, nil
}

// reject wraps an error of the evaluation, with the text of the expression.
func (p *Program) reject(err error) error {
	text := p.text
	if runes := []rune(text); len(runes) > 200 {
		text = string(runes[:200]) + "..."
	}
	null := isNullFailure(err)
	if errors.Is(err, errNull) {
		err = errors.New("the result is null, but must not be null here")
	}
	if err = plain(err); null {
		err = &nullFailure{err}
	}
	return pipeline.Reject(pipeline.ReasonExpression, "%s: %w", text, err)
}

// interpret evaluates the expression in the CEL interpreter.
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

// An activation resolves the variables of the interpreter. It decodes a field when
// the interpreter reads it for the first time.
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

// compile compiles for the interpreter only if fast is false; tests compare both.
func (e *Env) compile(src string, want Want, fast bool) (*Program, error) {
	c, err := e.check(src, want)
	if err != nil {
		return nil, err
	}
	p := c.newProgram(src)
	if fast {
		if err := c.closures(p); err != nil {
			return nil, err
		}
	}
	if p.test == nil && p.enc == nil {
		if err := p.plan(e, c.ast); err != nil {
			return nil, Errors{{Msg: err.Error()}}
		}
		if fast && len(p.refs) == 0 && p.clock == nil {
			if err := p.precompute(); err != nil {
				return nil, c.always(c.ast.Expr(), err)
			}
		}
	}
	c.conclude(p)
	p.guards = c.guards() // last: constants are computed without an event
	return p, nil
}

// check parses, resolves and type-checks an expression, and checks that its result
// fits want.
func (e *Env) check(src string, want Want) (*compiler, error) {
	masked, words := escape.Mask(src)
	parsed, issues := e.cel.Parse(masked)
	if issues.Err() != nil {
		at, what, hint := wording.Syntax(src, words, issues.Errors(), maxRunes, maxDepth)
		return nil, Errors{{Offset: at, Msg: what, Hint: hint}}
	}
	r := newResolver(e, src, parsed.NativeRep())
	escape.Unmask(parsed.NativeRep().Expr(), words, func(macro celast.Expr, word string) {
		r.fail(r.offset(macro.ID()), "", "%s is a reserved word", word)
	})
	r.text = want.node != nil && kindOf(want.node.NotNull()) == types.StringKind
	r.walk(parsed.NativeRep().Expr())
	if want.node != nil {
		r.shape(parsed.NativeRep().Expr(), want.node)
	}
	checked, issues := r.typed(parsed)
	if issues.Err() != nil {
		r.errs = append(r.errs, r.explain(issues)...)
	}
	if len(r.errs) > 0 {
		return nil, sorted(r.errs)
	}
	ast := checked.NativeRep()
	c := &compiler{env: e, ast: ast, resolver: r, want: want, fields: map[string]*field{}}
	c.symbols(ast.Expr())
	c.decimals(ast.Expr())
	c.checkZones(ast.Expr())
	c.nulls = c.checker()
	c.findings = c.nulls.Check(want.node, e.Known)
	c.fit(ast.Expr(), place{want.node, want.field, want.of}, e.Known)
	c.tagged(ast.Expr())
	if len(r.errs) > 0 {
		return nil, sorted(r.errs)
	}
	if len(c.findings) > 0 {
		c.warnOfNull(e.parsedAgain(src))
	}
	return c, nil
}

// newProgram returns a program with the fields and the clock that the checked
// expression uses, and without code.
func (c *compiler) newProgram(src string) *Program {
	p := &Program{text: src, node: c.want.node, decimals: c.usesDecimals(c.ast.Expr())}
	celast.PostOrderVisit(c.ast.Expr(), celast.NewExprVisitor(func(x celast.Expr) {
		if x.Kind() != celast.IdentKind {
			return
		}
		if x.AsIdent() == nowName {
			p.clock = c.env.Clock
		}
		if l := c.leafOf(x); l != nil && c.fields[l.path] == nil {
			c.fields[l.path] = &field{leaf: l, slot: -1}
			p.refs = append(p.refs, c.fields[l.path])
		}
	}))
	p.metadata = c.usedMetadata()
	return p
}

// closures compiles the expression to closures, and evaluates it if it is
// constant. It sets neither test nor enc if the expression needs the interpreter.
func (c *compiler) closures(p *Program) error {
	var err error
	if c.want.node == nil {
		err = c.conditionClosure(p)
	} else {
		err = c.valueClosure(p)
	}
	if err != nil {
		return err
	}
	if len(c.errs) > 0 {
		return sorted(c.errs)
	}
	if p.known != nil || p.fixed != nil {
		p.refs, p.clock, p.metadata = nil, nil, metadata.Use{}
	}
	return nil
}

func (c *compiler) conditionClosure(p *Program) error {
	e := c.ast.Expr()
	o, ok := c.compile(e)
	if !ok || o.kind != types.BoolKind {
		return nil
	}
	p.test = o.b
	if o.konst {
		v, err := o.b(&Scope{})
		if err != nil {
			return c.always(e, err)
		}
		p.known = &v
	}
	return nil
}

func (c *compiler) valueClosure(p *Program) error {
	e := c.ast.Expr()
	enc, fixed, ok := c.appender(e, p.node)
	if !ok {
		return nil
	}
	p.enc = enc
	if fixed {
		out, err := enc([]byte{}, &Scope{})
		if err != nil {
			return c.always(e, err)
		}
		p.fixed = out
	}
	return nil
}

// plan prepares the interpreter.
func (p *Program) plan(e *Env, ast *celast.AST) error {
	var err error
	p.slow, err = e.cel.PlanProgram(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost), library.NoNullOrder())
	if err != nil {
		// OptOptimize evaluates constants, and one fails. Plan without it: the
		// constant may never be reached.
		p.slow, err = e.cel.PlanProgram(ast, cel.CostLimit(maxCost), library.NoNullOrder())
	}
	return err
}

// precompute evaluates an expression that reads no field and no clock.
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

// sorted returns the faults in the order of the text, without duplicates.
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
	fields map[string]*field // the fields of the program, by path

	zones    bool // the expression needs the data of time zones
	nulls    *nulls.Checker
	findings []nulls.Finding
}

// always returns the error for a constant expression that fails.
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

// leftmost returns the offset of the start of an expression.
func (c *compiler) leftmost(e celast.Expr) int {
	at := len(c.src)
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if o, ok := c.info.GetOffsetRange(x.ID()); ok {
			at = min(at, int(o.Start))
		}
		if x.Kind() == celast.CallKind && !x.AsCall().IsMemberFunction() && wording.Sign(x.AsCall().FunctionName()) == "" {
			at = min(at, c.callOffset(x, x.AsCall().FunctionName()))
		}
	}))
	return at
}

// symbols reports comparisons of an enum with a string that is not one of its
// symbols.
func (c *compiler) symbols(e celast.Expr) {
	check := func(enum, text celast.Expr) {
		l := c.leafOf(enum)
		if l == nil || l.node.NotNull().Kind != codec.Enum || text.Kind() != celast.LiteralKind {
			return
		}
		symbols := l.node.NotNull().Symbols
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

// A place is the target of a value: a field of a record, or an item of a field.
// Without a node it is a condition.
type place struct {
	node  *codec.Node
	field string // in messages
	of    string // the record, or the name of the condition
}

// fit reports each possible result of e that does not fit the place. known holds
// the fields that are not null where e is evaluated.
func (c *compiler) fit(e celast.Expr, to place, known facts) {
	if cond, yes, no, ok := ternary(e); ok {
		c.fit(yes, to, c.nulls.Learn(known, cond, true))
		c.fit(no, to, c.nulls.Learn(known, cond, false))
		return
	}
	if to.node != nil {
		if literal, ok := recordLiteral(e, to.node); ok {
			c.fitRecord(literal, to.node, known)
			return
		}
		if parts(e, to.node, func(part celast.Expr, n *codec.Node) {
			if n == to.node.NotNull() { // the part has the type of the whole, as in list + list
				c.fit(part, place{n, to.field, to.of}, known)
				return
			}
			name := to.field
			if !strings.HasPrefix(name, "an item of ") && !strings.HasPrefix(name, "an entry of ") {
				name = map[codec.Kind]string{codec.Array: "an item of ", codec.Map: "an entry of "}[to.node.NotNull().Kind] + name
			}
			c.fit(part, place{n, name, to.of}, known)
		}) {
			return
		}
	}
	t := c.ast.GetType(e.ID())
	null := c.canBeNull(e, known)
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
	case nullOnly && !n.HoldsNull():
		c.fail(c.leftmost(e), "", "%s is %s in %s, but this is null", to.field, avroWord(n), to.of)
	case !nullOnly && !c.holds(n, t):
		hint := c.fitHint(e, n.NotNull(), t.Kind())
		switch {
		case hint != "":
		case kindOf(n.NotNull()) == types.IntKind && t.Kind() == types.DoubleKind:
			hint = "convert it with int(x), which drops the fraction"
		case kindOf(n.NotNull()) == types.StringKind && n.NotNull().Kind != codec.Enum && slices.Contains([]types.Kind{types.IntKind, types.DoubleKind, types.BoolKind, types.TimestampKind, types.DurationKind}, t.Kind()):
			hint = "convert it with string(x)"
		case kindOf(n.NotNull()) == types.TimestampKind && t.Kind() == types.StringKind:
			hint = "convert RFC 3339 with timestamp(x)"
		case n.NotNull().Kind == codec.Array && t.Kind() != types.ListKind && c.holds(n.NotNull().Elem, t):
			hint = "for a list with one item, write [x]"
		}
		c.fail(c.leftmost(e), hint, "%s is %s in %s, but this is %s", to.field, avroWord(n), to.of, article(celWord(t)))
	case null && !n.HoldsNull():
		path := ""
		if e.Kind() == celast.IdentKind {
			path = strings.TrimPrefix(e.AsIdent(), fieldMark)
		}
		hint := ""
		if path != "" {
			hint = fmt.Sprintf("give a default: %s != null ? %s : ...", path, path)
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
	case decimalKind:
		return decimalEncoder(n) != nil
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

// mayBeNull reports whether e is of a type that can be null.
func (c *compiler) mayBeNull(e celast.Expr) bool {
	if _, yes, no, ok := ternary(e); ok {
		return c.mayBeNull(yes) || c.mayBeNull(no)
	}
	switch e.Kind() {
	case celast.IdentKind:
		if isIdent(e, nullName) {
			return true
		}
		if l := c.leafOf(e); l != nil {
			_, _, _, nullable := l.node.Nullable()
			return nullable
		}
		return c.isWrapper(e)
	case celast.SelectKind:
		return !e.AsSelect().IsTestOnly() && c.isWrapper(e)
	case celast.CallKind:
		if e.AsCall().FunctionName() == library.Widen {
			return c.mayBeNull(e.AsCall().Args()[0])
		}
		return e.AsCall().FunctionName() == operators.Index && c.isWrapper(e)
	}
	return false
}

func (c *compiler) isWrapper(e celast.Expr) bool {
	t := c.ast.GetType(e.ID())
	return t.Kind() == decimalKind || t.Kind() != types.DynKind && t.IsAssignableType(types.NullType) // a decimal has no nullable type
}
