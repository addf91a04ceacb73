package expr

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/wording"
)

// decimalKind is the kind of decimals. No other type of an expression has it.
const decimalKind = types.OpaqueKind

func isDecimal(n *codec.Node) bool {
	return (n.Kind == codec.Bytes || n.Kind == codec.Fixed) && n.Logical == "decimal"
}

// readDecimal returns the decimal in the content of a bytes or fixed of type n.
func readDecimal(n *codec.Node, unscaled []byte) (decimal.Decimal, error) {
	if n.Scale > decimal.MaxDigits {
		return decimal.Decimal{}, fmt.Errorf("a decimal with a scale of %d: expressions read at most %d", n.Scale, decimal.MaxDigits)
	}
	return decimal.FromBytes(unscaled, n.Scale), nil
}

// readDecimal sets o to read a decimal.
func (o *operand) readDecimal(n *codec.Node, src fn[[]byte]) {
	o.x = then(src, func(b []byte) (decimal.Decimal, error) {
		if n.Kind == codec.Fixed {
			return readDecimal(n, b[:n.Size])
		}
		v, _, err := codec.ReadText(b)
		if err != nil {
			return decimal.Decimal{}, err
		}
		return readDecimal(n, v)
	})
}

// decimalEncoder encodes a decimal whose number fits into n exactly.
func decimalEncoder(n *codec.Node) func([]byte, decimal.Decimal) ([]byte, error) {
	if !isDecimal(n) {
		return nil
	}
	return func(dst []byte, v decimal.Decimal) ([]byte, error) {
		d, ok := v.Rescale(n.Scale)
		switch {
		case !ok:
			return dst, misfitf("%v has more digits after the point than the %d of the decimal; round it with x.round(%d, 'half_even')", v, n.Scale, n.Scale)
		case n.Precision > 0 && d.Digits() > n.Precision:
			return dst, misfitf("%v has more than the %d digits of the decimal", v, n.Precision)
		}
		mark := len(dst)
		if n.Kind == codec.Bytes {
			dst = codec.AppendLong(dst, int64(d.Size()))
		}
		if dst, ok = d.AppendBytes(dst, n.Size); !ok {
			return dst[:mark], misfitf("%v does not fit into a decimal of %d bytes", d, n.Size)
		}
		return dst, nil
	}
}

// decimalCall compiles the functions of decimals, except for those that other types
// have too.
func decimalCall(name string, args []operand) operand {
	switch {
	case name == "decimal" && len(args) == 1:
		return operand{kind: decimalKind, x: toDecimal(args[0])}
	case name == "math.abs" && len(args) == 1 && args[0].kind == decimalKind:
		return operand{kind: decimalKind, x: then(args[0].x, func(v decimal.Decimal) (decimal.Decimal, error) { return v.Abs(), nil })}
	case name == "round" && len(args) == 3 && args[0].kind == decimalKind:
		return rounding(args[0].x, args[1], args[2], decimal.Decimal.Round)
	case name == "div" && len(args) == 4 && args[0].kind == decimalKind:
		by := toDecimal(args[1])
		if by == nil {
			return operand{}
		}
		type pair struct{ a, b decimal.Decimal }
		pairs := both(args[0].x, by, func(a, b decimal.Decimal) (pair, error) { return pair{a, b}, nil })
		return rounding(pairs, args[2], args[3], func(p pair, scale int, m decimal.Mode) (decimal.Decimal, error) { return p.a.Div(p.b, scale, m) })
	}
	return operand{}
}

func toDecimal(a operand) fn[decimal.Decimal] {
	switch a.kind {
	case decimalKind:
		return a.x
	case types.IntKind:
		return then(a.i, func(v int64) (decimal.Decimal, error) { return decimal.FromInt(v), nil })
	case types.DoubleKind:
		return then(a.d, decimal.FromFloat)
	case types.StringKind:
		return then(a.s, func(v []byte) (decimal.Decimal, error) { return decimal.Parse(string(v)) })
	}
	return nil
}

