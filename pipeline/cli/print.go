package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"millrace/pipeline/expr"
)

// proseWidth is the width of wrapped text, in bytes.
const proseWidth = 88

// UnknownName returns the text of an error about an unknown name. It suggests the most
// similar of names, or else lists them, at most 12. what is the kind of the thing, such as
// "stage".
func UnknownName(what, name string, names []string) string {
	hint := expr.Suggest(name, names)
	if hint == "" {
		hint = "there are " + strings.Join(names[:min(12, len(names))], ", ")
		if len(names) > 12 {
			hint += ", ..."
		}
	}
	return fmt.Sprintf("there is no %s %q: %s", what, name, hint)
}

// A Printer writes lines of text. After the first error it writes nothing.
type Printer struct {
	Out io.Writer
	Err error // the first error
}

// Line writes a line. The arguments are those of [fmt.Fprintf].
func (p *Printer) Line(format string, args ...any) {
	if p.Err == nil {
		_, p.Err = fmt.Fprintf(p.Out, format+"\n", args...)
	}
}

// Prose writes wrapped text. Each line begins with the indent.
func (p *Printer) Prose(indent, text string) {
	for _, l := range wrap(text, proseWidth-len(indent)) {
		p.Line("%s%s", indent, l)
	}
}

// Item writes a name, and a wrapped text that begins at the column.
func (p *Printer) Item(name string, column int, text string) {
	for i, l := range wrap(text, proseWidth-column) {
		if i > 0 {
			name = ""
		}
		p.Line("%-*s%s", column, name, l)
	}
}

// PrintItem writes one item, as [Printer.Item] does.
func PrintItem(w io.Writer, name string, column int, text string) error {
	p := Printer{Out: w}
	p.Item(name, column, text)
	return p.Err
}

// wrap breaks text between words. A word that is longer than width gets its own line.
func wrap(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// FirstSentence returns a text up to its first period that a space follows.
func FirstSentence(doc string) string {
	first, _, found := strings.Cut(doc, ". ")
	if found {
		first += "."
	}
	return first
}

// LowerFirst returns a text with its first letter in lower case, unless the second letter is
// in upper case too, as in an abbreviation.
func LowerFirst(text string) string {
	if text == "" || len(text) > 1 && text[1] >= 'A' && text[1] <= 'Z' {
		return text
	}
	return strings.ToLower(text[:1]) + text[1:]
}

// Plural returns a number and its noun: "1 file", "2 files", "no files".
func Plural(n int, what string) string {
	switch n {
	case 0:
		return "no " + what + "s"
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Clip shortens a text to a number of characters, and then adds "...".
func Clip(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "..."
	}
	return text
}

// DashIfZero returns the number in decimal digits, or "-" for zero.
func DashIfZero(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// Cell returns a text for a cell of a table, shortened as by [Clip]. Control characters are
// escaped, so that a terminal does not interpret them.
func Cell(text string, most int) string {
	var b strings.Builder
	n := 0
	for _, c := range text {
		if n++; n > most {
			b.WriteString("...")
			break
		}
		if unicode.IsPrint(c) {
			b.WriteRune(c)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(c), "'"))
		}
	}
	return b.String()
}

// GroupDigits returns a number with commas between groups of three digits: 1,234,567.
func GroupDigits(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
