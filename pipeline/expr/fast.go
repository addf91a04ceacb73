package expr

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/raw"
)

// fn computes one value. It returns errNull where the CEL value is null. A
// function that does not accept null gets its arguments wrapped by solid, which
// turns errNull into errNullUsed.
type fn[T any] func(*Scope) (T, error)

// appender computes a value and appends it as Avro.
type appender func(dst []byte, s *Scope) ([]byte, error)

var (
	errNull     = errors.New("null")
	errNullUsed = errors.New("a value is null here")
	errOverflow = errors.New("integer overflow")
	errDivide   = errors.New("division by zero")
	errSpan     = errors.New("duration overflow")
	errLong     = fmt.Errorf("the strings built here exceed %d bytes", maxMem)
)

// An operand is a compiled expression of a scalar type. Exactly one of b, i, d, x,
// s and t is set, according to its kind; none for null itself. A duration is in
// nanoseconds in i. Strings and bytes are in s.
type operand struct {
	kind  types.Kind
	null  bool // may be null
	konst bool // the same for every event; does not use the Scope
	b     fn[bool]
	i     fn[int64]
	d     fn[float64]
	x     fn[decimal.Decimal]
	s     fn[[]byte]
	t     fn[instant]

	// raw, if set, returns the encoding of a string, int or long that is an
	// unchanged field and never null.
	raw fn[[]byte]
}

// compile returns false for an expression that needs the interpreter.
func (c *compiler) compile(e celast.Expr) (operand, bool) {
	o, ok := c.form(e)
	if ok && o.konst {
		o = o.computed()
	}
	return o, ok
}

// form is compile, without the evaluation of constants.
func (c *compiler) form(e celast.Expr) (operand, bool) {
	switch e.Kind() {
	case celast.LiteralKind:
		return literal(e.AsLiteral())
	case celast.IdentKind:
		switch name := e.AsIdent(); name {
		case nullName:
			return operand{kind: types.NullTypeKind, null: true, konst: true}, true
		case nowName:
			clock := c.env.Clock
			return operand{kind: types.TimestampKind, t: func(s *Scope) (instant, error) { return s.time(clock), nil }}, true
		}
		if l := c.leafOf(e); l != nil {
			f := c.fields[l.path]
			if l.view == recordView {
				return fieldOperand(l.node, func(s *Scope) ([]byte, error) { return s.part(l), nil })
			}
			return fieldOperand(l.node, func(s *Scope) ([]byte, error) { return f.inView(s), nil })
		}
	case celast.SelectKind:
		sel := e.AsSelect()
		return c.entry(sel.Operand(), operand{kind: types.StringKind, konst: true, s: constant([]byte(sel.FieldName()))}, sel.IsTestOnly())
	case celast.CallKind:
		if o, ok := c.function(e.AsCall()); ok {
			return o, true
		}
		return c.precomputed(e)
	}
	return operand{}, false
}

// precomputed evaluates a call that has only literals as arguments, such as
// duration('1h').
func (c *compiler) precomputed(e celast.Expr) (operand, bool) {
	literals := true
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		literals = literals && (x.Kind() == celast.LiteralKind || x.Kind() == celast.CallKind)
	}))
	if !literals {
		return operand{}, false
	}
	p, err := c.env.cel.PlanProgram(celast.NewCheckedAST(celast.NewAST(e, c.info), c.ast.TypeMap(), c.ast.ReferenceMap()))
	if err != nil {
		return operand{}, false
	}
	v, _, err := p.Eval(map[string]any{})
	if err != nil {
		return operand{}, false
	}
	return literal(v)
}

func constant[T any](v T) fn[T] { return func(*Scope) (T, error) { return v, nil } }

func literal(v ref.Val) (operand, bool) {
	switch v := v.(type) {
	case types.Bool:
		return operand{kind: types.BoolKind, konst: true, b: constant(bool(v))}, true
	case types.Int:
		return operand{kind: types.IntKind, konst: true, i: constant(int64(v))}, true
	case types.Double:
		return operand{kind: types.DoubleKind, konst: true, d: constant(float64(v))}, true
	case library.Decimal:
		return operand{kind: decimalKind, konst: true, x: constant(decimal.Decimal(v))}, true
	case types.String:
		return operand{kind: types.StringKind, konst: true, s: constant([]byte(v))}, true
	case types.Bytes:
		return operand{kind: types.BytesKind, konst: true, s: constant([]byte(v))}, true
	case types.Timestamp:
		return operand{kind: types.TimestampKind, konst: true, t: constant(instantOf(v.Time))}, true
	case types.Duration:
		return operand{kind: types.DurationKind, konst: true, i: constant(int64(v.Duration))}, true
	}
	return operand{}, false
}