// rounding compiles round or div, whose last arguments are a scale and a mode.
func rounding[T any](value fn[T], scale, mode operand, do func(T, int, decimal.Mode) (decimal.Decimal, error)) operand {
	if scale.i == nil || mode.s == nil {
		return operand{}
	}
	if scale.konst && mode.konst {
		at, _ := scale.i(&Scope{})
		name, _ := mode.s(&Scope{})
		if to, m, err := library.Rounding(at, string(name)); err == nil {
			return operand{kind: decimalKind, x: then(value, func(v T) (decimal.Decimal, error) { return do(v, to, m) })}
		}
	}
	return operand{kind: decimalKind, x: func(s *Scope) (decimal.Decimal, error) {
		v, err := value(s)
		if err != nil {
			return decimal.Decimal{}, err
		}
		at, err := scale.i(s)
		if err != nil {
			return decimal.Decimal{}, err
		}
		name, err := mode.s(s)
		if err != nil {
			return decimal.Decimal{}, err
		}
		to, m, err := library.Rounding(at, string(name))
		if err != nil {
			return decimal.Decimal{}, err
		}
		return do(v, to, m)
	}}
}

// widened is the function [library.Widen]; it keeps null.
func widened(a operand) operand {
	if a.kind != types.IntKind && a.kind != decimalKind {
		return operand{}
	}
	return operand{kind: decimalKind, null: a.null, x: toDecimal(a)}
}

// oneOf is x in a list of constants.
func oneOf(x fn[decimal.Decimal], list []decimal.Decimal) fn[bool] {
	return then(x, func(v decimal.Decimal) (bool, error) {
		return slices.ContainsFunc(list, func(c decimal.Decimal) bool { return c.Cmp(v) == 0 }), nil
	})
}

// typed type-checks the expression, and converts ints to decimals where both mix.
//
// CEL cannot declare this: == takes two values of one type, and so do ? : and in. So
// a mix is a type fault first, the int is wrapped in [library.Widen], and the check
// is repeated. Each round wraps at least one int, and a wrapped one is no int.
func (r *resolver) typed(parsed *cel.Ast) (*cel.Ast, *cel.Issues) {
	for {
		r.env.records.misses = nil
		checked, issues := r.env.cel.Check(parsed)
		if !r.widenAll(parsed.NativeRep().Expr(), checked, issues) {
			return checked, issues
		}
	}
}

// mixers are the operators and functions whose arguments may mix decimals and ints.
var mixers = []string{
	operators.Add, operators.Subtract, operators.Multiply, operators.Equals, operators.NotEquals,
	operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals,
	operators.In, operators.Conditional, "math.@max", "math.@min", "with", "sets.contains", "sets.equivalent", "sets.intersects",
}

