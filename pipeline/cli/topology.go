package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"millrace/pipeline/topology"
)

// maxNamedFile is the largest file that a topology may name, in bytes.
const maxNamedFile = 256 << 20

// Load reads the topology and checks it. What is wrong with it is shown as it
// is, and ends the program with ExitUsage.
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
		return nil, &ExitError{ExitUsage, fmt.Errorf("the topology is not right\n%w", err)}
	}
	return t, nil
}

// readNamed reads a file that the topology names, beside it.
func (f *TopologyFlags) readNamed(path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(f.File), path)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", path)
	case info.Size() > maxNamedFile:
		return nil, fmt.Errorf("%s has %d bytes: at most %d are read", path, info.Size(), maxNamedFile)
	}
	return os.ReadFile(path)
}
