package expr

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/parser"
)

// resolver works on an expression between parsing and type-checking. It
//
//   - finds the fields that names mean, and puts one identifier in the place of
//     each path, so that CEL never sees a record that is not there;
//   - puts values in the place of the fields whose value is known, and cuts off
//     what they decide;
//   - reports names that mean nothing, and leaves @bad in their place, which
//     goes with everything, so that the type-checker reports only what is new.
type resolver struct {
	env    *Env
	src    []rune
	info   *celast.SourceInfo
	make   celast.ExprFactory
	nextID int64
	text   bool // what is wanted may be a text
	errs   Errors
	locals []string       // variables of the macros around, innermost last
	known  map[int64]bool // literals that stand for a known field, or follow from one
}

func newResolver(env *Env, src string, parsed *celast.AST) *resolver {
	r := &resolver{env: env, src: []rune(src), info: parsed.SourceInfo(), make: celast.NewExprFactory(), known: map[int64]bool{}}
	celast.PostOrderVisit(parsed.Expr(), celast.NewExprVisitor(func(e celast.Expr) { r.nextID = max(r.nextID, e.ID()) }))
	return r
}

func (r *resolver) id(like int64) int64 {
	r.nextID++
	if o, ok := r.info.GetOffsetRange(like); ok {
		r.info.SetOffsetRange(r.nextID, o)
	}
	return r.nextID
}

func (r *resolver) offset(id int64) int {
	o, _ := r.info.GetOffsetRange(id)
	return min(int(o.Start), len(r.src))
}

