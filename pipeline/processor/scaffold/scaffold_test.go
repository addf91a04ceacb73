package scaffold_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/processor"
	"millrace/pipeline/processor/cases"
	"millrace/pipeline/processor/scaffold"
)

var program = harness.Program("processor", scaffold.Command, processor.LintCommand, cases.Command)

// run runs the program and returns its exit code and what it printed.
func run(args ...string) (code int, out string) {
	var b bytes.Buffer
	env := &cli.Env{Stdout: &b, Stderr: &b, Now: time.Now, Exit: func(int) {}}
	code = env.Main(args, program)
	return code, b.String()
}

// files returns the paths of all files below dir, relative to it, in lexical order.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			path, err = filepath.Rel(dir, path)
			names = append(names, filepath.ToSlash(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestInitWritesATopologyThatLintAndTestAccept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "devices")
	code, out := run("init", dir)
	if code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, out)
	}
	want := []string{"schemas/Device.avsc", "schemas/ReadingTaken.avsc", "topology.test.yaml", "topology.yaml"}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("init wrote %v, want %v", got, want)
	}
	for _, name := range want {
		harness.WantLines(t, out, "wrote "+filepath.Join(dir, filepath.FromSlash(name))+"\n")
	}
	harness.WantLines(t, out, "  cd "+dir+"\n", "  processor lint ", "  processor test ", "  sandbox run ")

	t.Chdir(dir)
	if code, out := run("lint", "--strict"); code != cli.ExitOK || out != "1 file: no faults, no warnings\n" {
		t.Errorf("lint --strict: exit code %d: %s", code, out)
	}
	if code, out := run("test"); code != cli.ExitOK || !strings.Contains(out, "all as expected") {
		t.Errorf("test: exit code %d: %s", code, out)
	}
}

func TestInitUsesTheCurrentDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	code, out := run("init")
	if code != cli.ExitOK || !strings.Contains(out, "wrote topology.yaml\n") || strings.Contains(out, "cd ") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

func TestInitOverwritesNothing(t *testing.T) {
	dir := t.TempDir()
	own := filepath.Join(dir, "topology.test.yaml")
	harness.Write(t, own, []byte("mine"))
	code, out := run("init", dir)
	if want := "processor: " + own + " exists; nothing was written: choose another directory\n"; code != cli.ExitFailure || out != want {
		t.Errorf("exit code %d, printed %q, want %q", code, out, want)
	}
	if got := files(t, dir); !slices.Equal(got, []string{"topology.test.yaml"}) {
		t.Errorf("a refused init left %v", got)
	}

	other := t.TempDir()
	if code, out := run("init", other); code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, out)
	}
	if code, out := run("init", other); code != cli.ExitFailure || !strings.Contains(out, "topology.yaml exist; nothing was written") {
		t.Errorf("a second init: exit code %d: %s", code, out)
	}
}

func TestInitReportsADirectoryThatIsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	harness.Write(t, file, nil)
	if code, out := run("init", file); code != cli.ExitFailure || !strings.Contains(out, file) {
		t.Errorf("exit code %d: %s", code, out)
	}
	if code, _ := run("init", "a", "b"); code != cli.ExitUsage {
		t.Errorf("two directories: exit code %d, want %d", code, cli.ExitUsage)
	}
}
