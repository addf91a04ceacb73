package codec

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A PathError says where in a value something is wrong, and what.
type PathError struct {
	Path string // as in data.items[2].price; empty for the value as a whole
	Msg  string // what was expected and what was found
}

func (e *PathError) Error() string {
	if e.Path == "" {
		return e.Msg
	}
	return e.Path + ": " + e.Msg
}

// under puts one more step before the path of a PathError: errors gather their
// path on the way out, so that the good case pays nothing for it.
func under(step string, err error) error {
	e, ok := err.(*PathError) // never wrapped on its way through this file
	if !ok {
		return err
	}
	switch {
	case e.Path == "":
		e.Path = step
	case e.Path[0] == '[':
		e.Path = step + e.Path
	default:
		e.Path = step + "." + e.Path
	}
	return e
}

func underIndex(i int, err error) error { return under("["+strconv.Itoa(i)+"]", err) }

// underKey is under for the key of a map, which may be any text.
func underKey(key string, err error) error {
	if key == "" || strings.ContainsAny(key, ".[]\"\\ ") || !printable(key) {
		key = "[" + quote(key) + "]"
	}
	return under(key, err)
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0
}

// quote quotes a text for a message, and shortens it.
func quote(s string) string {
	const most = 60
	if len(s) <= most {
		return strconv.Quote(s)
	}
	end := most
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return strconv.Quote(s[:end]) + "..."
}

// didYouMean returns `; did you mean "name"?` for the nearest of the names, if
// one is near.
func didYouMean(s string, names []string) string {
	best, least := "", len(s)/3+2
	for _, name := range names {
		if d := distance(strings.ToLower(s), strings.ToLower(name)); d < least {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + strconv.Quote(best) + "?"
}

// distance is the number of bytes to insert, drop, replace or swap with their
// neighbour to make a into b; for long texts a bound that is too large to matter.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	var before, last, row [65]int
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// expected is the error for a value that is not of the node's type.
func expected(n *Node, v any) error {
	return &PathError{Msg: "expected " + n.String() + ", found " + foundIn(n, v)}
}

// foundIn is found for a value of a field, which messages do not show if it is
// personal.
func foundIn(n *Node, v any) string {
	if n.Tag != "" && v != nil {
		return "something else (which is personal, and not shown)"
	}
	return found(v)
}

// found describes a JSON value for a message.
func found(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case string:
		return "string " + quote(v)
	case []any:
		return "array"
	case map[string]any:
		return "object"
	case []byte:
		return fmt.Sprintf("%d bytes", len(v))
	}
	if text, ok := numberText(v); ok {
		if len(text) > 60 {
			text = text[:60] + "..."
		}
		return "number " + text
	}
	return fmt.Sprintf("%T", v)
}

// numberText returns the text of a number: json.Number, or what a schema's
