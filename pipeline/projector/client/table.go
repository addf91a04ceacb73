package client

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"millrace/pipeline"
	"millrace/pipeline/cli"
)

// A table is an answer for people: rows of cells, cut to the width of a terminal, on stdout,
// and notes on stderr.
type table struct {
	out, notesOut io.Writer
	width         int // in characters; 0 means no limit
	bold          bool
	head          []string
	rows          [][]string
	empty         string // the note that replaces a table without rows; "" prints the head
	notes         []string
	hidden        map[string]bool // encrypted fields that are null, with the reason
	plain         map[string]bool // tagged fields that were never encrypted
}

// maxCell is the largest width of a cell in characters.
const maxCell = 1000

func (a *api) table(head ...string) *table {
	t := &table{out: a.env.Stdout, notesOut: a.env.Stderr, bold: a.env.Colors(), head: head}
	if f, ok := a.env.Stdout.(*os.File); ok && cli.IsTerminal(f) {
		t.width = cli.TerminalWidth(f)
		if n, err := strconv.Atoi(a.env.Getenv("COLUMNS")); err == nil && n > 0 {
			t.width = n
		}
	}
	return t
}

func (t *table) row(cells ...string) {
	for i := range cells {
		cells[i] = cli.Cell(cells[i], maxCell)
	}
	t.rows = append(t.rows, cells)
}

func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// more notes the flag that shows the next page, if there is one.
func (t *table) more(flag, value string) {
	if value != "" {
		t.note("there are more: --%s %s", flag, value)
	}
}

// hide records encrypted fields that are null: the reasons, by path. plain are paths of
// tagged fields that were never encrypted.
func (t *table) hide(fields map[string]string, plain []string) {
	if t.hidden == nil {
		t.hidden, t.plain = map[string]bool{}, map[string]bool{}
	}
	for path, why := range fields {
		t.hidden[path+" ("+why+")"] = true
	}
	for _, path := range plain {
		t.plain[path] = true
	}
}

// flush writes the table and the notes.
func (t *table) flush() error {
	if len(t.hidden) > 0 {
		t.note("encrypted and hidden: %s", strings.Join(slices.Sorted(maps.Keys(t.hidden)), ", "))
	}
	if len(t.plain) > 0 {
		t.note("never encrypted: %s", strings.Join(slices.Sorted(maps.Keys(t.plain)), ", "))
	}
	lines := append([][]string{t.head}, t.rows...)
	if len(t.rows) == 0 && t.empty != "" {
		lines = nil
		t.notes = slices.Insert(t.notes, 0, t.empty)
	}
	var widths []int
	for _, row := range lines {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	t.fit(widths)
	var b bytes.Buffer
	for n, row := range lines {
		var line strings.Builder
		for i, c := range row {
			c = shorten(c, widths[i])
			line.WriteString(c)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		text := strings.TrimRight(line.String(), " ")
		if n == 0 && t.bold {
			text = "\x1b[1m" + text + "\x1b[0m"
		}
		b.WriteString(text + "\n")
	}
	if _, err := b.WriteTo(t.out); err != nil {
		return err
	}
	for _, n := range t.notes {
		fmt.Fprintln(t.notesOut, n)
	}
	return nil
}

// fit makes the widest columns narrower until the table fits. Columns keep at least 8
// characters, so that their cells stay recognizable.
func (t *table) fit(widths []int) {
	if t.width == 0 {
		return
	}
	const least = 8
	total := 2 * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for total > t.width {
		i := 0
		for j := range widths {
			if widths[j] > widths[i] {
				i = j
			}
		}
		if len(widths) == 0 || widths[i] <= least {
			return
		}
		widths[i]--
		total--
	}
}

// shorten cuts a text to a width in characters.
func shorten(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}

// timeText returns a time in UTC, with up to six digits of the second if it has any.
func timeText(t pipeline.Time) string {
	if !t.HasText() {
		return t.String()
	}
	return t.Std().UTC().Format("2006-01-02 15:04:05.999999")
}
