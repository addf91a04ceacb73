package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// words counts the words of a text; signs alone, such as those of tables, are none.
func words(text string) (n int) {
	for _, w := range strings.Fields(text) {
		if strings.ContainsFunc(w, func(r rune) bool { return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' }) {
			n++
		}
	}
	return n
}

func TestArchitectureIsShortAndNamesEveryPackage(t *testing.T) {
	text, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := words(string(text)); n > 1500 {
		t.Errorf("ARCHITECTURE.md has %d words, want at most 1500: move reasons to docs/decisions", n)
	}
	err = filepath.WalkDir("../pipeline", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, ".go") || strings.Contains(name, "testdata") {
			return err
		}
		if pkg := filepath.Base(filepath.Dir(name)); !regexp.MustCompile(`\b` + pkg + `\b`).Match(text) {
			t.Errorf("ARCHITECTURE.md does not name the package of %s", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Every decision has the same short form, and the index lists it.
func TestDecisionsHaveTheirForm(t *testing.T) {
	index, err := os.ReadFile("decisions/README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("decisions/0*.md")
	if err != nil || len(pages) < 40 {
		t.Fatalf("%d decisions, %v", len(pages), err)
	}
	for i, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		title, _, _ := strings.Cut(string(text), "\n")
		if want := "- [" + strings.TrimPrefix(title, "# ") + "](" + filepath.Base(page) + ")\n"; !strings.Contains(string(index), want) {
			t.Errorf("decisions/README.md lacks the line %s", want)
		}
		rest := string(text)
		for _, part := range []string{"\n**Context.** ", "\n**Decision.** ", "\n**Consequence.** "} {
			_, after, ok := strings.Cut(rest, part)
			if !ok {
				t.Errorf("%s has no%s", page, part)
			}
			rest = after
		}
		if n := words(string(text)); n > 210 {
			t.Errorf("%s has %d words, want about 200", page, n)
		}
		number := strings.TrimLeft(filepath.Base(page)[:4], "0")
		if !strings.HasPrefix(title, "# "+number+". ") || i > 0 && filepath.Base(pages[i-1])[:4] == filepath.Base(page)[:4] {
			t.Errorf("%s has the title %q; a decision has the number of its file, and no other has it", page, title)
		}
	}
}
