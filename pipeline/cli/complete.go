package cli

import (
	"cmp"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"millrace/pipeline/kafka/properties"
	"millrace/pipeline/topology"
)

// completeFlags adds shell completion of topology names to the flags of a command: the
// values of --pipeline, --stage and --topic. The flags of all commands keep to these names.
func (e *Env) completeFlags(cmd *cobra.Command) {
	for flag, names := range map[string]func(*topology.Topology) []string{
		"pipeline": pipelineNames,
		"stage":    stageNames,
		"topic":    topicNames,
	} {
		if cmd.Flags().Lookup(flag) == nil {
			continue
		}
		// The only errors are a missing flag and one that has a function already.
		_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return e.topologyNames(cmd, names), cobra.ShellCompDirectiveNoFileComp
		})
	}
}

// CompletePipelines adds shell completion of pipelines to the arguments of a command. Each
// pipeline can be an argument once.
func (e *Env) CompletePipelines(cmd *cobra.Command) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		names := slices.DeleteFunc(e.topologyNames(cmd, pipelineNames), func(name string) bool { return slices.Contains(args, name) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// CompleteProjection adds shell completion of projections to the first argument of a
// command.
func (e *Env) CompleteProjection(cmd *cobra.Command) {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return e.topologyNames(cmd, projectionNames), cobra.ShellCompDirectiveNoFileComp
	}
}

// CompleteStageKinds adds shell completion of the available kinds of stages to the first
// argument of a command.
func (e *Env) CompleteStageKinds(cmd *cobra.Command) {
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return slices.Sorted(maps.Keys(e.StageKinds())), cobra.ShellCompDirectiveNoFileComp
	}
}

// topologyNames reads names from the topology of a command: the one of --topology, of its
// environment variable, or the default. It returns nothing if the topology cannot be loaded.
// The commands that query a running projector have no such flag.
func (e *Env) topologyNames(cmd *cobra.Command, names func(*topology.Topology) []string) []string {
	value := func(flag, otherwise string) string {
		f := cmd.Flags().Lookup(flag)
		if f != nil && f.Changed {
			return f.Value.String()
		}
		return cmp.Or(e.Getenv(properties.EnvName(flag)), otherwise)
	}
	f := TopologyFlags{File: value("topology", defaultTopology), SchemaDir: value("schemas", "")}
	t, err := f.Load(e)
	if err != nil {
		return nil
	}
	return names(t)
}

func pipelineNames(t *topology.Topology) (names []string) {
	for _, p := range t.Pipelines {
		names = append(names, p.Name)
	}
	return names
}

func projectionNames(t *topology.Topology) (names []string) {
	for _, p := range t.Projections {
		names = append(names, p.Name)
	}
	return names
}

func topicNames(t *topology.Topology) (names []string) {
	for _, topic := range t.Topics {
		names = append(names, topic.Name)
	}
	return names
}

// stageNames returns the names of all stages, sorted and without duplicates: pipelines can
// have stages of the same name.
func stageNames(t *topology.Topology) (names []string) {
	for _, p := range t.Pipelines {
		for _, s := range p.Stages {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
