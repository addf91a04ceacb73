package topology

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline/expr"
	"millrace/pipeline/topology/align"
)

// Limits of a topology. A file that exceeds the first two is refused.
const (
	maxBytes  = 1 << 20
	maxValues = 100_000 // names and values; an alias counts as a full copy
	maxFaults = 100     // listed faults; the rest are only counted
)

// A document is the topology.yaml that is being loaded. It collects the faults.
type document struct {
	name   string
	lines  []string
	runes  [][]rune
	lookup func(string) (string, bool)

	byNode  map[*yaml.Node]*scalar
	byPlace map[align.Place]*scalar // by the place of the first character
	faulty  map[align.Place]bool    // items with faults inside, by the place of their key
	values  int                     // names and values decoded so far
	faults  Faults
}

// parse returns the document and its root node. The node is nil if the text could
// not be parsed; the faults are in the document.
func parse(src Source, lookup func(string) (string, bool)) (*document, *yaml.Node) {
	d := &document{name: src.Name, lookup: lookup, byNode: map[*yaml.Node]*scalar{}, byPlace: map[align.Place]*scalar{}, faulty: map[align.Place]bool{}}
	if len(src.Text) > maxBytes {
		d.whole("split the file", "the file has %d bytes; a topology has at most %d", len(src.Text), maxBytes)
		return d, nil
	}
	text := bytes.TrimPrefix(src.Text, []byte("\uFEFF"))
	for _, line := range lineEnd.Split(string(text), -1) {
		d.lines = append(d.lines, line)
		d.runes = append(d.runes, []rune(line))
	}
	for i, line := range d.lines {
		if col, c := unprintable(line); col > 0 && c == utf8.RuneError {
			d.fault(align.At(i+1, col), "save the file as UTF-8", "invalid UTF-8")
			return d, nil
		} else if col > 0 {
			d.fault(align.At(i+1, col), `in a "..." string, write it as \x`+fmt.Sprintf("%02X", c), "YAML does not allow the control character %02X", c)
			return d, nil
		}
	}
	loader, err := yaml.NewLoader(bytes.NewReader(text), yaml.WithUniqueKeys(false))
	if err != nil {
		d.whole("", "%v", err)
		return d, nil
	}
	var root, second yaml.Node
	switch err := loader.Load(&root); {
	case errors.Is(err, io.EOF):
		d.whole("a topology needs at least name and topics", "the file is empty")
		return d, nil
	case err != nil:
		d.syntax(err)
		return d, nil
	}
	if err := loader.Load(&second); err == nil {
		d.fault(align.At(max(1, second.Line), max(1, second.Column)), "keep one of the documents", "a second YAML document starts here; a topology is a single document")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) != 1 {
		d.whole("a topology needs at least name and topics", "the file is empty")
		return d, nil
	}
	return d, root.Content[0]
}

// lineEnd matches the line endings of YAML 1.1. The parser counts lines by them.
var lineEnd = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

// unprintable returns the first character of a line that YAML does not allow, and
// its column; 0 if there is none. Invalid UTF-8 is returned as utf8.RuneError.
func unprintable(line string) (col int, c rune) {
	for rest := line; rest != ""; {
		c, size := utf8.DecodeRuneInString(rest)
		col++
		if c == utf8.RuneError && size == 1 || c < ' ' && c != '\t' || c == 0x7f {
			return col, c
		}
		rest = rest[size:]
	}
	return 0, 0
}

// syntax adds a fault for an error of the YAML parser, in plainer words where
// possible.
func (d *document) syntax(err error) {
	var load *yaml.LoadError
	if !errors.As(err, &load) || load.Mark.Line == 0 {
		d.whole("", "invalid YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	at := align.At(load.Mark.Line, max(1, load.Mark.Column))
	msg, hint := load.Message, ""
	if load.ContextMsg != "" && load.ContextMark.Line > 0 && load.ContextMark != load.Mark {
		hint = fmt.Sprintf("%s that starts at %d:%d", load.ContextMsg, load.ContextMark.Line, load.ContextMark.Column)
	}
	found := rune(0)
	if at.Line <= len(d.runes) && at.Col <= len(d.runes[at.Line-1]) {
		found = d.runes[at.Line-1][at.Col-1]
	}
	switch {
	case found == '\t':
		msg, hint = "tabs are not allowed in indentation", "use spaces"
	case strings.Contains(msg, "mapping values are not allowed"):
		msg, hint = "a colon followed by a space is not allowed inside an unquoted value", "put the value in quotes"
	case strings.HasPrefix(msg, "did not find expected ',' or "):
		msg = fmt.Sprintf("the %c at %d:%d is not closed: expected a comma or the closing bracket here", map[byte]rune{']': '[', '}': '{'}[msg[len(msg)-2]], load.ContextMark.Line, load.ContextMark.Column)
		hint = "inside [ ] and { }, put a value that contains , ? [ ] { or } in quotes"
	case strings.Contains(msg, "end of stream") && strings.Contains(load.ContextMsg, "quoted"):
		msg = fmt.Sprintf("the quote at %d:%d is not closed", load.ContextMark.Line, load.ContextMark.Column)
		hint = ""
	case strings.Contains(msg, "cannot start any token"):
		msg, hint = fmt.Sprintf("an unquoted value cannot start with %c", found), "put the value in quotes"
	case strings.Contains(msg, "unknown escape character"):
		hint = "write a backslash twice in \"...\" and once in '...'"
	case strings.Contains(msg, "max depth"):
		msg, hint = "nested too deeply", ""
	case strings.HasPrefix(msg, "unknown anchor"):
		msg, hint = strings.TrimSuffix(msg, " referenced"), "put a value that starts with * in quotes"
	}
	d.fault(at, hint, "invalid YAML: %s", msg)
}

// fault adds a fault at a place.
func (d *document) fault(at align.Place, hint, format string, args ...any) {
	f := Fault{File: d.name, Line: at.Line, Col: at.Col, Msg: fmt.Sprintf(format, args...), Hint: hint}
	if at.Line >= 1 && at.Line <= len(d.lines) {
		f.Text = d.lines[at.Line-1]
	}
	d.faults = append(d.faults, f)
}

// whole adds a fault of the whole file.
func (d *document) whole(hint, format string, args ...any) {
	d.faults = append(d.faults, Fault{File: d.name, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// at adds a fault at a value of the file.
func (d *document) at(src expr.Source, hint, format string, args ...any) {
	d.fault(align.At(src.Line, src.Col), hint, format, args...)
}

// place returns the place of a character of a value. offset counts characters.
func (d *document) place(src expr.Source, offset int) align.Place {
	first := align.At(src.Line, src.Col)
	if s, ok := d.byPlace[first]; ok && offset > 0 {
		return s.place(offset)
	}
	return first
}

// sorted returns the faults in the order of the file, without duplicates and at
// most maxFaults of them. Faults of topology.yaml come before faults of schemas.
func (d *document) sorted() Faults {
	slices.SortStableFunc(d.faults, func(a, b Fault) int {
		switch {
		case a.File != b.File && a.File == d.name:
			return -1
		case a.File != b.File && b.File == d.name:
			return 1
		case a.File != b.File:
			return strings.Compare(a.File, b.File)
		case a.Line != b.Line:
			return a.Line - b.Line
		}
		return a.Col - b.Col
	})
	out := slices.Compact(d.faults)
	if len(out) > maxFaults {
		more := len(out) - maxFaults
		out = append(out[:maxFaults:maxFaults], Fault{File: d.name, Msg: fmt.Sprintf("and %d more", more)})
	}
	return out
}