// widenAll wraps ints that the result of a check shows beside decimals.
func (r *resolver) widenAll(e celast.Expr, checked *cel.Ast, issues *cel.Issues) (changed bool) {
	faults := map[int64][]string{} // the types of the arguments, by the id of the call
	printed := map[int64]bool{}    // the decimals that format gets
	for _, found := range issues.Errors() {
		if m := noOverload.FindStringSubmatch(found.Message); m != nil && strings.Contains(m[2], "decimal") && slices.Contains(mixers, m[1]) {
			faults[found.ExprID] = argTypes(m[2])
		}
		if strings.HasPrefix(found.Message, "error during formatting: string clause") && strings.HasSuffix(found.Message, "was given decimal") {
			printed[found.ExprID] = true
		}
	}
	var lists, calls, texts []celast.Expr // the visitor must not see what is changed
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if printed[x.ID()] {
			texts = append(texts, x)
		}
		switch x.Kind() {
		case celast.ListKind:
			lists = append(lists, x)
		case celast.CallKind:
			calls = append(calls, x)
		}
	}))
	for _, x := range calls {
		args := x.AsCall().Args()
		if x.AsCall().IsMemberFunction() {
			args = append([]celast.Expr{x.AsCall().Target()}, args...)
		}
		if given := faults[x.ID()]; len(given) == len(args) {
			for i, arg := range args {
				changed = r.widen(arg, given[i]) || changed
			}
		}
	}
	for _, x := range texts {
		r.wrap(x, overloads.TypeConvertString)
		changed = true
	}
	if issues.Err() != nil {
		return changed
	}
	typeOf := func(x celast.Expr) *types.Type { return checked.NativeRep().GetType(x.ID()) }
	isDecimal := func(x celast.Expr) bool { return typeOf(x).Kind() == decimalKind }
	for _, x := range lists {
		if items := x.AsList().Elements(); slices.ContainsFunc(items, isDecimal) {
			for _, item := range items {
				changed = r.widen(item, strings.Replace(typeOf(item).String(), "wrapper(int)", "int", 1)) || changed
			}
		}
	}
	for _, x := range calls { // a value of any type may be an int at run time
		args := x.AsCall().Args()
		if len(args) != 2 || !slices.Contains(mixers[:9], x.AsCall().FunctionName()) {
			continue
		}
		for i, arg := range args {
			if typeOf(arg).Kind() == types.DynKind && isDecimal(args[1-i]) && !isIdent(arg, nullName) && !isIdent(arg, badName) {
				r.wrap(arg, library.Widen)
				changed = true
			}
		}
	}
	return changed
}

// argTypes returns the types of a signature in CEL's format, the target first.
func argTypes(signature string) []string {
	target, list, member := strings.Cut(strings.TrimSuffix(signature, ")"), ".(")
	if !member {
		return wording.Split(strings.TrimPrefix(target, "("))
	}
	return append([]string{target}, wording.Split(list)...)
}

// widen wraps an int, or the ints of a list or a map that is written out. t is the type
// of e in CEL's format.
func (r *resolver) widen(e celast.Expr, t string) (changed bool) {
	switch t {
	case "int", "wrapper(int)":
		r.wrap(e, library.Widen)
		return true
	case "list(int)", "list(wrapper(int))", "map(string, int)", "map(string, wrapper(int))":
	default:
		return false
	}
	var parts []celast.Expr
	switch e.Kind() {
	case celast.ListKind:
		parts = e.AsList().Elements()
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			parts = append(parts, entry.AsMapEntry().Value())
		}
	case celast.CallKind:
		args := e.AsCall().Args()
		switch e.AsCall().FunctionName() {
		case operators.Conditional:
			first := r.widen(args[1], t)
			return r.widen(args[2], t) || first
		case operators.Add:
			first := r.widen(args[0], t)
			return r.widen(args[1], t) || first
		}
	}
	for _, part := range parts {
		r.wrap(part, library.Widen)
	}
	return len(parts) > 0
}

// wrap replaces e by a call of the function with e.
func (r *resolver) wrap(e celast.Expr, function string) {
	inside := r.make.NewUnspecifiedExpr(r.id(e.ID()))
	inside.SetKindCase(e)
	e.SetKindCase(r.make.NewCall(e.ID(), function, inside))
}

// decimals checks what the type-checker cannot: the constants of decimal(), div and
// round, and lists that mix decimals with doubles.
func (c *compiler) decimals(e celast.Expr) {
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		switch x.Kind() {
		case celast.ListKind:
			c.mixedList(x.AsList().Elements())
		case celast.CallKind:
			args := x.AsCall().Args()
			switch name := x.AsCall().FunctionName(); {
			case name == "decimal":
				c.constantDecimal(args[0])
			case (name == "round" || name == "div") && len(args) >= 2:
				c.constantRounding(args[len(args)-2], args[len(args)-1])
			}
		}
	}))
}

