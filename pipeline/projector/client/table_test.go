package client

import (
	"bytes"
	"strings"
	"testing"
)

func TestATableIsCutToTheTerminal(t *testing.T) {
	var out, notes bytes.Buffer
	tb := &table{out: &out, notesOut: &notes, width: 40, head: []string{"ID", "TEXT", "OTHER"}}
	tb.row("u-1", strings.Repeat("ä", 30), "\x1b[31mred\n")
	tb.row("u-22", "short", strings.Repeat("z", 25))
	tb.note("%d rows", 2)
	if err := tb.flush(); err != nil {
		t.Fatal(err)
	}
	want := `ID    TEXT              OTHER
u-1   äääääääääääääää…  \x1b[31mred\n
u-22  short             zzzzzzzzzzzzzzz…
`
	if out.String() != want || notes.String() != "2 rows\n" {
		t.Errorf("got\n%swant\n%s, and %q", out.String(), want, notes.String())
	}
	tb.width, tb.rows = 10, tb.rows[:1]
	out.Reset()
	if err := tb.flush(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "ID ") {
		t.Errorf("on a narrow terminal: %s", out.String())
	}
}

func TestATableWithoutRowsIsANote(t *testing.T) {
	var out, notes bytes.Buffer
	tb := &table{out: &out, notesOut: &notes, head: []string{"ID"}, empty: "no aggregates"}
	tb.note("a note")
	if err := tb.flush(); err != nil {
		t.Fatal(err)
	}
	if out.Len() > 0 || notes.String() != "no aggregates\na note\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), notes.String())
	}
}