func (r *resolver) fail(offset int, hint, format string, args ...any) {
	r.errs = append(r.errs, &Error{Offset: offset, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

func (r *resolver) bad(e celast.Expr) { e.SetKindCase(r.make.NewIdent(e.ID(), badName)) }

func (r *resolver) walk(e celast.Expr) {
	switch e.Kind() {
	case celast.LiteralKind:
		if e.AsLiteral() == types.NullValue {
			e.SetKindCase(r.make.NewIdent(e.ID(), nullName))
		}
	case celast.IdentKind, celast.SelectKind:
		r.path(e)
	case celast.CallKind:
		r.call(e)
	case celast.ListKind:
		for _, item := range e.AsList().Elements() {
			r.walk(item)
		}
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			r.walk(entry.AsMapEntry().Key())
			r.walk(entry.AsMapEntry().Value())
		}
	case celast.StructKind:
		r.fail(r.offset(e.ID()), "write {'field': value, ...} where a record is wanted", "records are not made with %s{...}", e.AsStruct().TypeName())
		r.bad(e)
	case celast.ComprehensionKind:
		c := e.AsComprehension()
		r.walk(c.IterRange())
		r.walk(c.AccuInit())
		n := len(r.locals)
		r.locals = append(r.locals, c.AccuVar(), c.IterVar())
		if c.HasIterVar2() {
			r.locals = append(r.locals, c.IterVar2())
		}
		r.walk(c.LoopCondition())
		r.walk(c.LoopStep())
		r.walk(c.Result())
		r.locals = r.locals[:n]
		r.inOrder(c.IterRange())
	}
}

// inOrder has a macro go through a map in the order of its keys.
func (r *resolver) inOrder(e celast.Expr) {
	if e.Kind() == celast.ListKind {
		return
	}
	inner := r.make.NewUnspecifiedExpr(r.id(e.ID()))
	inner.SetKindCase(e)
	e.SetKindCase(r.make.NewCall(e.ID(), orderedName, inner))
}

// path resolves a.b.c, or what of it leads to a field; the rest stays a
// selection from the field's value.
func (r *resolver) path(e celast.Expr) {
	var chain []celast.Expr // from e inwards: the selections
	base := e
	for base.Kind() == celast.SelectKind {
		chain = append(chain, base)
		base = base.AsSelect().Operand()
	}
	if base.Kind() != celast.IdentKind {
		r.walk(base)
		return
	}
	name := strings.TrimPrefix(base.AsIdent(), ".")
	if slices.Contains(r.locals, name) || strings.HasPrefix(name, fieldMark) {
		return
	}
	slices.Reverse(chain) // now from the name outwards
	root, at := r.root(name)
	if root == nil {
		if _, ok := r.env.records.FindIdent(name); !ok {
			r.unknownName(base, name)
			r.bad(e)
		}
		return // the name of a CEL type
	}
	record := root.Schema.Root()
	steps := chain
	if at != "" { // the base itself is a field of the record at top level
		steps = append([]celast.Expr{base}, chain...)
	}
	full, rel := root.Name, ""
	for i, step := range steps {
		field := name
		if step != base {
			field = step.AsSelect().FieldName()
		}
		rel = join(rel, field)
		full = join(full, field)
		f := record.Field(field)
		if f == nil {
			r.fail(r.fieldOffset(step), nearest(field, fieldNames(record)), "%s has no field %s", root.Schema.Name(), rel)
			r.bad(e)
			return
		}
		if l := r.env.leaves[full]; l != nil {
			r.leaf(step, l)
			r.rest(e, steps[i+1:], l)
			return
		}
		record = f.Type
	}
	names := fieldNames(record)
	for i := range names {
		names[i] = join(full, names[i])
	}
	if full == "" {
		full = root.Schema.Name()
	}
	r.fail(r.offset(base.ID()), "name a field: "+listed(names, 4), "%s is a whole record (%s), not a value", full, record.Name)
	r.bad(e)
}

// root returns the root a name belongs to, and the name again if it is a field
// at top level rather than the root itself.
func (r *resolver) root(name string) (*Root, string) {
	var top *Root
	for i := range r.env.roots {
		root := &r.env.roots[i]
		if root.Name == name {
			return root, ""
		}
		if root.Name == "" && root.Schema.Root().Field(name) != nil {
			top = root
		}
	}
	if top != nil {
		return top, name
	}
	return nil, ""
}

// leaf puts the field in the place of the expression.
func (r *resolver) leaf(e celast.Expr, l *leaf) {
	if e.Kind() == celast.SelectKind && e.AsSelect().IsTestOnly() { // has(data.email)
		if _, _, _, nullable := l.node.Nullable(); !nullable {
			e.SetKindCase(r.make.NewLiteral(e.ID(), types.True))
			return
		}
		id := r.id(e.ID())
		field := r.make.NewIdent(r.id(e.ID()), fieldMark+l.path)
		e.SetKindCase(r.make.NewCall(e.ID(), operators.LogicalNot, r.make.NewCall(id, isNull, field)))
		return
	}
	if l.known != nil {
		e.SetKindCase(r.make.NewLiteral(e.ID(), types.String(*l.known)))
		r.known[e.ID()] = true
		return
	}
	if e.Kind() == celast.SelectKind {
		// Errors about the field are to point at its name.
		if o, ok := r.info.GetOffsetRange(e.ID()); ok {
			start := int32(r.start(e))
			r.info.SetOffsetRange(e.ID(), celast.OffsetRange{Start: start, Stop: max(o.Stop, start)})
		}
	}
	e.SetKindCase(r.make.NewIdent(e.ID(), fieldMark+l.path))
}

// rest checks the selections from a field's value that CEL would not explain.
func (r *resolver) rest(e celast.Expr, steps []celast.Expr, l *leaf) {
	if len(steps) == 0 {
		return
	}
	n := l.node
	if other, _, _, ok := n.Nullable(); ok {
		n = other
	}
	switch kindOf(n) {
	case types.MapKind, types.StructKind, types.DynKind:
		return
	case types.ListKind:
		r.fail(r.fieldOffset(steps[0]), fmt.Sprintf("pick an item, %s[0], or go through them: %s.exists(x, ...)", l.path, l.path),
			"%s is a list, which has no fields", l.path)
	default:
		r.fail(r.fieldOffset(steps[0]), "", "%s is %s, which has no fields", l.path, article(celWord(r.env.records.celType(n))))
	}
	r.bad(e)
}

// start returns the offset where a path begins.
func (r *resolver) start(e celast.Expr) int {
	for e.Kind() == celast.SelectKind {
		e = e.AsSelect().Operand()
	}
	return r.offset(e.ID())
}

// fieldOffset returns the offset of the name at the end of a path: CEL has that
// of the dot.
func (r *resolver) fieldOffset(e celast.Expr) int {
	at := r.offset(e.ID())
	if e.Kind() != celast.SelectKind {
		return at
	}
	if e.AsSelect().IsTestOnly() { // CEL has the place of has( only
		name := []rune(e.AsSelect().FieldName())
		for i := at; i+len(name) <= len(r.src); i++ {
			if i > 0 && r.src[i-1] == '.' && slices.Equal(r.src[i:i+len(name)], name) {
				return i
			}
		}
		return at
	}
	for at < len(r.src) && strings.ContainsRune(".? \t\n`", r.src[at]) {
		at++
	}
	return at
}

func (r *resolver) unknownName(e celast.Expr, name string) {
	var names []string
	var top *Root
	for i := range r.env.roots {
		if root := &r.env.roots[i]; root.Name == "" {
			top = root
			names = append(names, fieldNames(root.Schema.Root())...)
		} else {
			names = append(names, root.Name)
		}
	}
	names = append(names, r.locals...)
	hint := nearest(name, names)
	var below []string // fields of that name, further in
	for path := range r.env.leaves {
		if strings.HasSuffix(path, "."+name) {
			below = append(below, path)
		}
	}
	if slices.Sort(below); len(below) > 0 {
		hint = fmt.Sprintf("did you mean %q?", below[0])
	}
	if hint == "" && r.text && strings.TrimSpace(string(r.src)) == name {
		hint = fmt.Sprintf("for the text %s, write '%s'", name, name)
	}
	if hint == "" && r.env.globals[name] {
		hint = fmt.Sprintf("%s is a function: %s(...)", name, name)
	}
	if hint == "" && len(names) <= 12 {
		hint = "there is " + listed(names, 12)
	}
	if top != nil && len(r.env.roots) == 1 {
		r.fail(r.offset(e.ID()), hint, "%s has no field %s", top.Schema.Name(), name)
		return
	}
	r.fail(r.offset(e.ID()), hint, "there is no %s here", name)
}

func (r *resolver) call(e celast.Expr) {
	c := e.AsCall()
	name, args := c.FunctionName(), c.Args()
	switch {
	case name == operators.LogicalAnd && len(args) == 2:
		r.junction(e, args, types.False)
		return
	case name == operators.LogicalOr && len(args) == 2:
		r.junction(e, args, types.True)
		return
	case name == operators.Conditional && len(args) == 3:
		r.walk(args[0])
		if args[0].Kind() == celast.LiteralKind && r.known[args[0].ID()] {
			switch args[0].AsLiteral() {
			case types.True:
				r.walk(args[1])
				r.replace(e, args[1])
				return
			case types.False:
				r.walk(args[2])
				r.replace(e, args[2])
				return
			}
		}
		r.walk(args[1])
		r.walk(args[2])
		return
	case (name == operators.Equals || name == operators.NotEquals) && len(args) == 2 && (isNullLiteral(args[0]) || isNullLiteral(args[1])):
		operand := args[0]
		if isNullLiteral(operand) {
			operand = args[1]
		}
		r.walk(operand)
		if l := r.leafOf(operand); l != nil && !holdsNull(l.node) {
			e.SetKindCase(r.make.NewLiteral(e.ID(), types.Bool(name == operators.NotEquals)))
			return
		}
		if name == operators.Equals {
			e.SetKindCase(r.make.NewCall(e.ID(), isNull, operand))
		} else {
			e.SetKindCase(r.make.NewCall(e.ID(), operators.LogicalNot, r.make.NewCall(r.id(e.ID()), isNull, operand)))
		}
		return
	case name == "now" && !c.IsMemberFunction() && len(args) > 0:
		r.fail(r.callOffset(e, name), "", "now takes nothing: now()")
		r.bad(e)
		return
	case name == "now" && !c.IsMemberFunction():
		if r.env.Clock == nil {
			r.fail(r.callOffset(e, name), "take the event's own time", "there is no now() here: the result has to follow from the events alone")
			r.bad(e)
			return
		}
		start := int32(r.callOffset(e, name))
		r.info.SetOffsetRange(e.ID(), celast.OffsetRange{Start: start, Stop: start})
		e.SetKindCase(r.make.NewIdent(e.ID(), nowName))
		return
	}
	for _, arg := range args {
		r.walk(arg)
	}
	if c.IsMemberFunction() {
		target := c.Target()
		if prefix, ok := qualified(target); ok && r.env.globals[prefix+"."+name] {
			return // math.abs(x): no value before the dot
		} else if ok && r.namespace(prefix) {
			r.fail(r.callOffset(e, name), nearest(prefix+"."+name, functionNames(r.env.globals)), "there is no function %s.%s", prefix, name)
			r.bad(e)
			return
		}
		r.walk(target)
		if !r.env.members[name] {
			hint := orElse(otherwise(name), nearest(name, functionNames(r.env.members)))
			if r.env.globals[name] {
				hint = fmt.Sprintf("write %s(x), not x.%s()", name, name)
			}
			r.fail(r.callOffset(e, name), hint, "there is no function %s that is called on a value", name)
			r.bad(e)
			return
		}
	} else if !r.env.globals[name] {
		hint := nearest(name, append(functionNames(r.env.globals), "now", "has"))
		if r.env.members[name] {
			hint = fmt.Sprintf("write x.%s(...), not %s(x, ...)", name, name)
		} else if hint == "" || otherwise(name) != "" {
			hint = orElse(otherwise(name), nearest(name, functionNames(r.env.members)))
		}
		r.fail(r.callOffset(e, name), hint, "there is no function %s", name)
		r.bad(e)
		return
	}
	r.fold(e)
}

// namespace reports whether functions begin with the name and a dot.
func (r *resolver) namespace(name string) bool {
	for f := range r.env.globals {
		if strings.HasPrefix(f, name+".") {
			return true
		}
	}
	return false
}

// elsewhere is what other languages call functions, and what to write here.
var elsewhere = map[string]string{
	"length": "x.size()", "len": "x.size()", "count": "x.size()", "strlen": "x.size()",
	"lower": "x.lowerAscii()", "toLowerCase": "x.lowerAscii()", "tolower": "x.lowerAscii()", "upper": "x.upperAscii()", "toUpperCase": "x.upperAscii()", "toupper": "x.upperAscii()",
	"toString": "string(x)", "str": "string(x)", "parseInt": "int(x)", "toInt": "int(x)", "parseFloat": "double(x)", "float": "double(x)", "number": "double(x)",
	"not": "!x", "isNull": "x == null", "isnull": "x == null", "coalesce": "x != null ? x : y", "ifnull": "x != null ? x : y",
	"concat": "x + y", "append": "list + [x]", "push": "list + [x]", "substr": "x.substring(from, to)", "includes": "x.contains(y)", "any": "list.exists(x, ...)", "some": "list.exists(x, ...)",
	"abs": "math.abs(x)", "round": "math.round(x)", "floor": "math.floor(x)", "ceil": "math.ceil(x)", "min": "math.least(x, y)", "max": "math.greatest(x, y)", "sqrt": "math.sqrt(x)",
	"uuid": "uuid5(namespace, name): a random one would differ each time", "random": "hash(id) % 100: a random one would differ each time", "rand": "hash(id) % 100: a random one would differ each time",
}

// otherwise is a hint for a function that is called otherwise here.
func otherwise(name string) string {
	if here, ok := elsewhere[name]; ok {
		return "write " + here
	}
	if len(name) < 5 {
		return ""
	}
	for _, n := range slices.Sorted(maps.Keys(elsewhere)) {
		if len(n) > 4 && distance(strings.ToLower(name), strings.ToLower(n), 2) < 2 {
			return "write " + elsewhere[n]
		}
	}
	return ""
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// junction resolves a && b (decided by false) or a || b (decided by true). What
// a known field decides takes the other side with it, faults and all.
func (r *resolver) junction(e celast.Expr, args []celast.Expr, decides types.Bool) {
	before := len(r.errs)
	r.walk(args[0])
	if r.isKnown(args[0], decides) {
		r.replace(e, args[0])
		return
	}
	r.walk(args[1])
	switch {
	case r.isKnown(args[1], decides):
		r.errs = r.errs[:before]
		r.replace(e, args[1])
	case r.isKnown(args[0], !decides) && r.isKnown(args[1], !decides):
		r.replace(e, args[0])
	}
}

func (r *resolver) isKnown(e celast.Expr, v types.Bool) bool {
	return e.Kind() == celast.LiteralKind && r.known[e.ID()] && e.AsLiteral() == v
}

// replace puts one of e's parts in its place.
func (r *resolver) replace(e, by celast.Expr) {
	r.known[e.ID()] = r.known[by.ID()]
	if o, ok := r.info.GetOffsetRange(by.ID()); ok {
		r.info.SetOffsetRange(e.ID(), o)
	}
	e.SetKindCase(by)
}

// fold computes a call on literals of which at least one stands for a known
// field.
func (r *resolver) fold(e celast.Expr) {
	known := false
	literal := true
	celast.PostOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		switch x.Kind() {
		case celast.LiteralKind:
			known = known || r.known[x.ID()]
		case celast.ListKind, celast.CallKind:
		default:
			literal = false
		}
	}))
	if !known || !literal {
		return
	}
	text, err := parser.Unparse(e, r.info)
	if err != nil {
		return
	}
	checked, issues := r.env.cel.Compile(text)
	if issues.Err() != nil {
		return // the check of the whole reports it in its place
	}
	p, err := r.env.cel.Program(checked)
	if err != nil {
		return
	}
	v, _, err := p.Eval(map[string]any{})
	if err != nil {
		return
	}
	switch v.(type) {
	case types.Bool, types.String, types.Int, types.Double:
		e.SetKindCase(r.make.NewLiteral(e.ID(), v))
		r.known[e.ID()] = true
	}
}

