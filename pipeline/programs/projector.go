package programs

import (
	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/projector"
	"millrace/pipeline/projector/client"
	"millrace/pipeline/projector/rebuild"
	"millrace/pipeline/worker"
)

// Projector returns the command of the program that folds events into states.
func Projector(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "projector",
		Short: "Fold events into the states of aggregates, publish them and answer questions",
		Example: `  projector run --data-dir /var/lib/millrace
  projector list order --limit 3
  projector why order o-000001`,
	}
	cmd.AddCommand(projector.RunCommand(e), rebuild.RebuildCommand(e), rebuild.StatusCommand(e), rebuild.DiffCommand(e), rebuild.PromoteCommand(e), rebuild.RollbackCommand(e), rebuild.RetireCommand(e), rebuild.ForgetCommand(e), worker.HealthcheckCommand(e, worker.ProjectorListen))
	cmd.AddCommand(client.Commands(e)...)
	cmd.AddCommand(client.BlockedCommand(e), client.ReleaseCommand(e))
	return cmd
}