// computed evaluates a constant operand at compile time. If that fails, the
// operand stays as it is and fails at run time, if it is reached.
func (o operand) computed() operand {
	s := &Scope{}
	switch {
	case o.b != nil:
		if v, err := o.b(s); err == nil {
			o.b = constant(v)
		}
	case o.i != nil:
		if v, err := o.i(s); err == nil {
			o.i = constant(v)
		}
	case o.d != nil:
		if v, err := o.d(s); err == nil {
			o.d = constant(v)
		}
	case o.x != nil:
		if v, err := o.x(s); err == nil {
			o.x = constant(v)
		}
	case o.s != nil:
		if v, err := o.s(s); err == nil {
			o.s = constant(bytes.Clone(v))
		}
	case o.t != nil:
		if v, err := o.t(s); err == nil {
			o.t = constant(v)
		}
	}
	return o
}

// fieldOperand reads a value of type n from the bytes that src returns.
func fieldOperand(n *codec.Node, src fn[[]byte]) (operand, bool) {
	other, null, _, nullable := n.Nullable()
	if nullable {
		src = notNull(src, int64(null))
		n = other
	}
	o := operand{kind: kindOf(n), null: nullable}
	switch n.Kind {
	case codec.Boolean:
		o.b = then(src, func(b []byte) (bool, error) { v, _, err := codec.ReadBool(b); return v, err })
	case codec.Int, codec.Long:
		o.readInteger(n, src)
	case codec.Float:
		o.d = then(src, func(b []byte) (float64, error) { v, _, err := codec.ReadFloat(b); return float64(v), err })
	case codec.Double:
		o.d = then(src, func(b []byte) (float64, error) { v, _, err := codec.ReadDouble(b); return v, err })
	case codec.String:
		if !nullable {
			o.raw = src
		}
		o.s = then(src, func(b []byte) ([]byte, error) { v, _, err := codec.ReadText(b); return v, err })
	case codec.Enum:
		o.s = readSymbol(n.Symbols, src)
	case codec.Bytes:
		if isDecimal(n) {
			o.readDecimal(n, src)
		} else {
			o.s = then(src, func(b []byte) ([]byte, error) { v, _, err := codec.ReadText(b); return v, err })
		}
	case codec.Fixed:
		o.readFixed(n, src)
	default:
		return operand{}, false
	}
	return o, true
}

// notNull skips the branch number of a nullable value; it returns errNull for the
// branch null.
func notNull(read fn[[]byte], null int64) fn[[]byte] {
	return func(s *Scope) ([]byte, error) {
		enc, err := read(s)
		if err != nil {
			return nil, err
		}
		branch, rest, err := codec.ReadLong(enc)
		if err == nil && branch == null {
			err = errNull
		}
		return rest, err
	}
}

// readInteger sets o to read an int or a long: a number, a duration or a time.
func (o *operand) readInteger(n *codec.Node, src fn[[]byte]) {
	switch u := unitOf(n); o.kind {
	case types.IntKind:
		if !o.null {
			o.raw = src
		}
		o.i = then(src, func(b []byte) (int64, error) { v, _, err := codec.ReadLong(b); return v, err })
	case types.DurationKind:
		o.i = then(src, func(b []byte) (int64, error) {
			v, _, err := codec.ReadLong(b)
			if err != nil {
				return 0, err
			}
			d, err := toDuration(v, u)
			return int64(d), err
		})
	default:
		o.t = then(src, func(b []byte) (instant, error) {
			v, _, err := codec.ReadLong(b)
			if err != nil {
				return instant{}, err
			}
			return toInstant(v, u)
		})
	}
}