func (c *compiler) constantDecimal(e celast.Expr) {
	text, ok := constantOf[types.String](e)
	if !ok {
		return
	}
	if _, err := decimal.Parse(string(text)); err != nil {
		c.fail(c.leftmost(e), "write digits, with a point before a fraction: decimal('-12.50')", "%v", err)
	}
}

func (c *compiler) mixedList(items []celast.Expr) {
	isDecimal := func(x celast.Expr) bool { return c.ast.GetType(x.ID()).Kind() == decimalKind }
	if !slices.ContainsFunc(items, isDecimal) {
		return
	}
	for _, item := range items {
		if c.ast.GetType(item.ID()).Kind() == types.DoubleKind {
			c.fail(c.leftmost(item), c.doubleHint(item), "this list mixes decimals and doubles")
			return
		}
	}
}

func (c *compiler) constantRounding(scale, mode celast.Expr) {
	at, _ := constantOf[types.Int](scale) // else 0, which is a scale
	if _, _, err := library.Rounding(int64(at), decimal.Modes[0]); err != nil {
		c.fail(c.leftmost(scale), "", "%v", err)
	}
	if name, ok := constantOf[types.String](mode); ok {
		if _, _, err := library.Rounding(0, string(name)); err != nil {
			c.fail(c.leftmost(mode), wording.Nearest(string(name), decimal.Modes), "%v", err)
		}
	}
}

func constantOf[T any](e celast.Expr) (v T, ok bool) {
	if e.Kind() == celast.LiteralKind {
		v, ok = e.AsLiteral().(T)
	}
	return v, ok
}

// doubleHint returns the hint for a double beside a decimal: for a literal, what to
// write instead.
func (r *resolver) doubleHint(e celast.Expr) string {
	if e.Kind() == celast.ListKind {
		for _, item := range e.AsList().Elements() {
			if item.Kind() == celast.LiteralKind {
				return r.doubleHint(item)
			}
		}
	}
	f, ok := constantOf[types.Double](e)
	if !ok {
		return "convert the double with decimal(x), or the decimal with double(x), which keeps about 16 digits"
	}
	text := strconv.FormatFloat(float64(f), 'f', -1, 64)
	whole := !strings.Contains(text, ".") && math.Abs(float64(f)) < 1e15
	if written := r.numberAt(r.offset(e.ID())); written != "" {
		if _, err := decimal.Parse(written); err == nil {
			if same, err := strconv.ParseFloat(written, 64); err == nil && same == float64(f) {
				text = written
			}
		}
	}
	if whole {
		return fmt.Sprintf("write decimal('%s') or %s", text, strconv.FormatFloat(float64(f), 'f', 0, 64))
	}
	return fmt.Sprintf("write decimal('%s')", text)
}

// numberAt returns the number that starts at an offset of the source.
func (r *resolver) numberAt(at int) string {
	end := at
	for end < len(r.src) && strings.ContainsRune("-+.0123456789eE", r.src[end]) && (end == at || !strings.ContainsRune("-+", r.src[end]) || strings.ContainsRune("eE", r.src[end-1])) {
		end++
	}
	return string(r.src[at:end])
}

// mixHint returns the hint for a call of a function with a decimal whose argument
// types match no overload; "" if there is none.
func (r *resolver) mixHint(call int64, function, signature string) string {
	if !strings.Contains(signature, "decimal") {
		return ""
	}
	if function == operators.Divide {
		return "write x.div(y, 2, 'half_up'): the scale of the result, and how to round: " + strings.Join(decimal.Modes, ", ")
	}
	if mode := map[string]string{"math.round": "half_up", "math.ceil": "ceiling", "math.floor": "floor", "math.trunc": "down"}[function]; mode != "" {
		return fmt.Sprintf("write x.round(0, '%s')", mode)
	}
	given := argTypes(signature)
	at := slices.IndexFunc(given, func(t string) bool { return strings.Contains(t, "double") })
	if at < 0 || !slices.Contains(mixers, function) {
		return ""
	}
	hint := ""
	celast.PostOrderVisit(r.expr, celast.NewExprVisitor(func(x celast.Expr) {
		if x.ID() != call || x.Kind() != celast.CallKind {
			return
		}
		args := x.AsCall().Args()
		if x.AsCall().IsMemberFunction() {
			args = append([]celast.Expr{x.AsCall().Target()}, args...)
		}
		if len(args) == len(given) {
			hint = r.doubleHint(args[at])
		}
	}))
	return hint
}

