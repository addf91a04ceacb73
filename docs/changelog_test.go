package docs_test

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestChangedTextsAreWellFormed(t *testing.T) {
	text, err := os.ReadFile("changed-texts.tsv")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if lines[0] != "program\told\tnew" {
		t.Fatalf("the first line is %q", lines[0])
	}
	if !slices.IsSorted(lines[1:]) {
		t.Error("changed-texts.tsv is not sorted")
	}
	programs := []string{"all", "producer", "processor", "projector", "sandbox"}
	for i, line := range lines[1:] {
		fields := strings.Split(line, "\t")
		if len(fields) != 3 || fields[1] == "" || fields[2] == "" || fields[1] == fields[2] {
			t.Errorf("changed-texts.tsv:%d: %q: want a program, an old and a new text", i+2, line)
		} else if program, _, _ := strings.Cut(fields[0], " "); !slices.Contains(programs, program) {
			t.Errorf("changed-texts.tsv:%d: unknown program %q", i+2, fields[0])
		}
	}
}
