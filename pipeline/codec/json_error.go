package codec

import (
	"fmt"
	"millrace/pipeline/nearest"
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
	if best := nearest.Name(s, names); best != "" {
		return "; did you mean " + strconv.Quote(best) + "?"
	}
	return ""
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
