package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A block is a fenced block of a document.
type block struct {
	line   int      // of its first line of text
	lang   string   // the first word after the fence
	option string   // the rest of that line
	lines  []string // without the indentation of the fence
	after  bool     // only blank lines are between the block before and this one
}

// blocks returns the fenced blocks of a document.
func blocks(doc string) (all []*block) {
	var b *block
	indent, near := "", false
	for i, line := range strings.Split(doc, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case b == nil && strings.HasPrefix(trimmed, "```"):
			b = &block{line: i + 2, after: near}
			indent, _, _ = strings.Cut(line, "```")
			b.lang, b.option, _ = strings.Cut(strings.Trim(trimmed, "`"), " ")
		case b != nil && trimmed == "```":
			all = append(all, b)
			b, near = nil, true
		case b != nil:
			b.lines = append(b.lines, strings.TrimPrefix(line, indent))
		case trimmed != "":
			near = false
		}
	}
	return all
}

// A step is something that a reader of a document does. The blocks of a document mean:
//
//	```sh              Run the block as one script. If a text block follows, its lines are
//	                   the output.
//	```sh exit 1       The same; the exit code is 1.
//	```sh terminal X   Start the block in another terminal, and leave it running to the end
//	                   of the document, or until the next block for that terminal.
//	```sh example      Do not run the block: it needs something that a test does not have.
//	```console         Commands, after "$ ", each with its output.
//	```diff FILE       Edit FILE.
//
// In an output, "..." stands for any text, a line of "..." for any lines, and a number in a
// line with "per second" for any number. All other blocks are not steps.
type step struct {
	line     int
	text     string // a script, or the lines of a diff
	file     string // to edit; "" to run the script
	terminal string // "" for the first, which waits for the end of a script
	exit     string // the exit code
	want     []string
	shown    bool // whether the document shows the output
}

// readSteps returns the steps of a document. name is its path below the root of the repository.
func readSteps(t *testing.T, name string) (all []*step) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	var last *step // the one that the next text block belongs to
	for _, b := range blocks(string(doc)) {
		text := strings.Join(b.lines, "\n") + "\n"
		option, value, _ := strings.Cut(b.option, " ")
		s := &step{line: b.line, text: text, exit: "0"}
		switch {
		case b.lang == "text" && b.after && last != nil:
			last.want, last.shown = nonBlank(b.lines), true
			last = nil
			continue
		case b.lang == "console":
			all, last = append(all, consoleSteps(b)...), nil
			continue
		case b.lang == "diff":
			s.file = b.option
		case b.lang == "sh" && option == "terminal":
			s.terminal = value
		case b.lang == "sh" && option == "exit":
			s.exit = value
		case b.lang != "sh" || option == "example":
			last = nil
			continue
		case option != "":
			t.Fatalf("%s:%d: unknown option %q of a sh block", name, b.line-1, b.option)
		}
		all, last = append(all, s), s
	}
	return all
}

// consoleSteps returns the commands of a console block.
func consoleSteps(b *block) (all []*step) {
	for i, line := range b.lines {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			all = append(all, &step{line: b.line + i, text: command + "\n", exit: "0", shown: true})
		} else if line != "" && len(all) > 0 {
			s := all[len(all)-1]
			s.want = append(s.want, line)
		}
	}
	return all
}

func nonBlank(lines []string) (out []string) {
	for _, line := range lines {
		if strings.TrimSpace(line) != "" {
			out = append(out, line)
		}
	}
	return out
}

var number = regexp.MustCompile(`[0-9]+(\\\.[0-9]+)?`)

// matchLine reports whether a line of output is as shown. The widths of columns may differ.
func matchLine(shown, line string) bool {
	shown, line = strings.Join(strings.Fields(shown), " "), strings.Join(strings.Fields(line), " ")
	pattern := regexp.QuoteMeta(shown)
	if strings.Contains(shown, "per second") {
		pattern = number.ReplaceAllString(pattern, `[0-9.]+`)
	}
	pattern = strings.ReplaceAll(pattern, `\.\.\.`, `.*`)
	return regexp.MustCompile("^" + pattern + "$").MatchString(line)
}

// matchOutput reports whether an output is as shown.
func matchOutput(shown, lines []string) bool {
	switch {
	case len(shown) == 0:
		return len(lines) == 0
	case strings.TrimSpace(shown[0]) == "...":
		return matchOutput(shown[1:], lines) || len(lines) > 0 && matchOutput(shown, lines[1:])
	}
	return len(lines) > 0 && matchLine(shown[0], lines[0]) && matchOutput(shown[1:], lines[1:])
}

// applyDiff returns the text after an edit: lines that begin with a space or "-" are
// replaced by those that begin with a space or "+". A line "@@" separates edits.
func applyDiff(text, diff string) (string, error) {
	for hunk := range strings.SplitSeq(diff, "@@\n") {
		var before, after strings.Builder
		for line := range strings.Lines(hunk) {
			switch mark, rest := line[:1], line[1:]; mark {
			case "-":
				before.WriteString(rest)
			case "+":
				after.WriteString(rest)
			case " ":
				before.WriteString(rest)
				after.WriteString(rest)
			default:
				return "", fmt.Errorf("a line of a diff begins with %q: %q", mark, line)
			}
		}
		if n := strings.Count(text, before.String()); n != 1 {
			return "", fmt.Errorf("these lines are %d times in the file, want once:\n%s", n, before.String())
		}
		text = strings.Replace(text, before.String(), after.String(), 1)
	}
	return text, nil
}

func TestOutputsAreComparedWithTheirDocument(t *testing.T) {
	for _, c := range []struct {
		shown, lines string
		want         bool
	}{
		{"a", "a", true},
		{"a", "b", false},
		{"a", "a|a", false},
		{"a...d", "abcd", true},
		{"a...d", "abc", false},
		{"a.c", "abc", false},
		{"ID ... STATUS", "ID   STATE   STATUS", true},
		{"...|z", "a|b|z", true},
		{"...|z", "z", true},
		{"...", "", true},
		{"sent 5 events in 0.0 s (21 per second)", "sent 6 events in 1.5 s (3 per second)", true},
		{"sent 5 events", "sent 6 events", false},
	} {
		lines := nonBlank(strings.Split(c.lines, "|"))
		if got := matchOutput(strings.Split(c.shown, "|"), lines); got != c.want {
			t.Errorf("%q shown for %q: %v, want %v", c.shown, c.lines, got, c.want)
		}
	}
}

func TestStepsOfADocument(t *testing.T) {
	got := blocks("a\n```sh exit 1\nx\n\ny\n```\n\n```text\nz\n```\nb\n  ```diff f\n   c\n  ```\n")
	want := []block{
		{3, "sh", "exit 1", []string{"x", "", "y"}, false},
		{9, "text", "", []string{"z"}, true},
		{13, "diff", "f", []string{" c"}, false},
	}
	if len(got) != len(want) {
		t.Fatalf("%d blocks, want %d", len(got), len(want))
	}
	for i := range want {
		if fmt.Sprint(*got[i]) != fmt.Sprint(want[i]) {
			t.Errorf("block %d: %v, want %v", i, *got[i], want[i])
		}
	}
	after, err := applyDiff("a\nb\nc\n", " a\n-b\n+B\n@@\n c\n+d\n")
	if err != nil || after != "a\nB\nc\nd\n" {
		t.Errorf("the edit gives %q, %v", after, err)
	}
	if _, err := applyDiff("a\n", "-b\n"); err == nil {
		t.Error("an edit of a line that does not exist gives no error")
	}
}