// readSymbol returns the symbol of an enum.
func readSymbol(names []string, src fn[[]byte]) fn[[]byte] {
	symbols := make([][]byte, len(names))
	for i, s := range names {
		symbols[i] = []byte(s)
	}
	return then(src, func(b []byte) ([]byte, error) {
		v, _, err := codec.ReadLong(b)
		if err == nil && (v < 0 || v >= int64(len(symbols))) {
			err = raw.ErrBytes
		}
		if err != nil {
			return nil, err
		}
		return symbols[v], nil
	})
}

// readFixed sets o to read a fixed: a decimal, bytes or a UUID.
func (o *operand) readFixed(n *codec.Node, src fn[[]byte]) {
	switch o.kind {
	case decimalKind:
		o.readDecimal(n, src)
	case types.BytesKind:
		o.s = then(src, func(b []byte) ([]byte, error) { return b[:n.Size], nil })
	default:
		o.s = func(s *Scope) ([]byte, error) {
			b, err := src(s)
			if err != nil {
				return nil, err
			}
			return s.keep(func(mem []byte) []byte { return appendUUID(mem, b[:16]) }), nil
		}
	}
}

// keep returns the bytes that f appends to the memory of the scope. They are
// valid until the next evaluation.
func (s *Scope) keep(f func(mem []byte) []byte) []byte {
	n := len(s.mem)
	s.mem = f(s.mem)
	return s.mem[n:len(s.mem):len(s.mem)]
}

// then applies g to the result of f.
func then[A, B any](f fn[A], g func(A) (B, error)) fn[B] {
	return func(s *Scope) (B, error) {
		v, err := f(s)
		if err != nil {
			var zero B
			return zero, err
		}
		return g(v)
	}
}

// both applies g to the results of f1 and f2, evaluated in this order.
func both[A, B, C any](f1 fn[A], f2 fn[B], g func(A, B) (C, error)) fn[C] {
	return func(s *Scope) (C, error) {
		a, err := f1(s)
		if err == nil {
			var b B
			if b, err = f2(s); err == nil {
				return g(a, b)
			}
		}
		var zero C
		return zero, err
	}
}

// solid turns null into an error, for functions that do not accept null.
func solid[T any](f fn[T], null bool) fn[T] {
	if !null || f == nil {
		return f
	}
	return func(s *Scope) (T, error) {
		v, err := f(s)
		if err == errNull {
			err = errNullUsed
		}
		return v, err
	}
}

func (o operand) solid() operand {
	if o.null {
		o.b, o.i, o.d, o.x, o.s, o.t = solid(o.b, true), solid(o.i, true), solid(o.d, true), solid(o.x, true), solid(o.s, true), solid(o.t, true)
		o.null = false
	}
	return o
}

func solidAll(list []operand) []operand {
	out := make([]operand, len(list))
	for i := range list {
		out[i] = list[i].solid()
	}
	return out
}

// function compiles a call of an operator or a function.
func (c *compiler) function(call celast.CallExpr) (operand, bool) {
	name := call.FunctionName()
	exprs := call.Args()
	if call.IsMemberFunction() {
		exprs = append([]celast.Expr{call.Target()}, exprs...)
	}
	switch name {
	case operators.In:
		return c.in(exprs[0], exprs[1])
	case operators.Index:
		key, ok := c.compile(exprs[1])
		if !ok || key.kind != types.StringKind {
			return operand{}, false
		}
		return c.entry(exprs[0], key.solid(), false)
	case isNull:
		return c.isNull(exprs[0])
	case overloads.Size:
		if o, ok := c.sizeOfList(exprs[0]); ok {
			return o, true
		}
	}
	args := make([]operand, len(exprs))
	konst := true
	for i, x := range exprs {
		var ok bool
		if args[i], ok = c.compile(x); !ok {
			return operand{}, false
		}
		konst = konst && args[i].konst
	}
	var o operand
	switch {
	case name == operators.Conditional:
		o = choose(args[0].solid(), args[1], args[2])
	case name == operators.LogicalAnd && len(args) == 2:
		o = junction(args[0].solid(), args[1].solid(), false)
		konst = konst || args[0].is(false) || args[1].is(false)
	case name == operators.LogicalOr && len(args) == 2:
		o = junction(args[0].solid(), args[1].solid(), true)
		konst = konst || args[0].is(true) || args[1].is(true)
	case (name == operators.Equals || name == operators.NotEquals) && len(args) == 2:
		o = equal(args[0], args[1], name == operators.NotEquals)
	case name == library.Widen:
		o = widened(args[0])
	case len(args) == 1:
		o = call1(name, args[0].solid())
	case len(args) == 2:
		o = call2(name, args[0].solid(), args[1].solid())
	case len(args) > 2:
		o = decimalCall(name, solidAll(args))
	}
	o.konst = konst
	return o, o.b != nil || o.i != nil || o.d != nil || o.x != nil || o.s != nil || o.t != nil
}

