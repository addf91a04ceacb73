package programs

import (
	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/processor"
	"millrace/pipeline/processor/cases"
	"millrace/pipeline/processor/deploy"
	"millrace/pipeline/processor/graph"
	"millrace/pipeline/processor/scaffold"
	"millrace/pipeline/processor/verify"
	"millrace/pipeline/worker"
)

// Processor returns the root command of the program that runs pipelines.
func Processor(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "processor",
		Short: "Run the pipelines of a topology: filter, enrich and route events exactly once",
		Example: `  processor run
  processor run -t topology.yaml -b kafka:9092 -r http://registry:8085`,
	}
	explain, dryRun, compare := processor.ExplainCommand(e), deploy.DryRunCommand(e), verify.Command(e)
	for _, c := range []*cobra.Command{explain, dryRun, compare} {
		e.CompletePipelines(c)
	}
	stages := processor.StagesCommand(e)
	e.CompleteStageKinds(stages)
	cmd.AddCommand(processor.RunCommand(e), worker.HealthcheckCommand(e, worker.ProcessorListen))
	cmd.AddCommand(scaffold.Command(e), processor.LintCommand(e), explain, graph.Command(e), cases.Command(e), stages, processor.FunctionsCommand(e))
	cmd.AddCommand(dryRun, deploy.PlanCommand(e), deploy.ApplyCommand(e), compare, processor.TapCommand(e))
	return cmd
}
