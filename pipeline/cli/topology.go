package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"millrace/pipeline/topology"
	"millrace/schemas"
)

// defaultTopology is the default of --topology.
const defaultTopology = "topology.yaml"

// maxNamedFile is the largest size of a file that a topology can name, in bytes.
const maxNamedFile = 256 << 20

// TopologyFlags are the flags that name the topology and its schemas.
type TopologyFlags struct {
	File      string // path of the topology file
	SchemaDir string // directory of .avsc files; "" means the default, see [TopologyFlags.Schemas]
}

// TopologyFlags adds --topology and --schemas.
func (e *Env) TopologyFlags(flags *pflag.FlagSet) *TopologyFlags {
	f := &TopologyFlags{}
	flags.StringVarP(&f.File, "topology", "t", defaultTopology, "topology `file`")
	flags.StringVar(&f.SchemaDir, "schemas", "", "`directory` of .avsc files (default: schemas beside the topology, else those built into the program)")
	e.BindEnv(flags, "topology", "schemas")
	return f
}

// Schemas returns the .avsc files, and their place for messages. The default is the
// directory schemas beside the topology, or, if that does not exist, the schemas built into
// the program.
func (f *TopologyFlags) Schemas() (files fs.FS, from string, err error) {
	dir := f.SchemaDir
	if dir == "" {
		dir = filepath.Join(filepath.Dir(f.File), "schemas")
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return schemas.FS, "the schemas built into the program", nil
		}
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return nil, "", &ExitError{ExitUsage, fmt.Errorf("--schemas: %w", err)}
	case !info.IsDir():
		return nil, "", &ExitError{ExitUsage, fmt.Errorf("--schemas: %s is not a directory", dir)}
	}
	return os.DirFS(dir), dir, nil
}

// Load reads and checks the topology. An error ends the program with ExitUsage. If the
// topology has faults, the text of the error shows each with its line.
func (f *TopologyFlags) Load(e *Env) (*topology.Topology, error) {
	text, err := os.ReadFile(f.File)
	if errors.Is(err, os.ErrNotExist) {
		return nil, Usagef("there is no topology %s: name one with --topology", f.File)
	}
	if err != nil {
		return nil, &ExitError{ExitUsage, err}
	}
	files, from, err := f.Schemas()
	if err != nil {
		return nil, err
	}
	t, err := topology.Load(topology.Source{Name: f.File, Text: text}, topology.Options{
		Schemas: files, SchemasName: from,
		LookupEnv: e.LookupEnv,
		Stages:    e.StageKinds(),
		Clock:     e.Now,
		File:      f.readNamed,
	})
	if err != nil {
		return nil, &ExitError{ExitUsage, fmt.Errorf("the topology has faults\n%w", err)}
	}
	return t, nil
}

// readNamed reads a file that the topology names. A relative path is relative to the
// topology's directory.
func (f *TopologyFlags) readNamed(path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(f.File), path)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Size() > maxNamedFile:
		return nil, fmt.Errorf("%s has %d bytes, more than the limit of %d", path, info.Size(), maxNamedFile)
	}
	return os.ReadFile(path)
}
