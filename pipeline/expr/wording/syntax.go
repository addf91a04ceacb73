package wording

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/common"
)

var (
	greatest = regexp.MustCompile(`^(math\.(?:greatest|least))\(\)`)
	reserved = regexp.MustCompile(`reserved identifier: (\w+)$`)
	atInput  = regexp.MustCompile(`^Syntax error: (?:mismatched|extraneous) input '(.*)' expecting`)
)

// Syntax explains the first fault that the parser found. It drops the others,
// because they are usually consequences of the first.
// words are the names that package escape replaced.
func Syntax(src string, words map[string]string, all []*common.Error, maxRunes, maxDepth int) (at int, what, hint string) {
	text := []rune(src)
	if strings.TrimSpace(src) == "" {
		return 0, "the expression is empty", ""
	}
	// The first by position: the parser reports an invalid token before any fault
	// to the left of it.
	first := slices.MinFunc(all, func(a, b *common.Error) int { return Offset(src, a) - Offset(src, b) })
	for _, e := range all {
		if strings.Contains(e.Message, "limit") {
			first = e
		}
	}
	at = Offset(src, first)
	msg := first.Message
	for mask, word := range words {
		msg = strings.ReplaceAll(msg, "'"+mask+"'", "'"+word+"'")
	}
	switch {
	case strings.Contains(msg, "code point size"):
		what = fmt.Sprintf("the expression is longer than %d characters", maxRunes)
	case strings.Contains(msg, "recursion"):
		what = fmt.Sprintf("nested more than %d deep", maxDepth)
	case strings.Contains(msg, "'<EOF>'") || at >= len(text):
		at = len(text)
		what = "the expression ends too early"
		if open := unclosed(text); open >= 0 {
			hint = fmt.Sprintf("the %c at character %d is not closed", text[open], open+1)
		} else if strings.Contains(src, "?") && !strings.Contains(src, ":") {
			hint = "write CONDITION ? A : B"
		}
	case reserved.MatchString(msg):
		what = reserved.FindStringSubmatch(msg)[1] + " is a reserved word"
	case strings.Contains(msg, "argument must be a simple name"):
		what, hint = "the first argument of a macro must be the name of a variable", "write x.exists(item, ...)"
	case strings.Contains(msg, "invalid argument to has() macro"):
		what, hint = "has needs a path with a dot: has(a.b)", "for a field at top level, write x != null"
	case greatest.MatchString(msg):
		what = greatest.FindStringSubmatch(msg)[1] + " needs numbers or a list of numbers"
	case strings.Contains(msg, "int literal"):
		what, hint = "this number is out of range", "write a larger whole number as decimal('...')"
	case strings.Contains(msg, "double literal"):
		what = "this number is out of range"
	default:
		what, hint = unexpected(text, at, msg)
	}
	return at, what, hint
}

// Offset converts the line and column of a CEL error to a rune offset.
func Offset(src string, e *common.Error) int {
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

func word(c rune) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
