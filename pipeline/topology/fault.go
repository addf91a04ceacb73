package topology

import (
	"fmt"
	"slices"
	"strings"
)

// A Fault is one error in a topology or in its schemas.
type Fault struct {
	File string `json:"file"`
	// Line and Col are the place of the fault, from 1, counted in characters. Both
	// are 0 if the fault concerns the whole file.
	Line int    `json:"line,omitempty"`
	Col  int    `json:"column,omitempty"`
	Msg  string `json:"message"`
	Hint string `json:"hint,omitempty"` // how to fix it
	Text string `json:"text,omitempty"` // the line, without its line ending
}

// Error returns the fault on one line in the form of compilers:
// file:line:col: message.
func (f Fault) Error() string {
	if f.Line == 0 {
		return f.File + ": " + f.Msg
	}
	return fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Col, f.Msg)
}

// Faults holds all faults that were found, in the order of the file.
type Faults []Fault

// Error returns the faults for a human reader: each with its line, a caret below
// the place, and the hint.
func (f Faults) Error() string {
	var b strings.Builder
	for i := range f {
		f[i].write(&b)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Unwrap lets errors.As find a Fault.
func (f Faults) Unwrap() []error {
	out := make([]error, len(f))
	for i := range f {
		out[i] = f[i]
	}
	return out
}

// maxShown is the number of characters of a line that a message shows.
const maxShown = 120

func (f *Fault) write(b *strings.Builder) {
	b.WriteString(f.Error() + "\n")
	margin := "  "
	if f.Line > 0 {
		number := fmt.Sprint(f.Line)
		margin = strings.Repeat(" ", len(number)+1)
		shown, before := f.window()
		fmt.Fprintf(b, "%s | %s\n", number, shown)
		fmt.Fprintf(b, "%s| %s^\n", margin, before)
	}
	if f.Hint != "" {
		fmt.Fprintf(b, "%s= %s\n", margin, f.Hint)
	}
}

// window returns the part of the line around the fault, and the blanks that align
// a caret below it. A tab stays a tab in both, so both lines shift alike.
func (f *Fault) window() (shown, before string) {
	line := []rune(strings.ToValidUTF8(f.Text, "\uFFFD"))
	at := min(f.Col-1, len(line))
	start := 0
	if at > maxShown*3/4 {
		start = at - maxShown/2
	}
	end := min(len(line), start+maxShown)
	blank := func(r rune) rune {
		if r == '\t' {
			return r
		}
		return ' '
	}
	part := slices.Clone(line[start:end])
	for i, r := range part {
		if r < ' ' && r != '\t' || r == 0x7f {
			part[i] = '\uFFFD' // a control character could move the terminal's cursor
		}
	}
	shown = string(part)
	before = strings.Map(blank, string(line[start:at]))
	if start > 0 {
		shown, before = "..."+shown, "   "+before
	}
	if end < len(line) {
		shown += "..."
	}
	return strings.TrimRight(shown, " \t"), before
}
