package expr

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/parser"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/escape"
	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/expr/wording"
)

// A resolver rewrites an expression between parsing and type-checking. It
//
//   - replaces each path of a field by one identifier, since CEL has no value for
//     the records on the path;
//   - replaces fields of known value by literals, and removes the branches that
//     these exclude;
//   - reports unknown names, and replaces them by @bad. @bad is dyn and fits every
//     operator, so the type-checker does not report the same fault again.
type resolver struct {
	env    *Env
	src    []rune
	info   *celast.SourceInfo
	make   celast.ExprFactory
	nextID int64
	expr   celast.Expr // the whole expression
	text   bool        // the result may be a string
	errs   Errors
	warns  Errors
	relied []*leaf        // the fields of known value that the expression relies on
	locals []string       // variables of the enclosing macros, innermost last
	known  map[int64]bool // ids of literals that come from fields of known value
}

func newResolver(env *Env, src string, parsed *celast.AST) *resolver {
	r := &resolver{env: env, src: []rune(src), info: parsed.SourceInfo(), expr: parsed.Expr(), make: celast.NewExprFactory(), known: map[int64]bool{}}
	celast.PostOrderVisit(parsed.Expr(), celast.NewExprVisitor(func(e celast.Expr) { r.nextID = max(r.nextID, e.ID()) }))
	return r
}

// id returns a new expression id with the position of an existing one.
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
		r.fail(r.offset(e.ID()), "write {'field': value, ...} for a record", "%s{...} is not supported", e.AsStruct().TypeName())
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

// inOrder wraps the range of a macro so that it iterates over a map in the order
// of its keys.
func (r *resolver) inOrder(e celast.Expr) {
	if e.Kind() == celast.ListKind {
		return
	}
	inner := r.make.NewUnspecifiedExpr(r.id(e.ID()))
	inner.SetKindCase(e)
	e.SetKindCase(r.make.NewCall(e.ID(), library.Ordered, inner))
}

// path resolves the longest prefix of a.b.c that is a field. The rest stays a
// selection from the value of the field.
func (r *resolver) path(e celast.Expr) {
	var chain []celast.Expr // the selections, from e to the base
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
	if slices.Contains(r.locals, name) || strings.HasPrefix(name, fieldMark) || strings.HasPrefix(name, "@") {
		return
	}
	slices.Reverse(chain) // now from the base to e
	root, at := r.root(name)
	if root == nil {
		if _, ok := r.env.records.FindIdent(name); !ok {
			r.unknownName(base, name)
			r.bad(e)
		}
		return // unknown, or the name of a CEL type
	}
	r.hidden(base, name, root, chain)
	steps, full := chain, name
	if at != "" { // the base is a field at top level
		steps, full = append([]celast.Expr{base}, chain...), ""
	}
	record, rel := root.Schema.Root(), ""
	for i, step := range steps {
		field := name
		if step != base {
			field = step.AsSelect().FieldName()
		}
		rel = join(rel, field)
		full = join(full, field)
		f := record.Field(field)
		if f == nil {
			hint := nearest(field, record.FieldNames())
			if hidden := r.env.hiddenField(name, root); hidden != nil && hasMember(hidden, field) {
				hint = fmt.Sprintf("%s is %s here; for the field %s of the event, write event.%s", name, r.env.meaning(root), name, join(name, rel))
			}
			r.fail(r.fieldOffset(step), hint, "%s has no field %s", root.Schema.Name(), rel)
			r.bad(e)
			return
		}
		if l := r.env.leaves[r.env.pathOf(root, rel)]; l != nil {
			r.leaf(step, l, name == eventName)
			r.rest(e, steps[i+1:], l)
			return
		}
		record = f.Type
	}
	r.wholeRecord(e, base, name, full, root, record)
}

