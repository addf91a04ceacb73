// Package scaffold writes the files of a first topology: `processor init`.
//
// Start at [Command]. The files are embedded from files/ and written as they are.
package scaffold

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/private"
)

//go:embed files
var embedded embed.FS

// Command returns the command that writes a first topology, its schemas and its cases.
func Command(e *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a first topology with schemas and test cases",
		Long: `Writes a small topology into a directory, to start from: topology.yaml, the
schemas of one event type and of one state, and test cases. The directory is
created if it does not exist; the default is the current directory. Existing
files are never overwritten.

Exit code 0 if all files were written; 1 if one of them exists or cannot be
written; 2 if the command line is wrong.`,
		Example: `  processor init
  processor init devices`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			return initialize(e, dir)
		},
	}
}

// initialize writes the embedded files below dir and prints the next steps.
func initialize(e *cli.Env, dir string) error {
	files, err := fs.Sub(embedded, "files")
	if err != nil {
		return err
	}
	names, err := fileNames(files)
	if err != nil {
		return err
	}
	if err := checkAbsent(dir, names); err != nil {
		return err
	}
	p := cli.Printer{Out: e.Stdout}
	for _, name := range names {
		if err := writeFile(files, dir, name); err != nil {
			return err
		}
		p.Line("wrote %s", filepath.Join(dir, filepath.FromSlash(name)))
	}
	p.Line("")
	p.Line("Next steps:")
	p.Line("")
	if filepath.Clean(dir) != "." {
		p.Line("  cd %s", dir)
	}
	p.Line("  processor lint     check the topology")
	p.Line("  processor test     run its test cases")
	p.Line("  processor graph    draw it")
	p.Line("  sandbox run        start a broker and a schema registry to run it on")
	return p.Err
}

// fileNames returns the slash-separated paths of all files, in lexical order.
func fileNames(files fs.FS) (names []string, err error) {
	err = fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, name)
		}
		return err
	})
	return names, err
}

// checkAbsent returns an error that lists the files that exist already. It runs before the
// first write, to leave the directory unchanged in that case.
func checkAbsent(dir string, names []string) error {
	var found []string
	for _, name := range names {
		path := filepath.Join(dir, filepath.FromSlash(name))
		switch _, err := os.Lstat(path); {
		case err == nil:
			found = append(found, path)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	switch len(found) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%s exists; nothing was written: choose another directory", found[0])
	}
	return fmt.Errorf("%s exist; nothing was written: choose another directory", strings.Join(found, ", "))
}

// writeFile copies one file below dir, and fails if it exists.
func writeFile(files fs.FS, dir, name string) error {
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := private.Dir(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := private.Open(path, os.O_WRONLY|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}
