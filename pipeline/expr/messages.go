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

// CEL's messages are written for those who know how CEL works inside. Here they
// become sentences about the expression. A message that has no translation
// passes as it is; the golden test lists what people meet.

var (
	noOverload   = regexp.MustCompile(`^found no matching overload for '([^']*)' applied to '(.*)'$`)
	expectedType = regexp.MustCompile(`^expected type '(.*)' but found '(.*)'$`)
	noSelection  = regexp.MustCompile(`^type '(.*)' does not support field selection$`)
	noRange      = regexp.MustCompile(`^expression of type '(.*)' cannot be range of a comprehension`)
	badLiteral   = regexp.MustCompile(`^invalid (\w+) argument$`)
	atInput      = regexp.MustCompile(`^Syntax error: (?:mismatched|extraneous) input '(.*)' expecting`)
	greatest     = regexp.MustCompile(`^(math\.(?:greatest|least))\(\)`)
	conversion   = regexp.MustCompile(`^type conversion error from '(.*)' to '(.*)'$`)
	noneSuch     = regexp.MustCompile(`^no such overload: (.*)$`)
	reserved     = regexp.MustCompile(`reserved identifier: (\w+)$`)
)

// syntax turns the first fault that the parser found into a sentence; what the
// parser says after it is mostly guesses.
func syntax(src string, issues *cel.Issues) Errors {
	text := []rune(src)
	if strings.TrimSpace(src) == "" {
		return Errors{{Msg: "the expression is empty"}}
	}
	all := issues.Errors()
	// The first in the text, not the first found: a bad token is found before
	// anything else.
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
			e.Hint = "a condition has two results: CONDITION ? ONE : OTHER"
		}
	case reserved.MatchString(msg):
		e.Msg = reserved.FindStringSubmatch(msg)[1] + " is a reserved word"
	case strings.Contains(msg, "argument must be a simple name"):
		e.Msg, e.Hint = "the first argument of a macro is a name for each item", "x.exists(item, ...)"
	case strings.Contains(msg, "invalid argument to has() macro"):
		e.Msg, e.Hint = "has takes a path with a dot: has(a.b)", "of a field at top level, ask x != null"
	case greatest.MatchString(msg):
		e.Msg = greatest.FindStringSubmatch(msg)[1] + " takes numbers, or a list of numbers"
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
			return "this text has an escape that is not known", `write \\ for a backslash`
		}
		return "the text is not closed", "add a " + token + " at its end"
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
			hint = "something is missing before it: an operator, or a comma"
		}
		if len(before) > 0 && strings.ToLower(before[len(before)-1]) == "not" {
			hint = "for not, write !"
		}
	}
	return "unexpected " + token, hint
}

// offsetIn returns the rune offset of CEL's line and column.
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

// explain turns what the type-checker found into sentences.
func (r *resolver) explain(issues *cel.Issues) Errors {
	var out Errors
	misses := r.env.records.misses
	src := string(r.src)
	for _, found := range issues.Errors() {
		e := &Error{Offset: offsetIn(src, found), Msg: found.Message}
		if field, ok := strings.CutPrefix(found.Message, "undefined field '"); ok {
			field = strings.TrimSuffix(field, "'")
			for e.Offset < len(r.src) && strings.ContainsRune(".? \t\n`", r.src[e.Offset]) {
				e.Offset++
			}
			e.Msg = "there is no field " + field
			if i := slices.IndexFunc(misses, func(m miss) bool { return m.field == field }); i >= 0 {
				record := misses[i].record
				e.Msg = fmt.Sprintf("%s has no field %s", record.Name, field)
				e.Hint = nearest(field, fieldNames(record))
				misses = slices.Delete(slices.Clone(misses), i, i+1)
			}
		} else if m := noOverload.FindStringSubmatch(found.Message); m != nil {
			e.Msg, e.Hint = r.mismatch(m[1], m[2])
			if operatorSigns[m[1]] == "" {
				e.Offset = r.nameBefore(e.Offset, m[1])
			}
		} else if m := expectedType.FindStringSubmatch(found.Message); m != nil {
			want, got := typeWord(m[1]), typeWord(m[2])
			e.Msg = fmt.Sprintf("this is %s, but %s is needed here", article(got), article(want))
			e.Hint = numberHint(want, got)
		} else if m := noSelection.FindStringSubmatch(found.Message); m != nil {
			e.Msg = article(typeWord(m[1])) + " has no fields"
		} else if m := noRange.FindStringSubmatch(found.Message); m != nil {
			e.Msg = fmt.Sprintf("this goes through a list or a map, but %s is neither", article(typeWord(m[1])))
		} else if m := badLiteral.FindStringSubmatch(found.Message); m != nil {
			switch m[1] {
			case "matches":
				e.Msg, e.Hint = "this is not a regular expression", "RE2 syntax; a backslash in '...' is written \\\\"
			case "timestamp":
				e.Msg, e.Hint = "this is not a time", "RFC 3339: '2026-01-31T12:00:00Z'"
			case "duration":
				e.Msg, e.Hint = "this is not a duration", "numbers with units (h, m, s, ms, us, ns): '1h30m'"
			}
		} else if strings.Contains(found.Message, "comprehension exceeds nesting limit") {
			e.Msg = fmt.Sprintf("macros nested more than %d deep", maxLoops)
		}
		out = append(out, e)
	}
	return out
}

