package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"millrace/pipeline/stage"
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
		Stages:    stage.Builtin(),
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

// target returns the topology, and the topic of it to send to.
func (p *producer) target() (t *topology.Topology, to *topology.Topic, err error) {
	t, err = p.topology.Load(p.env)
	if err != nil {
		return nil, nil, err
	}
	// Events go in where nobody else writes.
	written := map[string]bool{}
	for _, pl := range t.Pipelines {
		for _, to := range pl.Writes() {
			written[to.Name] = true
		}
	}
	var only *topology.Topic
	var names []string
	for _, candidate := range t.Topics {
		if len(candidate.Types) == 0 || candidate.Snapshots != nil {
			continue
		}
		if candidate.Name == p.topic {
			return t, candidate, nil
		}
		if !written[candidate.Name] {
			names = append(names, candidate.Name)
			only = candidate
		}
	}
	switch {
	case p.topic != "":
		return nil, nil, Usagef("--topic: %s has no topic %s with event types; it has %s", p.topology.File, p.topic, strings.Join(names, ", "))
	case len(names) == 0:
		return nil, nil, &ExitError{ExitUsage, fmt.Errorf("%s has no topic with event types: there is nowhere to send events", p.topology.File)}
	case len(names) > 1:
		return nil, nil, Usagef("%s has several topics with event types: choose one with --topic: %s", p.topology.File, strings.Join(names, ", "))
	}
	return t, only, nil
}
