package expr

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline/codec"
)

// CEL's messages use its internal terms. This file rewrites them as messages about
// the expression. A message without a rule stays unchanged. The golden files of
// TestMessages list the frequent messages.

var (
	undefined    = regexp.MustCompile(`^undefined field '(.*)'$`)
	noOverload   = regexp.MustCompile(`^found no matching overload for '([^']*)' applied to '(.*)'$`)
	expectedType = regexp.MustCompile(`^expected type '(.*)' but found '(.*)'$`)
	noSelection  = regexp.MustCompile(`^type '(.*)' does not support field selection$`)
	noRange      = regexp.MustCompile(`^expression of type '(.*)' cannot be range of a comprehension`)
	badLiteral   = regexp.MustCompile(`^invalid (\w+) argument$`)
	tooManyLoops = regexp.MustCompile(`comprehension exceeds nesting limit`)
	atInput      = regexp.MustCompile(`^Syntax error: (?:mismatched|extraneous) input '(.*)' expecting`)
	greatest     = regexp.MustCompile(`^(math\.(?:greatest|least))\(\)`)
	conversion   = regexp.MustCompile(`^type conversion error from '(.*)' to '(.*)'$`)
	noneSuch     = regexp.MustCompile(`^no such overload: (.*)$`)
	reserved     = regexp.MustCompile(`reserved identifier: (\w+)$`)
)

// syntax reports the first fault that the parser found. It drops the others,
// because they are usually consequences of the first.
func syntax(src string, issues *cel.Issues) Errors {
	text := []rune(src)
	if strings.TrimSpace(src) == "" {
		return Errors{{Msg: "the expression is empty"}}
	}
	all := issues.Errors()
	// The first by position: the parser reports an invalid token before any fault
	// to the left of it.
	first := slices.MinFunc(all, func(a, b *common.Error) int { return offsetIn(src, a) - offsetIn(src, b) })
	for _, e := range all {
		if strings.Contains(e.Message, "limit") {
			first = e
		}
	}
	e := &Error{Offset: offsetIn(src, first)}
	msg := first.Message
	switch {
	case strings.Contains(msg, "code point size"):
		e.Msg = fmt.Sprintf("the expression is longer than %d characters", maxRunes)
	case strings.Contains(msg, "recursion"):
		e.Msg = fmt.Sprintf("nested more than %d deep", maxDepth)
	case strings.Contains(msg, "'<EOF>'") || e.Offset >= len(text):
		e.Offset = len(text)
		e.Msg = "the expression ends too early"
		if open := unclosed(text); open >= 0 {
			e.Hint = fmt.Sprintf("the %c at character %d is not closed", text[open], open+1)
		} else if strings.Contains(src, "?") && !strings.Contains(src, ":") {
			e.Hint = "write CONDITION ? A : B"
		}
	case reserved.MatchString(msg):
		e.Msg = reserved.FindStringSubmatch(msg)[1] + " is a reserved word"
	case strings.Contains(msg, "argument must be a simple name"):
		e.Msg, e.Hint = "the first argument of a macro must be the name of a variable", "write x.exists(item, ...)"
	case strings.Contains(msg, "invalid argument to has() macro"):
		e.Msg, e.Hint = "has needs a path with a dot: has(a.b)", "for a field at top level, write x != null"
	case greatest.MatchString(msg):
		e.Msg = greatest.FindStringSubmatch(msg)[1] + " needs numbers or a list of numbers"
	case strings.Contains(msg, "int literal") || strings.Contains(msg, "double literal"):
		e.Msg = "this number is out of range"
	default:
		e.Msg, e.Hint = unexpected(text, e.Offset, msg)
	}
	return Errors{e}
}

// unexpected explains the token at which the parser stopped.
func unexpected(text []rune, at int, msg string) (what, hint string) {
	token := tokenAt(text, at)
	if m := atInput.FindStringSubmatch(msg); m != nil {
		token = m[1]
	}
	if token == "'" || token == `"` {
		if slices.Contains(text[at+1:], text[at]) {
			return "this string has an unknown escape", `write \\ for a backslash`
		}
		return "the string is not closed", "add a " + token + " at its end"
	}
	before := strings.Fields(string(text[:at]))
	switch strings.ToLower(token) {
	case "=":
		hint = "to compare, write =="
	case "and", "&":
		hint = "write &&"
	case "or", "|":
		hint = "write ||"
	case "“", "”", "‘", "’":
		hint = "quotes are ' or \""
	default:
		if token != "" && (strings.Contains("\"'_", token[:1]) || word(rune(token[0]))) {
			hint = "an operator or a comma is missing before it"
		}
		if len(before) > 0 && strings.ToLower(before[len(before)-1]) == "not" {
			hint = "write ! instead of not"
		}
	}
	return "unexpected " + token, hint
}