// is reports whether o is a constant bool with the value v.
func (o operand) is(v bool) bool {
	if !o.konst || o.b == nil {
		return false
	}
	got, err := o.b(&Scope{})
	return err == nil && got == v
}

// choose is cond ? a : b.
func choose(cond, a, b operand) operand {
	if cond.b == nil {
		return operand{}
	}
	if a.kind == types.NullTypeKind {
		a = b.nullOfKind()
	} else if b.kind == types.NullTypeKind {
		b = a.nullOfKind()
	}
	if a.kind != b.kind {
		return operand{}
	}
	return operand{
		kind: a.kind, null: a.null || b.null,
		b: either(cond.b, a.b, b.b), i: either(cond.b, a.i, b.i), d: either(cond.b, a.d, b.d), x: either(cond.b, a.x, b.x),
		s: either(cond.b, a.s, b.s), t: either(cond.b, a.t, b.t),
	}
}

func either[T any](cond fn[bool], a, b fn[T]) fn[T] {
	if a == nil || b == nil {
		return nil
	}
	return func(s *Scope) (T, error) {
		v, err := cond(s)
		if err != nil {
			var zero T
			return zero, err
		}
		if v {
			return a(s)
		}
		return b(s)
	}
}

// nullOfKind returns null as an operand of the kind of o.
func (o operand) nullOfKind() operand {
	n := operand{kind: o.kind, null: true}
	switch {
	case o.b != nil:
		n.b = alwaysNull[bool]
	case o.i != nil:
		n.i = alwaysNull[int64]
	case o.d != nil:
		n.d = alwaysNull[float64]
	case o.x != nil:
		n.x = alwaysNull[decimal.Decimal]
	case o.s != nil:
		n.s = alwaysNull[[]byte]
	case o.t != nil:
		n.t = alwaysNull[instant]
	}
	return n
}

func alwaysNull[T any](*Scope) (T, error) {
	var zero T
	return zero, errNull
}

// junction is a && b (decides is false) or a || b (decides is true). If one side
// has the value decides, an error of the other side is ignored, in both orders.
// CEL requires that.
func junction(a, b operand, decides bool) operand {
	if a.b == nil || b.b == nil {
		return operand{}
	}
	f, g := a.b, b.b
	switch {
	case a.is(decides) || b.is(decides):
		return operand{kind: types.BoolKind, b: constant(decides)}
	case a.is(!decides):
		return operand{kind: types.BoolKind, b: g}
	case b.is(!decides):
		return operand{kind: types.BoolKind, b: f}
	}
	return operand{kind: types.BoolKind, b: func(s *Scope) (bool, error) {
		x, err := f(s)
		if err == nil && x == decides {
			return decides, nil
		}
		y, err2 := g(s)
		switch {
		case err2 == nil && y == decides:
			return decides, nil
		case err != nil:
			return false, err
		case err2 != nil:
			return false, err2
		}
		return !decides, nil
	}}
}

// isNull is x == null; x may be of any type.
func (c *compiler) isNull(e celast.Expr) (operand, bool) {
	if l := c.leafOf(e); l != nil {
		other, null, _, nullable := l.node.Nullable()
		if !nullable {
			return operand{}, false
		}
		// The branch number is enough, except where reading the value can fail: a
		// time or a duration may be out of range, and then the test fails too.
		if k := kindOf(other); k != types.TimestampKind && k != types.DurationKind {
			f := c.fields[l.path]
			return operand{kind: types.BoolKind, b: func(s *Scope) (bool, error) {
				branch, _, err := codec.ReadLong(f.get(s))
				return branch == int64(null), err
			}}, true
		}
	}
	o, ok := c.compile(e)
	if !ok {
		return operand{}, false
	}
	result := operand{kind: types.BoolKind, konst: o.konst}
	switch {
	case o.kind == types.NullTypeKind:
		result.b = constant(true)
	case o.b != nil:
		result.b = nullTest(o.b)
	case o.i != nil:
		result.b = nullTest(o.i)
	case o.d != nil:
		result.b = nullTest(o.d)
	case o.x != nil:
		result.b = nullTest(o.x)
	case o.s != nil:
		result.b = nullTest(o.s)
	case o.t != nil:
		result.b = nullTest(o.t)
	}
	return result, true
}

