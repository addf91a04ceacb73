package expr

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/common/types"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/wording"
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
	conversion   = regexp.MustCompile(`^type conversion error from '(.*)' to '(.*)'$`)
	noneSuch     = regexp.MustCompile(`^no such overload: (.*)$`)
)

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
	{noSelection, func(_ *explainer, e *Error, m []string) {
		e.Msg = wording.Article(wording.Type(m[1])) + " has no fields"
	}},
	{noRange, func(_ *explainer, e *Error, m []string) {
		e.Msg = fmt.Sprintf("a macro needs a list or a map, but this is %s", wording.Article(wording.Type(m[1])))
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
		e := &Error{Offset: wording.Offset(src, found), Msg: found.Message}
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
		e.Hint = wording.Nearest(field, record.FieldNames())
		x.misses = slices.Delete(x.misses, i, i+1)
	}
}

func (x *explainer) noOverload(e *Error, m []string) {
	e.Msg, e.Hint = wording.Mismatch(m[1], m[2], func(member bool) string { return x.resolver.usage(m[1], member) })
	if hint := x.resolver.mixHint(x.id, m[1], m[2]); hint != "" {
		e.Hint = hint
	}
	if wording.Sign(m[1]) == "" {
		e.Offset = x.resolver.nameBefore(e.Offset, m[1])
	}
}

func (x *explainer) expectedType(e *Error, m []string) {
	want, got := wording.Type(m[1]), wording.Type(m[2])
	e.Msg = fmt.Sprintf("this is %s, but %s is needed here", wording.Article(got), wording.Article(want))
	e.Hint = wording.NumberHint(want, got)
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

// celWord returns the name of a CEL type in messages: "string", "list of int",
// "shop.Item".
func celWord(t *types.Type) string { return wording.Type(checker.FormatCELType(t)) }

// avroWord returns the name of an Avro type in messages, with an article.
func avroWord(n *codec.Node) string {
	if other, _, _, ok := n.Nullable(); ok {
		return avroWord(other)
	}
	switch n.Kind {
	case codec.Boolean:
		return "a bool"
	case codec.Enum:
		return fmt.Sprintf("an enum (%s)", wording.List(n.Symbols, 4))
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
	return wording.Article(n.String())
}

// plain rewrites an error of the interpreter.
func plain(err error) error {
	if m := conversion.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("this %s cannot be converted to %s", wording.Type(m[1]), wording.Article(wording.Type(m[2])))
	}
	if m := noneSuch.FindStringSubmatch(err.Error()); m != nil {
		name, _, _ := strings.Cut(m[1], "(")
		if sign := wording.Sign(name); sign != "" {
			name = sign
		}
		return fmt.Errorf("%s has an argument that is null or of the wrong type", name)
	}
	return err
}