// offsetIn converts the line and column of a CEL error to a rune offset.
func offsetIn(src string, e *common.Error) int {
	line, at := 1, 0
	for _, c := range src {
		if line >= e.Location.Line() {
			break
		}
		at++
		if c == '\n' {
			line++
		}
	}
	return max(0, at+e.Location.Column())
}

func word(c rune) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func tokenAt(text []rune, at int) string {
	end := at
	for end < len(text) && word(text[end]) {
		end++
	}
	if end == at && at < len(text) {
		end++
		if end < len(text) && text[end] == '=' {
			end++
		}
	}
	return string(text[at:end])
}

// unclosed returns the offset of the innermost bracket that is not closed.
func unclosed(text []rune) int {
	var open []int
	quote := rune(0)
	for i, c := range text {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case strings.ContainsRune("([{", c):
			open = append(open, i)
		case strings.ContainsRune(")]}", c) && len(open) > 0:
			open = open[:len(open)-1]
		}
	}
	if len(open) == 0 {
		return -1
	}
	return open[len(open)-1]
}

// A rule rewrites one kind of message of the type-checker.
type rule struct {
	message *regexp.Regexp
	rewrite func(x *explainer, e *Error, m []string) // m is the match of message
}

// explainer rewrites the messages of one expression.
type explainer struct {
	resolver *resolver
	misses   []miss // failed field lookups that no message used yet
	id       int64  // of the expression of the message
}

// rules are tried in order. TestEveryMessageOfTheTypeCheckerHasARule fails when an
// update of cel-go changes a message, so that its rule no longer matches.
var rules = []rule{
	{undefined, (*explainer).undefined},
	{noOverload, (*explainer).noOverload},
	{expectedType, (*explainer).expectedType},
	{noSelection, func(_ *explainer, e *Error, m []string) { e.Msg = article(typeWord(m[1])) + " has no fields" }},
	{noRange, func(_ *explainer, e *Error, m []string) {
		e.Msg = fmt.Sprintf("a macro needs a list or a map, but this is %s", article(typeWord(m[1])))
	}},
	{badLiteral, (*explainer).badLiteral},
	{tooManyLoops, func(_ *explainer, e *Error, _ []string) {
		e.Msg = fmt.Sprintf("macros nested more than %d deep", maxLoops)
	}},
}

// explain rewrites the faults that the type-checker found.
func (r *resolver) explain(issues *cel.Issues) Errors {
	var out Errors
	x := &explainer{resolver: r, misses: slices.Clone(r.env.records.misses)}
	src := string(r.src)
	for _, found := range issues.Errors() {
		e := &Error{Offset: offsetIn(src, found), Msg: found.Message}
		x.id = found.ExprID
		if rule, m := ruleFor(found.Message); rule != nil {
			rule.rewrite(x, e, m)
		}
		out = append(out, e)
	}
	return out
}

// ruleFor returns the rule for a message of the type-checker, nil if there is none.
func ruleFor(msg string) (*rule, []string) {
	for i := range rules {
		if m := rules[i].message.FindStringSubmatch(msg); m != nil {
			return &rules[i], m
		}
	}
	return nil, nil
}

func (x *explainer) undefined(e *Error, m []string) {
	field, src := m[1], x.resolver.src
	for e.Offset < len(src) && strings.ContainsRune(".? \t\n`", src[e.Offset]) {
		e.Offset++
	}
	e.Msg = "there is no field " + field
	if i := slices.IndexFunc(x.misses, func(m miss) bool { return m.field == field }); i >= 0 {
		record := x.misses[i].record
		e.Msg = fmt.Sprintf("%s has no field %s", record.Name, field)
		e.Hint = nearest(field, fieldNames(record))
		x.misses = slices.Delete(x.misses, i, i+1)
	}
}

func (x *explainer) noOverload(e *Error, m []string) {
	e.Msg, e.Hint = x.resolver.mismatch(m[1], m[2])
	e.Hint = orElse(x.resolver.mixHint(x.id, m[1], m[2]), e.Hint)
	if operatorSigns[m[1]] == "" {
		e.Offset = x.resolver.nameBefore(e.Offset, m[1])
	}
}