// fitHint returns the hint for a value of kind k that does not fit a field of type n,
// if one of them is a decimal.
func (c *compiler) fitHint(e celast.Expr, n *codec.Node, k types.Kind) string {
	switch {
	case isDecimal(n) && k == types.DoubleKind:
		if _, ok := constantOf[types.Double](e); ok {
			return c.doubleHint(e)
		}
		return fmt.Sprintf("convert it: decimal(x).round(%d, 'half_even')", n.Scale)
	case isDecimal(n) && k == types.StringKind:
		return "convert it with decimal(x)"
	case k == decimalKind && kindOf(n) == types.DoubleKind:
		return "convert it with double(x), which keeps about 16 digits"
	case k == decimalKind && kindOf(n) == types.IntKind:
		return "convert it with int(x), which rejects a fraction, or int(x.round(0, 'down'))"
	case k == decimalKind && kindOf(n) == types.StringKind && n.Kind != codec.Enum:
		return "convert it with string(x)"
	}
	return ""
}

// copies are the operators and functions that only choose, move or count values.
var copies = []string{
	operators.Conditional, operators.Index, operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, isNull, mapInsert, library.Ordered,
	"dyn", "size", "with", "without", "first", "last", "slice", "reverse", "flatten",
}

// usesDecimals reports whether the value of e depends on how decimals compute or
// compare: on more than a copy of one.
func (c *compiler) usesDecimals(e celast.Expr) bool {
	found := false
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if found || x.Kind() != celast.CallKind {
			return
		}
		call := x.AsCall()
		t := c.ast.GetType(x.ID())
		if slices.Contains(copies, call.FunctionName()) || call.FunctionName() == operators.Add && t.Kind() == types.ListKind {
			return
		}
		args := append([]celast.Expr{x}, call.Args()...)
		if call.IsMemberFunction() {
			args = append(args, call.Target())
		}
		found = slices.ContainsFunc(args, func(arg celast.Expr) bool { return c.mayHoldDecimal(arg) })
	}))
	return found
}

// mayHoldDecimal reports whether a value of e is, or contains, a decimal.
func (c *compiler) mayHoldDecimal(e celast.Expr) bool {
	if l := c.leafOf(e); l != nil {
		return holdsDecimal(l.node, nil)
	}
	var within func(t *types.Type) bool
	within = func(t *types.Type) bool {
		if t.Kind() == types.StructKind && c.env.records.byName[t.TypeName()] != nil {
			return holdsDecimal(c.env.records.byName[t.TypeName()], nil)
		}
		return t.Kind() == decimalKind || slices.ContainsFunc(t.Parameters(), within)
	}
	return within(c.ast.GetType(e.ID()))
}

func holdsDecimal(n *codec.Node, above []*codec.Node) bool {
	if slices.Contains(above, n) {
		return false
	}
	above = append(above, n)
	switch n.Kind {
	case codec.Array, codec.Map:
		return holdsDecimal(n.Elem, above)
	case codec.Union:
		return slices.ContainsFunc(n.Branches, func(b *codec.Node) bool { return holdsDecimal(b, above) })
	case codec.Record:
		return slices.ContainsFunc(n.Fields, func(f codec.Field) bool { return holdsDecimal(f.Type, above) })
	}
	return isDecimal(n)
}