var operatorSigns = map[string]string{
	operators.Equals: "==", operators.NotEquals: "!=", operators.Less: "<", operators.LessEquals: "<=",
	operators.Greater: ">", operators.GreaterEquals: ">=", operators.Add: "+", operators.Subtract: "-",
	operators.Multiply: "*", operators.Divide: "/", operators.Modulo: "%", operators.LogicalNot: "!",
	operators.Negate: "-", operators.In: "in", operators.Index: "[ ]", operators.Conditional: "? :",
}

// mismatch says why a function does not take what it is given. The signature is
// CEL's: "(string, int)", or "string.(int)" for a call on a value.
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
		return fmt.Sprintf("the condition before ? has to be a bool, but it is %s", article(args[0])), ""
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
			hint = "the place of an item is a whole number: list[0] is the first"
		case strings.HasPrefix(args[0], "map"):
			hint = "the keys are strings: map['key']"
		}
		return fmt.Sprintf("%s cannot be looked up by %s", article(args[0]), article(args[1])), hint
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
			hint = "make the items of one like those of the other with .map(x, ...)"
		case sign == "+" && (first || second):
			hint = "put an item into a list of its own: list + [item]"
		case hint == "" && sign == "+" && (args[0] == "string" || args[1] == "string"):
			hint = "make a string of the other with string(x)"
		}
		if args[0] == args[1] {
			return fmt.Sprintf("%s cannot be applied to values of type %s", sign, args[0]), hint
		}
		return fmt.Sprintf("%s cannot be applied to %s and %s", sign, article(args[0]), article(args[1])), hint
	}
	given := strings.Join(args, ", ")
	if target == "" {
		return fmt.Sprintf("%s does not take (%s)", function, given), r.usage(function, false)
	}
	msg = fmt.Sprintf("%s cannot be called on %s", function, article(typeWord(target)))
	if given != "" {
		msg += " with (" + given + ")"
	}
	return msg, r.usage(function, true)
}

// usage lists how a function can be called: on a value, or not.
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
	return "it is " + strings.Join(forms, " or ")
}

func numberHint(a, b string) string {
	if a == "int" && b == "double" || a == "double" && b == "int" {
		return "write a whole number as 2.0, or use double(x)"
	}
	return timeHint(a, b)
}

// splitTop splits at the commas that are not inside parentheses.
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

// celWord returns a CEL type as a word: "string", "list of int", "shop.Item".
func celWord(t *types.Type) string { return typeWord(checker.FormatCELType(t)) }

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

// article puts a or an before a word.
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

// avroWord returns what a field of type n takes, as a person would say it.
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
		return fmt.Sprintf("a fixed of %d bytes", n.Size)
	case codec.Bytes:
		if n.Logical == "decimal" {
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

// plain makes a sentence of what the interpreter says when it fails.
func plain(err error) error {
	if m := conversion.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("this %s cannot become %s", typeWord(m[1]), article(typeWord(m[2])))
	}
	if m := noneSuch.FindStringSubmatch(err.Error()); m != nil {
		name, _, _ := strings.Cut(m[1], "(")
		if sign := operatorSigns[name]; sign != "" {
			name = sign
		}
		return fmt.Errorf("%s does not go with what it is given here: a value is null, or of another type", name)
	}
	return err
}
