package programs

import (
	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/projector"
	"millrace/pipeline/projector/client"
	"millrace/pipeline/projector/rebuild"
	"millrace/pipeline/worker"
)

// Projector returns the root command of the program that folds events into the states of
// aggregates.
func Projector(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "projector",
		Short: "Fold events into the states of aggregates, publish the states and answer queries",
		Example: `  projector run --data-dir /var/lib/millrace
  projector list order --limit 3
  projector why order o-000001`,
	}
	cmd.AddCommand(projector.RunCommand(e), worker.HealthcheckCommand(e, worker.ProjectorListen))
	cmd.AddCommand(rebuild.Commands(e)...)
	cmd.AddCommand(client.Commands(e)...)
	return cmd
}