func nullTest[T any](f fn[T]) fn[bool] {
	return func(s *Scope) (bool, error) {
		_, err := f(s)
		if err == errNull {
			return true, nil
		}
		return false, err
	}
}

// equal is a == b, or a != b if not is set. Null equals only null.
func equal(a, b operand, not bool) operand {
	o := operand{kind: types.BoolKind}
	if a.kind != b.kind {
		return operand{}
	}
	null := a.null || b.null
	switch {
	case a.b != nil && b.b != nil:
		o.b = sameAs(a.b, b.b, null, not, func(x, y bool) bool { return x == y })
	case a.i != nil && b.i != nil:
		o.b = sameAs(a.i, b.i, null, not, func(x, y int64) bool { return x == y })
	case a.d != nil && b.d != nil:
		o.b = sameAs(a.d, b.d, null, not, func(x, y float64) bool { return x == y })
	case a.x != nil && b.x != nil:
		o.b = sameAs(a.x, b.x, null, not, func(x, y decimal.Decimal) bool { return x.Cmp(y) == 0 })
	case a.t != nil && b.t != nil:
		o.b = sameAs(a.t, b.t, null, not, func(x, y instant) bool { return x == y })
	case a.raw != nil && b.konst && b.s != nil:
		o.b = sameText(a, b, not)
	case b.raw != nil && a.konst && a.s != nil:
		o.b = sameText(b, a, not)
	case a.s != nil && b.s != nil:
		o.b = sameAs(a.s, b.s, null, not, bytes.Equal)
	}
	return o
}

// sameText compares a string field with a constant. Fast path: if the length
// prefix is one byte, the encodings are compared, since a text of less than 64
// bytes has only one encoding with such a prefix.
func sameText(a, konst operand, not bool) fn[bool] {
	want, _ := konst.s(&Scope{})
	raw, text, enc := a.raw, a.s, codec.AppendBytes(nil, want)
	return func(s *Scope) (bool, error) {
		b, err := raw(s)
		if err != nil {
			return false, err
		}
		if len(b) > 0 && b[0] < 0x80 {
			return (string(b) == string(enc)) != not, nil
		}
		v, err := text(s)
		return err == nil && (string(v) == string(want)) != not, err
	}
}

func sameAs[T any](a, b fn[T], null, not bool, eq func(x, y T) bool) fn[bool] {
	if !null {
		return func(s *Scope) (bool, error) {
			x, err := a(s)
			if err != nil {
				return false, err
			}
			y, err := b(s)
			if err != nil {
				return false, err
			}
			return eq(x, y) != not, nil
		}
	}
	return func(s *Scope) (bool, error) {
		x, err := a(s)
		if err != nil && err != errNull {
			return false, err
		}
		y, err2 := b(s)
		if err2 != nil && err2 != errNull {
			return false, err2
		}
		if err != nil || err2 != nil {
			return (err != nil && err2 != nil) != not, nil
		}
		return eq(x, y) != not, nil
	}
}