func (x *explainer) expectedType(e *Error, m []string) {
	want, got := typeWord(m[1]), typeWord(m[2])
	e.Msg = fmt.Sprintf("this is %s, but %s is needed here", article(got), article(want))
	e.Hint = numberHint(want, got)
}

func (x *explainer) badLiteral(e *Error, m []string) {
	switch m[1] {
	case "matches":
		e.Msg, e.Hint = "this is not a regular expression", "use RE2 syntax; in '...', write \\\\ for a backslash"
	case "timestamp":
		e.Msg, e.Hint = "this is not a timestamp", "use RFC 3339: '2026-01-31T12:00:00Z'"
	case "duration":
		e.Msg, e.Hint = "this is not a duration", "use numbers with units (h, m, s, ms, us, ns): '1h30m'"
	}
}

var operatorSigns = map[string]string{
	operators.Equals: "==", operators.NotEquals: "!=", operators.Less: "<", operators.LessEquals: "<=",
	operators.Greater: ">", operators.GreaterEquals: ">=", operators.Add: "+", operators.Subtract: "-",
	operators.Multiply: "*", operators.Divide: "/", operators.Modulo: "%", operators.LogicalNot: "!",
	operators.Negate: "-", operators.In: "in", operators.Index: "[ ]", operators.Conditional: "? :",
}

// mismatch returns the message for a call whose argument types match no overload.
// The signature is in CEL's format: "(string, int)", or "string.(int)" for a call on
// a value.
func (r *resolver) mismatch(function, signature string) (msg, hint string) {
	target, list, member := strings.Cut(strings.TrimSuffix(signature, ")"), ".(")
	if !member {
		target, list = "", strings.TrimPrefix(target, "(")
	}
	var args []string
	for _, a := range splitTop(list) {
		args = append(args, typeWord(a))
	}
	sign := operatorSigns[function]
	switch {
	case function == operators.Conditional && len(args) == 3 && args[0] != "bool":
		return fmt.Sprintf("the condition before ? must be a bool, but it is %s", article(args[0])), ""
	case function == operators.Conditional && len(args) == 3:
		return fmt.Sprintf("the two results of ? : are of different types: %s and %s", args[1], args[2]), numberHint(args[1], args[2])
	case function == operators.In && len(args) == 2:
		if !strings.HasPrefix(args[1], "list") && !strings.HasPrefix(args[1], "map") {
			return fmt.Sprintf("in needs a list or a map on its right, but this is %s", article(args[1])), ""
		}
		return fmt.Sprintf("%s cannot be in %s", article(args[0]), article(args[1])), ""
	case function == operators.Index && len(args) == 2:
		switch {
		case strings.HasPrefix(args[0], "list"):
			hint = "the index must be an int: list[0] is the first item"
		case strings.HasPrefix(args[0], "map"):
			hint = "the key must be a string: map['key']"
		}
		return fmt.Sprintf("%s cannot be indexed by %s", article(args[0]), article(args[1])), hint
	case (function == operators.LogicalNot || function == operators.Negate) && len(args) == 1:
		return fmt.Sprintf("%s cannot be applied to %s", sign, article(args[0])), ""
	case slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="}, sign) && len(args) == 2:
		if args[0] == args[1] {
			return fmt.Sprintf("%s does not compare values of type %s", sign, args[0]), ""
		}
		return fmt.Sprintf("cannot compare %s with %s", article(args[0]), article(args[1])), numberHint(args[0], args[1])
	case sign != "" && len(args) == 2:
		hint = numberHint(args[0], args[1])
		first, second := strings.HasPrefix(args[0], "list"), strings.HasPrefix(args[1], "list")
		switch {
		case sign == "+" && first && second:
			hint = "convert the items of one list with .map(x, ...)"
		case sign == "+" && (first || second):
			hint = "to add one item, write list + [item]"
		case hint == "" && sign == "+" && (args[0] == "string" || args[1] == "string"):
			hint = "convert the other value with string(x)"
		}
		if args[0] == args[1] {
			return fmt.Sprintf("%s cannot be applied to values of type %s", sign, args[0]), hint
		}
		return fmt.Sprintf("%s cannot be applied to %s and %s", sign, article(args[0]), article(args[1])), hint
	}
	given := strings.Join(args, ", ")
	if target == "" {
		return fmt.Sprintf("%s does not accept (%s)", publicName(function), given), r.usage(function, false)
	}
	msg = fmt.Sprintf("%s cannot be called on %s", function, article(typeWord(target)))
	if given != "" {
		msg += " with (" + given + ")"
	}
	return msg, r.usage(function, true)
}

