package client

import (
	"bytes"
	"strings"
	"testing"
)

func TestATableIsCutToTheTerminal(t *testing.T) {
	var out, talk bytes.Buffer
	table := &askTable{out: &out, talk: &talk, width: 40, rows: [][]string{{"ID", "TEXT", "OTHER"}}}
	table.row("u-1", strings.Repeat("ä", 30), "\x1b[31mred\n")
	table.row("u-22", "short", strings.Repeat("z", 25))
	table.say("%d rows", 2)
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	want := `ID    TEXT              OTHER
u-1   äääääääääääääää…  \x1b[31mred\n
u-22  short             zzzzzzzzzzzzzzz…
`
	if out.String() != want || talk.String() != "2 rows\n" {
		t.Errorf("got\n%swant\n%s, and %q", out.String(), want, talk.String())
	}
	table.width, table.rows = 10, table.rows[:2]
	out.Reset()
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "ID ") {
		t.Errorf("in little room: %s", out.String())
	}
}
