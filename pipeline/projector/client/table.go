package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"millrace/pipeline/cli"
)

// askTable is an answer as people read it: rows in columns, cut to the width of
// the terminal, if it is one, and what is to be said beside them on stderr.
type askTable struct {
	out, talk io.Writer
	width     int // 0: whatever it takes
	bold      bool
	rows      [][]string // the first is the head
	notes     []string
	hidden    map[string]bool // encrypted fields that are null, with why
}

// A cell is cut at this, also where nothing else limits it.
const widestCell = 1000

func (a *asker) table(head ...string) *askTable {
	t := &askTable{out: a.env.Stdout, talk: a.env.Stderr, bold: a.env.Colors()}
	if f, ok := a.env.Stdout.(*os.File); ok && cli.IsTerminal(f) {
		t.width = cli.TerminalWidth(f)
		if n, err := strconv.Atoi(a.env.Getenv("COLUMNS")); err == nil && n > 0 {
			t.width = n
		}
	}
	if len(head) > 0 {
		t.rows = append(t.rows, head)
	}
	return t
}

func (t *askTable) row(cells ...string) {
	for i := range cells {
		cells[i] = cli.Cell(cells[i], widestCell)
	}
	t.rows = append(t.rows, cells)
}

func (t *askTable) say(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// hide takes in which encrypted fields of what is shown are null, by path, and why.
func (t *askTable) hide(fields map[string]string) {
	for path, why := range fields {
		if t.hidden == nil {
			t.hidden = map[string]bool{}
		}
		t.hidden[path+" ("+why+")"] = true
	}
}

func (t *askTable) flush() error {
	if len(t.hidden) > 0 {
		t.say("encrypted, and not shown: %s", strings.Join(slices.Sorted(maps.Keys(t.hidden)), ", "))
	}
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	t.fit(widths)
	var b bytes.Buffer
	for n, row := range t.rows {
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
		fmt.Fprintln(t.talk, n)
	}
	return nil
}

// fit makes the widest columns narrower until the table fits, but not so narrow
// that nothing can be told from them.
func (t *askTable) fit(widths []int) {
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

// shorten cuts a text to a width.
func shorten(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}

// stamp shows a time: its microseconds only if there are any.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.999999") }

// jsonMember is a member of a JSON object.
type jsonMember struct {
	name  string
	value json.RawMessage
}

// members returns the members of a JSON object, in their order.
func members(raw json.RawMessage) (out []jsonMember, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("a state that is no object: %s", raw)
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := jsonMember{name: fmt.Sprint(name)}
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// leavesOf returns the members of a JSON object by dotted path. It goes into
// objects, but not into those that are fields by themselves.
func leavesOf(raw json.RawMessage, under string, field func(path string) bool) (out []jsonMember, err error) {
	all, err := members(raw)
	for _, m := range all {
		m.name = under + m.name
		if len(m.value) == 0 || m.value[0] != '{' || field(m.name) {
			out = append(out, m)
			continue
		}
		below, err := leavesOf(m.value, m.name+".", field)
		if err != nil {
			return nil, err
		}
		out = append(out, below...)
	}
	return out, err
}

// plainJSON shows a value: a string without its quotes.
func plainJSON(raw json.RawMessage) string {
	var s string
	if len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}
