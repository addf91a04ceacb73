package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// constants returns the texts of the constants in the code that an expression finds.
func constants(t *testing.T, dir string, expr *regexp.Regexp, least int) (all []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join("..", dir), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		for _, m := range expr.FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < least {
		t.Fatalf("found only the constants %v in %s", all, dir)
	}
	return all
}

// mentions checks that a document has each text in backquotes.
func mentions(t *testing.T, document string, texts []string) {
	t.Helper()
	page, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if !strings.Contains(string(page), "`"+text+"`") {
			t.Errorf("%s does not mention `%s`", document, text)
		}
	}
}

func TestEveryReasonIsDocumented(t *testing.T) {
	mentions(t, "errors.md", constants(t, "pipeline", regexp.MustCompile(`(?m)^(?:const|\t)\s*[rR]eason\w+\s+(?:pipeline\.)?Reason\s*=\s*"(\w+)"`), 20))
	mentions(t, "errors.md", constants(t, "pipeline/keyring", regexp.MustCompile(`(?m)^\thidden\w+\s*=\s*"(\w+)"`), 4))
}

func TestEveryOutcomeIsDocumented(t *testing.T) {
	all := constants(t, "pipeline/projector/query", regexp.MustCompile(`(?m)^\t\w+ OutcomeState = "(\w+)"`), 8)
	page, err := os.ReadFile("asking.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, outcome := range all {
		if !regexp.MustCompile("`(after_event: )?" + outcome + "`").Match(page) {
			t.Errorf("asking.md does not mention the outcome %s", outcome)
		}
	}
}

func TestEveryHeaderOfDeadLettersIsDocumented(t *testing.T) {
	mentions(t, "events.md", constants(t, "pipeline/deadletter", regexp.MustCompile(`"(dlq\.[a-z.]+)"`), 10))
}

// Every path of the projector's API is in http.md.
func TestEveryPathIsDocumented(t *testing.T) {
	text, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("http.md")
	if err != nil {
		t.Fatal(err)
	}
	paths := regexp.MustCompile(`(?m)^    "(/v1/[^"]*)": \{$`).FindAllStringSubmatch(string(text), -1)
	if len(paths) < 10 {
		t.Fatalf("openapi.json has %d paths", len(paths))
	}
	for _, p := range paths {
		if !strings.Contains(string(page), " "+p[1]+"` |") {
			t.Errorf("http.md does not list %s", p[1])
		}
	}
}
