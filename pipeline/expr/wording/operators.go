package wording

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/operators"
)

// signs maps the functions of operators to their signs.
var signs = map[string]string{
	operators.Equals: "==", operators.NotEquals: "!=", operators.Less: "<", operators.LessEquals: "<=",
	operators.Greater: ">", operators.GreaterEquals: ">=", operators.Add: "+", operators.Subtract: "-",
	operators.Multiply: "*", operators.Divide: "/", operators.Modulo: "%", operators.LogicalNot: "!",
	operators.Negate: "-", operators.In: "in", operators.Index: "[ ]", operators.Conditional: "? :",
}

// Sign returns the sign of an operator, "" for other functions.
func Sign(function string) string { return signs[function] }

// Mismatch returns the message for a call whose argument types match no overload.
// The signature is in CEL's format: "(string, int)", or "string.(int)" for a call on
// a value.
func Mismatch(function, signature string, usage func(member bool) string) (msg, hint string) {
	target, list, member := strings.Cut(strings.TrimSuffix(signature, ")"), ".(")
	if !member {
		target, list = "", strings.TrimPrefix(target, "(")
	}
	var args []string
	for _, a := range Split(list) {
		args = append(args, Type(a))
	}
	sign := Sign(function)
	switch {
	case function == operators.Conditional && len(args) == 3 && args[0] != "bool":
		return fmt.Sprintf("the condition before ? must be a bool, but it is %s", Article(args[0])), ""
	case function == operators.Conditional && len(args) == 3:
		return fmt.Sprintf("the two results of ? : are of different types: %s and %s", args[1], args[2]), NumberHint(args[1], args[2])
	case function == operators.In && len(args) == 2:
		if !strings.HasPrefix(args[1], "list") && !strings.HasPrefix(args[1], "map") {
			return fmt.Sprintf("in needs a list or a map on its right, but this is %s", Article(args[1])), ""
		}
		return fmt.Sprintf("%s cannot be in %s", Article(args[0]), Article(args[1])), ""
	case function == operators.Index && len(args) == 2:
		switch {
		case strings.HasPrefix(args[0], "list"):
			hint = "the index must be an int: list[0] is the first item"
		case strings.HasPrefix(args[0], "map"):
			hint = "the key must be a string: map['key']"
		}
		return fmt.Sprintf("%s cannot be indexed by %s", Article(args[0]), Article(args[1])), hint
	case (function == operators.LogicalNot || function == operators.Negate) && len(args) == 1:
		return fmt.Sprintf("%s cannot be applied to %s", sign, Article(args[0])), ""
	case slices.Contains([]string{"==", "!=", "<", "<=", ">", ">="}, sign) && len(args) == 2:
		if args[0] == args[1] {
			return fmt.Sprintf("%s does not compare values of type %s", sign, args[0]), ""
		}
		return fmt.Sprintf("cannot compare %s with %s", Article(args[0]), Article(args[1])), NumberHint(args[0], args[1])
	case sign != "" && len(args) == 2:
		hint = NumberHint(args[0], args[1])
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
		return fmt.Sprintf("%s cannot be applied to %s and %s", sign, Article(args[0]), Article(args[1])), hint
	}
	given := strings.Join(args, ", ")
	if target == "" {
		return fmt.Sprintf("%s does not accept (%s)", Function(function), given), usage(false)
	}
	msg = fmt.Sprintf("%s cannot be called on %s", function, Article(Type(target)))
	if given != "" {
		msg += " with (" + given + ")"
	}
	return msg, usage(true)
}

// NumberHint returns a hint for an operator that mixes two types, or "".
func NumberHint(a, b string) string {
	if a == "int" && b == "double" || a == "double" && b == "int" {
		return "write a whole number as 2.0, or use double(x)"
	}
	return timeHint(a, b)
}

// timeHint returns a hint for an operator that mixes a time or a duration with a number,
// or "".
func timeHint(a, b string) string {
	isTime := func(word string) bool { return word == "timestamp" || word == "duration" }
	if a == "timestamp" && b == "string" || a == "string" && b == "timestamp" {
		return "write a time as timestamp('2026-01-31T00:00:00Z')"
	}
	if a == "duration" && b == "string" || a == "string" && b == "duration" {
		return "write a duration as duration('1h')"
	}
	isNumber := func(word string) bool { return word == "int" || word == "double" }
	if isTime(a) && isNumber(b) || isNumber(a) && isTime(b) {
		return "write a duration as duration('1h'), and a time as timestamp('2026-01-31T12:00:00Z')"
	}
	return ""
}

// Function returns the name of the macro that calls an internal function, and other
// names unchanged.
func Function(name string) string {
	return strings.Replace(strings.Replace(name, "math.@max", "math.greatest", 1), "math.@min", "math.least", 1)
}
