package codec

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A PathError is an error at one place in a JSON or Avro value.
type PathError struct {
	Path string // as in data.items[2].price; "" for the whole value
	Msg  string // the expected and the actual value
}

func (e *PathError) Error() string {
	if e.Path == "" {
		return e.Msg
	}
	return e.Path + ": " + e.Msg
}

// under prepends a step to the path of a PathError. An error collects its path on the
// way out, so a valid value costs nothing.
func under(step string, err error) error {
	e, ok := err.(*PathError) // the encoder and the writer never wrap it
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

// underKey does the same as under, with a map key: any text.
func underKey(key string, err error) error {
	if key == "" || strings.ContainsAny(key, ".[]\"\\ ") || !printable(key) {
		key = "[" + quote(key) + "]"
	}
	return under(key, err)
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) < 0
}

// quote quotes a text for a message and shortens it.
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

// didYouMean returns `; did you mean "name"?` with the name closest to s, or "" if
// none is close.
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

// distance returns the edit distance of a and b in bytes (optimal string alignment:
// insertions, deletions, substitutions, swaps of neighbors). For texts of more than
// 64 bytes it returns an upper bound that no caller accepts.
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

// expected returns the error for a value that is not of the node's type.
func expected(n *Node, v any) error {
	return &PathError{Msg: "expected " + n.String() + ", found " + foundIn(n, v)}
}

// foundIn does the same as found, but hides a value of a field with personal data.
func foundIn(n *Node, v any) string {
	if n.Tag != "" && v != nil {
		return "another value (personal data, not shown)"
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
