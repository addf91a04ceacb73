package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"millrace/pipeline/expr"
)

// proseWidth is how wide text for people is set.
const proseWidth = 88

func UnknownName(what, name string, names []string) string {
	hint := expr.Nearest(name, names)
	if hint == "" {
		hint = "there are " + strings.Join(names[:min(12, len(names))], ", ")
		if len(names) > 12 {
			hint += ", ..."
		}
	}
	return fmt.Sprintf("there is no %s %q: %s", what, name, hint)
}

// PrintJSON writes v for programs and people.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// A printer writes text for people, and keeps the first error.
type Printer struct {
	Out io.Writer
	Err error
}

func (p *Printer) Line(format string, args ...any) {
	if p.Err == nil {
		_, p.Err = fmt.Fprintf(p.Out, format+"\n", args...)
	}
}

// Prose writes sentences, wrapped, each line behind the indent.
func (p *Printer) Prose(indent, text string) {
	for _, l := range wrap(text, proseWidth-len(indent)) {
		p.Line("%s%s", indent, l)
	}
}

// Item writes a name and, in the column, what it is.
func (p *Printer) Item(name string, column int, text string) {
	for i, l := range wrap(text, proseWidth-column) {
		if i > 0 {
			name = ""
		}
		p.Line("%-*s%s", column, name, l)
	}
}

func PrintItem(w io.Writer, name string, column int, text string) error {
	p := Printer{Out: w}
	p.Item(name, column, text)
	return p.Err
}

// wrap breaks text between words. A word that is too long has a line of its own.
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

func FirstSentence(doc string) string {
	first, _, found := strings.Cut(doc, ". ")
	if found {
		first += "."
	}
	return first
}

func LowerFirst(text string) string {
	if text == "" || len(text) > 1 && text[1] >= 'A' && text[1] <= 'Z' {
		return text
	}
	return strings.ToLower(text[:1]) + text[1:]
}

// Plural returns "1 file", "2 files", "no files".
func Plural(n int, what string) string {
	switch n {
	case 0:
		return "no " + what + "s"
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Clip keeps a line readable.
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

// Cell makes a text fit for one cell of a table: what a terminal would obey is
// shown, not sent.
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

// GroupDigits writes a number as people read it: 1,234,567.
func GroupDigits(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
