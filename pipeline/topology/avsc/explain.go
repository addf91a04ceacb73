package avsc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// Explain describes why a schema in a text is invalid: the place, as a byte offset, what
// is wrong, and a hint or "". err is the error of the Avro library, which has no places
// and sometimes no names. The text is therefore examined again, in three steps: the JSON
// syntax, the structure that Avro requires, and last the names that err quotes. offset is
// -1 if the place is unknown.
func Explain(text []byte, err error) (offset int, msg, hint string) {
	var tree any
	if bad := (*json.SyntaxError)(nil); errors.As(json.Unmarshal(text, &tree), &bad) {
		return jsonFault(text, bad)
	}
	root := readJSON(text)
	if root == nil {
		return -1, err.Error(), ""
	}
	var tag *codec.TagError
	if errors.As(err, &tag) {
		return root.fieldAt(strings.Split(tag.Path, ".")), tag.Error(), ""
	}
	if node, msg, hint := root.badSchema(); node != nil {
		return node.offset, "invalid schema: " + msg, hint
	}
	msg = err.Error()
	if !strings.HasPrefix(msg, "invalid schema") {
		msg = "invalid schema: " + msg
	}
	return root.quoted(err.Error()), msg, ""
}

// jsonExpected translates the contexts of encoding/json's syntax errors.
var jsonExpected = []struct{ context, expected string }{
	{"looking for beginning of value", "a value"},
	{"looking for beginning of object key string", "a name in double quotes"},
	{"after object key:value pair", "a comma or }"},
	{"after object key", "a colon"},
	{"after array element", "a comma or ]"},
	{"after top-level value", "the end of the file"},
}

// jsonFault returns the place of a JSON syntax error, what was expected there, and a
// hint.
func jsonFault(text []byte, bad *json.SyntaxError) (offset int, msg, hint string) {
	end := len(bytes.TrimRight(text, " \t\r\n"))
	offset = int(bad.Offset) - 1
	if strings.Contains(bad.Error(), "unexpected end") || offset < 0 || offset >= len(text) {
		if end == 0 {
			return 0, "the file is empty", `write a record: {"type": "record", "name": "NAME", "fields": [...]}`
		}
		return end, "invalid JSON: the file ends too early", "close all quotes, brackets and braces"
	}
	found, _ := utf8.DecodeRune(text[offset:])
	what := strconv.QuoteRune(found)
	if found == '\uFEFF' {
		what, hint = "a byte order mark", "save the file as UTF-8 without a byte order mark"
	}
	last := bytes.TrimRight(text[:offset], " \t\r\n")
	if bytes.HasSuffix(last, []byte(",")) && (found == ']' || found == '}') {
		hint = "remove the comma before it"
	}
	for _, e := range jsonExpected {
		if strings.HasSuffix(bad.Error(), e.context) {
			return offset, fmt.Sprintf("invalid JSON: expected %s, not %s", e.expected, what), hint
		}
	}
	return offset, "invalid JSON: " + bad.Error(), hint
}

// A jsonNode is a value in a JSON text.
type jsonNode struct {
	offset int  // in bytes
	open   byte // '{', '[' or '"'; 0 for other values
	text   string
	keys   []string    // of an object
	items  []*jsonNode // of an object or array
}

// readJSON parses a JSON text that is known to be valid. It returns nil if the text is
// nested too deeply for encoding/json.
func readJSON(text []byte) *jsonNode {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value func() *jsonNode
	value = func() *jsonNode {
		start := int(d.InputOffset())
		start += len(text[start:]) - len(bytes.TrimLeft(text[start:], " \t\r\n,:"))
		token, err := d.Token()
		if err != nil {
			return nil
		}
		n := &jsonNode{offset: start}
		switch t := token.(type) {
		case string:
			n.open, n.text = '"', t
		case json.Delim:
			n.open = byte(t)
			for d.More() {
				if t == '{' {
					key, _ := d.Token()
					name, _ := key.(string)
					n.keys = append(n.keys, name)
				}
				item := value()
				if item == nil {
					return nil
				}
				n.items = append(n.items, item)
			}
			if _, err := d.Token(); err != nil {
				return nil
			}
		}
		return n
	}
	return value()
}

// get returns the value of a key of an object; the last one, as for the Avro library.
func (n *jsonNode) get(key string) *jsonNode {
	if n == nil || n.open != '{' {
		return nil
	}
	for i := len(n.keys) - 1; i >= 0; i-- {
		if n.keys[i] == key {
			return n.items[i]
		}
	}
	return nil
}

// label returns the name of a record or field for messages: " x", or "" without one.
func (n *jsonNode) label() string {
	if name := n.get("name"); name != nil && name.text != "" {
		return " " + name.text
	}
	return ""
}

