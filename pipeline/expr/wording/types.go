package wording

import "strings"

// Type returns the name in messages of a type in CEL's text format: "string", "list of int".
func Type(s string) string {
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
	args := Split(strings.TrimSuffix(params, ")"))
	for i := range args {
		args[i] = Type(args[i])
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

// Split splits a string at the commas outside parentheses.
func Split(s string) []string {
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

func plural(word string) string {
	if word == "value of any type" || word == "value" {
		return "values"
	}
	return word
}

// Article returns the word with a or an before it.
func Article(word string) string {
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
