package nulls

import (
	"slices"
	"strconv"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline/codec"
)

// Functions by what they do with null and with the items of a list.
var (
	acceptNull = []string{operators.Equals, operators.NotEquals, "dyn", "type"}
	sameItems  = []string{"slice", "sort", "distinct", "reverse", "@sortByAssociatedKeys", "without"}
	needItems  = []string{"sort", "sum", "join", "math.@max", "math.@min", "math.greatest", "math.least", "@sortByAssociatedKeys"}
)

const mapInsert = "cel.@mapInsert" // transformMap expands to it

// call returns the result of a function or an operator.
func (c *Checker) call(e celast.Expr, path string, known Facts) *value {
	call := e.AsCall()
	name, args := call.FunctionName(), operands(e)
	if slices.Contains(c.names.Same, name) {
		return c.eval(args[0], known)
	}
	switch name {
	case c.names.IsNull:
		c.eval(args[0], known)
		return &value{}
	case operators.LogicalAnd, operators.LogicalOr:
		for _, arg := range args {
			c.need(arg, c.eval(arg, known))
			known = c.Learn(known, arg, name == operators.LogicalAnd)
		}
		return &value{}
	case operators.Conditional:
		c.need(args[0], c.eval(args[0], known))
		return either(c.eval(args[1], c.Learn(known, args[0], true)), c.eval(args[2], c.Learn(known, args[0], false)))
	}
	values := make([]*value, len(args))
	for i, arg := range args {
		values[i] = c.eval(arg, known)
		if !slices.Contains(acceptNull, name) && !(name == operators.In && i == 0) && !(i > 0 && holder(name)) {
			c.need(arg, values[i])
		}
		if slices.Contains(needItems, name) {
			if item := items(values[i]); item != nil && item.null {
				c.find(arg, item, false)
			}
		}
	}
	return c.returned(e, name, path, args, values, known)
}

// holder reports whether a function puts its arguments into a map.
func holder(name string) bool { return name == "with" || name == mapInsert }

// returned returns the result of a function for its arguments.
func (c *Checker) returned(e celast.Expr, name, path string, args []celast.Expr, values []*value, known Facts) *value {
	switch {
	case name == operators.Index:
		return c.index(e, values[0], args[1], path, known)
	case name == "dyn":
		return values[0]
	case name == "first" || name == "last":
		if item := items(values[0]); item != nil {
			return settled(item, path, known)
		}
	case name == operators.Add && len(values) == 2 && c.isList(e):
		a, b := items(values[0]), items(values[1])
		if a == nil || b == nil { // of an empty list
			return &value{path: path, elem: either(a, b)}
		}
		return &value{path: path, elem: either(a, b)}
	case slices.Contains(sameItems, name):
		return &value{path: path, elem: items(values[0])}
	case name == "with" && len(values) == 3, name == mapInsert && len(values) == 3:
		keys := append(slices.Clone(values[0].keys), literalText(args[1]))
		return &value{path: path, elem: either(items(values[0]), values[2]), keys: keys}
	case name == mapInsert && len(values) == 2:
		return &value{path: path, elem: either(items(values[0]), items(values[1]))}
	case name == "flatten":
		return &value{path: path, elem: flat(values[0])}
	}
	return &value{path: path}
}

// flat returns the items of a list of lists, at any depth.
func flat(v *value) *value {
	item := items(v)
	if item == nil {
		return nil
	}
	if below := items(item); below != nil {
		return either(item, flat(item))
	}
	return item
}

func (c *Checker) isList(e celast.Expr) bool {
	t := c.ast.GetType(e.ID())
	return t != nil && t.Kind() == types.ListKind
}

// index is of[key].
func (c *Checker) index(e celast.Expr, of *value, key celast.Expr, path string, known Facts) *value {
	if name := literalText(key); name != "" || key.Kind() == celast.LiteralKind && key.AsLiteral() == types.String("") {
		return c.member(e, of, name, path, known)
	}
	item := items(of)
	if item == nil {
		return &value{null: c.dynamic(e) && !known[path], path: path}
	}
	v := settled(item, path, known)
	if of.node != nil && of.node.Kind == codec.Map || of.node == nil && c.isMap(operands(e)[0]) {
		if !known[here+path] {
			c.find(e, v, true)
		}
	}
	return v
}

func (c *Checker) isMap(e celast.Expr) bool {
	t := c.ast.GetType(e.ID())
	return t != nil && t.Kind() == types.MapKind
}

