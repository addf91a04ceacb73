package programs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/harness"
	"millrace/pipeline/producer"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox/demo"
)

// binaries are the programs that the test binary can be: it is the program by whose name it
// is called.
var binaries = map[string]func(*cli.Env) *cobra.Command{
	"producer":  producer.Command,
	"processor": programs.Processor,
	"projector": programs.Projector,
	"sandbox":   demo.Command,
}

func TestMain(m *testing.M) {
	commands := map[string]func(){}
	for name, program := range binaries {
		commands[name] = func() { os.Exit(cli.NewEnv().Main(os.Args[1:], program)) }
	}
	testscript.Main(m, commands)
}

// TestScripts runs testdata/script/*.txtar. Each script calls the programs in a directory with
// the files of the script. $EXAMPLES is the directory of the examples.
func TestScripts(t *testing.T) {
	examples, err := filepath.Abs(harness.RepoFile("examples"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			expectPrivate(t, env)
			env.Setenv("EXAMPLES", examples)
			return nil
		},
	})
}

// programDir returns a directory with the programs, as links to the test binary.
func programDir(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name := range binaries {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