// usage returns a hint with the signatures of a function: of the overloads that
// are called on a value (member), or of the others.
func (r *resolver) usage(function string, member bool) string {
	decl := r.env.cel.Functions()[function]
	if decl == nil {
		return ""
	}
	var forms []string
	for _, o := range decl.OverloadDecls() {
		if form := signature(function, o); o.IsMemberFunction() == member && !strings.Contains(form, "uint") {
			forms = append(forms, form)
		}
	}
	if len(forms) == 0 {
		return ""
	}
	if len(forms) > 4 {
		forms = append(forms[:4], "...")
	}
	return "use " + strings.Join(forms, " or ")
}

func numberHint(a, b string) string {
	if a == "int" && b == "double" || a == "double" && b == "int" {
		return "write a whole number as 2.0, or use double(x)"
	}
	return timeHint(a, b)
}

// splitTop splits a string at the commas outside parentheses.
func splitTop(s string) []string {
	var out []string
	depth, start := 0, 0
	for i, c := range s {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				out = append(out, strings.TrimSpace(s[start:i]))
				start = i + 1
			}
		}
	}
	if rest := strings.TrimSpace(s[start:]); rest != "" {
		out = append(out, rest)
	}
	return out
}

// celWord returns the name of a CEL type in messages: "string", "list of int",
// "shop.Item".
func celWord(t *types.Type) string { return typeWord(checker.FormatCELType(t)) }

// typeWord is celWord for a type in CEL's text format.
func typeWord(s string) string {
	name, params, ok := strings.Cut(s, "(")
	if !ok {
		switch s {
		case "dyn", "any":
			return "value of any type"
		case "google.protobuf.Timestamp":
			return "timestamp"
		case "google.protobuf.Duration":
			return "duration"
		}
		if len(s) == 1 { // a type parameter
			return "value"
		}
		return strings.TrimRight(s, "'")
	}
	args := splitTop(strings.TrimSuffix(params, ")"))
	for i := range args {
		args[i] = typeWord(args[i])
	}
	switch {
	case name == "list" && len(args) == 1:
		return "list of " + plural(args[0])
	case name == "map" && len(args) == 2:
		return "map of " + plural(args[1])
	case name == "wrapper" && len(args) == 1:
		return args[0]
	}
	return name
}

func plural(word string) string {
	if word == "value of any type" || word == "value" {
		return "values"
	}
	return word
}

// article returns the word with a or an before it.
func article(word string) string {
	switch {
	case word == "":
		return word
	case word == "null":
		return word
	case strings.Contains("aeio", word[:1]):
		return "an " + word
	}
	return "a " + word
}

// avroWord returns the name of an Avro type in messages, with an article.
func avroWord(n *codec.Node) string {
	if other, _, _, ok := n.Nullable(); ok {
		return avroWord(other)
	}
	switch n.Kind {
	case codec.Boolean:
		return "a bool"
	case codec.Enum:
		return fmt.Sprintf("an enum (%s)", listed(n.Symbols, 4))
	case codec.Record:
		return "a record (" + n.Name + ")"
	case codec.Fixed:
		if isDecimal(n) {
			return "a decimal"
		}
		return fmt.Sprintf("a fixed of %d bytes", n.Size)
	case codec.Bytes:
		if isDecimal(n) {
			return "a decimal"
		}
		return "a bytes"
	}
	switch kindOf(n) {
	case types.TimestampKind:
		return "a timestamp"
	case types.DurationKind:
		return "a time of day"
	}
	if n.Logical == "uuid" {
		return "a UUID"
	}
	return article(n.String())
}

// plain rewrites an error of the interpreter.
func plain(err error) error {
	if m := conversion.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("this %s cannot be converted to %s", typeWord(m[1]), article(typeWord(m[2])))
	}
	if m := noneSuch.FindStringSubmatch(err.Error()); m != nil {
		name, _, _ := strings.Cut(m[1], "(")
		if sign := operatorSigns[name]; sign != "" {
			name = sign
		}
		return fmt.Errorf("%s has an argument that is null or of the wrong type", name)
	}
	return err
}
