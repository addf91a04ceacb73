package pipeline_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	maxLines = 80
	maxDepth = 4
)

// exempt are the functions that may be longer or deeper, with the reason.
var exempt = map[string]string{
	"pipeline/codec/program.go:walk": "the walk over Avro bytes: one flat switch over op codes in one loop, measured",
}

// TestFunctionsAreShort keeps functions to a size that a reader can hold: 80 lines,
// and four levels of nesting.
func TestFunctionsAreShort(t *testing.T) {
	for _, f := range sources(t) {
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			name := f.path + ":" + fn.Name.Name
			lines := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1
			depth := nesting(fn.Body)
			if _, ok := exempt[name]; ok {
				continue
			}
			if lines > maxLines {
				t.Errorf("%s has %d lines; at most %d: split it by the steps that it performs", name, lines, maxLines)
			}
			if depth > maxDepth {
				t.Errorf("%s is nested %d levels deep; at most %d: return early, or split it", name, depth, maxDepth)
			}
		}
	}
}

// nesting returns the number of blocks of control flow and function literals
// around the innermost statement. The branches of an else-if chain count once.
func nesting(block ast.Node) (deepest int) {
	ast.Inspect(block, func(n ast.Node) bool {
		if n == nil || n == block {
			return true
		}
		var inner []ast.Node
		switch s := n.(type) {
		case *ast.IfStmt:
			inner = branches(s)
		case *ast.ForStmt:
			inner = []ast.Node{s.Body}
		case *ast.RangeStmt:
			inner = []ast.Node{s.Body}
		case *ast.SwitchStmt:
			inner = []ast.Node{s.Body}
		case *ast.TypeSwitchStmt:
			inner = []ast.Node{s.Body}
		case *ast.SelectStmt:
			inner = []ast.Node{s.Body}
		case *ast.FuncLit:
			inner = []ast.Node{s.Body}
		default:
			return true
		}
		for _, b := range inner {
			deepest = max(deepest, 1+nesting(b))
		}
		return false
	})
	return deepest
}

func branches(s *ast.IfStmt) (out []ast.Node) {
	for {
		out = append(out, s.Body)
		next, ok := s.Else.(*ast.IfStmt)
		if !ok {
			if s.Else != nil {
				out = append(out, s.Else)
			}
			return out
		}
		s = next
	}
}

func TestNestingCountsBlocks(t *testing.T) {
	for text, want := range map[string]int{
		"":         0,
		"if a { }": 1,
		"if a { } else if b { for { } } else { }":  2,
		"switch { case a: if b { } }":              2,
		"go func() { for range x { if a { } } }()": 3,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "", "package p\nfunc f() {"+text+"}", 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := nesting(file.Decls[0].(*ast.FuncDecl).Body); got != want {
			t.Errorf("%q is nested %d deep, want %d", text, got, want)
		}
	}
}

// maxPackage bounds the non-test lines of a package.
var maxPackage = map[string]int{"pipeline/expr": 6000, "pipeline/kafka": 6000}

func TestPackagesAreSmall(t *testing.T) {
	lines := map[string]int{}
	for _, f := range sources(t) {
		lines[f.pkg()] += f.fset.Position(f.End()).Line
	}
	for pkg, n := range lines {
		most, ok := maxPackage[pkg]
		if !ok {
			most = 5000
		}
		if n > most {
			t.Errorf("%s has %d lines; at most %d: split it by owner", pkg, n, most)
		}
	}
}

// TestProseAvoidsPhrases refuses the phrases of prose.txt in Go files and documents.
func TestProseAvoidsPhrases(t *testing.T) {
	type rule struct {
		*regexp.Regexp
		better string
	}
	var rules []rule
	config, err := os.Open("prose.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer config.Close()
	for in := bufio.NewScanner(config); in.Scan(); {
		line := in.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		pattern, better, ok := strings.Cut(line, " -> ")
		if !ok {
			t.Fatalf("prose.txt: %q has no \" -> \"", line)
		}
		rules = append(rules, rule{regexp.MustCompile(`(?i)\b(?:` + pattern + `)\b`), better})
	}
	if len(rules) < 20 {
		t.Fatalf("prose.txt has only %d phrases", len(rules))
	}
	// The doc strings of a schema that registries have: another text is another version.
	except := map[string]bool{"../pipeline/fold/snapshot.go": true}
	files := 0
	err = filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == "build" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
				return filepath.SkipDir
			}
			return nil
		}
		switch ext := filepath.Ext(name); {
		case except[filepath.ToSlash(name)]:
			return nil
		case ext != ".go" && ext != ".md" && ext != ".yaml" && ext != ".yml":
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files++
		for i, line := range strings.Split(string(text), "\n") {
			for _, r := range rules {
				if found := r.FindString(line); found != "" {
					t.Errorf("%s:%d: %q: write %s", strings.TrimPrefix(filepath.ToSlash(name), "../"), i+1, found, r.better)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 100 {
		t.Fatalf("only %d files were read: is the test run in its directory?", files)
	}
}