// wholeRecord reports a path that ends at a record.
func (r *resolver) wholeRecord(e, base celast.Expr, name, full string, root *Root, record *codec.Node) {
	names := record.FieldNames()
	for i := range names {
		names[i] = join(full, names[i])
	}
	hint := "name a field: " + listed(names, 4)
	if r.env.hiddenField(name, root) != nil && full == name {
		hint = fmt.Sprintf("for the field %s of the event, write event.%s", name, name)
	}
	r.fail(r.offset(base.ID()), hint, "%s is a whole record (%s), not a value", full, record.Name)
	r.bad(e)
}

// root returns the root that a name refers to. field is the name if it is a field
// at top level, and "" if it is the name of the root.
func (r *resolver) root(name string) (_ *Root, field string) {
	if event := r.env.event(); event != nil && name == eventName {
		return event, ""
	}
	var top *Root
	for i := range r.env.roots {
		root := &r.env.roots[i]
		if root.Name == name && name != "" {
			return root, ""
		}
		if root.Name == "" && root.Schema.Root().Field(name) != nil {
			top = root
		}
	}
	if record := r.env.record; top == nil && record != nil && record.Schema.Root().Field(name) != nil {
		top = record
	}
	if top != nil {
		return top, name
	}
	return nil, ""
}

// leaf replaces the expression by the identifier of the field, or by its value if
// that is known and read is not set.
func (r *resolver) leaf(e celast.Expr, l *leaf, read bool) {
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
	if l.known != nil && !read {
		if !slices.Contains(r.relied, l) {
			r.relied = append(r.relied, l)
		}
		e.SetKindCase(r.make.NewLiteral(e.ID(), types.String(*l.known)))
		r.known[e.ID()] = true
		return
	}
	if e.Kind() == celast.SelectKind {
		// Errors about the field point at the start of its path.
		if o, ok := r.info.GetOffsetRange(e.ID()); ok {
			start := int32(r.start(e))
			r.info.SetOffsetRange(e.ID(), celast.OffsetRange{Start: start, Stop: max(o.Stop, start)})
		}
	}
	e.SetKindCase(r.make.NewIdent(e.ID(), fieldMark+l.path))
}

// rest reports a selection from the value of a field that is not a map or a
// record. CEL's own message for it would be unclear.
func (r *resolver) rest(e celast.Expr, steps []celast.Expr, l *leaf) {
	if len(steps) == 0 {
		return
	}
	n := l.node
	n = n.NotNull()
	switch kindOf(n) {
	case types.MapKind, types.StructKind, types.DynKind:
		return
	case types.ListKind:
		r.fail(r.fieldOffset(steps[0]), fmt.Sprintf("use one item, %s[0], or a macro, %s.exists(x, ...)", l.path, l.path),
			"%s is a list, which has no fields", l.path)
	default:
		r.fail(r.fieldOffset(steps[0]), "", "%s is %s, which has no fields", l.path, wording.Article(celWord(r.env.records.celType(n))))
	}
	r.bad(e)
}

// start returns the offset of the start of a path.
func (r *resolver) start(e celast.Expr) int {
	for e.Kind() == celast.SelectKind {
		e = e.AsSelect().Operand()
	}
	return r.offset(e.ID())
}

