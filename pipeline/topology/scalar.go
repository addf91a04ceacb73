package topology

import (
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline/topology/align"
)

// A scalar is a text of the file, after quotes, escapes and ${VAR} are resolved. It
// knows the place in the file of each of its characters.
type scalar struct {
	text  string
	start align.Place   // place of the first character, after an opening quote
	at    []align.Place // place of each character, plus the end; nil if unknown
	plain bool          // neither quoted nor a block

	expanded bool // the text contains the value of a variable
	broken   bool // a variable is malformed or not set; the fault is already reported
}

// place returns the place in the file of a character of the text.
func (s *scalar) place(offset int) align.Place {
	if s.at == nil || offset < 0 {
		return s.start
	}
	return s.at[min(offset, len(s.at)-1)]
}

// scalar returns the resolved text of a scalar node.
func (d *document) scalar(n *yaml.Node) *scalar {
	if s, ok := d.byNode[n]; ok {
		return s
	}
	first, at := align.Scalar(d.runes, n)
	s := &scalar{text: n.Value, start: first, at: at, plain: n.Style&^(yaml.TaggedStyle|yaml.FlowStyle) == 0}
	if strings.Contains(n.Value, "${") {
		d.expand(s)
	}
	d.byNode[n] = s
	d.byPlace[s.start] = s
	return s
}

// expand replaces ${VAR} and ${VAR:-default} by the value of the variable, and $${
// by ${. Each character of a value gets the place of its variable.
func (d *document) expand(s *scalar) {
	in := s.text
	var out strings.Builder
	var at []align.Place
	offset := 0 // of in, in characters of s.text
	keep := func(text string, variable bool) {
		out.WriteString(text)
		for i := range utf8.RuneCountInString(text) {
			if variable {
				i = 0
			}
			at = append(at, s.place(offset+i))
		}
	}
	for in != "" {
		before, rest, found := strings.Cut(in, "${")
		if !found {
			keep(in, false)
			offset += utf8.RuneCountInString(in)
			break
		}
		if strings.HasSuffix(before, "$") { // $${
			keep(before, false)
			offset += utf8.RuneCountInString(before)
			out.WriteString("{")
			at = append(at, s.place(offset+1))
			offset += 2
			in = rest
			continue
		}
		keep(before, false)
		offset += utf8.RuneCountInString(before)
		inside, after, closed := strings.Cut(rest, "}")
		name, fallback, has := strings.Cut(inside, ":-")
		switch value, ok := d.lookup(name); {
		case !closed || !isVariable(name):
			d.fault(s.place(offset), "write ${NAME} or ${NAME:-default}; for a literal ${ write $${", "${ is not followed by a valid variable name and }")
			keep("${"+rest, true)
			s.broken, after = true, ""
		case has && value == "":
			keep(fallback, true)
		case !ok:
			d.fault(s.place(offset), "set it, or add a default: ${"+name+":-default}", "the environment variable %s is not set", name)
			s.broken = true
		default:
			keep(strings.ToValidUTF8(value, "\uFFFD"), true)
		}
		s.expanded = true
		offset += 2 + utf8.RuneCountInString(inside) + 1
		in = after
	}
	s.text = out.String()
	if s.at != nil {
		s.at = append(at, s.at[len(s.at)-1])
	}
}

func isVariable(name string) bool {
	for i, c := range name {
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