// in is x in ['a', 'b'] and 'k' in map.
func (c *compiler) in(left, right celast.Expr) (operand, bool) {
	x, ok := c.compile(left)
	if !ok {
		return operand{}, false
	}
	if l := c.leafOf(right); l != nil && l.node.Kind == codec.Map && x.kind == types.StringKind {
		f, key := c.fields[l.path], x.s
		return operand{kind: types.BoolKind, b: func(s *Scope) (bool, error) {
			k, err := key(s)
			if err == errNull {
				return false, nil // null is not a key
			}
			if err != nil {
				return false, err
			}
			_, found, err := raw.Lookup(l.node, f.get(s), k)
			return found, err
		}}, true
	}
	if right.Kind() != celast.ListKind {
		return operand{}, false
	}
	set := right.AsList().Elements()
	if len(right.AsList().OptionalIndices()) > 0 || len(set) == 0 {
		return operand{}, false
	}
	o := operand{kind: types.BoolKind, konst: x.konst}
	texts, ints := map[string]bool{}, map[int64]bool{}
	var decimals []decimal.Decimal
	for _, item := range set {
		v, ok := c.compile(item)
		if !ok || !v.konst || v.kind != x.kind {
			return operand{}, false
		}
		switch v.kind {
		case types.StringKind:
			text, _ := v.s(&Scope{})
			texts[string(text)] = true
		case types.IntKind:
			n, _ := v.i(&Scope{})
			ints[n] = true
		case decimalKind:
			d, _ := v.x(&Scope{})
			decimals = append(decimals, d)
		default:
			return operand{}, false
		}
	}
	switch x.kind {
	case types.StringKind:
		o.b = then(x.s, func(v []byte) (bool, error) { return texts[string(v)], nil })
	case decimalKind:
		o.b = oneOf(x.x, decimals)
	default:
		o.b = then(x.i, func(v int64) (bool, error) { return ints[v], nil })
	}
	if x.null { // null is not in a list of strings or numbers
		test := o.b
		o.b = func(s *Scope) (bool, error) {
			v, err := test(s)
			if err == errNull {
				return false, nil
			}
			return v, err
		}
	}
	return o, true
}

// entry is map[key], map.key, or has(map.key).
func (c *compiler) entry(m celast.Expr, key operand, test bool) (operand, bool) {
	l := c.leafOf(m)
	if l == nil || l.node.Kind != codec.Map {
		return operand{}, false
	}
	f, k := c.fields[l.path], key.s
	if test {
		return operand{kind: types.BoolKind, b: func(s *Scope) (bool, error) {
			key, err := k(s)
			if err != nil {
				return false, err
			}
			_, found, err := raw.Lookup(l.node, f.get(s), key)
			return found, err
		}}, true
	}
	if key.konst {
		name, _ := k(&Scope{})
		absent := &missing{l.path, string(name)}
		if l.view != recordView { // the usual case: inView is inlined, get is not
			return fieldOperand(l.node.Elem, func(s *Scope) ([]byte, error) {
				v, found, err := raw.Lookup(l.node, f.inView(s), name)
				if err == nil && !found {
					err = absent
				}
				return v, err
			})
		}
		return fieldOperand(l.node.Elem, func(s *Scope) ([]byte, error) {
			v, found, err := raw.Lookup(l.node, f.get(s), name)
			if err == nil && !found {
				err = absent
			}
			return v, err
		})
	}
	return fieldOperand(l.node.Elem, func(s *Scope) ([]byte, error) {
		key, err := k(s)
		if err != nil {
			return nil, err
		}
		v, found, err := raw.Lookup(l.node, f.get(s), key)
		if err == nil && !found {
			err = &missing{l.path, string(key)}
		}
		return v, err
	})
}

// missing is the error for a lookup of a key that the map does not have.
type missing struct{ path, key string }

func (m *missing) Error() string { return m.path + " has no entry " + strconv.Quote(m.key) }

// sizeOfList counts the items of an array.
func (c *compiler) sizeOfList(e celast.Expr) (operand, bool) {
	l := c.leafOf(e)
	if l == nil || l.node.Kind != codec.Array {
		return operand{}, false
	}
	f := c.fields[l.path]
	return operand{kind: types.IntKind, i: func(s *Scope) (int64, error) {
		n := int64(0)
		it := raw.ItemsOf(l.node, f.get(s))
		for it.Next() {
			n++
		}
		return n, it.Err
	}}, true
}

// appender compiles e to a function that appends it as Avro of type n. fixed
// means that the bytes are the same for every event.
func (c *compiler) appender(e celast.Expr, n *codec.Node) (enc appender, fixed, ok bool) {
	if cond, yes, no, isTernary := ternary(e); isTernary {
		test, ok1 := c.compile(cond)
		a, _, ok2 := c.appender(yes, n)
		b, _, ok3 := c.appender(no, n)
		test = test.solid()
		if !ok1 || !ok2 || !ok3 || test.b == nil {
			return nil, false, false
		}
		return func(dst []byte, s *Scope) ([]byte, error) {
			v, err := test.b(s)
			if err != nil {
				return dst, err
			}
			if v {
				return a(dst, s)
			}
			return b(dst, s)
		}, false, true
	}
	if l := c.leafOf(e); l != nil {
		if enc := transfer(c.fields[l.path], n); enc != nil {
			return enc, false, true
		}
	}
	if enc, fixed, ok := c.listAppender(e, n); ok {
		return enc, fixed, true
	}
	o, ok := c.compile(e)
	if !ok {
		return nil, false, false
	}
	enc, ok = o.appender(n)
	if !ok {
		return nil, false, false
	}
	if o.konst {
		// A constant that does not fit the type fails for every event.
		out, err := enc(nil, &Scope{})
		if err != nil {
			var m *misfit
			if errors.As(err, &m) {
				c.fail(c.leftmost(e), "", "%s in %s: %s", c.want.field, c.want.of, m.msg)
			}
			return enc, true, true
		}
		enc = func(dst []byte, _ *Scope) ([]byte, error) { return append(dst, out...), nil }
	}
	return enc, o.konst, true
}