// fieldOffset returns the offset of the last name of a path. CEL records the
// offset of the dot.
func (r *resolver) fieldOffset(e celast.Expr) int {
	at := r.offset(e.ID())
	if e.Kind() != celast.SelectKind {
		return at
	}
	if e.AsSelect().IsTestOnly() { // CEL records only the offset of has(
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

// unknownName reports a name that is not a field, with the best hint available.
func (r *resolver) unknownName(e celast.Expr, name string) {
	var names []string
	var top *Root
	for i := range r.env.roots {
		if root := &r.env.roots[i]; root.Name == "" {
			top = root
			names = append(names, root.Schema.Root().FieldNames()...)
		} else {
			names = append(names, root.Name)
		}
	}
	names = append(names, r.locals...)
	if escape.Reserved(name) {
		r.fail(r.offset(e.ID()), "", "%s is a reserved word", name)
		return
	}
	hint := wording.Nearest(name, names)
	if top != nil && top.Key == nil && metadata.IsName(name) {
		r.fail(r.offset(e.ID()), "the key and the headers are those of the record of an event, and are not known here", "there is no %s here", name)
		return
	}
	var below []string // fields of that name inside records
	for path := range r.env.leaves {
		if strings.HasSuffix(path, "."+name) {
			below = append(below, path)
		}
	}
	if slices.Sort(below); len(below) > 0 {
		hint = fmt.Sprintf("did you mean %q?", below[0])
	}
	if hint == "" && r.text && strings.TrimSpace(string(r.src)) == name {
		hint = fmt.Sprintf("for the string %s, write '%s'", name, name)
	}
	if hint == "" && r.env.globals[name] {
		hint = fmt.Sprintf("%s is a function: %s(...)", name, name)
	}
	if hint == "" && len(names) <= 12 {
		hint = "available names: " + wording.List(names, 12)
	}
	if top != nil && len(r.env.roots) == 1 {
		r.fail(r.offset(e.ID()), hint, "%s has no field %s", top.Schema.Name(), name)
		return
	}
	r.fail(r.offset(e.ID()), hint, "there is no %s here", name)
}

// call resolves a call of an operator or a function.
func (r *resolver) call(e celast.Expr) {
	c := e.AsCall()
	name, args := c.FunctionName(), c.Args()
	switch {
	case name == operators.LogicalAnd && len(args) == 2:
		r.junction(e, args, types.False)
	case name == operators.LogicalOr && len(args) == 2:
		r.junction(e, args, types.True)
	case name == operators.Conditional && len(args) == 3:
		r.conditional(e, args)
	case (name == operators.Equals || name == operators.NotEquals) && len(args) == 2 && (isNullLiteral(args[0]) || isNullLiteral(args[1])):
		r.nullComparison(e, args, name == operators.NotEquals)
	case name == "now" && !c.IsMemberFunction():
		r.now(e)
	default:
		for _, arg := range args {
			r.walk(arg)
		}
		if c.IsMemberFunction() {
			r.memberCall(e)
		} else {
			r.globalCall(e)
		}
	}
}

// conditional resolves cond ? a : b. If cond follows from a known field, only the
// chosen result remains, and the other is not checked.
func (r *resolver) conditional(e celast.Expr, args []celast.Expr) {
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
}

// nullComparison resolves x == null, or x != null if not is set. It is constant for
// a field that cannot be null.
func (r *resolver) nullComparison(e celast.Expr, args []celast.Expr, not bool) {
	operand := args[0]
	if isNullLiteral(operand) {
		operand = args[1]
	}
	r.walk(operand)
	if l := r.leafOf(operand); l != nil && !l.node.HoldsNull() {
		e.SetKindCase(r.make.NewLiteral(e.ID(), types.Bool(not)))
		return
	}
	if not {
		e.SetKindCase(r.make.NewCall(e.ID(), operators.LogicalNot, r.make.NewCall(r.id(e.ID()), isNull, operand)))
	} else {
		e.SetKindCase(r.make.NewCall(e.ID(), isNull, operand))
	}
}

// now resolves a call of now().
func (r *resolver) now(e celast.Expr) {
	start := r.callOffset(e, "now")
	switch {
	case len(e.AsCall().Args()) > 0:
		r.fail(start, "", "now() takes no arguments")
		r.bad(e)
	case r.env.Clock == nil:
		r.fail(start, "use a time field of the event", "now() is not available here: the result must depend on the events alone")
		r.bad(e)
	default:
		r.info.SetOffsetRange(e.ID(), celast.OffsetRange{Start: int32(start), Stop: int32(start)})
		e.SetKindCase(r.make.NewIdent(e.ID(), nowName))
	}
}

// memberCall resolves x.f(...), whose arguments are resolved already, and also
// math.f(...), which CEL parses in the same way.
func (r *resolver) memberCall(e celast.Expr) {
	name, target := e.AsCall().FunctionName(), e.AsCall().Target()
	if prefix, ok := qualified(target); ok && r.env.globals[prefix+"."+name] {
		return // math.abs(x): the target is not a value
	} else if ok && r.namespace(prefix) && !r.isField(prefix) {
		r.fail(r.callOffset(e, name), wording.Nearest(prefix+"."+name, functionNames(r.env.globals)), "there is no function %s.%s", prefix, name)
		r.bad(e)
		return
	}
	r.walk(target)
	if !r.env.members[name] {
		hint := cmp.Or(wording.Foreign(name), wording.Nearest(name, functionNames(r.env.members)))
		if r.env.globals[name] {
			hint = fmt.Sprintf("write %s(x), not x.%s()", name, name)
		}
		r.fail(r.callOffset(e, name), hint, "there is no method %s", name)
		r.bad(e)
		return
	}
	r.fold(e)
}

// globalCall resolves f(...), whose arguments are resolved already.
func (r *resolver) globalCall(e celast.Expr) {
	name := e.AsCall().FunctionName()
	if !r.env.globals[name] {
		hint := wording.Nearest(name, append(functionNames(r.env.globals), "now", "has"))
		if r.env.members[name] {
			hint = fmt.Sprintf("write x.%s(...), not %s(x, ...)", name, name)
			if r.env.globals["math."+name] {
				hint = fmt.Sprintf("write math.%s(x) for a double, x.%s(2, 'half_up') for a decimal", name, name)
			}
		} else if hint == "" || wording.Foreign(name) != "" {
			hint = cmp.Or(wording.Foreign(name), wording.Nearest(name, functionNames(r.env.members)))
		}
		r.fail(r.callOffset(e, name), hint, "there is no function %s", name)
		r.bad(e)
		return
	}
	r.fold(e)
}

// isField reports whether a name is a variable or a field at top level.
func (r *resolver) isField(name string) bool {
	if slices.Contains(r.locals, name) {
		return true
	}
	root, _ := r.root(name)
	return root != nil
}

// namespace reports whether the names of functions start with the name and a dot.
func (r *resolver) namespace(name string) bool {
	for f := range r.env.globals {
		if strings.HasPrefix(f, name+".") {
			return true
		}
	}
	return false
}

// junction resolves a && b (decides is False) or a || b (decides is True). If one
// side is known to have the value decides, the other side is removed, together with
// its faults.
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

// replace replaces e by one of its parts.
func (r *resolver) replace(e, by celast.Expr) {
	r.known[e.ID()] = r.known[by.ID()]
	if o, ok := r.info.GetOffsetRange(by.ID()); ok {
		r.info.SetOffsetRange(e.ID(), o)
	}
	e.SetKindCase(by)
}

// fold evaluates a call whose arguments are literals, if at least one of them comes
// from a known field.
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
		return // the check of the whole expression reports it with its position
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

// callOffset returns the offset of the name of the called function. CEL records the
// offset of the parenthesis, or of the dot before the name.
func (r *resolver) callOffset(e celast.Expr, name string) int {
	return r.nameBefore(r.offset(e.ID()), name)
}

// nameBefore returns the offset of the name that ends at or near an offset.
func (r *resolver) nameBefore(at int, name string) int {
	if dot := strings.LastIndexByte(name, '.'); dot >= 0 {
		name = name[dot+1:]
	}
	if at+len(name) < len(r.src) { // at may be the offset of the dot before the name
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

// leafOf returns the field that e refers to, or nil.
func (r *resolver) leafOf(e celast.Expr) *leaf {
	if e.Kind() != celast.IdentKind || !strings.HasPrefix(e.AsIdent(), fieldMark) {
		return nil
	}
	return r.env.leaves[e.AsIdent()[len(fieldMark):]]
}

func isNullLiteral(e celast.Expr) bool {
	return e.Kind() == celast.LiteralKind && e.AsLiteral() == types.NullValue
}

// qualified returns the text of a path such as a.b.c. ok is false for other
// expressions.
func qualified(e celast.Expr) (path string, ok bool) {
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