// macro returns the result of a macro.
func (c *Checker) macro(m celast.ComprehensionExpr, known Facts) *value {
	over := c.eval(m.IterRange(), known)
	c.need(m.IterRange(), over)
	item := items(over)
	if item == nil {
		item = &value{}
	}
	names := []string{m.IterVar(), m.IterVar2(), m.AccuVar()}
	before := map[string]*value{}
	for _, name := range names {
		before[name] = c.vars[name]
	}
	defer func() {
		for _, name := range names {
			c.vars[name] = before[name]
		}
	}()
	for _, name := range names { // facts about outer variables of these names do not hold
		known = known.Without(name)
	}
	c.vars[m.AccuVar()] = c.eval(m.AccuInit(), known)
	isMap := c.isMap(m.IterRange())
	first, second := item, (*value)(nil)
	switch {
	case m.HasIterVar2():
		first, second = &value{}, item
	case isMap:
		first = &value{}
	}
	c.bind(m.IterVar(), first, &known)
	c.bind(m.IterVar2(), second, &known)
	if isMap && over.path != "" { // the map has the keys that the macro iterates over
		known = known.with(here + over.path + "[" + m.IterVar() + "]")
	}
	// The accumulator is the result of the step before, so the second pass knows it.
	c.quiet++
	c.vars[m.AccuVar()] = either(c.vars[m.AccuVar()], c.eval(m.LoopStep(), known))
	c.quiet--
	c.eval(m.LoopCondition(), known)
	c.vars[m.AccuVar()] = either(c.vars[m.AccuVar()], c.eval(m.LoopStep(), known))
	out := *c.eval(m.Result(), known)
	out.path = ""
	return &out
}

// bind sets a variable to an item of a list, and adds what is known about the item.
func (c *Checker) bind(name string, v *value, known *Facts) {
	if name == "" {
		return
	}
	if v == nil {
		v = &value{}
	}
	one := *v
	one.path = name
	c.vars[name] = &one
	*known = known.And(v.holds.at(name))
}

// Learn returns the facts that hold if the value of cond is outcome.
func (c *Checker) Learn(known Facts, cond celast.Expr, outcome bool) Facts {
	if cond.Kind() == celast.SelectKind && cond.AsSelect().IsTestOnly() {
		known = c.strict(known, cond)
		if path := c.path(cond.AsSelect().Operand()); outcome && path != "" {
			path += "." + cond.AsSelect().FieldName()
			c.quiet++
			of := c.eval(cond.AsSelect().Operand(), known)
			c.quiet--
			if of.node != nil && of.node.Kind == codec.Record {
				return known.with(path)
			}
			return known.with(here + path)
		}
		return known
	}
	if cond.Kind() != celast.CallKind {
		return known
	}
	args := operands(cond)
	switch name := cond.AsCall().FunctionName(); {
	case name == operators.LogicalNot:
		return c.Learn(known, args[0], !outcome)
	case name == operators.LogicalAnd || name == operators.LogicalOr:
		if outcome == (name == operators.LogicalAnd) {
			for _, arg := range args {
				known = c.Learn(known, arg, outcome)
			}
		}
		return known
	case name == operators.Conditional:
		return c.strict(known, args[0])
	case name == c.names.IsNull:
		known = c.strict(known, args[0])
		if !outcome {
			known = known.with(c.path(args[0]))
		}
		return known
	case name == operators.Equals && outcome, name == operators.NotEquals && !outcome:
		known = c.strict(known, cond)
		a, b := c.Null(args[0], known), c.Null(args[1], known)
		if !b {
			known = known.with(c.path(args[0]))
		}
		if !a {
			known = known.with(c.path(args[1]))
		}
		return known
	case name == operators.In && outcome:
		return c.learnIn(c.strict(known, cond), args[0], args[1])
	}
	return c.strict(known, cond)
}

// learnIn returns the facts that hold if x is in a list or a map.
func (c *Checker) learnIn(known Facts, x, in celast.Expr) Facts {
	c.quiet++
	defer func() { c.quiet-- }()
	of := c.eval(in, known)
	if c.isMap(in) {
		return known.with(c.path(x), here+c.entryPath(in, x))
	}
	if item := items(of); item != nil && !item.null {
		known = known.with(c.path(x))
	}
	return known
}

// strict returns the facts that hold after an expression was evaluated without an
// error, whatever its value.
func (c *Checker) strict(known Facts, e celast.Expr) Facts {
	switch e.Kind() {
	case celast.SelectKind:
		known = c.strict(known, e.AsSelect().Operand()).with(c.path(e.AsSelect().Operand()))
		if !e.AsSelect().IsTestOnly() && c.isMap(e.AsSelect().Operand()) {
			known = known.with(here + c.path(e))
		}
	case celast.CallKind:
		name, args := e.AsCall().FunctionName(), operands(e)
		switch name {
		case operators.LogicalAnd, operators.LogicalOr:
			return known
		case operators.Conditional:
			return c.strict(known, args[0]).with(c.path(args[0]))
		}
		for i, arg := range args {
			known = c.strict(known, arg)
			if name != c.names.IsNull && !slices.Contains(c.names.Same, name) && !slices.Contains(acceptNull, name) && !(name == operators.In && i == 0) && !holder(name) && arg.Kind() != celast.LiteralKind {
				known = known.with(c.path(arg))
			}
		}
		if name == operators.Index && c.isMap(args[0]) {
			known = known.with(here + c.path(e))
		}
	}
	return known
}

