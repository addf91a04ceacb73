package worker

import (
	"fmt"
	"slices"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// SelectPipelines returns the pipelines with these names, or all pipelines if only is empty. file is
// the path of the topology, for errors.
func SelectPipelines(t *topology.Topology, file string, only []string) ([]*topology.Pipeline, error) {
	if len(t.Pipelines) == 0 {
		return nil, &cli.ExitError{Code: cli.ExitUsage, Err: fmt.Errorf("%s has no pipelines: there is nothing to run", file)}
	}
	if len(only) == 0 {
		return t.Pipelines, nil
	}
	var names []string
	for _, pl := range t.Pipelines {
		names = append(names, pl.Name)
	}
	var out []*topology.Pipeline
	for _, name := range only {
		i := slices.Index(names, name)
		if i < 0 {
			return nil, cli.Usagef("--pipeline: there is no pipeline %q in %s; it has %v", name, file, names)
		}
		out = append(out, t.Pipelines[i])
	}
	return out, nil
}