// transfer copies the encoding of a field to a field of type n, with another
// branch number if necessary. It returns nil if the types need a conversion.
func transfer(f *field, n *codec.Node) appender {
	from := f.node
	if same(from, n) {
		return func(dst []byte, s *Scope) ([]byte, error) { return append(dst, f.get(s)...), nil }
	}
	fromInner, fromNull, _, fromNullable := from.Nullable()
	toInner, toNull, toBranch, toNullable := n.Nullable()
	switch {
	case from.Kind == codec.Int && unitOf(from) == noTime && n.Kind == codec.Long && unitOf(n) == noTime:
		return func(dst []byte, s *Scope) ([]byte, error) { return append(dst, f.get(s)...), nil }
	case toNullable && same(from, toInner):
		return func(dst []byte, s *Scope) ([]byte, error) {
			return append(codec.AppendLong(dst, int64(toBranch)), f.get(s)...), nil
		}
	case fromNullable && (same(fromInner, n) || toNullable && same(fromInner, toInner)):
		return func(dst []byte, s *Scope) ([]byte, error) {
			branch, rest, err := codec.ReadLong(f.get(s))
			switch {
			case err != nil:
				return dst, err
			case branch == int64(fromNull) && !toNullable:
				return dst, errNull
			case branch == int64(fromNull):
				return codec.AppendLong(dst, int64(toNull)), nil
			case toNullable:
				dst = codec.AppendLong(dst, int64(toBranch))
			}
			return append(dst, rest...), nil
		}
	}
	return nil
}

// appender encodes the operand as n. It returns false if there is no encoder from
// the kind of the operand to n.
func (o operand) appender(n *codec.Node) (appender, bool) {
	if other, null, branch, ok := n.Nullable(); ok {
		if o.kind == types.NullTypeKind {
			return func(dst []byte, _ *Scope) ([]byte, error) { return codec.AppendLong(dst, int64(null)), nil }, true
		}
		enc, ok := o.appender(other)
		if !ok {
			return nil, false
		}
		return func(dst []byte, s *Scope) ([]byte, error) {
			mark := len(dst)
			dst, err := enc(codec.AppendLong(dst, int64(branch)), s)
			if err == errNull {
				return codec.AppendLong(dst[:mark], int64(null)), nil
			}
			return dst, err
		}, true
	}
	switch o.kind {
	case types.BoolKind:
		if n.Kind == codec.Boolean {
			return encoded(o.b, func(dst []byte, v bool) ([]byte, error) { return codec.AppendBool(dst, v), nil })
		}
	case types.IntKind:
		return encoded(o.i, intEncoder(n))
	case types.DurationKind:
		return encoded(o.i, durationEncoder(n))
	case types.DoubleKind:
		return encoded(o.d, floatEncoder(n))
	case decimalKind:
		return encoded(o.x, decimalEncoder(n))
	case types.StringKind:
		return encoded(o.s, textEncoder(n))
	case types.BytesKind:
		return encoded(o.s, bytesEncoder(n))
	case types.TimestampKind:
		return encoded(o.t, timeEncoder(n))
	}
	return nil, false
}

func encoded[T any](f fn[T], enc func([]byte, T) ([]byte, error)) (appender, bool) {
	if enc == nil || f == nil {
		return nil, false
	}
	return func(dst []byte, s *Scope) ([]byte, error) {
		v, err := f(s)
		if err != nil {
			return dst, err
		}
		return enc(dst, v)
	}, true
}