func operands(e celast.Expr) []celast.Expr {
	call := e.AsCall()
	if call.IsMemberFunction() {
		return append([]celast.Expr{call.Target()}, call.Args()...)
	}
	return call.Args()
}

// maxPath is the largest length of a path.
const maxPath = 300

// path returns the text of an expression without macros; "" for others. Equal texts
// have equal values.
func (c *Checker) path(e celast.Expr) string {
	text := c.text(e)
	if len(text) > maxPath {
		return ""
	}
	return text
}

func (c *Checker) text(e celast.Expr) string {
	switch e.Kind() {
	case celast.IdentKind:
		name := e.AsIdent()
		if c.vars[name] == nil {
			if _, path := c.names.Field(name); path != "" {
				return path
			}
		}
		if strings.HasPrefix(name, "@") {
			return ""
		}
		return name
	case celast.LiteralKind:
		if text, ok := e.AsLiteral().(types.String); ok {
			return "'" + strings.Trim(strconv.Quote(string(text)), `"`) + "'"
		}
		if v, ok := e.AsLiteral().ConvertToType(types.StringType).(types.String); ok {
			return string(v)
		}
	case celast.SelectKind:
		if of := c.text(e.AsSelect().Operand()); of != "" && !e.AsSelect().IsTestOnly() {
			return of + "." + e.AsSelect().FieldName()
		}
	case celast.CallKind:
		return c.callText(e)
	case celast.MapKind, celast.ListKind:
		return c.literal(e)
	}
	return ""
}

func (c *Checker) callText(e celast.Expr) string {
	name := e.AsCall().FunctionName()
	if name == operators.Index {
		return c.entryPath(operands(e)[0], operands(e)[1])
	}
	if slices.Contains(c.names.Same, name) || name == "dyn" {
		return c.text(operands(e)[0])
	}
	var texts []string
	for _, arg := range operands(e) {
		text := c.text(arg)
		if text == "" {
			return ""
		}
		texts = append(texts, text)
	}
	if e.AsCall().IsMemberFunction() {
		return texts[0] + "." + name + "(" + strings.Join(texts[1:], ", ") + ")"
	}
	if sign, ok := operators.FindReverse(name); ok && len(texts) == 2 {
		return "(" + texts[0] + " " + sign + " " + texts[1] + ")"
	}
	return name + "(" + strings.Join(texts, ", ") + ")"
}

// literal returns the text of a list or a map.
func (c *Checker) literal(e celast.Expr) string {
	var texts []string
	if e.Kind() == celast.ListKind {
		for _, item := range e.AsList().Elements() {
			texts = append(texts, c.text(item))
		}
	} else {
		for _, entry := range e.AsMap().Entries() {
			key, v := c.text(entry.AsMapEntry().Key()), c.text(entry.AsMapEntry().Value())
			if v == "" {
				key = ""
			}
			texts = append(texts, key)
			if key != "" {
				texts[len(texts)-1] += ": " + v
			}
		}
	}
	if slices.Contains(texts, "") {
		return ""
	}
	if e.Kind() == celast.ListKind {
		return "[" + strings.Join(texts, ", ") + "]"
	}
	return "{" + strings.Join(texts, ", ") + "}"
}

// entryPath is the path of of[key].
func (c *Checker) entryPath(of, key celast.Expr) string {
	path := c.text(of)
	if path == "" {
		return ""
	}
	if key.Kind() == celast.LiteralKind {
		if text, ok := key.AsLiteral().(types.String); ok {
			return path + "." + string(text)
		}
	}
	at := c.text(key)
	if at == "" {
		return ""
	}
	return path + "[" + at + "]"
}

// guard returns the condition that rules a finding out.
func (c *Checker) guard(e celast.Expr, v *value, entry bool) string {
	if !entry {
		if v.path == "" {
			return ""
		}
		return v.path + " != null"
	}
	switch e.Kind() {
	case celast.SelectKind:
		of, key := e.AsSelect().Operand(), e.AsSelect().FieldName()
		if path := c.text(of); path != "" {
			return "has(" + path + "." + key + ")"
		}
	case celast.CallKind:
		of, key := operands(e)[0], c.text(operands(e)[1])
		if path := c.text(of); path != "" && key != "" {
			return key + " in " + path
		}
	}
	return ""
}