// callOffset returns where the function's name stands: CEL has the place of its
// parenthesis, or of the dot before it.
func (r *resolver) callOffset(e celast.Expr, name string) int {
	return r.nameBefore(r.offset(e.ID()), name)
}

// nameBefore returns where a name stands that ends near an offset.
func (r *resolver) nameBefore(at int, name string) int {
	if dot := strings.LastIndexByte(name, '.'); dot >= 0 {
		name = name[dot+1:]
	}
	if at+len(name) < len(r.src) { // the offset may be that of the dot before it
		at += len(name)
	}
	want := []rune(name)
	for i := at; i >= 0; i-- {
		if i+len(want) <= len(r.src) && slices.Equal(r.src[i:i+len(want)], want) {
			return i
		}
	}
	return at
}

// leafOf returns the field that e is, if it is one.
func (r *resolver) leafOf(e celast.Expr) *leaf {
	if e.Kind() != celast.IdentKind || !strings.HasPrefix(e.AsIdent(), fieldMark) {
		return nil
	}
	return r.env.leaves[e.AsIdent()[len(fieldMark):]]
}

func isNullLiteral(e celast.Expr) bool {
	return e.Kind() == celast.LiteralKind && e.AsLiteral() == types.NullValue
}

// qualified returns a.b.c as text, if e is that.
func qualified(e celast.Expr) (string, bool) {
	switch e.Kind() {
	case celast.IdentKind:
		return e.AsIdent(), true
	case celast.SelectKind:
		if s := e.AsSelect(); !s.IsTestOnly() {
			prefix, ok := qualified(s.Operand())
			return prefix + "." + s.FieldName(), ok
		}
	}
	return "", false
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func functionNames(set map[string]bool) []string {
	var names []string
	for name := range set {
		if c := name[0]; c >= 'a' && c <= 'z' && !strings.ContainsAny(name, "@") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// listed returns at most n names as text.
func listed(names []string, n int) string {
	if len(names) > n {
		return strings.Join(names[:n], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// nearest returns a hint with the name that was probably meant, or "".
func nearest(name string, names []string) string {
	best, at := "", 1+max(1, len(name)/3)
	for _, n := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(n), at); d < at {
			best, at = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance is the number of letters to insert, delete, replace or swap with
// their neighbour to make b of a; limit if it is that or more.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return min(prev[len(b)], limit)
}