// badSchema returns the first node that does not have the structure of an Avro schema,
// with a message and a hint; nil if there is none. It checks only what the messages of
// the Avro library do not locate.
func (n *jsonNode) badSchema() (bad *jsonNode, msg, hint string) {
	switch n.open {
	case '"':
		return nil, "", ""
	case '[':
		for _, branch := range n.items {
			if branch.open == '[' {
				return branch, "a union cannot directly contain another union", "list all types in one union"
			}
			if bad, msg, hint := branch.badSchema(); bad != nil {
				return bad, msg, hint
			}
		}
		return nil, "", ""
	case '{':
		return n.badObject()
	}
	return n, "expected a type: a name in double quotes, an object or an array", ""
}

// avroParts are the keys that complex types need in addition to their type.
var avroParts = map[string]struct{ key, example string }{
	"record": {"fields", `"fields": [...]`},
	"error":  {"fields", `"fields": [...]`},
	"enum":   {"symbols", `"symbols": ["A", "B"]`},
	"array":  {"items", `"items": "string"`},
	"map":    {"values", `"values": "string"`},
	"fixed":  {"size", `"size": 16`},
}

// namedTypes are the types that have a name.
var namedTypes = []string{"record", "error", "enum", "fixed"}

// badObject is badSchema for an object.
func (n *jsonNode) badObject() (bad *jsonNode, msg, hint string) {
	typ := n.get("type")
	if typ == nil {
		return n, fmt.Sprintf("the type%s has no \"type\"", n.label()), `add "type", for example "type": "record"`
	}
	if typ.open != '"' {
		return typ.badSchema()
	}
	if n.get("name") != nil && !slices.Contains(namedTypes, typ.text) {
		return typ, fmt.Sprintf("a type with a name must be a record, enum or fixed, not %q", typ.text), expr.Suggest(typ.text, namedTypes)
	}
	named := slices.Contains(namedTypes, typ.text)
	if name := n.get("name"); named && name == nil {
		return n, fmt.Sprintf("the %s has no name", typ.text), `add "name": "NAME"`
	} else if named && name.open != '"' {
		return name, fmt.Sprintf("the name of the %s must be a string", typ.text), ""
	}
	need, complex := avroParts[typ.text]
	if !complex {
		return nil, "", ""
	}
	part := n.get(need.key)
	switch {
	case part == nil:
		return n, fmt.Sprintf("the %s%s has no %s", typ.text, n.label(), need.key), "add " + need.example
	case (need.key == "fields" || need.key == "symbols") && part.open != '[':
		return part, need.key + " must be an array", "write " + need.example
	case need.key == "items" || need.key == "values":
		return part.badSchema()
	case need.key == "fields":
		for _, f := range part.items {
			if bad, msg, hint := f.badField(); bad != nil {
				return bad, msg, hint
			}
		}
	}
	return nil, "", ""
}

// badField is badSchema for a field of a record.
func (n *jsonNode) badField() (bad *jsonNode, msg, hint string) {
	const example = `{"name": "NAME", "type": "string"}`
	if n.open != '{' {
		return n, "a field must be an object", "write " + example
	}
	name, typ := n.get("name"), n.get("type")
	switch {
	case name == nil:
		return n, "the field has no name", "write " + example
	case name.open != '"':
		return name, "the name of a field must be a string", "write " + example
	case typ == nil:
		return n, fmt.Sprintf("the field%s has no type", n.label()), `add "type", for example "type": "string"`
	}
	return typ.badSchema()
}

// fieldAt returns the offset of the name of the field at a path, as far as the path can
// be followed. A name may end in [] for the items of an array or a map.
func (n *jsonNode) fieldAt(path []string) int {
	offset := n.offset
	for _, name := range path {
		f := n.field(strings.TrimRight(name, "[]"))
		if f == nil {
			break
		}
		offset, n = f.get("name").offset, f
	}
	return offset
}

// field finds a field by its name, in this node or in the types inside it.
func (n *jsonNode) field(name string) *jsonNode {
	if fields := n.get("fields"); fields != nil {
		for _, f := range fields.items {
			if have := f.get("name"); have != nil && have.text == name {
				return f
			}
		}
	}
	for _, item := range n.items {
		if f := item.field(name); f != nil {
			return f
		}
	}
	return nil
}

var quotedName = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)

// quoted returns the offset of the string that an error message quotes, or else the
// start of the schema. Later quotes of a message are more specific. For a duplicate it
// is the last occurrence.
func (n *jsonNode) quoted(msg string) int {
	names := quotedName.FindAllString(msg, -1)
	for _, q := range slices.Backward(names) {
		name, err := strconv.Unquote(q)
		if err != nil || name == "" {
			continue
		}
		found := n.strings(name, nil)
		switch {
		case len(found) == 0:
		case strings.Contains(msg, "duplicate"):
			return found[len(found)-1]
		default:
			return found[0]
		}
	}
	return n.offset
}

// strings appends the offsets of all occurrences of a string value.
func (n *jsonNode) strings(text string, found []int) []int {
	if n.open == '"' && n.text == text {
		found = append(found, n.offset)
	}
	for _, item := range n.items {
		found = item.strings(text, found)
	}
	return found
}
