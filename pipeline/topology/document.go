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
)

// Limits of a topology. What goes beyond them is refused, not cut off.
const (
	maxBytes  = 1 << 20
	maxValues = 100_000 // names and values, aliases resolved
	maxFaults = 100     // that are listed
)

// A document is topology.yaml while it is read.
type document struct {
	name   string
	lines  []string
	runes  [][]rune
	lookup func(string) (string, bool)

	byNode  map[*yaml.Node]*scalar
	byPlace map[place]*scalar // by their first character
	faulty  map[place]bool    // items that were not decoded whole, by their key
	values  int               // decoded so far
	faults  Faults
}

// parse returns the document and its outermost node, nil if there is none.
func parse(src Source, lookup func(string) (string, bool)) (*document, *yaml.Node) {
	d := &document{name: src.Name, lookup: lookup, byNode: map[*yaml.Node]*scalar{}, byPlace: map[place]*scalar{}, faulty: map[place]bool{}}
	if len(src.Text) > maxBytes {
		d.whole("split it", "%d bytes: a topology has at most %d", len(src.Text), maxBytes)
		return d, nil
	}
	text := bytes.TrimPrefix(src.Text, []byte("\uFEFF"))
	for _, line := range lineEnd.Split(string(text), -1) {
		d.lines = append(d.lines, line)
		d.runes = append(d.runes, []rune(line))
	}
	for i, line := range d.lines {
		if col, c := unprintable(line); col > 0 && c == utf8.RuneError {
			d.fault(place{i + 1, col}, "save the file as UTF-8", "these bytes are not UTF-8")
			return d, nil
		} else if col > 0 {
			d.fault(place{i + 1, col}, `within "..." it can be written \x`+fmt.Sprintf("%02X", c), "the control character %02X cannot stand in YAML", c)
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
		d.whole("it needs at least a name and topics", "the file is empty")
		return d, nil
	case err != nil:
		d.syntax(err)
		return d, nil
	}
	if err := loader.Load(&second); err == nil {
		d.fault(place{max(1, second.Line), max(1, second.Column)}, "keep one of them", "a second document begins here; a topology is one")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) != 1 {
		d.whole("it needs at least a name and topics", "the file is empty")
		return d, nil
	}
	return d, root.Content[0]
}

// lineEnd is what ends a line for YAML 1.1, and so for the parser's places.
var lineEnd = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

// unprintable returns the column of the first character that YAML does not take,
// 0 if there is none; it is utf8.RuneError if it is no character at all.
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

// syntax turns an error of the parser into a fault.
func (d *document) syntax(err error) {
	var load *yaml.LoadError
	if !errors.As(err, &load) || load.Mark.Line == 0 {
		d.whole("", "this is not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	at := place{load.Mark.Line, max(1, load.Mark.Column)}
	msg, hint := load.Message, ""
	if load.ContextMsg != "" && load.ContextMark.Line > 0 && load.ContextMark != load.Mark {
		hint = fmt.Sprintf("%s that begins at %d:%d", load.ContextMsg, load.ContextMark.Line, load.ContextMark.Column)
	}
	found := rune(0)
	if at.line <= len(d.runes) && at.col <= len(d.runes[at.line-1]) {
		found = d.runes[at.line-1][at.col-1]
	}
	switch {
	case found == '\t':
		msg, hint = "a tab cannot indent", "use spaces"
	case strings.Contains(msg, "mapping values are not allowed"):
		msg, hint = "a colon and a blank within a value would begin another", "put the value in quotes"
	case strings.HasPrefix(msg, "did not find expected ',' or "):
		msg = fmt.Sprintf("the %c of %d:%d should go on or be closed here", map[byte]rune{']': '[', '}': '{'}[msg[len(msg)-2]], load.ContextMark.Line, load.ContextMark.Column)
		hint = "within [ ] and { }, a value that has one of , ? [ ] { } in it needs quotes"
	case strings.Contains(msg, "end of stream") && strings.Contains(load.ContextMsg, "quoted"):
		msg = fmt.Sprintf("the quote of %d:%d is not closed", load.ContextMark.Line, load.ContextMark.Column)
		hint = ""
	case strings.Contains(msg, "cannot start any token"):
		msg, hint = fmt.Sprintf("a value cannot begin with %c", found), "put it in quotes"
	case strings.Contains(msg, "unknown escape character"):
		hint = "in \"...\" a backslash is written twice; in '...' once"
	case strings.Contains(msg, "max depth"):
		msg, hint = "nested too deep", ""
	case strings.HasPrefix(msg, "unknown anchor"):
		msg, hint = strings.TrimSuffix(msg, " referenced"), "a value that begins with * needs quotes"
	}
	d.fault(at, hint, "this is not YAML: %s", msg)
}

// fault adds a fault at a place.
func (d *document) fault(at place, hint, format string, args ...any) {
	f := Fault{File: d.name, Line: at.line, Col: at.col, Msg: fmt.Sprintf(format, args...), Hint: hint}
	if at.line >= 1 && at.line <= len(d.lines) {
		f.Text = d.lines[at.line-1]
	}
	d.faults = append(d.faults, f)
}

// whole adds a fault of the file as a whole.
func (d *document) whole(hint, format string, args ...any) {
	d.faults = append(d.faults, Fault{File: d.name, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// at adds a fault in something that was written in the file.
func (d *document) at(src expr.Source, hint, format string, args ...any) {
	d.fault(place{src.Line, src.Col}, hint, format, args...)
}

// place returns where a character of a source stands.
func (d *document) place(src expr.Source, offset int) place {
	first := place{src.Line, src.Col}
	if s, ok := d.byPlace[first]; ok && offset > 0 {
		return s.place(offset)
	}
	return first
}

// sorted returns the faults in the order of the file, each once.
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
