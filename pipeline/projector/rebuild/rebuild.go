package rebuild

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/projector"
	"millrace/pipeline/projector/control"
)

func rebuildCommand(e *cli.Env) *cobra.Command {
	var o *operator
	force := false
	cmd := &cobra.Command{
		Use:   "rebuild NAME",
		Short: "Build a new version of a projection beside the live version",
		Long: `Records the topology's definition of the projection as its next version. All
workers begin to build that version from the start of the log, with its own states,
snapshots topic and consumer group, while the live version keeps answering. Then:

  projector status            show its progress
  projector diff NAME         compare it with the live version
  projector promote NAME      make it live
  projector rollback NAME     make the previous version live again
  projector retire NAME --version N
                              stop a version and delete its data

A version that is not live publishes its snapshots and has no other effects outside.

The new version keeps the projector's own records on the topic SNAPSHOTS.internal.
Earlier releases do not run such a version.`,
		Example: `  projector rebuild user -t topology.yaml`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.rebuild(cmd.Context(), args[0], force)
		},
	}
	o = newOperator(e, cmd.Flags())
	cmd.Flags().BoolVar(&force, "force", false, "also if a version with the same definition exists")
	e.CompleteProjection(cmd)
	return cmd
}

func (o *operator) rebuild(ctx context.Context, name string, force bool) error {
	w, state, pr, err := o.projection(ctx, name)
	if err != nil {
		return err
	}
	live := state.Live[pr.Name]
	numbers := state.Numbers(pr.Name)
	for _, n := range numbers {
		if have := state.Versions[pr.Name][n]; have.Hash() != pr.Fold.Hash() || force {
			continue
		}
		what := "exists already: `projector status` shows its progress"
		if n == live.Version {
			what = "is live: there is nothing to rebuild. --force builds the same again"
		}
		return fmt.Errorf("version %d of projection %s has the topology's definition and %s", n, pr.Name, what)
	}
	record, err := projector.NewVersion(o.env, o.remote.Topology, w.Topology, pr, state.NextVersion(pr.Name))
	if err != nil {
		return &cli.ExitError{Code: cli.ExitUsage, Err: err}
	}
	if err := o.write(ctx, w, control.Record{Key: control.VersionKey(pr.Name, record.Version), Value: record}); err != nil {
		return err
	}
	if o.json {
		return cli.PrintJSON(o.env.Stdout, record)
	}
	fmt.Fprintf(o.env.Stdout, "the workers build version %d of %s; version %d keeps answering\n", record.Version, pr.Name, live.Version)
	return nil
}
