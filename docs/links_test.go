package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/pipeline/cli"
)

// documents returns the paths of all documents, relative to this directory.
func documents(t *testing.T) (all []string) {
	t.Helper()
	for _, pattern := range []string{"../*.md", "*.md", "decisions/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) < 60 {
		t.Fatalf("found only the documents %v", all)
	}
	return all
}

func TestLinksLeadSomewhere(t *testing.T) {
	for _, document := range documents(t) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`).FindAllStringSubmatch(string(text), -1) {
			target := document
			if link[1] != "" {
				target = filepath.Join(filepath.Dir(document), filepath.FromSlash(link[1]))
			}
			page, err := os.ReadFile(target)
			if err != nil {
				if info, statErr := os.Stat(target); statErr == nil && info.IsDir() && link[2] == "" {
					continue
				}
				t.Errorf("%s: %v", document, err)
			} else if link[2] != "" && !slices.Contains(anchors(string(page)), link[2]) {
				t.Errorf("%s: %s has no heading #%s", document, target, link[2])
			}
		}
	}
}

// anchors returns the anchors of the headings of a page.
func anchors(page string) (out []string) {
	for _, h := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(page, -1) {
		h := strings.ToLower(regexp.MustCompile(`[^\w -]`).ReplaceAllString(h[1], ""))
		out = append(out, strings.ReplaceAll(h, " ", "-"))
	}
	return out
}

// Commands that no test runs exist at least, with their flags.
func TestCommandsInDocumentsExist(t *testing.T) {
	flags := map[string][]string{} // by "program command"
	for name, program := range binaries {
		for _, command := range program(&cli.Env{}).Commands() {
			key := name + " " + command.Name()
			collect := func(f *pflag.Flag) { flags[key] = append(flags[key], "--"+f.Name) }
			flags[key] = append(flags[key], "--help")
			command.Flags().VisitAll(collect)
			command.VisitParents(func(parent *cobra.Command) { parent.PersistentFlags().VisitAll(collect) })
		}
	}
	expr := regexp.MustCompile("(?m)(?:^|[`|/]) *((?:producer|processor|projector|sandbox) [a-z][a-z-]*)([^`\n|]*)")
	flag := regexp.MustCompile(`(?:^|\s)(--[a-z-]+)`)
	for _, document := range documents(t) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		var code strings.Builder // only what is marked as code
		for _, b := range blocks(string(text)) {
			if b.lang == "sh" || b.lang == "console" {
				code.WriteString(strings.ReplaceAll("\n"+strings.Join(b.lines, "\n"), "\n$ ", "\n") + "\n")
			}
		}
		for _, m := range regexp.MustCompile("`([^`\n]+)`").FindAllString(string(text), -1) {
			code.WriteString(m + "\n")
		}
		for _, m := range expr.FindAllStringSubmatch(code.String(), -1) {
			have, ok := flags[m[1]]
			if !ok {
				t.Errorf("%s: there is no command %q", document, m[1])
				continue
			}
			for _, f := range flag.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(have, f[1]) {
					t.Errorf("%s: %s has no flag %s", document, m[1], f[1])
				}
			}
		}
	}
}
